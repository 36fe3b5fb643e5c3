# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Levels of degradation: every configured threshold acts (seed facts 2; 10.2 items 8 and 9)."""

from __future__ import annotations

import dataclasses
import threading
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.shannon.resilience.plugins.module_utils.circuit_breaker import State
from ansible_collections.shannon.resilience.plugins.module_utils.degradation import (
    DEFAULT_THRESHOLDS,
    Assessment,
    DegradationManager,
    DependencyHealth,
    Level,
    Observer,
    Status,
    Threshold,
    Thresholds,
    assess,
    level_of,
)

OFF = Threshold(0, 0, 0, 0.0, 0.0)


def up(name: str, critical: bool = True) -> DependencyHealth:
    return DependencyHealth(name, True, critical, State.CLOSED)


def down(name: str, critical: bool = True, breaker: State | None = None) -> DependencyHealth:
    return DependencyHealth(name, False, critical, breaker)


def test_all_well_is_none() -> None:
    found = assess([up("redis", False), up("database")])
    assert (found.level, found.causes, found.failed, found.status, found.reason) == (
        Level.NONE,
        (),
        (),
        Status.HEALTHY,
        "",
    )


@pytest.mark.parametrize(
    ("dependencies", "level"),
    [
        ([down("redis", False)], Level.MINOR),
        ([DependencyHealth("redis", True, False, State.OPEN)], Level.MINOR),
        ([DependencyHealth("redis", True, False, State.HALF_OPEN)], Level.NONE),
        ([down("redis", False), down("qdrant", False)], Level.MODERATE),
        ([down("redis", False), down("qdrant", False), down("llm-service", False)], Level.SEVERE),
        ([down("database")], Level.MODERATE),
        ([down("database"), down("agent-core")], Level.SEVERE),
        ([down("database", True, State.OPEN), down("redis", False, State.OPEN)], Level.MODERATE),
        ([down("a", False, State.OPEN), down("b", False, State.OPEN), down("c", True, State.OPEN)], Level.SEVERE),
    ],
)
def test_the_levels_of_the_facts(dependencies: list[DependencyHealth], level: Level) -> None:
    assert level_of(dependencies) is level
    assert level_of([*dependencies, up("x"), up("y", False)]) is level


@pytest.mark.parametrize(
    ("rate", "seconds", "level"),
    [
        (0.049, 0.999, Level.NONE),
        (0.05, 0.0, Level.MINOR),
        (0.15, 0.0, Level.MODERATE),
        (0.30, 0.0, Level.SEVERE),
        (0.0, 1.0, Level.MINOR),
        (0.0, 2.0, Level.MODERATE),
        (0.06, 5.0, Level.SEVERE),
    ],
)
def test_error_rate_and_latency_act(rate: float, seconds: float, level: Level) -> None:
    assert level_of([up("database")], error_rate=rate, latency=seconds) is level


@pytest.mark.parametrize("field", [one.name for one in dataclasses.fields(Threshold)])
@pytest.mark.parametrize("level", [Level.MINOR, Level.MODERATE, Level.SEVERE])
def test_each_threshold_alone_makes_its_level(field: str, level: Level) -> None:
    only = dataclasses.replace(OFF, **{field: 1.0 if field in ("error_rate", "latency") else 1})
    thresholds = dataclasses.replace(Thresholds(OFF, OFF, OFF), **{level.label: only})
    everything = [down("a", True, State.OPEN), down("b", False)]
    found = assess(everything, thresholds, error_rate=1.0, latency=9.0)
    assert (found.level, found.causes) == (level, (field,)) and field in found.reason
    assert level_of(everything, Thresholds(OFF, OFF, OFF), error_rate=1.0, latency=9.0) is Level.NONE


counts = st.integers(0, 4)
thresholds = st.builds(
    Threshold, counts, counts, counts, st.sampled_from([0.0, 0.1, 0.5]), st.sampled_from([0.0, 1.0, 4.0])
)
healths = st.builds(
    DependencyHealth,
    st.sampled_from("abcdefg"),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, *State]),
)


