"""What a home has is compared with what it should have: each check passes and fails for its own reason."""

from __future__ import annotations

import pathlib
import typing as t

import pytest

from ansible_collections.shannon.resilience.plugins.module_utils import cell_validator
from ansible_collections.shannon.resilience.plugins.module_utils.cell_validation import (
    Before,
    Check,
    Expected,
    Seen,
    document,
    failures,
    validate,
)
from ansible_collections.shannon.resilience.plugins.module_utils.cell_validator import Validator
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.http_client import Response
from ansible_collections.shannon.resilience.plugins.module_utils.migrations import Migration

MIGRATIONS = {
    "0001_core.sql": "CREATE TABLE users (id int);\nCREATE INDEX users_id ON users (id);\n"
    "CREATE INDEX old ON users (id);",
    "0002_more.sql": "-- CREATE INDEX never ON users (id);\nDROP INDEX IF EXISTS old;\n"
    "CREATE UNIQUE INDEX IF NOT EXISTS users_once ON users (id);",
}
EXPECTED = Expected(MIGRATIONS, {"cases": {"user_id": "keyword", "reward": "float"}})
CASES = {
    "points": 100,
    "schema": {"user_id": "keyword", "reward": "float"},
    "replicas": 4,
    "replicas_active": 4,
}


def facts(host: str = "b1", **changes: t.Any) -> dict[str, t.Any]:
    found = {
        "host": host,
        "in_recovery": False,
        "migrations": {
            str(number): [name, Migration(number, name, text).checksum]
            for number, (name, text) in enumerate(MIGRATIONS.items(), 1)
        },
        "indexes": {"public.users_id": True, "public.users_once": True, "public.users_pkey": True},
        "tables": {"public.users": {"rows": 10, "exact": True, "deleted": 3}},
    }
    return {**found, **changes}


def seen(**changes: t.Any) -> Seen:
    given: dict[str, t.Any] = {
        "region": "b",
        "cell": "main",
        "facts": {"b1": facts()},
        "collections": {"cases": CASES},
        "services": {"gateway on b1": "", "orchestrator on b1": ""},
    }
    return Seen(**{**given, **changes})


def rows(number: int, deleted: int = 3, exact: bool = True) -> dict[str, t.Any]:
    return {"tables": {"public.users": {"rows": number, "exact": exact, "deleted": deleted}}}


def failed(found: t.Sequence[Check]) -> dict[str, str]:
    return {check.name: check.seen for check in found if not check.passed}


def test_a_home_that_has_all_passes() -> None:
    found = validate(EXPECTED, seen(), Before(facts(in_recovery=True), {"cases": 100}))
    assert failed(found) == {}
    assert [check.name for check in found] == ["primary", "schema", "indexes", "rows", "collections", "services"]
    assert document(found)["passed"] is True


def test_the_indexes_that_migrations_make_are_known() -> None:
    assert EXPECTED.indexes() == {"public.users_id", "public.users_once"}


def test_the_projects_own_migrations_are_understood() -> None:
    folder = pathlib.Path(__file__).resolve().parents[2] / "roles" / "postgres" / "files" / "migrations"
    texts = {path.name: path.read_text() for path in folder.glob("*.sql")}
    written = "\n".join(texts.values()).count("INDEX ")
    assert len(Expected(texts).indexes()) == written > 40


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({}, "primary: none"),
        ({"b1": ResilienceError("b1: no answer")}, "primary: none (b1: no answer)"),
        ({"b1": facts(), "b2": facts("b2")}, "primary: b1, b2"),
    ],
)
def test_a_home_without_one_primary_fails_and_no_more_is_said_of_it(answers: dict[str, t.Any], words: str) -> None:
    found = validate(EXPECTED, seen(facts=answers))
    assert failed(found) == {"primary": words}
    assert [check.name for check in found] == ["primary", "collections", "services"]


@pytest.mark.parametrize(
    ("migrations", "words"),
    [
        ({}, "0001_core.sql is not applied; 0002_more.sql is not applied"),
        ({**facts()["migrations"], "3": ["0003_new.sql", "x"]}, "0003_new.sql is not in this checkout"),
        ({**facts()["migrations"], "1": ["0001_core.sql", "x"]}, "0001_core.sql is another text than this checkout's"),
    ],
)
def test_another_version_of_the_schema_fails(migrations: dict[str, t.Any], words: str) -> None:
    assert failed(validate(EXPECTED, seen(facts={"b1": facts(migrations=migrations)}))) == {"schema": words}


