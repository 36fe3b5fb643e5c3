# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Partial results (seed facts 2)."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.shannon.resilience.plugins.module_utils.degradation import Assessment, Level, Observer
from ansible_collections.shannon.resilience.plugins.module_utils.partial_results import (
    SUCCESS_THRESHOLDS,
    PartialReason,
    PartialResult,
    aggregate,
    enough,
    should_return_partial,
)


def parts(good: int, bad: int) -> list[PartialResult]:
    return [PartialResult(f"g{n}", True, n) for n in range(good)] + [
        PartialResult(f"b{n}", False, error=f"e{n}") for n in range(bad)
    ]


@pytest.mark.parametrize(
    ("kind", "good", "bad", "success"),
    [
        ("simple", 1, 0, True),
        ("simple", 0, 1, False),
        ("simple", 1, 3, True),
        ("standard", 1, 1, True),
        ("standard", 1, 2, False),
        ("complex", 3, 2, True),
        ("complex", 1, 1, False),
        ("agent_dag", 2, 3, True),
        ("agent_dag", 1, 2, False),
        ("research", 1, 1, True),
        ("research", 0, 1, False),
    ],
)
def test_what_counts_as_a_success(kind: str, good: int, bad: int, success: bool) -> None:
    assert aggregate(parts(good, bad), kind).success is success


@given(st.sampled_from([0.4, 0.5, 0.6, 0.7, 0.1]), st.integers(1, 40), st.integers(0, 40))
def test_a_share_is_exact(share: float, total: int, successes: int) -> None:
    tenths = round(share * 10)
    assert enough("x", successes, total, {"x": share}) is (successes > 0 and successes * 10 >= tenths * total)


def test_configured_shares_are_applied() -> None:
    assert not enough("standard", 3, 4, {"standard": 0.9}) and enough("y", 1, 4, {"other": 0.2})


@pytest.mark.parametrize(
    ("level", "good", "total", "returned"),
    [
        (Level.NONE, 3, 4, False),
        (Level.MINOR, 1, 100, True),
        (Level.MINOR, 0, 4, False),
        (Level.MODERATE, 1, 4, True),
        (Level.MODERATE, 1, 5, False),
        (Level.SEVERE, 1, 100, True),
        (Level.SEVERE, 0, 4, False),
        (Level.SEVERE, 0, 0, False),
    ],
)
def test_when_partial_results_are_returned(level: Level, good: int, total: int, returned: bool) -> None:
    assert should_return_partial(level, good, total) is returned


def test_how_results_are_combined() -> None:
    assert aggregate(parts(0, 1), "standard").result is None
    assert aggregate(parts(1, 0), "standard").result == 0
    found = aggregate(parts(2, 1), "agent_dag", at=5.0).result
    assert found == {"type": "combined_agent_results", "results": [0, 1], "result_count": 2, "combined_at": 5.0}
    assert aggregate(parts(2, 0), "complex").result["type"] == "combined_results"


def test_the_aggregate_has_all_that_the_facts_name() -> None:
    assessment = Assessment(Level.MODERATE, failed=("agent-core", "redis"), reason="moderate: two are down")
    found = aggregate(parts(1, 1), "standard", assessment, at=7.0)
    said = json.loads(json.dumps(found.as_dict()))
    assert found.partial and (said["total_components"], said["success_count"], said["failure_count"]) == (2, 1, 1)
    assert said["degradation_info"] == {
        "level": "moderate",
        # The dependencies that are down, not the components that failed (2.3).
        "failed_dependencies": ["agent-core", "redis"],
        "reason": "moderate: two are down",
        "recommended_action": "Check the failed dependencies, and use cached results.",
    }
    assert set(said["partial_results"][0]) == {
        "source",
        "success",
        "result",
        "error",
        "timestamp",
        "metadata",
        "confidence",
        "degraded",
    }


def test_a_whole_result_has_no_warning() -> None:
    said = aggregate(parts(2, 0), "standard").as_dict()
    assert "warning" not in said and "degradation_info" not in said


def test_the_warning_names_what_is_degraded_missing_or_wrong() -> None:
    cached = PartialResult("cache", True, 1, degraded=True)
    assert aggregate([cached, *parts(1, 1)], "standard").warning == "degraded: cache; missing: b0"
    assert aggregate(parts(1, 2), "standard").warning == "b0: e0; b1: e1"


def test_no_components_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least one PartialResult"):
        aggregate([], "standard")


@pytest.mark.parametrize("confidence", [-0.1, 1.1, float("nan")])
def test_confidence_is_a_share(confidence: float) -> None:
    with pytest.raises(ValueError, match="allowed: 0 to 1"):
        PartialResult("a", True, confidence=confidence)


def test_the_metrics_reason_is_one_of_a_few() -> None:
    """2.5: in the original it is the text of a ratio, and so without bounds."""
    heard: list[tuple[str, str]] = []

    class Heard(Observer):
        def on_partial_result(self, workflow_type: str, reason: str) -> None:
            heard.append((workflow_type, reason))

    for good, bad in ((1, 1), (2, 1), (7, 3), (2, 0), (0, 2)):
        aggregate(parts(good, bad), "complex", observers=[Heard()])
    aggregate(parts(1, 1), "complex", Assessment(Level.MINOR, failed=("redis",)), observers=[Heard()])
    aggregate(parts(1, 1), "complex", reason=PartialReason.TIMEOUT, observers=[Heard()])
    assert heard == [("complex", "component_failure")] * 3 + [("complex", "dependency_failure"), ("complex", "timeout")]


def test_the_services_configuration_has_these_shares() -> None:
    config = pytest.importorskip("shannon.services.common.config")
    found = config.PartialResults()
    assert {name: getattr(found, name) for name in SUCCESS_THRESHOLDS} == SUCCESS_THRESHOLDS
