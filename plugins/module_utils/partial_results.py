# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Results of workflows some of whose components failed (seed facts 2)."""

from __future__ import annotations

import enum
import time
import typing as t
from dataclasses import asdict, dataclass, field

from .degradation_levels import Assessment, Level, Observer, canonical, notify

#: Share of a workflow's components that must succeed, by its type. A simple workflow has a single component.
SUCCESS_THRESHOLDS: dict[str, float] = {"simple": 1.0, "standard": 0.5, "complex": 0.6, "agent_dag": 0.4}
#: For any other type.
OTHER = 0.5
#: Seconds that a component may still take once partial results are wanted, and that they are waited for at most.
TIMEOUT_OVERRIDE = 5.0
MAX_WAIT = 30.0
#: Share of components that makes partial results worth returning at level moderate.
MODERATE_SHARE = 0.25

RECOMMENDED: dict[Level, str] = {
    Level.NONE: "",
    Level.MINOR: "Watch, and try again.",
    Level.MODERATE: "Check the failed dependencies, and use cached results.",
    Level.SEVERE: "Investigate at once, and use fallback procedures.",
}


class PartialReason(str, enum.Enum):
    """Why parts are missing; the label of a metric, so there are only these."""

    COMPONENT_FAILURE = "component_failure"
    TIMEOUT = "timeout"
    DEPENDENCY_FAILURE = "dependency_failure"


@dataclass(frozen=True)
class PartialResult:
    """What one component came to.

    :ivar source: the component.
    :ivar timestamp: seconds since 1970.
    :ivar confidence: 0 to 1.
    :ivar degraded: whether it took a fallback.
    :raises ValueError: the confidence is outside its range.
    """

    source: str
    success: bool
    result: t.Any = None
    error: str = ""
    timestamp: float = field(default_factory=time.time)
    metadata: dict[str, t.Any] = field(default_factory=dict)
    confidence: float = 1.0
    degraded: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.confidence <= 1:
            raise ValueError(f"confidence is {self.confidence!r}; allowed: 0 to 1")


@dataclass(frozen=True)
class DegradationInfo:
    """How the system was when a result came to be.

    :ivar failed_dependencies: dependencies that are down, not the components that failed.
    """

    level: str
    failed_dependencies: list[str]
    reason: str
    recommended_action: str


@dataclass(frozen=True)
class Aggregate:
    """A workflow's result.

    :ivar success: whether enough of its components succeeded.
    :ivar result: None of no results, the result itself of one, and of several a mapping with type, results,
        result_count and combined_at.
    :ivar warning: what a user should know; empty when there is nothing.
    """

    success: bool
    result: t.Any
    partial_results: list[PartialResult]
    total_components: int
    success_count: int
    failure_count: int
    timestamp: float
    degradation_info: DegradationInfo | None = None
    warning: str = ""

    @property
    def partial(self) -> bool:
        """Whether anything is missing."""
        return self.failure_count > 0

    def as_dict(self) -> dict[str, t.Any]:
        """For a task's response; without degradation_info and warning when there is none."""
        found = asdict(self)
        for name in ("degradation_info", "warning"):
            if not found[name]:
                del found[name]
        return found


def enough(workflow_type: str, successes: int, total: int, thresholds: t.Mapping[str, float] | None = None) -> bool:
    """Whether a workflow counts as a success.

    :param thresholds: by type; C(other) for types that are not in it. The built-in ones when left out.
    """
    thresholds = SUCCESS_THRESHOLDS if thresholds is None else thresholds
    if successes <= 0 or total <= 0:
        return False
    if workflow_type == "simple":
        return True  # the whole of its single component; what came beside it is extra
    share = thresholds.get(workflow_type, thresholds.get("other", OTHER))
    # 0.6 of 5 must be 3, whatever floating point makes of it.
    return successes + 1e-9 >= share * total


def should_return_partial(level: Level, successes: int, total: int) -> bool:
    """Whether a workflow that did not succeed returns what it has rather than fail."""
    if total <= 0 or successes <= 0 or level is Level.NONE:
        return False
    if level is Level.MODERATE:
        return successes >= MODERATE_SHARE * total
    return True


def aggregate(
    results: t.Sequence[PartialResult],
    workflow_type: str,
    assessment: Assessment | None = None,
    *,
    thresholds: t.Mapping[str, float] | None = None,
    observers: t.Iterable[Observer] = (),
    reason: PartialReason | None = None,
    at: float | None = None,
) -> Aggregate:
    """Put the components' results together.

    :param assessment: how the system is; None: well.
    :param reason: why parts are missing, for the metric; None: see below.
    :param at: seconds since 1970; None: now.
    :raises ValueError: there are no components.
    """
    if not results:
        raise ValueError("a workflow without components has no result: pass at least one PartialResult")
    when = time.time() if at is None else at
    good = [one for one in results if one.success]
    bad = [one for one in results if not one.success]
    success = enough(workflow_type, len(good), len(results), thresholds)
    info = None
    if assessment is not None and assessment.level is not Level.NONE:
        info = DegradationInfo(
            assessment.level.label,
            [canonical(name) for name in assessment.failed],
            assessment.reason,
            RECOMMENDED[assessment.level],
        )
    if bad and good:
        if reason is None:
            down = assessment is not None and bool(assessment.failed)
            reason = PartialReason.DEPENDENCY_FAILURE if down else PartialReason.COMPONENT_FAILURE
        said = reason.value
        notify(observers, lambda observer: observer.on_partial_result(workflow_type, said))
    return Aggregate(
        success=success,
        result=_combined([one.result for one in good], workflow_type, when),
        partial_results=list(results),
        total_components=len(results),
        success_count=len(good),
        failure_count=len(bad),
        timestamp=when,
        degradation_info=info,
        warning=_warning(results, bad, success),
    )


def _combined(results: list[t.Any], workflow_type: str, when: float) -> t.Any:
    if len(results) < 2:
        return results[0] if results else None
    return {
        "type": "combined_agent_results" if workflow_type == "agent_dag" else "combined_results",
        "results": results,
        "result_count": len(results),
        "combined_at": when,
    }


def _warning(results: t.Sequence[PartialResult], bad: list[PartialResult], success: bool) -> str:
    parts = []
    degraded = [one.source for one in results if one.degraded]
    if degraded:
        parts.append(f"degraded: {', '.join(degraded)}")
    if bad and success:
        parts.append(f"missing: {', '.join(one.source for one in bad)}")
    elif bad:
        parts.append("; ".join(f"{one.source}: {one.error or 'failed'}" for one in bad))
    return "; ".join(parts)