def test_an_index_that_is_missing_or_not_valid_fails() -> None:
    there = {"public.users_once": False}
    found = failed(validate(EXPECTED, seen(facts={"b1": facts(indexes=there)})))
    assert found == {"indexes": "public.users_once is not valid; public.users_id is missing"}


def test_an_index_that_the_standby_had_before_is_expected() -> None:
    before = Before(facts(indexes={"public.by_hand": True}))
    assert failed(validate(EXPECTED, seen(), before)) == {"indexes": "public.by_hand is missing"}


@pytest.mark.parametrize(
    ("old", "host", "fails"),
    [
        (rows(10), "b1", False),
        (rows(11), "b1", True),
        # Deleted since then: none is missing.
        (rows(12, deleted=1), "b1", False),
        (rows(13, deleted=1), "b1", True),
        # Another host counts its deletions from another beginning.
        (rows(13, deleted=3), "b2", False),
        (rows(14, deleted=3), "b2", True),
        # An estimate is no promise.
        (rows(99, exact=False), "b1", False),
        ({"tables": {"public.gone": {"rows": 0, "exact": True, "deleted": 0}}}, "b1", True),
    ],
)
def test_rows_that_are_missing_fail(old: dict[str, t.Any], host: str, fails: bool) -> None:
    found = validate(EXPECTED, seen(), Before(facts(host, in_recovery=True, **old)))
    assert ("rows" in failed(found)) is fails


@pytest.mark.parametrize(("before", "fails"), [(1010, False), (1011, True)])
def test_what_the_system_prunes_itself_may_be_gone(before: int, fails: bool) -> None:
    table = {"rows": 10, "exact": True, "deleted": 0}
    now = seen(facts={"b1": facts(tables={"public.vector_log": table})})
    found = validate(EXPECTED, now, Before(facts(tables={"public.vector_log": {**table, "rows": before}})))
    assert ("rows" in failed(found)) is fails


def test_rows_are_only_counted_when_nobody_counted_before() -> None:
    (found,) = [check for check in validate(EXPECTED, seen()) if check.name == "rows"]
    assert found.passed and found.seen == "10 rows in 1 tables" and "nothing to compare with" in found.expected


@pytest.mark.parametrize(
    ("collections", "words"),
    [
        ({}, "cases is missing"),
        (ResilienceError("nobody answers"), "nobody answers"),
        ({"cases": ResilienceError("b1: slow")}, "cases: b1: slow"),
        ({"cases": {**CASES, "schema": {"reward": "integer"}}},
         "cases has no payload index user_id; cases: the payload index reward is of type integer, not float"),
        ({"cases": {**CASES, "replicas_active": 3}}, "cases: 3 of 4 copies are active"),
        ({"cases": {**CASES, "points": 98}}, "cases: 98 points, and before 100"),
        ({"cases": {**CASES, "points": 99}}, ""),
    ],
)  # fmt: skip
def test_a_collection_that_is_not_whole_fails(collections: t.Any, words: str) -> None:
    found = failed(validate(EXPECTED, seen(collections=collections), Before({}, {"cases": 100})))
    assert found == ({"collections": words} if words else {})


def test_a_service_that_is_not_ready_fails_with_its_own_words() -> None:
    found = validate(EXPECTED, seen(services={"gateway on b1": "", "gateway on b2": "no database"}))
    assert failed(found) == {"services": "gateway on b2: no database"}
    (line,) = failures(document(found))
    assert line.startswith("All services of the new home are ready: no. Seen: gateway on b2: no database. Expected: 2")
    assert "journalctl" in line


# -- asking ----------------------------------------------------------------------------------------------------------