@given(
    st.lists(healths, max_size=6),
    st.builds(Thresholds, thresholds, thresholds, thresholds),
    st.sampled_from([0.0, 0.1, 0.3, 0.9]),
    st.sampled_from([0.0, 1.0, 3.0, 9.0]),
)
def test_the_highest_level_that_holds_wins(
    dependencies: list[DependencyHealth], limits: Thresholds, rate: float, seconds: float
) -> None:
    is_down = [not one.healthy or one.breaker is State.OPEN for one in dependencies]
    values = {
        "circuit_breakers_open": len([one for one in dependencies if one.breaker is State.OPEN]),
        "critical_dependencies_down": len(
            [1 for one, bad in zip(dependencies, is_down, strict=True) if bad and one.critical]
        ),
        "non_critical_dependencies_down": len(
            [1 for one, bad in zip(dependencies, is_down, strict=True) if bad and not one.critical]
        ),
        "error_rate": rate,
        "latency": seconds,
    }
    expected = Level.NONE
    for level in (Level.MINOR, Level.MODERATE, Level.SEVERE):
        limit = vars(getattr(limits, level.label))
        if any(limit[name] > 0 and value >= limit[name] for name, value in values.items()):
            expected = level
    assert level_of(dependencies, limits, error_rate=rate, latency=seconds) is expected


@pytest.mark.parametrize(
    ("dependency", "status"),
    [
        (down("database"), Status.UNHEALTHY),
        (down("redis", False), Status.DEGRADED),
        (DependencyHealth("database", True, degraded=True), Status.DEGRADED),
        (up("database"), Status.HEALTHY),
    ],
)
def test_the_status_is_that_of_the_facts(dependency: DependencyHealth, status: Status) -> None:
    assert assess([dependency, up("x")]).status is status


def test_thresholds_come_from_a_configuration() -> None:
    def section(number: int) -> types.SimpleNamespace:
        return types.SimpleNamespace(
            circuit_breakers_open=number,
            critical_dependencies_down=number,
            non_critical_dependencies_down=number,
            error_rate=number / 10,
            latency=float(number),
        )

    found = Thresholds.of(types.SimpleNamespace(minor=section(1), moderate=section(2), severe=section(3)))
    assert found.severe == Threshold(3, 3, 3, 0.3, 3.0)


def test_the_services_configuration_has_these_thresholds() -> None:
    config = pytest.importorskip("shannon.services.common.config")
    assert Thresholds.of(config.Degradation().thresholds) == DEFAULT_THRESHOLDS


# ---- the manager


class Heard(Observer):
    def __init__(self) -> None:
        self.levels: list[tuple[Level, Level]] = []
        self.dependencies: list[str] = []

    def on_dependency(self, health: DependencyHealth) -> None:
        self.dependencies.append(health.name)

    def on_assessment(self, old: Assessment, new: Assessment) -> None:
        self.levels.append((old.level, new.level))


class Broken(Observer):
    def on_assessment(self, old: Assessment, new: Assessment) -> None:
        raise RuntimeError("observer")


def test_reports_change_the_level_and_are_announced(caplog: pytest.LogCaptureFixture) -> None:
    heard = Heard()
    manager = DegradationManager(observers=(Broken(), heard))
    manager.report(up("database"), up("redis", False))
    assert manager.report(down("redis", False)).level is Level.MINOR
    manager.report(down("agent_core"))
    assert manager.level is Level.MODERATE and manager.assessment.failed == ("agent-core", "redis")
    assert manager.dependency("agent-core") == manager.dependency("agent_core") == down("agent_core")
    manager.report(up("agent-core"), up("redis", False))
    assert manager.level is Level.NONE and [one.name for one in manager.dependencies()] == [
        "agent-core",
        "database",
        "redis",
    ]
    assert [change for change in heard.levels if change[0] is not change[1]] == [
        (Level.NONE, Level.MINOR),
        (Level.MINOR, Level.MODERATE),
        (Level.MODERATE, Level.NONE),
    ]
    assert "degradation level moderate, was minor: moderate: critical_dependencies_down is 1 (limit 1)" in caplog.text


def test_operations_count_once_there_are_enough_and_only_while_recent() -> None:
    clock = [0.0]
    manager = DegradationManager(window=60.0, minimum_operations=10, clock=lambda: clock[0])
    for number in range(9):
        manager.observe_operation(0.1, failed=number < 3)
    assert manager.assess().level is Level.NONE
    manager.observe_operation(0.1, failed=False)
    assert manager.assess().causes == ("error_rate",) and manager.level is Level.SEVERE
    clock[0] = 120.0
    assert manager.assess().level is Level.NONE


def test_slow_operations_count() -> None:
    manager = DegradationManager(minimum_operations=1)
    manager.observe_operation(2.5, failed=False)
    assert manager.assess().causes == ("latency",) and manager.level is Level.MODERATE


def test_the_manager_is_shared_by_threads() -> None:
    manager = DegradationManager(minimum_operations=1)
    threads = [
        threading.Thread(
            target=lambda number=number: [
                (manager.report(down(f"d{number}", False)), manager.observe_operation(0.0, False))
                for _turn in range(50)
            ]
        )
        for number in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert manager.level is Level.SEVERE and len(manager.dependencies()) == 3
