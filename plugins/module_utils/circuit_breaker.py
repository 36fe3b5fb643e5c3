# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The circuit breaker: it stops calling what does not answer, and finds out by itself when it answers again.

The rules are seed facts 1, without its weaknesses:

- The state looks at the clock whenever it is read. A state change is announced outside the lock, in order.
- Consecutive failures outlive the window (C(interval)), so that slow but steady failures open it, and the result of a
  call that outlasts the window counts in the window in which the call ends. A result is ignored only when the state
  changed while the call ran.
- Half-open bounds the probes in flight, not their number; a probe that never returns loses its place after
  C(probe_timeout). So there is always a way out.
- A caller that gives up (a cancelled task, a generator that is closed, Ctrl-C) says nothing about what was called: it
  counts neither as a failure nor as a success.

Breakers are safe to share among threads and among tasks, and one breaker belongs to one dependency for the life of the
process, so that failures add up.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
import types
import typing as t

from .circuit_breaker_core import SharedBreaker
from .circuit_breaker_model import (
    GENERIC,
    KINDS,
    BreakerError,
    CircuitOpenError,
    Control,
    Counts,
    Listener,
    Settings,
    State,
    TooManyRequestsError,
)
from .circuit_breaker_rules import CANCELLED, FAILURE, SUCCESS, Ticket

__all__ = [
    "GENERIC",
    "KINDS",
    "BreakerError",
    "CircuitBreaker",
    "CircuitOpenError",
    "Control",
    "Counts",
    "Listener",
    "Permit",
    "Settings",
    "State",
    "TooManyRequestsError",
]

P = t.ParamSpec("P")
R = t.TypeVar("R")
#: What the C(with) blocks of this task or thread were let through as: (breaker, ticket, the block around it).
_entered: contextvars.ContextVar[t.Any] = contextvars.ContextVar("shannon_breakers_entered", default=None)
_get_entered = _entered.get
_set_entered = _entered.set
_COROUTINE = types.CoroutineType


class Permit:
    """A call that was let through, for code that neither is a block nor a function. The first report counts."""

    def __init__(self, breaker: CircuitBreaker, ticket: int | Ticket) -> None:
        self._breaker = breaker
        self._ticket: int | Ticket | None = ticket

    def succeeded(self) -> None:
        """The call did what it should."""
        if (ticket := self._take()) is not None:
            self._breaker._settle(ticket, SUCCESS)

    def failed(self, exc: BaseException | None = None) -> None:
        """The call failed; the breaker's classification says whether the error is a failure (None: it is)."""
        if (ticket := self._take()) is not None:
            self._breaker._settle(ticket, FAILURE if exc is None else self._breaker._verdict(exc))

    def dropped(self) -> None:
        """The call was given up."""
        if (ticket := self._take()) is not None:
            self._breaker._settle(ticket, CANCELLED)

    def _take(self) -> int | Ticket | None:
        ticket, self._ticket = self._ticket, None
        return ticket


