# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a circuit breaker is made of: its states, settings, counts, errors, and whoever listens to it (seed facts 1)."""

from __future__ import annotations

import dataclasses
import enum
import math
import typing as t
from dataclasses import dataclass

from .errors import ResilienceError

if t.TYPE_CHECKING:
    from .circuit_breaker import CircuitBreaker


class State(enum.IntEnum):
    """States, with the values that their gauge has."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2

    @property
    def label(self) -> str:
        """The state's name in metrics and messages: closed, half-open or open."""
        return _LABELS[self]


_LABELS = {State.CLOSED: "closed", State.HALF_OPEN: "half-open", State.OPEN: "open"}


class Control(enum.Enum):
    """What an operator said: nothing, let nothing through, or let everything through."""

    NONE = "none"
    FORCED_OPEN = "forced_open"
    DISABLED = "disabled"


@dataclass(frozen=True)
class Counts:
    """What happened since the state changed or, when closed, since the window began.

    The consecutive ones alone outlive the window, so that failures spaced wider than it still open the breaker.

    :ivar requests: calls that were let through; when closed, those of them that ended.
    """

    requests: int = 0
    total_successes: int = 0
    total_failures: int = 0
    consecutive_successes: int = 0
    consecutive_failures: int = 0


@dataclass(frozen=True)
class Settings:
    """How a breaker decides; times are in seconds.

    :param max_requests: probes in flight at once in half-open.
    :param interval: window after which the counts are cleared when closed; 0 is never.
    :param timeout: how long it stays open before it lets probes through.
    :param failure_threshold: consecutive failures that open it.
    :param success_threshold: consecutive successes in half-open that close it.
    :param probe_timeout: a probe that did not return by then no longer holds a place, though its result still counts.
    :param failure_rate: share of failed calls in the sliding window that opens it, 0 to 1; 0 is off.
    :param slow_call: a call that takes this long is slow; 0 is off. In half-open a slow probe counts as a failure.
    :param slow_call_rate: share of slow calls in the sliding window that opens it, 0 to 1; 0 is off.
    :param minimum_calls: how many calls the sliding window must have before a rate says anything.
    :param rate_window: length of the sliding window.
    :param timeout_jitter: the time it stays open varies by up to this share, so that clients don't come back at once.
    :param timeout_growth: each time probes fail, it stays open this many times longer.
    :param timeout_max: but never longer than this.
    :raises ValueError: a value is out of its range; the text names key, value and range.
    """

    max_requests: int = 3
    interval: float = 60.0
    timeout: float = 10.0
    failure_threshold: int = 5
    success_threshold: int = 2
    probe_timeout: float = 60.0
    failure_rate: float = 0.0
    slow_call: float = 0.0
    slow_call_rate: float = 0.0
    minimum_calls: int = 20
    rate_window: float = 30.0
    timeout_jitter: float = 0.0
    timeout_growth: float = 1.0
    timeout_max: float = 3600.0

    def __post_init__(self) -> None:
        for key, allowed in RANGES.items():
            allowed.check(key, getattr(self, key))
        if self.timeout_max < self.timeout:
            raise ValueError(f"timeout_max is {self.timeout_max!r}; allowed: timeout ({self.timeout!r}) or more")
        if self.slow_call_rate and not self.slow_call:
            raise ValueError(
                f"slow_call_rate is {self.slow_call_rate!r}, but slow_call is 0; say after how many seconds a call is"
            )


@dataclass(frozen=True)
class Range:
    """The values that a setting may have, both ends included unless C(above) excludes the lower one."""

    kind: type
    least: float
    most: float
    above: bool = False

    def check(self, key: str, value: t.Any) -> None:
        """Refuse what is of another type or outside.

        :raises ValueError: with key, value and range.
        """
        wanted: tuple[type, ...] = (int,) if self.kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, wanted) or not math.isfinite(value):
            raise ValueError(f"{key} is {value!r}; allowed: {self}")
        if not self.least <= value <= self.most or (self.above and value == self.least):
            raise ValueError(f"{key} is {value!r}; allowed: {self}")

    def __str__(self) -> str:
        what = "a whole number" if self.kind is int else "a number"
        return f"{what} {'above' if self.above else 'from'} {self.least:g} to {self.most:g}"


