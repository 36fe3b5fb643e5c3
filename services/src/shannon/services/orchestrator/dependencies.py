# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks after what the orchestrator depends on: asks it every so often, and at once when a breaker changes."""

from __future__ import annotations

import asyncio
import time
import typing as t
from dataclasses import dataclass

from shannon.resilience.circuit_breaker import CircuitBreaker, State
from shannon.resilience.degradation import DegradationManager, DependencyHealth
from shannon.services.common import logs
from shannon.services.common.config import Check

_log = logs.get(__name__)
#: Seconds between two looks at the breakers.
_LOOK = 0.25


@dataclass(frozen=True)
class Dependency:
    """Something that is needed.

    :ivar probe: asks it, through its breaker, and raises when it is not well; gets the seconds that it may take.
    :ivar breakers: one for each of its endpoints; it is out of reach when all of them are open.
    """

    name: str
    check: Check
    probe: t.Callable[[float], t.Awaitable[t.Any]]
    breakers: t.Callable[[], t.Sequence[CircuitBreaker]]

    @property
    def state(self) -> State | None:
        """The most favourable of its breakers' states."""
        states = {breaker.state for breaker in self.breakers()}
        return next((state for state in (State.CLOSED, State.HALF_OPEN, State.OPEN) if state in states), None)

    @property
    def retry_after(self) -> float:
        """Seconds until a breaker lets a probe through."""
        return min((breaker.retry_after for breaker in self.breakers()), default=0.0)


class Monitor:
    """Reports all dependencies to the degradation manager.

    :param retry: seconds between two probes of one that is not well.
    :param slow: seconds from which on an answer counts as degraded.
    """

    def __init__(
        self, manager: DegradationManager, dependencies: t.Sequence[Dependency], retry: float, slow: float
    ) -> None:
        self._manager = manager
        self._dependencies = list(dependencies)
        self._retry = retry
        self._slow = slow

    async def look(self) -> None:
        """Ask all of them once."""
        await asyncio.gather(*(self._ask(one) for one in self._dependencies))

    async def run(self, stopping: asyncio.Event) -> None:
        """Go on asking until stopping."""
        await asyncio.gather(*(self._follow(one, stopping) for one in self._dependencies))

    async def _follow(self, one: Dependency, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            healthy = await self._ask(one)
            state = one.state
            began = time.monotonic()
            while not stopping.is_set():
                waited = time.monotonic() - began
                if one.state is not state and not (state is State.OPEN and one.retry_after):
                    break
                # An open breaker answers in our place until it lets a probe through; then it is asked at once.
                due = one.check.interval if healthy else max(min(self._retry, one.retry_after or self._retry), _LOOK)
                if waited >= due:
                    break
                try:
                    await asyncio.wait_for(stopping.wait(), min(_LOOK, max(due - waited, 0.01)))
                except asyncio.TimeoutError:
                    continue

    async def _ask(self, one: Dependency) -> bool:
        started = time.monotonic()
        error = ""
        try:
            await asyncio.wait_for(one.probe(one.check.timeout), one.check.timeout + 1)
        except asyncio.TimeoutError:
            error = f"it did not answer within {one.check.timeout:g} s"
        except Exception as exc:
            error = f"{type(exc).__name__}: {exc}"
        seconds = time.monotonic() - started
        before = self._manager.dependency(one.name)
        if error and (before is None or before.healthy):
            _log.warning("%s is not well: %s", one.name, error)
        elif not error and before is not None and not before.healthy:
            _log.info("%s is well again", one.name)
        self._manager.report(
            DependencyHealth(
                name=one.name,
                healthy=not error,
                critical=one.check.critical,
                breaker=one.state,
                degraded=not error and seconds > self._slow,
                latency=None if error else seconds,
                error=error,
            )
        )
        return not error