HOSTS = ("b1", "b2")
TOPOLOGY = {
    "hosts": {host: {"address": host} for host in HOSTS},
    "components": {name: {"b": list(HOSTS)} for name in ("postgres", "qdrant", "gateway", "orchestrator")},
    "ports": {"region_agent": 1, "qdrant_http": 2, "gateway": 3, "orchestrator_admin": 4},
    "cells": [{"name": "main", "ports": {"patroni": 5}}],
}
Answers = dict[tuple[str, str], t.Any]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Host and path to status and body; what is not there is silent. All is well at first, with b1 the primary."""
    found: Answers = {
        ("b1", "/primary"): (200, {}),
        ("b2", "/primary"): (503, {}),
        ("b1", "/facts/main"): (200, facts()),
    }
    found["b1", "/status"] = (200, {})
    for host in HOSTS:
        found[host, "/readiness"] = found[host, "/health/ready"] = (200, {})
        found[host, "/collections"] = (200, {"result": {"collections": [{"name": "cases"}]}})
        shard = {"state": "Active"}
        found[host, "/collections/cases/cluster"] = (
            200, {"result": {"local_shards": [shard] * 2, "remote_shards": [shard] * 2, "shard_count": 2}}
        )  # fmt: skip
        schema = {name: {"data_type": kind} for name, kind in CASES["schema"].items()}  # type: ignore[attr-defined]
        found[host, "/collections/cases"] = (200, {"result": {"payload_schema": schema}})
        found[host, "/collections/cases/points/count"] = (200, {"result": {"count": 100}})

    def request(self: t.Any, method: str, path: str, *_more: t.Any, **_named: t.Any) -> Response:
        if (self.host, path) not in found:
            raise ResilienceError(f"{self.host}: no answer to {path}")
        answer = found[self.host, path]
        return Response(*(answer() if callable(answer) else answer))

    monkeypatch.setattr(cell_validator.JsonEndpoint, "request", request)
    monkeypatch.setattr(cell_validator, "client_context", lambda tls: None)
    monkeypatch.setattr(cell_validator, "PAUSE", 0.01)
    return found


def validator(within: float = 0.0) -> Validator:
    return Validator(TOPOLOGY, None, "key", EXPECTED, within=within)  # type: ignore[arg-type]


def test_everything_is_asked_of_the_home(answers: Answers) -> None:
    found = validator().validate("main", "b")
    assert failed(found) == {}
    assert {check.name: check.seen for check in found}["services"] == "4 ready"


def test_another_peer_is_asked_when_the_first_is_silent(answers: Answers) -> None:
    del answers["b1", "/collections"]
    assert failed(validator().validate("main", "b")) == {}


def test_what_is_not_there_yet_is_looked_at_again(answers: Answers) -> None:
    looks = iter([(503, {"reason": "not active"}), (200, {})])
    answers["b2", "/readiness"] = lambda: next(looks)
    assert failed(validator(within=5.0).validate("main", "b")) == {}


def test_the_last_look_counts(answers: Answers) -> None:
    answers["b2", "/readiness"] = (503, {"reason": "not active"})
    assert failed(validator(within=0.05).validate("main", "b")) == {"services": "gateway on b2: not active"}


def test_an_older_agent_is_told_from_a_missing_primary(answers: Answers) -> None:
    answers["b1", "/facts/main"] = (404, {"reason": "known are /status"})
    found = failed(validator().validate("main", "b"))
    assert "known are /status" in found["primary"]


@pytest.mark.parametrize(("in_recovery", "fails"), [(True, True), (False, False)])
def test_what_a_standby_had_is_noted_unless_it_was_promoted_meanwhile(
    answers: Answers, in_recovery: bool, fails: bool
) -> None:
    subject = validator()
    answers["b1", "/facts/main"] = (200, facts(in_recovery=in_recovery, **rows(50)))
    subject.note("main", "b1", {"cases": {"points": 100}})
    subject._notes["main"].read()
    answers["b1", "/facts/main"] = (200, facts())
    assert ("rows" in failed(subject.validate("main", "b"))) is fails


def test_a_follower_that_can_not_be_asked_is_no_failure(answers: Answers) -> None:
    del answers["b1", "/status"]
    subject = validator()
    subject.note("main", "b1", {"cases": {"points": 100}})
    subject._notes["main"].read()
    answers["b1", "/status"] = (200, {})
    assert failed(subject.validate("main", "b")) == {}
