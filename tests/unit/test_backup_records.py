"""What the registry remembers of backups, and what is said of their age against what was promised."""

from __future__ import annotations

import json
import typing as t
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from fake_etcd import FakeCluster

from ansible_collections.shannon.resilience.plugins.module_utils import backup_records, status_table
from ansible_collections.shannon.resilience.plugins.module_utils.backup_records import (
    WAL,
    BackupRecords,
    Look,
    Run,
    judge,
    stamp,
)
from ansible_collections.shannon.resilience.plugins.module_utils.etcd import EtcdClient

NOW = datetime(2026, 11, 28, 12, 0, 0, tzinfo=timezone.utc)
OBJECTIVES = {"redis": {"rpo": 7200, "verified": 180000}, "postgres": {"rpo": 90000}, "wal": {"rpo": 120}}


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
    assert len(backup_records.warnings(lines)) == len(lines) == 2 * (len(backup_records.KINDS) + 1)
    assert [line["kind"] for line in lines][:6] == ["postgres", "postgres", "wal", "wal", "dump", "dump"]
    assert "archive of WAL of cell main in region b: nobody has looked yet" in backup_records.warnings(lines)


def look_of(minutes: float = 1.0, region: str = "b", **changes: t.Any) -> Look:
    """What a repository's host saw so long ago."""
    at = stamp(NOW - timedelta(minutes=minutes))
    given = {"cell": "main", "region": region, "host": f"{region}3", "at": at, "known_at": at, "age": 30.0,
             "behind": 5000, "segment": "0000000100000000000000A1"}  # fmt: skip
    return Look(**{**given, **changes})


def archive_of(records: BackupRecords, region: str = "b") -> tuple[dict[str, t.Any], list[str]]:
    """The line of the archive, and what is said of it."""
    line = line_of(records, WAL, region)
    return line, backup_records.warnings([line])


def test_an_archive_that_keeps_up_is_good_until_the_next_look(records: BackupRecords) -> None:
    records.looked(look_of(minutes=14))
    line, said = archive_of(records)
    assert (line["state"], line["age"], line["rpo"], line["behind"], line["overdue"]) == ("good", 30, 120, 5000, False)
    assert (line["ok"], line["id"], said) == (True, "0000000100000000000000A1", [])
    assert archive_of(records, "a")[0]["state"] == "missing"  # each repository stands for itself


def test_an_archive_that_lacks_more_than_was_promised_is_overdue(records: BackupRecords) -> None:
    records.looked(look_of(age=120.0))
    assert archive_of(records)[0]["state"] == "good"
    records.looked(look_of(age=600.0))
    line, said = archive_of(records)
    assert (line["state"], line["overdue"], line["ok"]) == ("overdue", True, True)
    assert said == ["archive of WAL of cell main in region b is overdue: it lacks the last 10 min, 2 min promised"]


def test_an_archive_that_nobody_looks_at_any_more_grows_old(records: BackupRecords) -> None:
    records.looked(look_of(minutes=20))
    line, said = archive_of(records)
    assert (line["state"], line["age"]) == ("overdue", 20 * 60 + 30)
    assert said[0].endswith("20 min, 2 min promised (b3 has not looked for 20 min)")


def test_an_archive_that_could_not_be_looked_at_says_why_and_what_was_seen_last(records: BackupRecords) -> None:
    records.looked(look_of(minutes=5))
    failed = look_of(minutes=1, age=None, behind=None, segment="", error="Is it the passphrase?")
    assert records.looked(failed).age == 30
    line, said = archive_of(records)
    assert (line["state"], line["age"], line["ok"]) == ("failed", 30, False)
    assert said == ["archive of WAL of cell main in region b could not be looked at: Is it the passphrase?"]
    for minutes in (20, 16):  # what was seen by the last look that could is remembered by all that could not
        records.looked(look_of(minutes=minutes) if minutes == 20 else failed)
    assert archive_of(records)[0]["age"] == 20 * 60 + 30
    records.looked(look_of())
    assert archive_of(records)[0]["state"] == "good"


def test_an_archive_without_a_backup_is_of_no_use(records: BackupRecords) -> None:
    records.looked(look_of(age=None, behind=None, segment=""))
    line, said = archive_of(records)
    assert (line["state"], line["age"]) == ("missing", None)
    assert said == ["archive of WAL of cell main in region b: no backup that it goes on from"]


def test_a_look_that_somebody_wrote_by_hand_failed(records: BackupRecords) -> None:
    records.client.put(look_of().key(), "{")
    line, said = archive_of(records)
    assert line["state"] == "failed" and "delete it" in said[0]
    records.looked(look_of(error="no answer"))  # and does not keep the next one from being written
    assert archive_of(records)[1] == ["archive of WAL of cell main in region b could not be looked at: no answer"]
    assert len(look_of(error="e" * 100000).error) == 100000
    records.looked(look_of(error="e" * 100000))
    assert len(str(records.client.get(look_of().key()))) < 4000


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
    records.looked(look_of(age=41.2))
    records.looked(look_of(region="a", age=300.0))
    lines = judge(records.everything(), OBJECTIVES, ["main"], ["a", "b"], NOW)
    backups = {"enabled": True, "error": "", "kinds": lines, "warnings": backup_records.warnings(lines)}
    info = {"cells": {}, "backups": backups, "registry": {"members": [], "quorum": True, "leader": "a1"},
            "certificate": None, "probed_from": "w1", "at": "now", "seconds": 0.1}  # fmt: skip
    text = status_table.render(info)
    assert all(len(line) <= status_table.WIDTH for line in text.splitlines())
    assert "!overdue" in text and "! backup of redis of cell main in region b is overdue: 30.0 h old" in text
    rows = [line.split() for line in text.splitlines() if line.startswith("wal ")]
    assert "! archive of WAL of cell main in region a is overdue: it lacks the last 5 min, 2 min promised" in text
    assert rows == [
        ["wal", "main", "a", "!overdue", "5", "min", "2", "min", "-", "-"],
        ["wal", "main", "b", "good", "41", "s", "2", "min", "-", "-"],
    ]
    none = {"enabled": False, "error": "", "kinds": [], "warnings": []}
    assert "backups: none" in status_table.render({**info, "backups": none})


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, "-"), (5, "5 s"), (600, "10 min"), (9000, "2.5 h"), (259200, "3.0 d")]
)
def test_ages_in_words(seconds: float | None, words: str) -> None:
    assert backup_records.age_in_words(seconds) == words
