# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A circuit breaker that can be shared: its lock, its storage, its listeners, and what an operator may do."""

from __future__ import annotations

import logging
import random
import threading
import time
import typing as t

from .circuit_breaker_model import (
    GENERIC,
    BreakerError,
    CircuitOpenError,
    Control,
    Counts,
    Listener,
    Settings,
    State,
)
from .circuit_breaker_rules import CANCELLED, FAILURE, REJECTED, SUCCESS, Rules, Ticket
from .circuit_breaker_storage import Storage, StorageError

R = t.TypeVar("R")
#: Whether an error is a failure of what was called; None: it says nothing about it.
IsFailure = t.Callable[[BaseException], "bool | None"]

#: Called with the breaker, the old and the new state.
StateChange = t.Callable[[t.Any, State, State], object]

_log = logging.getLogger(__name__)
_log.addHandler(logging.NullHandler())  # in modules nobody sets logging up, and nothing may go to stderr


def any_error(_exc: BaseException) -> bool:
    """Every error is a failure."""
    return True


class SharedBreaker(Rules):
    """A breaker that threads and tasks share; how calls are guarded by it is what :class:`CircuitBreaker` adds.

    :param name: what it protects from, such as C(redis).
    :param service: who uses it; empty in modules.
    :param settings: see :class:`Settings`.
    :param is_failure: whether an error raised by a call is a failure (True), is an answer like any other (False), or
        says nothing (None). Errors that are no C(Exception) and other breakers' refusals are never asked about.
    :param is_bad_result: whether what a call returned is a failure all the same, such as an HTTP response of 503.
    :param clock: monotonic seconds.
    :param wall: seconds since 1970.
    :param on_state_change: called with the breaker, the old and the new state.
    :param listeners: see :class:`Listener`.
    :param storage: where its state is kept; None: in this object. A storage is locked and read at every call, which is
        for short-lived programs. One that fails is reported, and the breaker goes on with what it knows.
    :param rng: numbers from 0 to 1, for the jitter.
    """

    def __init__(
        self,
        name: str,
        service: str,
        settings: Settings = GENERIC,
        *,
        is_failure: IsFailure = any_error,
        is_bad_result: t.Callable[[t.Any], bool] | None = None,
        clock: t.Callable[[], float] = time.monotonic,
        wall: t.Callable[[], float] = time.time,
        on_state_change: StateChange | None = None,
        listeners: t.Iterable[Listener] = (),
        storage: Storage | None = None,
        rng: t.Callable[[], float] = random.random,
    ) -> None:
        super().__init__(name, service, settings, clock=clock, wall=wall, rng=rng, simple=storage is None)
        self._is_failure = is_failure
        self._is_bad_result = is_bad_result
        self._on_state_change = on_state_change
        self._listeners = tuple(listeners)
        self._storage = storage
        self._storage_failed = False
        self._lock = threading.Lock()
        self._announcing = False
        for listener in self._listeners:
            listener.attached(self)

    def __repr__(self) -> str:
        return f"<CircuitBreaker {self.name} of {self.service or 'nobody'}: {self._state.label}>"

    # -- what it knows -------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The state as of now."""
        return self._look(lambda _now: self._state)

    @property
    def counts(self) -> Counts:
        """The counts as of now."""
        return self._look(lambda _now: self._counts())

    @property
    def generation(self) -> int:
        """How often the state changed or the window rolled."""
        return self._look(lambda _now: self._generation)

    @property
    def control(self) -> Control:
        """What an operator said."""
        return self._look(lambda _now: self._control)

    @property
    def reason(self) -> str:
        """Why an operator said it."""
        return self._look(lambda _now: self._reason)

    @property
    def retry_after(self) -> float:
        """Seconds until it may let a call through; 0: now."""
        return self._look(self._wait)

    @property
    def open_since(self) -> float:
        """When it opened, in seconds since 1970; 0 unless it is open."""
        return self._look(lambda _now: self._opened_at if self._state is State.OPEN else 0.0)

    # -- what an operator may do ---------------------------------------------------------------------------------

    def force_open(self, reason: str = "") -> None:
        """Let nothing through until :meth:`enable` or :meth:`reset`."""
        self._change(lambda now: self._force_open(now, reason))

    def disable(self, reason: str = "") -> None:
        """Let everything through, and count nothing, until :meth:`enable` or :meth:`reset`."""
        self._change(lambda now: self._disable(now, reason))

    def enable(self) -> None:
        """Take back :meth:`force_open` or :meth:`disable`; it is closed then. Without either, nothing changes."""
        self._change(lambda now: None if self._control is Control.NONE else self._reset(now))

    def reset(self) -> None:
        """Close it, with nothing counted and no operator's word."""
        self._change(self._reset)

    def snapshot(self) -> dict[str, t.Any]:
        """Its state in the shape that storages keep; times are seconds since 1970."""
        return self._look(self._dump)

    def restore(self, record: t.Mapping[str, t.Any] | None) -> None:
        """Take over what :meth:`snapshot` gave, or what a storage has; None leaves it as it is.

        :raises ValueError: the record is none.
        """
        with self._lock:
            self._take_over(record)
        self._announce()

    # -- a call begins and ends ----------------------------------------------------------------------------------

    def _enter(self) -> int | Ticket:
        """Let a call through, or refuse it. Where it matters, callers look at C(_pass) first themselves."""
        ticket = self._pass
        if ticket is not None:
            return ticket
        found = self._locked(self._admit)
        if self._changes:
            self._announce()
        if isinstance(found, BreakerError):
            self._tell(State.OPEN if isinstance(found, CircuitOpenError) else State.HALF_OPEN, REJECTED)
            raise found
        return found

    def _leave(self, ticket: int | Ticket) -> None:
        """A call returned."""
        now = self._clock()
        lock = self._lock
        # Faster than a with statement, and this is what every call goes through.
        lock.acquire()
        try:
            # A bare number is given out only by a closed breaker, and is outdated once that has changed its state.
            counted = ticket == self._term and now < self._until
            if counted:
                self._requests += 1
                self._successes += 1
                self._failures_in_a_row = 0
        finally:
            lock.release()
        if not counted:
            self._settle(ticket, SUCCESS)
        elif self._listeners:
            self._tell(State.CLOSED, SUCCESS)

    def _settle(self, ticket: int | Ticket, result: str) -> None:
        said = self._locked(lambda now: self._record(ticket, result, now))
        if self._changes:
            self._announce()
        if self._listeners:
            self._tell(State.CLOSED if isinstance(ticket, int) else ticket.state, said)

    def _verdict(self, exc: BaseException) -> str:
        if not isinstance(exc, Exception) or isinstance(exc, BreakerError):
            return CANCELLED
        try:
            failed = self._is_failure(exc)
        except Exception:
            # What can't be classified is a failure, and the caller gets the error of the call, not this one.
            _log.exception("circuit breaker %s can't classify %s", self.name, type(exc).__name__)
            failed = True
        return CANCELLED if failed is None else FAILURE if failed else SUCCESS

    def _verdict_on(self, result: t.Any) -> str:
        try:
            bad = self._is_bad_result is not None and self._is_bad_result(result)
        except Exception:
            _log.exception("circuit breaker %s can't classify a %s", self.name, type(result).__name__)
            bad = False
        return FAILURE if bad else SUCCESS

    # -- locking and storage -------------------------------------------------------------------------------------

    def _look(self, read: t.Callable[[float], R]) -> R:
        def step(now: float) -> R:
            self._refresh(now)
            return read(now)

        return self._change(step)

    def _change(self, step: t.Callable[[float], R]) -> R:
        result = self._locked(step)
        if self._changes:
            self._announce()
        return result

    def _locked(self, step: t.Callable[[float], R]) -> R:
        """Do something under the lock, with what the storage has, and keep there what came of it."""
        with self._lock:
            if self._storage is None:
                return step(self._clock())
            key = f"{self.service}/{self.name}" if self.service else self.name
            results: list[R] = []
            try:
                with self._storage.transaction() as records:
                    # When it could not be written the last time, this process knows better than the storage.
                    if not self._storage_failed:
                        self._take_over_valid(records.get(key))
                    results.append(step(self._clock()))
                    records[key] = self._dump(self._clock())
                self._storage_failed = False
            except StorageError as exc:
                # A breaker must not turn a full disk into an outage of what it guards.
                if not self._storage_failed:
                    _log.warning("circuit breaker %s goes on without its storage: %s", self.name, exc)
                self._storage_failed = True
            return results[0] if results else step(self._clock())

    def _take_over_valid(self, record: t.Mapping[str, t.Any] | None) -> None:
        try:
            self._take_over(record)
        except ValueError as exc:
            _log.warning("circuit breaker %s begins anew: its storage has %s", self.name, exc)

    def _take_over(self, record: t.Mapping[str, t.Any] | None) -> None:
        if record is None:
            return
        old = self._state
        self._load(record, self._clock())
        if old is not self._state:
            self._changes.append((old, self._state, "as another process left it"))

    # -- telling others ------------------------------------------------------------------------------------------

    def _tell(self, state: State, result: str) -> None:
        for listener in self._listeners:
            try:
                listener.on_result(self, state, result)
            except Exception:
                _log.exception("a listener of circuit breaker %s failed", self.name)

    def _announce(self) -> None:
        """Announce changes one by one and in order; a thread that finds another one at it leaves its own to that."""
        while True:
            with self._lock:
                if self._announcing or not self._changes:
                    return
                self._announcing = True
                old, new, why = self._changes.popleft()
            try:
                self._announce_one(old, new, why)
            finally:
                with self._lock:
                    self._announcing = False

    def _announce_one(self, old: State, new: State, why: str) -> None:
        level = logging.WARNING if new is State.OPEN else logging.INFO
        who = f"{self.name} of {self.service}" if self.service else self.name
        _log.log(level, "circuit breaker %s: %s, was %s: %s", who, new.label, old.label, why)
        heard: list[StateChange] = [listener.on_state_change for listener in self._listeners]
        if self._on_state_change is not None:
            heard.append(self._on_state_change)
        for callback in heard:
            try:
                callback(self, old, new)
            except Exception:
                _log.exception("a listener of circuit breaker %s failed", self.name)
