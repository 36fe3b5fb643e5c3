"""Whether Patroni and Sentinel of a cell may start, by the word that the region agent left."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
import types
import typing as t
from pathlib import Path

import pytest

WORD: dict[str, t.Any] = {"duty": "home", "postgres_may_start": True, "registry_error": ""}


@pytest.fixture(scope="module")
def gate() -> types.ModuleType:
    path = Path(__file__).parents[2] / "roles/region_agent/files/gate.py"
    spec = importlib.util.spec_from_file_location("region_agent_gate", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def words(gate: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gate, "WORDS", tmp_path)
    monkeypatch.setattr(gate.fresh_word, "__defaults__", (tmp_path,))
    monkeypatch.setattr(gate, "PAUSE", 0.01)
    return tmp_path


def leave(folder: Path, age: float = 0.0, **changes: t.Any) -> None:
    """What the agent does."""
    at = time.clock_gettime(time.CLOCK_BOOTTIME) - age
    fresh = folder / "main.new"
    fresh.write_text(json.dumps({**WORD, "at": at, **changes}))
    fresh.replace(folder / "main.json")


@pytest.mark.parametrize(
    ("verb", "changes", "may"),
    [
        ("postgres", {}, True),
        ("postgres", {"duty": "standby"}, True),
        ("postgres", {"duty": "fenced"}, True),  # the configuration says that it follows nobody
        ("postgres", {"postgres_may_start": False}, False),
        ("postgres", {"duty": "waiting", "postgres_may_start": False}, None),
        ("sentinel", {}, True),
        ("sentinel", {"duty": "standby"}, False),
        ("sentinel", {"duty": "fenced"}, False),
        ("sentinel", {"duty": "waiting"}, None),
        ("sentinel", {"postgres_may_start": False}, True),
    ],
)
def test_who_may_start(gate: types.ModuleType, verb: str, changes: dict[str, t.Any], may: bool | None) -> None:
    assert gate.verdict(verb, {**WORD, **changes})[0] is may


@pytest.mark.parametrize("verb", ["postgres", "sentinel"])
def test_nothing_starts_without_a_word(gate: types.ModuleType, verb: str) -> None:
    may, why = gate.verdict(verb, None)
    assert may is None
    assert "shannon-region-agent" in why


def test_the_reason_says_whether_the_registry_answers(gate: types.ModuleType) -> None:
    assert gate.verdict("postgres", WORD)[1] == "duty home, registry: answers"
    assert "no quorum" in gate.verdict("postgres", {**WORD, "registry_error": "no quorum"})[1]


@pytest.mark.parametrize(("age", "fresh"), [(0.0, True), (9.0, True), (10.5, False), (-5.0, False)])
def test_a_word_is_believed_for_some_seconds(gate: types.ModuleType, words: Path, age: float, fresh: bool) -> None:
    leave(words, age)
    assert (gate.fresh_word("main", words) is not None) is fresh


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"at": "now"}', '{"at": null}'])
def test_a_word_that_can_not_be_read_is_none(gate: types.ModuleType, words: Path, text: str) -> None:
    (words / "main.json").write_text(text)
    assert gate.fresh_word("main", words) is None


def test_another_cells_word_is_none(gate: types.ModuleType, words: Path) -> None:
    leave(words)
    assert gate.fresh_word("other", words) is None


def run(gate: types.ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gate.py", *arguments])
    return int(gate.main())


@pytest.mark.parametrize(
    ("verb", "changes", "status"),
    [("postgres", {}, 0), ("sentinel", {}, 0), ("sentinel", {"duty": "standby"}, 1)],
)
def test_a_verdict_is_given_at_once(
    gate: types.ModuleType,
    words: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    changes: dict[str, t.Any],
    status: int,
) -> None:
    leave(words, **changes)
    started = time.monotonic()
    assert run(gate, monkeypatch, verb, "main", "30") == status
    assert time.monotonic() - started < 1


def test_who_hears_nothing_in_time_does_not_start(
    gate: types.ModuleType, words: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(gate, monkeypatch, "postgres", "main", "0.05") == 1
    assert "postgres of cell main may not start" in capsys.readouterr().err


def test_a_word_that_comes_later_is_waited_for(
    gate: types.ModuleType, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(words, duty="waiting", postgres_may_start=False)
    monkeypatch.setattr(gate.time, "sleep", lambda _seconds: leave(words))
    assert run(gate, monkeypatch, "postgres", "main", "30") == 0


@pytest.mark.parametrize("arguments", [[], ["redis", "main", "5"], ["postgres", "main"]])
def test_what_it_does_not_know_is_an_error(
    gate: types.ModuleType, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    assert run(gate, monkeypatch, *arguments) == 2
