"""What an agent says of its PostgreSQL; psql itself is not run here."""

from __future__ import annotations

import json
import typing as t

import pytest
from test_region_agent import configured

from shannon.resilience.errors import ResilienceError
from shannon.services.region_agent import facts as subject

Answerer = t.Callable[[dict[str, t.Any], str], tuple[int, dict[str, t.Any]]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Statements in order; PostgreSQL runs and was migrated."""
    seen: list[str] = []

    def ask(statement: str, database: str, port: int, timeout: float) -> list[str]:
        seen.append(statement)
        if "public.schema_migrations" in statement and "in_recovery" not in statement:
            return [json.dumps({"1": ["0001_core.sql", "abc"]})]
        return [json.dumps({"in_recovery": True, "migrated": True, "indexes": {}, "tables": {}})]

    monkeypatch.setattr(subject, "ask", ask)
    return seen


def answerer(host: str = "a1") -> Answerer:
    return subject.Facts(configured(host)).answerers()["/facts/main"]


def test_a_host_says_what_its_postgresql_has(asked: list[str]) -> None:
    status, said = answerer()({}, "10.0.0.1")
    assert status == 200
    assert said == {
        "host": "a1",
        "in_recovery": True,
        "indexes": {},
        "tables": {},
        "migrations": {"1": ["0001_core.sql", "abc"]},
    }
    assert asked[0].lstrip().startswith("SET statement_timeout = 4000;") and "%" not in asked[0].replace("%I", "")


def test_who_asks_at_once_again_is_told_the_same(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ask = answerer()
    assert ask({}, "") == ask({}, "")
    assert len(asked) == 2
    monkeypatch.setattr(subject, "FRESH", 0.0)
    ask({}, "")
    assert len(asked) == 4


def test_a_postgresql_that_does_not_run_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_arguments: t.Any) -> list[str]:
        raise ResilienceError("it does not run")

    monkeypatch.setattr(subject, "ask", ask)
    assert answerer()({}, "") == (503, {"reason": "it does not run"})


@pytest.mark.parametrize("lines", [[], ["no JSON"], ["[]"]])
def test_an_answer_that_is_none_is_said(monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> None:
    monkeypatch.setattr(subject, "ask", lambda *_arguments: lines)
    status, said = answerer()({}, "")
    assert status == 503 and "JSON" in said["reason"]


def test_a_host_without_postgresql_says_nothing(asked: list[str]) -> None:
    assert subject.Facts(configured("a1", postgres={"a": {"a9": "10.0.0.9"}})).answerers() == {}
