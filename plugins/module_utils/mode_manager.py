# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What to do at which level: the mode a task runs in, and how an operation falls back (seed facts 2)."""

from __future__ import annotations

import enum
import time
import typing as t
from dataclasses import dataclass

from .degradation_levels import Assessment, Level, Observer, canonical, notify


class Mode(str, enum.Enum):
    """Execution modes, the simplest first."""

    SIMPLE = "simple"
    STANDARD = "standard"
    COMPLEX = "complex"

    @classmethod
    def of(cls, text: str) -> Mode:
        """The mode of this name; one that is not known is standard."""
        try:
            return cls(text.strip().lower())
        except ValueError:
            return cls.STANDARD

    @property
    def rank(self) -> int:
        """How demanding it is, from 0."""
        return _RANKS[self]


_RANKS = {Mode.SIMPLE: 0, Mode.STANDARD: 1, Mode.COMPLEX: 2}

#: The mode that a requested one becomes, by level.
DOWNGRADES: dict[Level, dict[Mode, Mode]] = {
    Level.NONE: {},
    Level.MINOR: {Mode.COMPLEX: Mode.STANDARD},
    Level.MODERATE: {Mode.COMPLEX: Mode.STANDARD, Mode.STANDARD: Mode.SIMPLE},
    Level.SEVERE: {Mode.COMPLEX: Mode.SIMPLE, Mode.STANDARD: Mode.SIMPLE},
}


class Reason(str, enum.Enum):
    """Why a mode was downgraded."""

    CIRCUIT_BREAKER_OPEN = "circuit_breaker_open"
    HIGH_DEGRADATION_LEVEL = "high_degradation_level"
    DEPENDENCY_FAILURE = "dependency_failure"
    RESOURCE_CONSTRAINT = "resource_constraint"
    TIMEOUT_RISK = "timeout_risk"


@dataclass(frozen=True)
class Decision:
    """The mode that a task runs in.

    :ivar reason: None when the mode is the one that was asked for.
    :ivar at: seconds since 1970.
    """

    original: Mode
    final: Mode
    reason: Reason | None
    level: Level
    at: float

    @property
    def downgraded(self) -> bool:
        """Whether it is simpler than what was asked for."""
        return self.final is not self.original

    def as_dict(self) -> dict[str, t.Any]:
        """For a task's metadata."""
        return {
            "original_mode": self.original.value,
            "final_mode": self.final.value,
            "reason": self.reason.value if self.reason else "",
            "level": self.level.label,
            "decided_at": self.at,
        }


class ModeManager:
    """Chooses modes.

    :param assessment: asked at each decision; C(lambda: manager.assessment), say.
    :param time_needed: seconds that a task of a mode needs at least; a mode not in it needs none.
    :param enabled: whether it may downgrade at all.
    """

    def __init__(
        self,
        assessment: t.Callable[[], Assessment],
        *,
        time_needed: t.Mapping[Mode, float] | None = None,
        observers: t.Iterable[Observer] = (),
        enabled: bool = True,
        wall: t.Callable[[], float] = time.time,
    ) -> None:
        self._assessment = assessment
        self._time_needed = dict(time_needed or {})
        self._observers = tuple(observers)
        self._enabled = enabled
        self._wall = wall

    def decide(self, requested: Mode | str, *, time_left: float | None = None, constrained: bool = False) -> Decision:
        """The mode for a task that asked for one.

        :param time_left: seconds until its deadline; None: it has none.
        :param constrained: whether workers or memory are short; it takes one step down then.
        """
        original = requested if isinstance(requested, Mode) else Mode.of(requested)
        found = self._assessment()
        final, reason = original, None
        if self._enabled:
            final = DOWNGRADES[found.level].get(original, original)
            if final is not original:
                reason = _reason(found)
            if constrained and final is original and final is not Mode.SIMPLE:
                final, reason = _simpler(final), Reason.RESOURCE_CONSTRAINT
            while time_left is not None and final is not Mode.SIMPLE and time_left < self._time_needed.get(final, 0.0):
                final, reason = _simpler(final), reason or Reason.TIMEOUT_RISK
        decision = Decision(original, final, reason, found.level, self._wall())
        if decision.downgraded and reason is not None:
            said = reason.value
            notify(
                self._observers,
                lambda observer: observer.on_downgrade(original.value, final.value, said, found.level),
            )
        return decision


