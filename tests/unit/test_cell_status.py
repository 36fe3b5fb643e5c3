"""What each endpoint said becomes one statement per cell."""

from __future__ import annotations

import copy
import typing as t
from datetime import datetime, timedelta, timezone

import pytest

from ansible_collections.shannon.resilience.plugins.module_utils.cell_status import Observations, summarise
from ansible_collections.shannon.resilience.plugins.module_utils.errors import EndpointError
from ansible_collections.shannon.resilience.plugins.module_utils.status_table import WIDTH, human_bytes, render

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=timezone.utc)
DATA = {"a": ["a1", "a2", "a3"], "b": ["b1", "b2", "b3"]}
TOPOLOGY = {
    "cells": [{"name": "main", "home": "a", "epoch": 0, "state": "new"}],
    "components": {"postgres": DATA, "redis": DATA, "qdrant": DATA},
}
DEAD = EndpointError("192.0.2.1", 8008, "an answer", "no answer in time", "Look at the host.")


def patroni(role: str, location: int = 1000, timeline: int = 1, **more: t.Any) -> dict[str, t.Any]:
    if role == "primary":
        wal = {"location": location}
        return {"state": "running", "role": role, "timeline": timeline, "xlog": wal, **more}
    wal = {"replayed_location": location, "replayed_timestamp": str(NOW - timedelta(seconds=4))}
    return {
        "state": "running", "role": role, "timeline": timeline, "xlog": wal, "replication_state": "streaming", **more,
    }  # fmt: skip


def redis(role: str, offset: int = 500, link: str = "up") -> dict[str, t.Any]:
    return {"role": role, "offset": offset, "link": link, "primary_address": "192.0.2.1"}


@pytest.fixture
def seen() -> Observations:
    roles = {"a1": "primary", "b1": "standby_leader"}
    return Observations(
        records={"main": {"home": "a", "epoch": 1, "state": "active"}},
        registry={"a1": {"leader": True}, "b1": {"leader": False}, "w1": {"leader": False}},
        patroni={("main", h): patroni(roles.get(h, "replica")) for hosts in DATA.values() for h in hosts},
        redis={("main", h): redis("primary" if h == "a1" else "replica") for hosts in DATA.values() for h in hosts},
        peers={
            (region, h): {"peer_id": number, "leader": 0, "peers": 3}
            for region, hosts in DATA.items()
            for number, h in enumerate(hosts)
        },
        collections={r: {"cases": {"points": 5, "shards": 2, "replicas": 4, "replicas_active": 4}} for r in DATA},
        certificates={"a1": NOW + timedelta(days=300), "b3": NOW + timedelta(days=20)},
        at=NOW,
        seconds=0.4,
        probed_from="w1",
    )


def member(info: dict[str, t.Any], component: str, host: str) -> dict[str, t.Any]:
    return next(
        found
        for part in info["cells"]["main"][component].values()
        for found in part["members"]
        if found["name"] == host
    )


def test_a_healthy_cell_has_no_problem(seen: Observations) -> None:
    cell = summarise(TOPOLOGY, seen)["cells"]["main"]
    assert cell["problems"] == []
    assert cell["healthy"]
    assert (cell["home"], cell["epoch"], cell["state"]) == ("a", 1, "active")


def test_an_archive_of_wal_that_is_overdue_is_a_warning_and_no_problem_of_the_cell(seen: Observations) -> None:
    topology = {**TOPOLOGY, "components": {**TOPOLOGY["components"], "backup_repository": {"a": ["a3"], "b": ["b3"]}}}
    look = {"age": 400.0, "known_at": NOW.isoformat(), "behind": 9, "segment": "x", "error": "", "host": "b3"}
    seen.backups = {"main/postgres/b": {"archive": look}, "main/postgres/a": {"archive": {**look, "age": 30.0}}}
    info = summarise(topology, seen, {"wal": {"rpo": 120}})
    lines = {line["region"]: line for line in info["backups"]["kinds"] if line["kind"] == "wal"}
    assert (lines["a"]["state"], lines["b"]["state"], lines["b"]["age"]) == ("good", "overdue", 400.0)
    said = [one for one in info["backups"]["warnings"] if "archive of WAL" in one]
    assert len(said) == 1 and "region b is overdue" in said[0]
    assert info["cells"]["main"]["healthy"]
    assert said[0] in render(info)


def test_lag_is_in_bytes_and_seconds(seen: Observations) -> None:
    seen.patroni["main", "b2"] = patroni("replica", location=400)
    info = summarise(TOPOLOGY, seen)
    assert member(info, "postgres", "b2")["lag_bytes"] == 600
    assert member(info, "postgres", "b2")["lag_seconds"] == 4.0
    assert member(info, "postgres", "b3")["lag_bytes"] == 0
    assert member(info, "postgres", "b3")["lag_seconds"] == 0.0


def test_a_replica_that_was_asked_a_moment_later_is_not_ahead(seen: Observations) -> None:
    seen.patroni["main", "b2"] = patroni("replica", location=2000)
    assert member(summarise(TOPOLOGY, seen), "postgres", "b2")["lag_bytes"] == 0


def test_lag_is_unknown_without_a_primary(seen: Observations) -> None:
    seen.patroni["main", "a1"] = DEAD
    info = summarise(TOPOLOGY, seen)
    assert member(info, "postgres", "b2")["lag_bytes"] is None
    assert "postgres in a: no primary" in info["cells"]["main"]["problems"]


def test_a_dead_member_says_why(seen: Observations) -> None:
    seen.redis["main", "b3"] = DEAD
    info = summarise(TOPOLOGY, seen)
    assert not member(info, "redis", "b3")["healthy"]
    assert "no answer in time" in member(info, "redis", "b3")["error"]
    assert not info["cells"]["main"]["healthy"]


