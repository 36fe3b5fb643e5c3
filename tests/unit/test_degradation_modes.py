# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modes and fallbacks: they are asked, and they act (10.2 item 8: in the original no task is ever downgraded)."""

from __future__ import annotations

import pytest

from ansible_collections.shannon.resilience.plugins.module_utils.circuit_breaker import State
from ansible_collections.shannon.resilience.plugins.module_utils.degradation import (
    Assessment,
    DependencyHealth,
    Level,
    Observer,
    assess,
)
from ansible_collections.shannon.resilience.plugins.module_utils.mode_manager import (
    Behaviour,
    FallbackPolicy,
    Mode,
    ModeManager,
    Reason,
)


class Heard(Observer):
    def __init__(self) -> None:
        self.downgrades: list[tuple[str, str, str]] = []
        self.fallbacks: list[tuple[str, str]] = []

    def on_downgrade(self, original: str, final: str, reason: str, level: Level) -> None:
        self.downgrades.append((original, final, reason))

    def on_fallback(self, operation: str, behaviour: str) -> None:
        self.fallbacks.append((operation, behaviour))


@pytest.mark.parametrize(
    ("level", "simple", "standard", "complex_"),
    [
        (Level.NONE, "simple", "standard", "complex"),
        (Level.MINOR, "simple", "standard", "standard"),
        (Level.MODERATE, "simple", "simple", "standard"),
        (Level.SEVERE, "simple", "simple", "simple"),
    ],
)
def test_the_table_of_downgrades(level: Level, simple: str, standard: str, complex_: str) -> None:
    manager = ModeManager(lambda: Assessment(level))
    found = [manager.decide(mode).final.value for mode in ("simple", "standard", "complex")]
    assert found == [simple, standard, complex_]


def test_a_decision_records_what_the_facts_ask_for() -> None:
    heard = Heard()
    manager = ModeManager(lambda: Assessment(Level.SEVERE), observers=[heard], wall=lambda: 12.5)
    decision = manager.decide(Mode.COMPLEX)
    assert decision.downgraded and decision.as_dict() == {
        "original_mode": "complex",
        "final_mode": "simple",
        "reason": "high_degradation_level",
        "level": "severe",
        "decided_at": 12.5,
    }
    assert heard.downgrades == [("complex", "simple", "high_degradation_level")]


def test_a_mode_that_stays_is_no_downgrade() -> None:
    """2.2: the original says "was downgraded" whenever the system is degraded."""
    heard = Heard()
    decision = ModeManager(lambda: Assessment(Level.MINOR), observers=[heard]).decide("standard")
    assert not decision.downgraded and decision.reason is None and heard.downgrades == []


@pytest.mark.parametrize(
    ("assessment", "reason"),
    [
        (assess([DependencyHealth("redis", False, False, State.OPEN)]), Reason.CIRCUIT_BREAKER_OPEN),
        (assess([DependencyHealth("llm-service", False, False)]), Reason.DEPENDENCY_FAILURE),
        (assess([], error_rate=0.2), Reason.HIGH_DEGRADATION_LEVEL),
        (assess([], latency=2.0), Reason.HIGH_DEGRADATION_LEVEL),
    ],
)
def test_the_reason_says_what_it_was(assessment: Assessment, reason: Reason) -> None:
    assert ModeManager(lambda: assessment).decide("complex").reason is reason


def test_little_time_and_few_resources_lower_the_mode() -> None:
    manager = ModeManager(Assessment, time_needed={Mode.COMPLEX: 30.0, Mode.STANDARD: 10.0})
    found = {left: manager.decide("complex", time_left=left) for left in (31.0, 20.0, 5.0)}
    assert [one.final.value for one in found.values()] == ["complex", "standard", "simple"]
    assert found[5.0].reason is Reason.TIMEOUT_RISK
    constrained = manager.decide("complex", constrained=True)
    assert (constrained.final, constrained.reason) == (Mode.STANDARD, Reason.RESOURCE_CONSTRAINT)
    assert manager.decide("simple", constrained=True, time_left=0.0).final is Mode.SIMPLE


def test_unknown_modes_are_standard() -> None:
    assert Mode.of("fancy") is Mode.STANDARD and Mode.of(" COMPLEX ") is Mode.COMPLEX


def test_it_can_be_switched_off() -> None:
    assert ModeManager(lambda: Assessment(Level.SEVERE), enabled=False).decide("complex").final is Mode.COMPLEX


WELL = Assessment()


def without(*names: str, level: Level = Level.MINOR) -> Assessment:
    return Assessment(level, failed=tuple(sorted(names)))


@pytest.mark.parametrize(
    ("operation", "assessment", "behaviour"),
    [
        ("session_update", without("redis"), "proceed"),
        ("task_persistence", WELL, "proceed"),
        ("task_persistence", without("redis"), "proceed"),
        ("task_persistence", without("database"), "fail"),
        ("agent_execution", without("agent-core"), "degrade"),
        ("agent_execution", without("llm-service"), "proceed"),
        ("llm_call", without("llm-service"), "cache"),
        ("llm_generation", without("llm-service"), "cache"),
        ("llm_generation", WELL, "proceed"),
        ("vector_search", without("qdrant"), "proceed"),
        ("result_synthesis", without("llm-service"), "proceed"),
        ("complex_workflow", without("redis"), "proceed"),
        ("complex_workflow", without(level=Level.MODERATE), "degrade"),
        ("complex_workflow", without(level=Level.SEVERE), "degrade"),
        ("non_essential_logging", without(level=Level.MODERATE), "proceed"),
        ("non_essential_logging", without(level=Level.SEVERE), "skip"),
        ("anything else", without("redis", "database", level=Level.SEVERE), "proceed"),
    ],
)
def test_fallbacks(operation: str, assessment: Assessment, behaviour: str) -> None:
    heard = Heard()
    assert FallbackPolicy(lambda: assessment, observers=[heard]).behaviour(operation).value == behaviour
    assert heard.fallbacks == [(operation, behaviour)]


def test_skip_and_fail_refuse_the_operation() -> None:
    assert [one.value for one in Behaviour if not one.runs] == ["skip", "fail"]


def test_the_configuration_is_applied() -> None:
    overrides = {"vector_search": "skip", "llm_generation": "fail", "report": "skip"}
    gone = without("qdrant", "llm-service")
    policy = FallbackPolicy(lambda: gone, overrides)
    assert [policy.behaviour(one).value for one in overrides] == ["skip", "fail", "skip"]
    well = FallbackPolicy(lambda: WELL, overrides)
    assert {well.behaviour(one) for one in overrides} == {Behaviour.PROCEED}
    assert policy.depends_on("vector_search") == "qdrant" and policy.depends_on("report") == ""


def test_wrong_behaviours_are_refused() -> None:
    with pytest.raises(ValueError, match=r"fallback_behaviors.llm_call is 'retry'; allowed: proceed, degrade, cache"):
        FallbackPolicy(Assessment, {"llm_call": "retry"})
    with pytest.raises(ValueError, match="a task is accepted only when it is durable"):
        FallbackPolicy(Assessment, {"task_persistence": "proceed"})
