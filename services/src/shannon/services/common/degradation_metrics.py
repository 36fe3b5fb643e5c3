# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The metrics of degradation (seed facts 2). Labels have few values, whatever callers pass; the rest is C(other)."""

from __future__ import annotations

from shannon.resilience.circuit_breaker import State
from shannon.resilience.degradation import Assessment, DependencyHealth, Level, Observer, canonical
from shannon.resilience.mode_manager import RULES, Behaviour, Mode, Reason
from shannon.resilience.partial_results import SUCCESS_THRESHOLDS, PartialReason

from . import metrics

_LEVEL = metrics.gauge("shannon_degradation_level", "Level: 0 none, 1 minor, 2 moderate, 3 severe")
_EVENTS = metrics.counter(
    "shannon_degradation_events_total", "Changes of the level and downgrades of modes", ("level", "reason")
)
_HEALTH = metrics.gauge(
    "shannon_dependency_health",
    "1 when it works; type overall: as it was seen, circuit_breaker: its breaker is not open",
    ("dependency", "type"),
)
_FALLBACK = metrics.counter(
    "shannon_fallback_behavior_total", "How operations went on when they were asked about", ("operation", "behavior")
)
_DOWNGRADES = metrics.counter(
    "shannon_mode_downgrade_total", "Tasks that run in a simpler mode", ("from_mode", "to_mode", "reason")
)
_PARTIAL = metrics.counter("shannon_partial_results_total", "Results that lack a part", ("workflow_type", "reason"))

OTHER = "other"
DEPENDENCIES = frozenset(["redis", "database", "qdrant", "agent-core", "llm-service", "orchestrator", "registry"])
OPERATIONS = frozenset(RULES)
WORKFLOWS = frozenset(SUCCESS_THRESHOLDS)
BEHAVIOURS = frozenset(one.value for one in Behaviour)
MODES = frozenset(one.value for one in Mode)
REASONS = frozenset(one.value for one in Reason)
PARTIAL_REASONS = frozenset(one.value for one in PartialReason)


def bounded(value: str, known: frozenset[str]) -> str:
    """The value when it is one of the known ones."""
    return value if value in known else OTHER


class PrometheusObserver(Observer):
    """Publishes what degradation managers, mode managers and fallback policies do."""

    def __init__(self) -> None:
        _LEVEL.set(Level.NONE)

    def on_dependency(self, health: DependencyHealth) -> None:
        name = bounded(canonical(health.name), DEPENDENCIES).replace("-", "_")
        _HEALTH.labels(name, "overall").set(not health.down)
        if health.breaker is not None:
            _HEALTH.labels(name, "circuit_breaker").set(health.breaker is not State.OPEN)

    def on_assessment(self, old: Assessment, new: Assessment) -> None:
        _LEVEL.set(new.level)
        if old.level is not new.level:
            reason = new.causes[0] if new.causes else "recovered"
            _EVENTS.labels(new.level.label, reason).inc()

    def on_downgrade(self, original: str, final: str, reason: str, level: Level) -> None:
        before, after = bounded(original, MODES), bounded(final, MODES)
        _DOWNGRADES.labels(before, after, bounded(reason, REASONS)).inc()
        _EVENTS.labels(level.label, f"mode_downgrade_{before}_to_{after}").inc()

    def on_fallback(self, operation: str, behaviour: str) -> None:
        _FALLBACK.labels(bounded(operation, OPERATIONS), bounded(behaviour, BEHAVIOURS)).inc()

    def on_partial_result(self, workflow_type: str, reason: str) -> None:
        _PARTIAL.labels(bounded(workflow_type, WORKFLOWS), bounded(reason, PARTIAL_REASONS)).inc()