@pytest.mark.parametrize(
    ("host", "role", "words"),
    [("a2", "primary", "2 primaries: a1, a2"), ("b1", "primary", "a primary outside the home region a: b1")],
)
def test_two_primaries_are_loud(seen: Observations, host: str, role: str, words: str) -> None:
    seen.patroni["main", host] = patroni(role)
    assert words in "\n".join(summarise(TOPOLOGY, seen)["cells"]["main"]["problems"])


def test_regions_on_different_timelines_are_a_problem(seen: Observations) -> None:
    seen.patroni["main", "a1"] = patroni("primary", timeline=2)
    assert "different timelines: 1, 2" in "\n".join(summarise(TOPOLOGY, seen)["cells"]["main"]["problems"])


def test_a_replica_that_does_not_stream_is_not_healthy(seen: Observations) -> None:
    seen.patroni["main", "b2"] = patroni("replica", replication_state="starting")
    assert not member(summarise(TOPOLOGY, seen), "postgres", "b2")["healthy"]


def test_the_registrys_home_outranks_the_inventorys(seen: Observations) -> None:
    seen.records = {"main": {"home": "b", "epoch": 4, "state": "active"}}
    cell = summarise(TOPOLOGY, seen)["cells"]["main"]
    assert (cell["home"], cell["epoch"]) == ("b", 4)


def test_without_quorum_the_answer_says_whose_word_it_is(seen: Observations) -> None:
    seen.records = DEAD
    info = summarise(TOPOLOGY, seen)
    assert not info["registry"]["quorum"]
    assert "no quorum" in "\n".join(info["cells"]["main"]["problems"])


def test_an_inactive_vector_replica_is_a_problem(seen: Observations) -> None:
    seen.collections["b"]["cases"]["replicas_active"] = 3
    assert "cases has 3 of 4 replicas active" in "\n".join(summarise(TOPOLOGY, seen)["cells"]["main"]["problems"])


def test_the_certificate_that_expires_first(seen: Observations) -> None:
    assert summarise(TOPOLOGY, seen)["certificate"] == {"host": "b3", "not_after": "2026-12-13T12:00:00Z", "days": 20}


def test_the_table_fits_its_width_whatever_goes_wrong(seen: Observations) -> None:
    broken = copy.deepcopy(seen)
    for answers in (broken.patroni, broken.redis, broken.peers):
        for key in list(answers):
            answers[key] = EndpointError("host-with-a-long-name.example.org", 8008, "an answer " * 9, "nothing " * 9)
    for observations in (seen, broken):
        lines = render(summarise(TOPOLOGY, observations)).splitlines()
        assert max(len(line) for line in lines) <= WIDTH
        assert any(line.startswith("cell main: home a, epoch 1") for line in lines)


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 kB"), (5 << 30, "5.0 GB")])
def test_byte_counts_are_readable(count: int, text: str) -> None:
    assert human_bytes(count) == text


def with_indexers(seen: Observations, **of: t.Any) -> dict[str, t.Any]:
    """The cell when region a has orchestrators on a1 and a2, whose indexers say what is given."""
    topology = {**TOPOLOGY, "components": {**TOPOLOGY["components"], "orchestrator": {"a": ["a1", "a2"]}}}
    seen.indexers = {("a", host): answer for host, answer in of.items()}
    return summarise(topology, seen)["cells"]["main"]


def indexer(leader: bool, rows: int = 0, seconds: float = 0.0, trouble: str = "") -> dict[str, t.Any]:
    one = {"cell": "main", "leader": leader, "lag_rows": rows, "lag_seconds": seconds, "trouble": trouble}
    return {"region": "a", "cells": [one]}


def test_the_indexer_that_applies_says_how_far_behind_it_is(seen: Observations) -> None:
    cell = with_indexers(seen, a1=indexer(False), a2=indexer(True, rows=7, seconds=0.4))
    found = cell["qdrant"]["a"]["indexer"]
    assert (found["host"], found["lag_rows"], found["lag_seconds"]) == ("a2", 7, 0.4)
    assert cell["problems"] == []
    assert cell["qdrant"]["b"]["indexer"] is None


def test_an_indexer_with_trouble_and_none_at_all_are_problems(seen: Observations) -> None:
    assert with_indexers(seen, a1=indexer(True, trouble="Qdrant is away"))["problems"] == [
        "vector indexer in a: Qdrant is away"
    ]
    (problem,) = with_indexers(seen, a1=DEAD, a2=indexer(False))["problems"]
    assert problem.startswith("vector indexer in a: ")
    assert "no answer in time" in problem


def test_the_table_shows_the_indexers_lag(seen: Observations) -> None:
    topology = {**TOPOLOGY, "components": {**TOPOLOGY["components"], "orchestrator": {"a": ["a1"], "b": ["b1"]}}}
    seen.indexers = {("a", "a1"): indexer(True), ("b", "b1"): indexer(True, rows=12, seconds=1.5)}
    table = render(summarise(topology, seen))
    assert "4 of 4 replicas active, indexer lag 0" in table
    assert "indexer lag 12 rows, 1.5 s" in table
    assert max(map(len, table.splitlines())) <= WIDTH


def test_what_the_home_published_is_there_for_those_who_read_json(seen: Observations) -> None:
    published = {"cell": "main", "epoch": 1, "home": "a", "postgres": {"primary": ["192.0.2.11:5432"]}}
    seen.endpoints = {"main": published}
    assert summarise(TOPOLOGY, seen)["cells"]["main"]["endpoints"] == published
    seen.endpoints = {}
    assert summarise(TOPOLOGY, seen)["cells"]["main"]["endpoints"] == {}