_DAY = 86400.0
RANGES: dict[str, Range] = {
    "max_requests": Range(int, 1, 10_000),
    "interval": Range(float, 0, _DAY),
    "timeout": Range(float, 0, _DAY, above=True),
    "failure_threshold": Range(int, 1, 100_000),
    "success_threshold": Range(int, 1, 10_000),
    "probe_timeout": Range(float, 0, _DAY, above=True),
    "failure_rate": Range(float, 0, 1),
    "slow_call": Range(float, 0, _DAY),
    "slow_call_rate": Range(float, 0, 1),
    "minimum_calls": Range(int, 1, 1_000_000),
    "rate_window": Range(float, 0, _DAY, above=True),
    "timeout_jitter": Range(float, 0, 1),
    "timeout_growth": Range(float, 1, 100),
    "timeout_max": Range(float, 0, 7 * _DAY, above=True),
}

GENERIC = Settings()
#: Defaults by kind of dependency (seed facts 1).
KINDS: dict[str, Settings] = {
    "generic": GENERIC,
    "redis": Settings(max_requests=5, interval=30.0, timeout=15.0, failure_threshold=3, success_threshold=2),
    "database": Settings(max_requests=3, interval=60.0, timeout=30.0, failure_threshold=5, success_threshold=2),
    "grpc": Settings(max_requests=5, interval=45.0, timeout=20.0, failure_threshold=3, success_threshold=2),
    "grpc_connection": Settings(max_requests=3, interval=60.0, timeout=30.0, failure_threshold=3, success_threshold=1),
    "http": Settings(max_requests=5, interval=30.0, timeout=15.0, failure_threshold=3, success_threshold=2),
}
SETTING_NAMES = tuple(field.name for field in dataclasses.fields(Settings))


class BreakerError(ResilienceError):
    """A call was not made, since the breaker did not let it through.

    :ivar name: the breaker's name.
    :ivar service: who uses it.
    :ivar retry_after: seconds after which it may be worth trying again.
    :ivar reason: what the operator said who forced it open; empty otherwise.
    """

    said = "the circuit breaker does not let this call through"

    def __init__(self, name: str, service: str = "", retry_after: float = 0.0, reason: str = "") -> None:
        super().__init__(name, service, retry_after, reason)
        self.name = name
        self.service = service
        self.retry_after = retry_after
        self.reason = reason

    def __str__(self) -> str:
        # Put together only when somebody reads it: while a breaker is open, refusals are many and mostly unread.
        who = f"{self.name} of {self.service}" if self.service else self.name
        why = f", {self.reason}" if self.reason else ""
        return f"{self.said} ({who}{why}; try again in {self.retry_after:.1f} s)"


class CircuitOpenError(BreakerError):
    """The breaker is open."""

    said = "circuit breaker is open"


class TooManyRequestsError(BreakerError):
    """The breaker is half-open and all its probes are under way."""

    said = "too many requests in half-open state"


class Listener:
    """Hears of what a breaker does. It is called outside the breaker's lock, and may use the breaker.

    What it raises is logged and goes no further.
    """

    def attached(self, breaker: CircuitBreaker) -> None:
        """It listens to this breaker from now on."""

    def on_result(self, breaker: CircuitBreaker, state: State, result: str) -> None:
        """A call ended, or was not let through.

        :param state: the state in which the call was let through or refused.
        :param result: success, failure, rejected, or cancelled when the caller gave up.
        """

    def on_state_change(self, breaker: CircuitBreaker, old: State, new: State) -> None:
        """The state changed."""
