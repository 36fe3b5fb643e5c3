# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The metrics of circuit breakers and of degradation."""

from __future__ import annotations

import itertools

import pytest

prometheus = pytest.importorskip("prometheus_client")
metrics = pytest.importorskip("shannon.services.common.metrics")
from shannon.resilience.circuit_breaker import CircuitBreaker, CircuitOpenError, Settings, State  # noqa: E402
from shannon.resilience.degradation import DegradationManager, DependencyHealth  # noqa: E402
from shannon.resilience.mode_manager import FallbackPolicy, ModeManager  # noqa: E402
from shannon.resilience.partial_results import PartialResult, aggregate  # noqa: E402
from shannon.services.common.breaker_metrics import PrometheusListener  # noqa: E402
from shannon.services.common.degradation_metrics import PrometheusObserver  # noqa: E402

numbers = itertools.count()


def boom() -> None:
    raise ConnectionError("away")


def sample(metric: str, **labels: str) -> float:
    return prometheus.REGISTRY.get_sample_value(f"shannon_circuit_breaker_{metric}", labels) or 0.0


def test_the_five_metrics_of_a_breaker() -> None:
    clock = [0.0]
    who = {"name": f"redis-{next(numbers)}", "service": "gateway"}
    breaker = CircuitBreaker(
        who["name"],
        who["service"],
        Settings(failure_threshold=2, success_threshold=1, timeout=5.0),
        clock=lambda: clock[0],
        wall=lambda: 1000.0 + clock[0],
        listeners=[PrometheusListener()],
    )
    assert sample("state", **who) == 0
    breaker.call(int)
    for _failure in range(2):
        with pytest.raises(ConnectionError):
            breaker.call(boom)
    clock[0] = 3.0
    for _rejected in range(4):
        with pytest.raises(CircuitOpenError):
            breaker.call(int)
    assert sample("state", **who) == 2
    assert sample("open_since_seconds", **who) == 1000
    # Rejected calls are no failures (1.6, 10.5).
    assert sample("failures_total", **who) == 2
    found = {
        (state, result): sample("requests_total", **who, state=state, result=result)
        for state in ("closed", "open", "half-open")
        for result in ("success", "failure", "rejected")
    }
    assert {key: value for key, value in found.items() if value} == {
        ("closed", "success"): 1,
        ("closed", "failure"): 2,
        ("open", "rejected"): 4,
    }
    # Nobody calls, and yet the gauge is right when it is scraped.
    clock[0] = 5.0
    assert sample("state", **who) == 1
    assert sample("open_since_seconds", **who) == 0
    breaker.call(int)
    assert sample("state", **who) == 0
    for old, new in ((State.CLOSED, State.OPEN), (State.OPEN, State.HALF_OPEN), (State.HALF_OPEN, State.CLOSED)):
        labels = {**who, "from_state": old.label, "to_state": new.label}
        assert sample("state_changes_total", **labels) == 1
    text = metrics.render().decode()
    assert f'shannon_circuit_breaker_requests_total{{name="{who["name"]}",result="success"' in text


def test_degradation_is_published_with_few_labels() -> None:
    observer = PrometheusObserver()
    manager = DegradationManager(observers=(observer,))
    before = metrics.value(
        "shannon_mode_downgrade_total", from_mode="complex", to_mode="standard", reason="circuit_breaker_open"
    )
    manager.report(
        DependencyHealth("redis", False, critical=False, breaker=State.OPEN),
        DependencyHealth("agent-core", True),
        DependencyHealth("tenant-4711", True),
    )
    assert metrics.value("shannon_degradation_level") == 1
    assert metrics.value("shannon_dependency_health", dependency="redis", type="overall") == 0
    assert metrics.value("shannon_dependency_health", dependency="redis", type="circuit_breaker") == 0
    assert metrics.value("shannon_dependency_health", dependency="agent_core", type="overall") == 1
    assert 'dependency="tenant' not in metrics.render().decode()
    ModeManager(lambda: manager.assessment, observers=[observer]).decide("complex")
    labels = {"from_mode": "complex", "to_mode": "standard", "reason": "circuit_breaker_open"}
    assert metrics.value("shannon_mode_downgrade_total", **labels) == before + 1
    policy = FallbackPolicy(lambda: manager.assessment, observers=[observer])
    before = metrics.value("shannon_fallback_behavior_total", operation="other", behavior="proceed")
    policy.behaviour("session_update")
    policy.behaviour("whatever a caller made up")
    assert metrics.value("shannon_fallback_behavior_total", operation="other", behavior="proceed") == before + 1
    aggregate(
        [PartialResult("a", True, 1), PartialResult("b", False)], "complex", manager.assessment, observers=[observer]
    )
    labels = {"workflow_type": "complex", "reason": "dependency_failure"}
    assert metrics.value("shannon_partial_results_total", **labels) >= 1
    manager.report(DependencyHealth("redis", True, critical=False, breaker=State.CLOSED))
    assert metrics.value("shannon_degradation_level") == 0
    assert metrics.value("shannon_degradation_events_total", level="none", reason="recovered") >= 1