class CircuitBreaker(SharedBreaker):
    """One circuit breaker; see :class:`SharedBreaker` for its parameters."""

    def call(self, fn: t.Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function if the breaker lets it through; its error is passed on.

        :raises CircuitOpenError: the breaker is open.
        :raises TooManyRequestsError: it is half-open, and enough probes are under way.
        :raises TypeError: the function is a coroutine function, whose result is not known yet: use :meth:`call_async`.
        """
        ticket = self._pass
        if ticket is None:
            ticket = self._enter()
        try:
            result = fn(*args, **kwargs)
        except BaseException as exc:
            self._settle(ticket, self._verdict(exc))
            raise
        if result.__class__ is _COROUTINE:
            self._refuse_coroutine(ticket, fn, result)
        if self._is_bad_result is None:
            self._leave(ticket)
        else:
            self._settle(ticket, self._verdict_on(result))
        return result

    async def call_async(self, fn: t.Callable[P, t.Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """As :meth:`call`, for a function whose result is awaited."""
        ticket = self._pass
        if ticket is None:
            ticket = self._enter()
        try:
            result = await fn(*args, **kwargs)
        except BaseException as exc:
            self._settle(ticket, self._verdict(exc))
            raise
        if self._is_bad_result is None:
            self._leave(ticket)
        else:
            self._settle(ticket, self._verdict_on(result))
        return result

    def admit(self) -> Permit:
        """Let a call through whose end is reported to the permit.

        :raises BreakerError: see :meth:`call`.
        """
        return Permit(self, self._enter())

    def __enter__(self) -> CircuitBreaker:
        ticket = self._pass
        _set_entered((self, self._enter() if ticket is None else ticket, _get_entered()))
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, exc: BaseException | None, _trace: types.TracebackType | None
    ) -> None:
        entry = _get_entered()
        if entry is not None and entry[0] is self:
            _set_entered(entry[2])
            ticket = entry[1]
        else:
            ticket = self._find_entry(entry)
        if exc is None:
            self._leave(ticket)
        else:
            self._settle(ticket, self._verdict(exc))

    async def __aenter__(self) -> CircuitBreaker:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.__exit__(kind, exc, trace)

    def __call__(self, fn: t.Callable[P, R]) -> t.Callable[P, R]:
        """Guard a function, a coroutine function, or a generator of either kind: that until its last item."""
        guarded: t.Any
        if inspect.isasyncgenfunction(fn):

            @functools.wraps(fn)
            async def guarded(*args: t.Any, **kwargs: t.Any) -> t.AsyncIterator[t.Any]:
                ticket = self._enter()
                try:
                    async with contextlib.aclosing(t.cast(t.Any, fn(*args, **kwargs))) as items:
                        async for item in items:
                            yield item
                except BaseException as exc:
                    self._settle(ticket, self._verdict(exc))
                    raise
                self._leave(ticket)

        elif inspect.isgeneratorfunction(fn):

            @functools.wraps(fn)
            def guarded(*args: t.Any, **kwargs: t.Any) -> t.Iterator[t.Any]:
                ticket = self._enter()
                try:
                    result = yield from t.cast(t.Any, fn(*args, **kwargs))
                except BaseException as exc:
                    self._settle(ticket, self._verdict(exc))
                    raise
                self._leave(ticket)
                return result

        elif inspect.iscoroutinefunction(fn):
            # The same as call_async and below as call, once more: through them a call would take half as long again.
            @functools.wraps(fn)
            async def guarded(*args: t.Any, **kwargs: t.Any) -> t.Any:
                ticket = self._pass
                if ticket is None:
                    ticket = self._enter()
                try:
                    result = await fn(*args, **kwargs)
                except BaseException as exc:
                    self._settle(ticket, self._verdict(exc))
                    raise
                if self._is_bad_result is None:
                    self._leave(ticket)
                else:
                    self._settle(ticket, self._verdict_on(result))
                return result

        else:

            @functools.wraps(fn)
            def guarded(*args: t.Any, **kwargs: t.Any) -> t.Any:
                ticket = self._pass
                if ticket is None:
                    ticket = self._enter()
                try:
                    result = fn(*args, **kwargs)
                except BaseException as exc:
                    self._settle(ticket, self._verdict(exc))
                    raise
                if result.__class__ is _COROUTINE:
                    self._refuse_coroutine(ticket, fn, result)
                if self._is_bad_result is None:
                    self._leave(ticket)
                else:
                    self._settle(ticket, self._verdict_on(result))
                return result

        return t.cast("t.Callable[P, R]", guarded)

    def _refuse_coroutine(self, ticket: int | Ticket, fn: t.Any, coroutine: t.Any) -> None:
        coroutine.close()
        self._settle(ticket, CANCELLED)
        raise TypeError(f"{fn!r} is a coroutine function; guard it with call_async")

    def _find_entry(self, entry: t.Any) -> int | Ticket:
        """The ticket of a block that is not the innermost one of this task, and take it out."""
        inner: list[t.Any] = []
        while entry is not None and entry[0] is not self:
            inner.append(entry)
            entry = entry[2]
        if entry is None:
            # The block was entered in another context. Its probe, if it was one, loses its place by itself.
            return Ticket(-1, State.CLOSED, self._clock())
        ticket, rest = entry[1], entry[2]
        for one in reversed(inner):
            rest = (one[0], one[1], rest)
        _set_entered(rest)
        return t.cast("int | Ticket", ticket)
