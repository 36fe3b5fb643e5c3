"""What the registry remembers of backups, and what is said of their age against what was promised."""

from __future__ import annotations

import json
import typing as t
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from fake_etcd import FakeCluster

from ansible_collections.shannon.resilience.plugins.module_utils import backup_records, status_table
from ansible_collections.shannon.resilience.plugins.module_utils.backup_records import BackupRecords, Run, judge, stamp
from ansible_collections.shannon.resilience.plugins.module_utils.etcd import EtcdClient

NOW = datetime(2026, 11, 28, 12, 0, 0, tzinfo=timezone.utc)
OBJECTIVES = {"redis": {"rpo": 7200, "verified": 180000}, "postgres": {"rpo": 90000}}


@pytest.fixture
def records() -> t.Iterator[BackupRecords]:
    with FakeCluster(3) as cluster:
        yield BackupRecords(EtcdClient(cluster.endpoints, timeout=0.5))


def run_of(kind: str = "redis", region: str = "b", hours: float = 1.0, **changes: t.Any) -> Run:
    at = stamp(NOW - timedelta(hours=hours))
    given = {"kind": kind, "cell": "main", "region": region, "host": f"{region}3", "started_at": at, "ended_at": at,
             "ok": True, "id": f"{kind}-{region}-{hours}", "regions": [region], "bytes": 1000}  # fmt: skip
    return Run(**{**given, **changes})


def line_of(records: BackupRecords, kind: str = "redis", region: str = "b") -> dict[str, t.Any]:
    lines = judge(records.everything(), OBJECTIVES, ["main"], ["a", "b"], NOW)
    return next(line for line in lines if (line["kind"], line["region"]) == (kind, region))


def test_a_failed_run_goes_on_naming_the_last_good_one(records: BackupRecords) -> None:
    records.put(run_of(hours=3))
    records.put(run_of(hours=1, ok=False, error="the disk is full", id=""))
    found = records.get("redis", "main", "b")
    assert found and not found.ok and found.good["id"] == "redis-b-3"
    line = line_of(records)
    assert (line["state"], line["age"], line["error"]) == ("failed", 3 * 3600, "the disk is full")


def test_an_old_backup_is_overdue_and_a_fresh_one_is_not(records: BackupRecords) -> None:
    records.put(run_of(hours=1.9))
    records.verified(run_of(hours=1.8, type="verify"))
    assert line_of(records)["state"] == "good"
    records.put(run_of(hours=2.1))
    assert line_of(records)["state"] == "overdue"


def test_a_copy_from_the_other_region_counts_only_where_it_was_stored(records: BackupRecords) -> None:
    records.put(run_of(region="b", hours=1, regions=["a", "b"]))
    assert line_of(records, region="a")["age"] == 3600
    records.put(run_of(region="b", hours=0.5, regions=["b"]))
    assert line_of(records, region="a")["state"] == "missing"


def test_what_was_never_restored_for_a_test_says_so(records: BackupRecords) -> None:
    records.put(run_of(hours=1))
    assert line_of(records)["state"] == "unverified"
    records.verified(run_of(hours=0.5, ok=False, differences=["digest is 1, was 2"]))
    line = line_of(records)
    assert (line["state"], line["verified_ok"], line["error"]) == ("failed", False, "digest is 1, was 2")


def test_without_any_backup_each_kind_is_missed(records: BackupRecords) -> None:
    lines = judge(records.everything(), OBJECTIVES, ["main"], ["a", "b"], NOW)
    assert {line["state"] for line in lines} == {"missing"}
    assert len(backup_records.warnings(lines)) == len(lines) == 2 * len(backup_records.KINDS)


def test_a_record_that_somebody_wrote_by_hand_is_a_failed_run(records: BackupRecords) -> None:
    records.client.put(f"{backup_records.BACKUPS}main/redis/b", "{")
    line = line_of(records)
    assert line["ok"] is False
    assert "delete it" in records.everything()["main/redis/b"]["run"]["error"]


def test_a_record_stays_small(records: BackupRecords) -> None:
    big = replace(run_of(), summary={"x": "y" * 100000}, differences=["z" * 100] * 1000, error="e" * 100000)
    assert len(big.stored()) < 12000 and json.loads(big.stored())["kind"] == "redis"


def test_the_status_shows_them_within_its_width(records: BackupRecords) -> None:
    records.put(run_of(hours=30, bytes=5_000_000))
    lines = judge(records.everything(), OBJECTIVES, ["main"], ["a", "b"], NOW)
    backups = {"enabled": True, "error": "", "kinds": lines, "warnings": backup_records.warnings(lines)}
    info = {"cells": {}, "backups": backups, "registry": {"members": [], "quorum": True, "leader": "a1"},
            "certificate": None, "probed_from": "w1", "at": "now", "seconds": 0.1}  # fmt: skip
    text = status_table.render(info)
    assert all(len(line) <= status_table.WIDTH for line in text.splitlines())
    assert "!overdue" in text and "! backup of redis of cell main in region b is overdue: 30.0 h old" in text
    none = {"enabled": False, "error": "", "kinds": [], "warnings": []}
    assert "backups: none" in status_table.render({**info, "backups": none})


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, "-"), (5, "5 s"), (600, "10 min"), (9000, "2.5 h"), (259200, "3.0 d")]
)
def test_ages_in_words(seconds: float | None, words: str) -> None:
    assert backup_records.age_in_words(seconds) == words
