# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules of a circuit breaker, without its locks: when it changes its state, and what counts (seed facts 1)."""

from __future__ import annotations

import collections
import math
import random
import time
import typing as t

from .circuit_breaker_model import (
    BreakerError,
    CircuitOpenError,
    Control,
    Counts,
    Settings,
    State,
    TooManyRequestsError,
)
from .sliding_window import WIDTH, SlidingWindow

SUCCESS = "success"
FAILURE = "failure"
REJECTED = "rejected"
CANCELLED = "cancelled"


class Ticket:
    """A call that was let through and has to be looked at closely when it ends.

    In the common case, a closed breaker without rates, a call has no ticket but the number of the term it began in.

    :ivar probe: its place among the probes; empty when it is none.
    """

    __slots__ = ("probe", "started", "state", "term")

    def __init__(self, term: int, state: State, started: float, probe: str = "") -> None:
        self.term = term
        self.state = state
        self.started = started
        self.probe = probe


class Rules:
    """State and counts of one breaker. Whoever uses it holds a lock, and says what time it is.

    :param simple: whether calls need no ticket: nobody asks how long they took, nor where else they are counted.
    """

    def __init__(
        self,
        name: str,
        service: str,
        settings: Settings,
        *,
        clock: t.Callable[[], float] = time.monotonic,
        wall: t.Callable[[], float] = time.time,
        rng: t.Callable[[], float] = random.random,
        simple: bool = True,
    ) -> None:
        self.name = name
        self.service = service
        self.settings = settings
        self._clock = clock
        self._wall = wall
        self._rng = rng
        rates = settings.failure_rate or settings.slow_call_rate
        self._window = SlidingWindow(settings.rate_window) if rates else None
        self._simple = simple and not rates and not settings.slow_call
        #: Changes of state that nobody was told of yet: the old one, the new one, and why.
        self._changes: collections.deque[tuple[State, State, str]] = collections.deque()
        self._state = State.CLOSED
        self._control = Control.NONE
        self._reason = ""
        #: Grows with each change of state: a result counts in the term that its call began in, or not at all.
        self._term = 0
        #: Grows with each change of state and each roll of the window.
        self._generation = 0
        self._opened_at = 0.0
        self._open_for = 0.0
        self._probes: dict[str, float] = {}
        #: What a call gets that may go the short way, the number of the term; None unless closed, simple, and without
        #: an operator's word. It is read without the lock: a call that still sees it came before the change.
        self._pass: int | None = None
        #: When the state or the window is over by itself.
        self._until = math.inf
        self._requests = self._successes = self._failures = self._failures_in_a_row = 0
        #: How many successes there were before the last failure; what came since is in a row.
        self._successes_before = 0
        self._begin(clock())

    # -- a call begins and ends ----------------------------------------------------------------------------------

    def _admit(self, now: float) -> int | Ticket | BreakerError:
        self._refresh(now)
        if self._control is Control.DISABLED:
            return Ticket(-1, State.CLOSED, now)
        if self._state is State.OPEN:
            return CircuitOpenError(self.name, self.service, self._wait(now), self._reason)
        if self._state is State.CLOSED:
            return self._term if self._simple else Ticket(self._term, State.CLOSED, now)
        self._drop_lost_probes(now)
        if len(self._probes) >= self.settings.max_requests:
            return TooManyRequestsError(self.name, self.service, self._wait(now))
        self._requests += 1
        # Drawn rather than numbered, since several processes may share a storage.
        probe = f"{random.getrandbits(64):016x}"
        self._probes[probe] = now + self.settings.probe_timeout
        return Ticket(self._term, State.HALF_OPEN, now, probe)

    def _record(self, ticket: int | Ticket, result: str, now: float) -> str:
        """Count a result under the lock; returns what it was taken for."""
        self._refresh(now)
        seconds = 0.0
        slow = False
        if isinstance(ticket, Ticket):
            self._probes.pop(ticket.probe, None)
            seconds = now - ticket.started
            slow = 0 < self.settings.slow_call <= seconds
            term = ticket.term
        else:
            term = ticket
        if term != self._term:
            return result
        if self._state is State.CLOSED:
            self._requests += 1
        if result == CANCELLED:
            return result
        if self._window is not None and self._state is State.CLOSED:
            self._window.add(now, result == FAILURE, slow, seconds)
        if result == FAILURE or (slow and self._state is State.HALF_OPEN):
            self._count_failure(now)
        else:
            self._count_success(now)
        if self._window is not None and self._state is State.CLOSED and (why := self._bad_rate()):
            self._become(State.OPEN, now, why)
        return result

    def _count_success(self, now: float) -> None:
        self._successes += 1
        self._failures_in_a_row = 0
        in_a_row = self._successes - self._successes_before
        if self._state is State.HALF_OPEN and in_a_row >= self.settings.success_threshold:
            self._become(State.CLOSED, now, f"{in_a_row} probes in a row went well")

    def _count_failure(self, now: float) -> None:
        self._failures += 1
        self._failures_in_a_row += 1
        self._successes_before = self._successes
        if self._state is State.HALF_OPEN:
            self._become(State.OPEN, now, "a probe failed")
        elif self._failures_in_a_row >= self.settings.failure_threshold:
            self._become(State.OPEN, now, f"{self._failures_in_a_row} calls in a row failed")

    def _bad_rate(self) -> str:
        """Why the sliding window opens it; empty: it does not."""
        window, limits = t.cast(SlidingWindow, self._window), self.settings
        if window.calls < limits.minimum_calls:
            return ""
        if 0 < limits.failure_rate <= window.failure_rate:
            return f"{window.failure_rate:.0%} of {window.calls} calls failed"
        if 0 < limits.slow_call_rate <= window.slow_rate:
            return f"{window.slow_rate:.0%} of {window.calls} calls took {limits.slow_call:g} s or longer"
        return ""

    # -- states --------------------------------------------------------------------------------------------------

    def _refresh(self, now: float) -> None:
        """Bring the state up to date."""
        if now < self._until:
            return
        if self._state is State.OPEN:
            self._become(State.HALF_OPEN, now, "time to try again")
        elif self._state is State.CLOSED:
            self._generation += 1
            self._successes_before -= self._successes
            self._requests = self._successes = self._failures = 0
            self._until = now + self.settings.interval

    def _become(self, new: State, now: float, why: str) -> None:
        """Begin a new term."""
        old, self._state = self._state, new
        self._term += 1
        self._generation += 1
        self._requests = self._successes = self._failures = self._failures_in_a_row = self._successes_before = 0
        self._probes.clear()
        if self._window is not None:
            self._window.clear()
        if new is State.OPEN:
            again = self._open_for * self.settings.timeout_growth if old is State.HALF_OPEN else 0.0
            self._open_for = min(max(again, self.settings.timeout), self.settings.timeout_max)
            self._opened_at = self._wall()
        elif new is State.CLOSED:
            self._open_for = 0.0
        self._begin(now)
        if old is not new:
            self._changes.append((old, new, why))

    def _begin(self, now: float) -> None:
        """Say until when the state holds by itself."""
        lean = self._simple and self._state is State.CLOSED and self._control is Control.NONE
        self._pass = self._term if lean else None
        self._until = math.inf
        if self._control is not Control.NONE:
            return
        if self._state is State.OPEN:
            jitter = self.settings.timeout_jitter * (2 * self._rng() - 1) if self.settings.timeout_jitter else 0.0
            self._until = now + min(self._open_for * (1 + jitter), self.settings.timeout_max)
        elif self._state is State.CLOSED and self.settings.interval:
            self._until = now + self.settings.interval

    def _drop_lost_probes(self, now: float) -> None:
        for probe in [probe for probe, deadline in self._probes.items() if deadline <= now]:
            del self._probes[probe]

    def _wait(self, now: float) -> float:
        if self._state is State.OPEN:
            return self.settings.timeout if self._control is Control.FORCED_OPEN else max(0.0, self._until - now)
        if self._state is State.HALF_OPEN:
            self._drop_lost_probes(now)
            if len(self._probes) >= self.settings.max_requests:
                return min(self.settings.timeout, min(self._probes.values()) - now)
        return 0.0

    def _counts(self) -> Counts:
        return Counts(
            self._requests,
            self._successes,
            self._failures,
            self._successes - self._successes_before,
            self._failures_in_a_row,
        )

    def _tally(self) -> tuple[int, ...]:
        return self._requests, self._successes, self._failures, self._successes_before, self._failures_in_a_row

    # -- what an operator may say --------------------------------------------------------------------------------

    def _force_open(self, now: float, reason: str) -> None:
        self._control, self._reason = Control.FORCED_OPEN, reason
        if self._state is State.OPEN:
            self._begin(now)
        else:
            self._become(State.OPEN, now, "forced open")

    def _disable(self, now: float, reason: str) -> None:
        self._control, self._reason = Control.DISABLED, reason
        self._become(State.CLOSED, now, "disabled")

    def _reset(self, now: float) -> None:
        self._control, self._reason = Control.NONE, ""
        self._become(State.CLOSED, now, "reset")

    # -- to be kept elsewhere ------------------------------------------------------------------------------------

    def _dump(self, now: float) -> dict[str, t.Any]:
        """All of it as JSON can have it. Times are seconds since 1970, so that they outlive the process."""
        shift = self._wall() - now
        record: dict[str, t.Any] = {
            "state": self._state.label,
            "control": self._control.value,
            "reason": self._reason,
            "term": self._term,
            "generation": self._generation,
            "counts": list(self._tally()),
            "opened_at": round(self._opened_at, 3),
            "open_for": self._open_for,
            "until": None if math.isinf(self._until) else round(self._until + shift, 3),
            "probes": {probe: round(deadline + shift, 3) for probe, deadline in self._probes.items()},
        }
        if self._window is not None:
            record["window"] = self._window.dump(shift)
        return record

    def _load(self, record: t.Mapping[str, t.Any], now: float) -> None:
        """Take over what :meth:`_dump` gave, all of it or nothing.

        :raises ValueError: it is no such record.
        """
        shift = now - self._wall()
        try:
            state = _STATES[record["state"]]
            control = Control(record["control"])
            reason = str(record.get("reason", ""))
            term, generation = int(record["term"]), int(record["generation"])
            requests, successes, failures, before, failures_in_a_row = (int(count) for count in record["counts"])
            opened_at, open_for = _finite(record["opened_at"]), _finite(record["open_for"])
            until = math.inf if record["until"] is None else _finite(record["until"]) + shift
            probes = {str(probe): _finite(deadline) + shift for probe, deadline in record["probes"].items()}
            window = [[_finite(value) for value in bucket] for bucket in record.get("window", [])]
            if any(len(bucket) != WIDTH for bucket in window) or min(requests, successes, failures) < 0:
                raise ValueError("its numbers make no sense")
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as exc:
            raise ValueError(f"no record of a circuit breaker ({type(exc).__name__}: {exc})") from exc
        self._state, self._control, self._reason = state, control, reason
        self._term, self._generation = term, generation
        self._requests, self._successes, self._failures = requests, successes, failures
        self._successes_before, self._failures_in_a_row = before, failures_in_a_row
        self._opened_at, self._open_for = opened_at, open_for
        limits = self.settings
        if control is not Control.NONE or state is State.HALF_OPEN:
            self._until = math.inf
        elif math.isinf(until) or (state is State.CLOSED and not limits.interval):
            self._begin(now)
        else:
            # A clock that was set back, or settings that changed, must not keep it open for days.
            self._until = min(until, now + (limits.timeout_max if state is State.OPEN else limits.interval))
        self._probes = {probe: min(deadline, now + limits.probe_timeout) for probe, deadline in probes.items()}
        if self._window is not None:
            self._window.load(window, shift)
        lean = self._simple and state is State.CLOSED and control is Control.NONE
        self._pass = term if lean else None


_STATES = {state.label: state for state in State}


def _finite(value: t.Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not finite")
    return number
