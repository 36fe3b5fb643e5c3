# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How badly off a system is, from the health of what it depends on (seed facts 2).

All configured thresholds count: a level holds when any of its values is reached, and the highest level that holds is
the system's. A value of 0 switches a threshold off.
"""

from __future__ import annotations

import enum
import logging
import threading
import time
import typing as t
from dataclasses import dataclass, field

from .circuit_breaker_model import State
from .sliding_window import SlidingWindow

_log = logging.getLogger(__name__)
_log.addHandler(logging.NullHandler())  # in modules nobody sets logging up, and nothing may go to stderr


class Level(enum.IntEnum):
    """Levels, with the values that their gauge has."""

    NONE = 0
    MINOR = 1
    MODERATE = 2
    SEVERE = 3

    @property
    def label(self) -> str:
        """The level's name in metrics and messages: none, minor, moderate or severe."""
        return self.name.lower()


class Status(str, enum.Enum):
    """What health endpoints answer: unhealthy when a critical dependency is down, degraded when any is not well."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


def canonical(name: str) -> str:
    """A dependency's name as rules and metrics have it: C(agent_core) is C(agent-core)."""
    return name.replace("_", "-")


@dataclass(frozen=True)
class DependencyHealth:
    """A dependency as it was seen last.

    :ivar healthy: whether it works; an open breaker makes it count as down whatever this says.
    :ivar critical: whether the system can't do its work without it.
    :ivar breaker: state of its breaker; None when it has none.
    :ivar degraded: whether it works, but badly.
    :ivar latency: seconds that it took to answer; None when unknown.
    :ivar error: what is wrong, for an operator.
    """

    name: str
    healthy: bool
    critical: bool = True
    breaker: State | None = None
    degraded: bool = False
    latency: float | None = None
    error: str = ""

    @property
    def down(self) -> bool:
        """Whether it can't be used now. Half-open is not down: it is being tried."""
        return not self.healthy or self.breaker is State.OPEN


