# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Probes many endpoints at once, each behind a breaker that is kept, and says how bad it is."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import typing as t
from dataclasses import dataclass

from .circuit_breaker import BreakerError, CircuitBreaker, Control, Permit, Settings, State
from .circuit_breaker_storage import Storage, StorageError
from .degradation_levels import DEFAULT_THRESHOLDS, DependencyHealth, Thresholds, assess
from .errors import EndpointError, ResilienceError
from .health_probes import Target, probe

Records = dict[str, dict[str, t.Any]]
#: Seconds beyond the timeout until a probe is given up that does not end by itself: a name that is not resolved, say.
GRACE = 0.5
#: One failure opens these, so that the next run does not wait for what this one found dead. One probe at a time finds
#: out whether it is back; while it is not, that is tried less and less often.
SETTINGS = Settings(
    max_requests=1,
    interval=0.0,
    timeout=30.0,
    failure_threshold=1,
    success_threshold=1,
    timeout_growth=2.0,
    timeout_max=300.0,
)


@dataclass(frozen=True)
class Endpoint:
    """One of the endpoints.

    :ivar name: of its breaker, too.
    :ivar critical: whether the system is unhealthy, rather than degraded, without it.
    """

    name: str
    target: Target
    critical: bool = True


@dataclass
class Finding:
    """What was found of an endpoint.

    :ivar latency: seconds of a probe that went well; None otherwise.
    :ivar error: empty when it is healthy.
    :ivar probed: whether it was asked at all.
    """

    endpoint: Endpoint
    breaker: CircuitBreaker
    healthy: bool = False
    latency: float | None = None
    error: str = ""
    probed: bool = False

    def as_dict(self) -> dict[str, t.Any]:
        """As the module returns it."""
        target, counts = self.endpoint.target, self.breaker.counts
        return {
            "name": self.endpoint.name,
            "type": target.kind,
            "host": target.host,
            "port": target.port,
            "critical": self.endpoint.critical,
            "healthy": self.healthy,
            "probed": self.probed,
            "latency_ms": None if self.latency is None else round(self.latency * 1000, 3),
            "error": self.error,
            "breaker": {
                "state": self.breaker.state.label,
                "control": self.breaker.control.value,
                "counts": {
                    "requests": counts.requests,
                    "total_successes": counts.total_successes,
                    "total_failures": counts.total_failures,
                    "consecutive_successes": counts.consecutive_successes,
                    "consecutive_failures": counts.consecutive_failures,
                },
                "retry_after": round(self.breaker.retry_after, 3),
            },
        }


class HealthCheck:
    """Probes endpoints at once: however many are dead, that costs one timeout, and behind an open breaker nothing.

    The storage is locked twice and shortly, before and after the probes: two runs at once see each other's breakers.

    :param storage: where breakers are kept.
    :param asker: what probes a target; tests have their own.
    """

    def __init__(
        self,
        endpoints: t.Sequence[Endpoint],
        storage: Storage,
        settings: Settings = SETTINGS,
        *,
        asker: t.Callable[[Target], None] = probe,
        clock: t.Callable[[], float] = time.monotonic,
        wall: t.Callable[[], float] = time.time,
    ) -> None:
        self.endpoints = list(endpoints)
        self.settings = settings
        #: Why breakers could not be kept; empty: they were.
        self.storage_error = ""
        self._storage = storage
        self._ask = asker
        self._clock = clock
        self._wall = wall

    def run(self) -> list[Finding]:
        """Probe them; findings are in the order of the endpoints."""
        findings = [
            Finding(one, CircuitBreaker(one.name, "", self.settings, clock=self._clock, wall=self._wall))
            for one in self.endpoints
        ]
        permits: dict[int, Permit] = {}

        def let_through(records: Records) -> None:
            for number, finding in enumerate(findings):
                self._recall(finding.breaker, records)
                try:
                    permits[number] = finding.breaker.admit()
                except BreakerError as exc:
                    finding.error = str(exc)
                records[finding.endpoint.name] = finding.breaker.snapshot()

        def report(records: Records) -> None:
            for number, permit in permits.items():
                finding = findings[number]
                self._recall(finding.breaker, records)
                if finding.healthy:
                    permit.succeeded()
                else:
                    permit.failed()
                records[finding.endpoint.name] = finding.breaker.snapshot()

        self._with_records(let_through)
        self._probe({number: findings[number] for number in permits})
        self._with_records(report)
        return findings

    def _probe(self, findings: dict[int, Finding]) -> None:
        """Fill in what the probes find. One that does not end in time is left to itself: it is a daemon."""
        answers: queue.SimpleQueue[tuple[int, float, str]] = queue.SimpleQueue()

        def ask(number: int, target: Target) -> None:
            begun = time.monotonic()
            try:
                self._ask(target)
                said = ""
            except ResilienceError as exc:
                said = str(exc)
            except Exception as exc:
                said = str(EndpointError(target.host, target.port, "a probe that ends", repr(exc)))
            answers.put((number, time.monotonic() - begun, said))

        longest = max((finding.endpoint.target.timeout for finding in findings.values()), default=0.0)
        deadline = time.monotonic() + longest + GRACE
        for number, finding in findings.items():
            target = finding.endpoint.target
            finding.probed = True
            finding.error = str(
                EndpointError(
                    target.host, target.port, f"an answer within {target.timeout:g} s", "none", "Is its name resolved?"
                )
            )
            threading.Thread(target=ask, args=(number, target), daemon=True, name=f"probe-{number}").start()
        for _each in findings:
            try:
                number, seconds, said = answers.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return
            found = findings[number]
            found.error, found.healthy = said, not said
            found.latency = None if said else seconds

    def _with_records(self, step: t.Callable[[Records], None]) -> None:
        """Do something with what the storage has; when that fails, the breakers know what this run found out."""
        done = False
        if not self.storage_error:
            try:
                with self._storage.transaction() as records:
                    step(records)
                    done = True
            except StorageError as exc:
                self.storage_error = str(exc)
        if not done:
            step({})

    @staticmethod
    def _recall(breaker: CircuitBreaker, records: Records) -> None:
        # A record that is none is overwritten by what this run finds.
        with contextlib.suppress(ValueError):
            breaker.restore(records.get(breaker.name))


def aggregate(findings: t.Iterable[Finding], thresholds: Thresholds = DEFAULT_THRESHOLDS) -> dict[str, t.Any]:
    """Level and status of all of them together. A breaker that an operator disabled says nothing."""
    found = list(findings)
    healths = [
        DependencyHealth(
            one.endpoint.name,
            one.healthy,
            one.endpoint.critical,
            None if one.breaker.control is Control.DISABLED else one.breaker.state,
            latency=one.latency,
            error=one.error,
        )
        for one in found
    ]
    assessment = assess(healths, thresholds)
    return {
        "level": int(assessment.level),
        "level_name": assessment.level.label,
        "failed": [one.name for one in healths if one.down],
        "status": assessment.status.value,
        "reason": assessment.reason,
        "open_breakers": [one.name for one in healths if one.breaker is State.OPEN],
    }