def _simpler(mode: Mode) -> Mode:
    return Mode.STANDARD if mode is Mode.COMPLEX else Mode.SIMPLE


def _reason(found: Assessment) -> Reason:
    """The most telling of the thresholds that were reached."""
    if "circuit_breakers_open" in found.causes:
        return Reason.CIRCUIT_BREAKER_OPEN
    if {"critical_dependencies_down", "non_critical_dependencies_down"} & set(found.causes):
        return Reason.DEPENDENCY_FAILURE
    return Reason.HIGH_DEGRADATION_LEVEL


class Behaviour(str, enum.Enum):
    """How an operation goes on."""

    PROCEED = "proceed"
    DEGRADE = "degrade"
    CACHE = "cache"
    SKIP = "skip"
    FAIL = "fail"

    @property
    def runs(self) -> bool:
        """Whether the operation runs in some form."""
        return self not in (Behaviour.SKIP, Behaviour.FAIL)


@dataclass(frozen=True)
class Rule:
    """When an operation falls back, and to what; until then it proceeds.

    :ivar dependency: when this one is down; empty: it does not matter.
    :ivar level: when the level is at least this; None: it does not matter.
    """

    behaviour: Behaviour
    dependency: str = ""
    level: Level | None = None

    def holds(self, found: Assessment) -> bool:
        """Whether it applies now."""
        if self.dependency:
            return self.dependency in found.failed
        return self.level is not None and found.level >= self.level


#: The operation that must never be acknowledged when it was not done.
TASK_PERSISTENCE = "task_persistence"
RULES: dict[str, Rule] = {
    "session_update": Rule(Behaviour.PROCEED, "redis"),
    TASK_PERSISTENCE: Rule(Behaviour.FAIL, "database"),
    "agent_execution": Rule(Behaviour.DEGRADE, "agent-core"),
    "llm_call": Rule(Behaviour.CACHE, "llm-service"),
    "llm_generation": Rule(Behaviour.CACHE, "llm-service"),
    "vector_search": Rule(Behaviour.PROCEED, "qdrant"),
    "result_synthesis": Rule(Behaviour.PROCEED, "llm-service"),
    "complex_workflow": Rule(Behaviour.DEGRADE, level=Level.MODERATE),
    "non_essential_logging": Rule(Behaviour.SKIP, level=Level.SEVERE),
}


class FallbackPolicy:
    """How operations fall back.

    :param assessment: asked each time.
    :param overrides: the file's C(degradation.fallback_behaviors): other behaviours for operations while their
        condition holds. For an operation that has no rule the condition is any degradation.
    :raises ValueError: a behaviour is not known, or would acknowledge a task that is not durable.
    """

    def __init__(
        self,
        assessment: t.Callable[[], Assessment],
        overrides: t.Mapping[str, str] | None = None,
        *,
        observers: t.Iterable[Observer] = (),
    ) -> None:
        self._assessment = assessment
        self._observers = tuple(observers)
        self._rules = dict(RULES)
        for operation, name in (overrides or {}).items():
            key = f"degradation.fallback_behaviors.{operation}"
            try:
                behaviour = Behaviour(name)
            except ValueError:
                allowed = ", ".join(one.value for one in Behaviour)
                raise ValueError(f"{key} is {name!r}; allowed: {allowed}") from None
            if operation == TASK_PERSISTENCE and behaviour is not Behaviour.FAIL:
                raise ValueError(f"{key} is {name!r}; allowed: fail, since a task is accepted only when it is durable")
            old = self._rules.get(operation, Rule(behaviour, level=Level.MINOR))
            self._rules[operation] = Rule(behaviour, old.dependency, old.level)

    @property
    def operations(self) -> tuple[str, ...]:
        """Those that have a rule."""
        return tuple(self._rules)

    def behaviour(self, operation: str) -> Behaviour:
        """How this operation goes on now."""
        rule = self._rules.get(operation)
        found = Behaviour.PROCEED
        if rule is not None and rule.holds(self._assessment()):
            found = rule.behaviour
        notify(self._observers, lambda observer: observer.on_fallback(operation, found.value))
        return found

    def depends_on(self, operation: str) -> str:
        """The dependency whose loss makes this operation fall back; empty: none in particular."""
        rule = self._rules.get(operation)
        return canonical(rule.dependency) if rule else ""
