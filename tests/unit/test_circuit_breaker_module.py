# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module that shows persistent breakers, and lets an operator have a say."""

from __future__ import annotations

import json
import time
import typing as t
from pathlib import Path

import pytest
from module_runner import run_module

from ansible_collections.shannon.resilience.plugins.module_utils.circuit_breaker import CircuitBreaker, Settings
from ansible_collections.shannon.resilience.plugins.module_utils.circuit_breaker_storage import FileStorage
from ansible_collections.shannon.resilience.plugins.modules import circuit_breaker as module
from ansible_collections.shannon.resilience.plugins.modules import health_check

DEAD = {"name": "dead", "type": "tcp", "host": "127.0.0.1", "port": 1, "tls": False}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file in which one breaker is open, one closed, and one was opened long ago."""
    path = tmp_path / "breakers.json"
    storage = FileStorage(str(path))
    settings = Settings(failure_threshold=1, timeout=600.0)
    CircuitBreaker("well", "", settings, storage=storage).call(int)
    for name, wall in (("dead", time.time), ("old", lambda: time.time() - 900)):
        breaker = CircuitBreaker(name, "", settings, storage=storage, wall=wall)
        breaker.admit().failed()
    return path


def run(path: Path, state: str = "shown", *names: str, **more: t.Any) -> dict[str, t.Any]:
    return run_module(module, diff=True, state=state, names=list(names), path=str(path), **more)


def test_all_are_shown_as_of_now(path: Path) -> None:
    before = path.read_bytes()
    found = run(path)
    assert not found["changed"] and path.read_bytes() == before
    shown = found["breakers"]
    assert {name: one["state"] for name, one in shown.items()} == {"dead": "open", "old": "half-open", "well": "closed"}
    assert 590 < shown["dead"]["retry_after"] <= 600 and shown["dead"]["open_since"] == pytest.approx(
        time.time(), abs=60
    )
    assert shown["well"]["counts"]["total_successes"] == 1 and shown["old"]["retry_after"] == 0


def test_only_those_named_are_shown(path: Path) -> None:
    assert list(run(path, "shown", "well", "unknown")["breakers"]) == ["unknown", "well"]


def test_no_file_is_no_breakers(tmp_path: Path) -> None:
    assert run(tmp_path / "missing" / "breakers.json")["breakers"] == {}


def test_reset_closes_what_is_not_fresh(path: Path) -> None:
    found = run(path, "reset")
    assert found["changed"] and found["changed_breakers"] == ["dead", "old", "well"]
    assert {one["state"] for one in found["breakers"].values()} == {"closed"}
    assert "dead: open\n" in found["diff"]["before"] and "dead: closed\n" in found["diff"]["after"]
    again = run(path, "reset")
    assert not again["changed"] and again["diff"] == {"before": "", "after": ""}


def test_check_mode_says_what_would_change_and_changes_nothing(path: Path) -> None:
    before = path.read_bytes()
    checked = run(path, "forced_open", "well", reason="maintenance", check=True)
    assert path.read_bytes() == before and checked["breakers"]["well"]["state"] == "open"
    done = run(path, "forced_open", "well", reason="maintenance")
    for key in ("changed", "changed_breakers", "diff"):
        assert done[key] == checked[key]
    assert done["diff"] == {"before": "well: closed\n", "after": "well: open, forced_open (maintenance)\n"}


def test_forced_open_is_obeyed_by_the_health_check_until_enabled(path: Path) -> None:
    run(path, "forced_open", "dead", reason="maintenance until noon")
    found = run_module(health_check, endpoints=[DEAD], path=str(path))["endpoints"][0]
    assert not found["probed"] and "maintenance until noon" in found["error"]
    assert found["breaker"]["control"] == "forced_open"
    assert not run(path, "forced_open", "dead", reason="maintenance until noon")["changed"]
    assert run(path, "forced_open", "dead", reason="until one")["changed"]
    assert run(path)["breakers"]["dead"]["retry_after"] is None
    enabled = run(path, "enabled")
    assert enabled["changed_breakers"] == ["dead"] and enabled["breakers"]["dead"]["state"] == "closed"
    assert run_module(health_check, endpoints=[DEAD], path=str(path))["endpoints"][0]["probed"]


def test_a_disabled_breaker_lets_every_run_probe(path: Path) -> None:
    run(path, "disabled", "dead")
    for _run in range(2):
        found = run_module(health_check, endpoints=[DEAD], path=str(path))
        assert found["endpoints"][0]["probed"] and found["endpoints"][0]["breaker"]["state"] == "closed"
        assert found["aggregate"]["failed"] == ["dead"] and found["aggregate"]["open_breakers"] == []
    assert not run(path, "disabled", "dead")["changed"]


def test_one_that_is_not_there_yet_can_be_forced_open(path: Path) -> None:
    found = run(path, "forced_open", "new")
    assert found["diff"] == {"before": "new: not there\n", "after": "new: open, forced_open\n"}
    assert json.loads(path.read_text())["breakers"]["new"]["control"] == "forced_open"
    assert not run(path, "enabled", "other")["changed"] and not run(path, "reset", "other")["changed"]


def test_a_file_that_can_not_be_written_is_an_error(tmp_path: Path) -> None:
    said = run(tmp_path / "missing" / "breakers.json", "forced_open", "a")
    assert said["failed"] and "It needs a folder" in said["msg"]


def test_a_damaged_record_counts_as_closed_and_is_told(path: Path) -> None:
    content = json.loads(path.read_text())
    content["breakers"]["dead"] = {"state": "ajar"}
    path.write_text(json.dumps(content))
    found = run(path)
    assert found["breakers"]["dead"]["state"] == "closed" and "breaker dead counts as closed" in str(found["warnings"])