@dataclass(frozen=True)
class Threshold:
    """When a level holds: when any of these is reached; 0 is off.

    :ivar error_rate: share of failed operations, 0 to 1.
    :ivar latency: mean seconds of an operation.
    """

    circuit_breakers_open: int
    critical_dependencies_down: int
    non_critical_dependencies_down: int
    error_rate: float
    latency: float

    @classmethod
    def of(cls, section: t.Any) -> Threshold:
        """From a configuration's section that has the same names."""
        return cls(**{name: getattr(section, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Thresholds:
    """Of the three levels; the defaults are seed facts 2."""

    minor: Threshold = Threshold(1, 0, 1, 0.05, 1.0)
    moderate: Threshold = Threshold(2, 1, 2, 0.15, 2.0)
    severe: Threshold = Threshold(3, 2, 3, 0.30, 5.0)

    @classmethod
    def of(cls, section: t.Any) -> Thresholds:
        """From a configuration's section that has the same names."""
        return cls(Threshold.of(section.minor), Threshold.of(section.moderate), Threshold.of(section.severe))


DEFAULT_THRESHOLDS = Thresholds()


@dataclass(frozen=True)
class Assessment:
    """What was found.

    :ivar causes: names of the thresholds that were reached on the level that holds, as in :class:`Threshold`.
    :ivar failed: names of the dependencies that are down.
    :ivar reason: a sentence for an operator; empty at level none.
    :ivar at: seconds since 1970.
    """

    level: Level = Level.NONE
    causes: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    status: Status = Status.HEALTHY
    reason: str = ""
    at: float = 0.0


def assess(
    dependencies: t.Iterable[DependencyHealth],
    thresholds: Thresholds = DEFAULT_THRESHOLDS,
    *,
    error_rate: float = 0.0,
    latency: float = 0.0,
    at: float | None = None,
) -> Assessment:
    """The level, and why.

    :param error_rate: share of operations that failed lately, 0 to 1.
    :param latency: mean seconds that they took.
    :param at: when, in seconds since 1970; None: now.
    """
    known = list(dependencies)
    down = [one for one in known if one.down]
    seen: dict[str, float] = {
        "circuit_breakers_open": sum(one.breaker is State.OPEN for one in known),
        "critical_dependencies_down": sum(one.critical for one in down),
        "non_critical_dependencies_down": sum(not one.critical for one in down),
        "error_rate": error_rate,
        "latency": latency,
    }
    when = time.time() if at is None else at
    failed = tuple(sorted(canonical(one.name) for one in down))
    if any(one.critical for one in down):
        status = Status.UNHEALTHY
    elif down or any(one.degraded for one in known):
        status = Status.DEGRADED
    else:
        status = Status.HEALTHY
    for level in (Level.SEVERE, Level.MODERATE, Level.MINOR):
        limits: Threshold = getattr(thresholds, level.label)
        causes = tuple(name for name, value in seen.items() if 0 < getattr(limits, name) <= value)
        if causes:
            said = ", ".join(f"{name} is {seen[name]:g} (limit {getattr(limits, name):g})" for name in causes)
            return Assessment(level, causes, failed, status, f"{level.label}: {said}", when)
    return Assessment(Level.NONE, (), failed, status, "", when)


def level_of(
    dependencies: t.Iterable[DependencyHealth],
    thresholds: Thresholds = DEFAULT_THRESHOLDS,
    *,
    error_rate: float = 0.0,
    latency: float = 0.0,
) -> Level:
    """The level alone; see :func:`assess`."""
    return assess(dependencies, thresholds, error_rate=error_rate, latency=latency).level


class Observer:
    """Hears of degradation. It is called outside all locks; what it raises is logged and goes no further."""

    def on_dependency(self, health: DependencyHealth) -> None:
        """A dependency was looked at."""

    def on_assessment(self, old: Assessment, new: Assessment) -> None:
        """The system was assessed anew; the level may be as before."""

    def on_downgrade(self, original: str, final: str, reason: str, level: Level) -> None:
        """A task runs in a simpler mode than was asked for."""

    def on_fallback(self, operation: str, behaviour: str) -> None:
        """An operation was asked about."""

    def on_partial_result(self, workflow_type: str, reason: str) -> None:
        """A result was returned although parts of it failed."""


def notify(observers: t.Iterable[Observer], call: t.Callable[[Observer], None]) -> None:
    """Tell all of them, whatever one of them raises."""
    for observer in observers:
        try:
            call(observer)
        except Exception:
            _log.exception("an observer of degradation failed")


@dataclass
class DegradationManager:
    """Collects what is known of the dependencies and of operations, and assesses it. Threads and tasks may share it.

    :param window: seconds over which operations are looked at.
    :param minimum_operations: how many there must be before their error rate and latency say anything.
    """

    thresholds: Thresholds = DEFAULT_THRESHOLDS
    observers: tuple[Observer, ...] = ()
    window: float = 60.0
    minimum_operations: int = 20
    clock: t.Callable[[], float] = time.monotonic
    wall: t.Callable[[], float] = time.time
    _dependencies: dict[str, DependencyHealth] = field(default_factory=dict, init=False)
    _assessment: Assessment = field(default_factory=Assessment, init=False)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._operations = SlidingWindow(self.window)

    def report(self, *healths: DependencyHealth) -> Assessment:
        """Take what was seen of one dependency or several, and assess."""
        with self._lock:
            self._dependencies.update({canonical(one.name): one for one in healths})
        for one in healths:
            notify(self.observers, lambda observer, one=one: observer.on_dependency(one))  # type: ignore[misc]
        return self.assess()

    def observe_operation(self, seconds: float, failed: bool) -> None:
        """Count an operation (a query, a call of a service) for the error rate and the latency."""
        with self._lock:
            self._operations.add(self.clock(), failed, seconds=seconds)

    def assess(self) -> Assessment:
        """Assess as of now, and tell the observers."""
        with self._lock:
            self._operations.move(self.clock())
            enough = self._operations.calls >= self.minimum_operations
            new = assess(
                self._dependencies.values(),
                self.thresholds,
                error_rate=self._operations.failure_rate if enough else 0.0,
                latency=self._operations.mean_seconds if enough else 0.0,
                at=self.wall(),
            )
            old, self._assessment = self._assessment, new
        if old.level is not new.level:
            severity = logging.WARNING if new.level > old.level else logging.INFO
            _log.log(
                severity, "degradation level %s, was %s: %s", new.level.label, old.level.label, new.reason or "well"
            )
        notify(self.observers, lambda observer: observer.on_assessment(old, new))
        return new

    @property
    def assessment(self) -> Assessment:
        """The last assessment."""
        return self._assessment

    @property
    def level(self) -> Level:
        """The level of the last assessment."""
        return self._assessment.level

    def dependency(self, name: str) -> DependencyHealth | None:
        """What was seen of a dependency last."""
        return self._dependencies.get(canonical(name))

    def dependencies(self) -> list[DependencyHealth]:
        """All that are known, by name."""
        with self._lock:
            return [self._dependencies[name] for name in sorted(self._dependencies)]
