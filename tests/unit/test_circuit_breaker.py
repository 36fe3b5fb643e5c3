# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The circuit breaker's rules: a test for each point that seed facts (1.3, 10.2, 10.5) say the original gets wrong."""

from __future__ import annotations

import logging
import typing as t

import pytest

from ansible_collections.shannon.resilience.plugins.module_utils.circuit_breaker import (
    KINDS,
    BreakerError,
    CircuitBreaker,
    CircuitOpenError,
    Control,
    Counts,
    Listener,
    Settings,
    State,
    TooManyRequestsError,
)


class Clock:
    """A clock that goes on when told to; as wall clock it is a million seconds ahead."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now + 1_000_000


class Recorder(Listener):
    """Remembers what it heard."""

    def __init__(self) -> None:
        self.results: list[tuple[State, str]] = []
        self.changes: list[tuple[State, State]] = []

    def on_result(self, breaker: CircuitBreaker, state: State, result: str) -> None:
        self.results.append((state, result))

    def on_state_change(self, breaker: CircuitBreaker, old: State, new: State) -> None:
        self.changes.append((old, new))


class Made(t.NamedTuple):
    breaker: CircuitBreaker
    clock: Clock
    heard: Recorder


def make(**settings: t.Any) -> Made:
    clock, heard = Clock(), Recorder()
    options = {name: settings.pop(name) for name in ("is_failure", "is_bad_result", "rng") if name in settings}
    values = {"max_requests": 2, "interval": 10.0, "timeout": 5.0, "failure_threshold": 3, "success_threshold": 2}
    breaker = CircuitBreaker(
        "redis",
        "gateway",
        Settings(**{**values, **settings}),
        clock=clock,
        wall=clock.wall,
        listeners=[heard],
        **options,
    )
    return Made(breaker, clock, heard)


def boom() -> None:
    raise ConnectionError("away")


def fail(breaker: CircuitBreaker, times: int = 1) -> None:
    for _time in range(times):
        with pytest.raises(ConnectionError):
            breaker.call(boom)


def work(breaker: CircuitBreaker, times: int = 1) -> None:
    for _time in range(times):
        assert breaker.call(lambda: "done") == "done"


# ---- the basics


def test_states_have_the_gauge_values_and_names_of_the_facts() -> None:
    assert [(int(state), state.label) for state in State] == [(0, "closed"), (1, "half-open"), (2, "open")]


def test_the_defaults_are_those_of_the_facts() -> None:
    found = {
        kind: (one.max_requests, one.interval, one.timeout, one.failure_threshold, one.success_threshold)
        for kind, one in KINDS.items()
    }
    assert found == {
        "generic": (3, 60, 10, 5, 2),
        "redis": (5, 30, 15, 3, 2),
        "database": (3, 60, 30, 5, 2),
        "grpc": (5, 45, 20, 3, 2),
        "grpc_connection": (3, 60, 30, 3, 1),
        "http": (5, 30, 15, 3, 2),
    }


def test_success_keeps_it_closed_and_is_counted() -> None:
    breaker = make().breaker
    work(breaker)
    fail(breaker)
    work(breaker)
    assert breaker.counts == Counts(3, 2, 1, 1, 0)
    assert breaker.state is State.CLOSED


def test_the_failure_that_reaches_the_threshold_opens_it() -> None:
    breaker, _clock, heard = make()
    fail(breaker, 2)
    assert breaker.state is State.CLOSED
    fail(breaker)
    assert breaker.state is State.OPEN
    assert heard.changes == [(State.CLOSED, State.OPEN)]
    assert breaker.counts == Counts()


def test_a_success_clears_the_consecutive_failures() -> None:
    breaker = make().breaker
    for _round in range(5):
        fail(breaker, 2)
        work(breaker)
    assert breaker.state is State.CLOSED and breaker.counts.total_failures == 10


def test_open_refuses_without_calling_and_without_counting() -> None:
    breaker, clock, heard = make()
    fail(breaker, 3)
    clock.now += 2
    with pytest.raises(
        CircuitOpenError, match=r"circuit breaker is open \(redis of gateway; try again in 3\.0 s\)"
    ) as e:
        breaker.call(lambda: pytest.fail("it was called"))
    assert (e.value.name, e.value.service, e.value.retry_after) == ("redis", "gateway", 3.0)
    assert breaker.counts == Counts()
    assert heard.results[-1] == (State.OPEN, "rejected")


def test_after_the_timeout_successes_close_it() -> None:
    breaker, clock, heard = make()
    fail(breaker, 3)
    clock.now += 5
    work(breaker)
    assert breaker.state is State.HALF_OPEN
    work(breaker)
    assert breaker.state is State.CLOSED and breaker.counts == Counts()
    assert heard.changes == [
        (State.CLOSED, State.OPEN),
        (State.OPEN, State.HALF_OPEN),
        (State.HALF_OPEN, State.CLOSED),
    ]


def test_one_failure_in_half_open_opens_it_again() -> None:
    breaker, clock, _heard = make()
    fail(breaker, 3)
    clock.now += 5
    work(breaker)
    fail(breaker)
    assert breaker.state is State.OPEN and breaker.retry_after == 5


def test_errors_are_passed_on_untouched() -> None:
    error = ValueError("mine")

    def raising() -> None:
        raise error

    with pytest.raises(ValueError) as caught:
        make().breaker.call(raising)
    assert caught.value is error


def test_every_change_begins_a_generation() -> None:
    breaker, clock, _heard = make()
    assert breaker.generation == 0
    fail(breaker, 3)
    clock.now += 5
    assert breaker.state is State.HALF_OPEN and breaker.generation == 2
    work(breaker, 2)
    clock.now += 10
    assert breaker.generation == 4


# ---- what the original gets wrong (1.3)


def test_reading_the_state_looks_at_the_clock() -> None:
    breaker, clock, heard = make()
    fail(breaker, 3)
    clock.now += 5
    assert breaker.state is State.HALF_OPEN and breaker.retry_after == 0 and breaker.open_since == 0
    assert heard.changes[-1] == (State.OPEN, State.HALF_OPEN)


def test_the_window_clears_the_counts_but_not_what_is_consecutive() -> None:
    breaker, clock, _heard = make()
    work(breaker, 2)
    fail(breaker, 2)
    clock.now += 10
    assert breaker.counts == Counts(0, 0, 0, 0, 2)


def test_consecutive_successes_outlive_the_window_too() -> None:
    breaker, clock, _heard = make()
    fail(breaker)
    work(breaker, 3)
    clock.now += 10
    work(breaker)
    assert breaker.counts == Counts(1, 1, 0, 4, 0)


@pytest.mark.parametrize("spacing", [5.0, 11.0, 100.0])
def test_slow_but_steady_failures_open_it(spacing: float) -> None:
    breaker, clock, _heard = make()
    for _failure in range(3):
        clock.now += spacing
        fail(breaker)
    assert breaker.state is State.OPEN


def test_a_failure_that_outlasts_the_window_counts() -> None:
    breaker, clock, _heard = make(failure_threshold=1)

    def slow() -> None:
        clock.now += 25
        raise TimeoutError("no answer")

    with pytest.raises(TimeoutError):
        breaker.call(slow)
    assert breaker.state is State.OPEN


def test_a_success_that_outlasts_the_window_counts_where_it_ends() -> None:
    breaker, clock, _heard = make()

    def slow() -> None:
        clock.now += 25

    breaker.call(slow)
    assert breaker.counts == Counts(1, 1, 0, 1, 0) and breaker.generation == 1


@pytest.mark.parametrize("good", [True, False])
def test_a_result_is_ignored_when_the_state_changed_meanwhile(good: bool) -> None:
    breaker, clock, _heard = make()
    permit = breaker.admit()
    fail(breaker, 3)
    clock.now += 5
    work(breaker)
    assert breaker.state is State.HALF_OPEN
    if good:
        permit.succeeded()
    else:
        permit.failed()
    assert breaker.state is State.HALF_OPEN and breaker.counts == Counts(1, 1, 0, 1, 0)


def test_half_open_bounds_the_probes_in_flight() -> None:
    breaker, clock, heard = make()
    fail(breaker, 3)
    clock.now += 5
    first, second = breaker.admit(), breaker.admit()
    with pytest.raises(TooManyRequestsError, match="too many requests in half-open state") as caught:
        breaker.call(lambda: None)
    assert caught.value.retry_after == 5
    assert heard.results[-1] == (State.HALF_OPEN, "rejected")
    assert breaker.counts.requests == 2
    first.succeeded()
    third = breaker.admit()
    second.succeeded()
    third.succeeded()
    assert breaker.state is State.CLOSED


def test_fewer_probes_than_successes_needed_is_no_trap() -> None:
    breaker, clock, _heard = make(max_requests=1, success_threshold=5)
    fail(breaker, 3)
    clock.now += 5
    work(breaker, 5)
    assert breaker.state is State.CLOSED


def test_a_probe_that_never_returns_loses_its_place() -> None:
    breaker, clock, _heard = make(max_requests=1, probe_timeout=7.0)
    fail(breaker, 3)
    clock.now += 5
    lost = breaker.admit()
    with pytest.raises(TooManyRequestsError):
        breaker.admit()
    clock.now += 7
    assert breaker.retry_after == 0
    work(breaker, 2)
    assert breaker.state is State.CLOSED
    lost.failed()
    assert breaker.state is State.CLOSED and breaker.counts == Counts()


def test_a_late_probe_frees_no_place_but_its_own() -> None:
    breaker, clock, _heard = make(max_requests=1, success_threshold=9, probe_timeout=7.0)
    fail(breaker, 3)
    clock.now += 5
    late = breaker.admit()
    clock.now += 7
    breaker.admit()
    late.succeeded()
    with pytest.raises(TooManyRequestsError):
        breaker.admit()


@pytest.mark.parametrize("key", ["max_requests", "failure_threshold", "success_threshold"])
def test_thresholds_of_zero_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match=rf"{key} is 0; allowed: a whole number from 1 to"):
        Settings(**{key: 0})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("timeout", 0),
        ("timeout", -1.0),
        ("timeout", float("nan")),
        ("timeout", float("inf")),
        ("timeout", "10s"),
        ("max_requests", 2.5),
        ("max_requests", True),
        ("interval", -1),
        ("failure_rate", 1.1),
        ("timeout_jitter", 2),
        ("timeout_growth", 0.5),
        ("timeout_max", 1.0),
        ("slow_call_rate", 0.5),
    ],
)
def test_settings_out_of_range_are_named(key: str, value: t.Any) -> None:
    with pytest.raises(ValueError, match=key):
        Settings(**{key: value})


def test_without_an_interval_counts_are_kept() -> None:
    breaker, clock, _heard = make(interval=0)
    work(breaker, 2)
    clock.now += 1e9
    work(breaker)
    assert breaker.counts.requests == 3 and breaker.generation == 0


def test_callbacks_run_outside_the_lock() -> None:
    seen: list[State] = []

    def on_change(breaker: CircuitBreaker, _old: State, new: State) -> None:
        seen.append(breaker.state)
        if new is State.OPEN:
            breaker.reset()
            breaker.call(lambda: None)

    breaker = CircuitBreaker("a", "b", Settings(failure_threshold=1), on_state_change=on_change)
    fail(breaker)
    assert seen == [State.OPEN, State.CLOSED] and breaker.state is State.CLOSED


def test_a_callback_that_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Listener):
        def on_result(self, breaker: CircuitBreaker, state: State, result: str) -> None:
            raise RuntimeError("listener")

        def on_state_change(self, breaker: CircuitBreaker, old: State, new: State) -> None:
            raise RuntimeError("listener")

    heard = Recorder()
    breaker = CircuitBreaker("a", "b", Settings(failure_threshold=1), listeners=[Broken(), heard])
    work(breaker)
    fail(breaker)
    assert heard.changes == [(State.CLOSED, State.OPEN)] and "a listener of circuit breaker a failed" in caplog.text


def test_changes_are_logged_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        fail(make().breaker, 3)
    assert "circuit breaker redis of gateway: open, was closed: 3 calls in a row failed" in caplog.text


# ---- what says nothing


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit, SystemExit])
def test_giving_up_is_no_failure_but_frees_the_probe(error: type[BaseException]) -> None:
    def give_up() -> None:
        raise error

    breaker, clock, heard = make(failure_threshold=1, max_requests=1)
    with pytest.raises(error):
        breaker.call(give_up)
    assert breaker.state is State.CLOSED and breaker.counts == Counts(1, 0, 0, 0, 0)
    fail(breaker)
    clock.now += 5
    with pytest.raises(error):
        breaker.call(give_up)
    assert breaker.state is State.HALF_OPEN and heard.results[-1] == (State.HALF_OPEN, "cancelled")
    work(breaker, 2)
    assert breaker.state is State.CLOSED


def test_another_breakers_refusal_is_no_failure() -> None:
    def refused() -> None:
        raise CircuitOpenError("inner", "b", 1.0)

    breaker = make(failure_threshold=1).breaker
    with pytest.raises(BreakerError):
        breaker.call(refused)
    assert breaker.state is State.CLOSED and breaker.counts.total_failures == 0


def test_classification_decides() -> None:
    breaker = make(failure_threshold=1, is_failure=lambda exc: None if str(exc) == "?" else str(exc) == "bad").breaker
    for word in ("fine", "?"):
        with pytest.raises(ValueError), breaker:
            raise ValueError(word)
    assert breaker.counts == Counts(2, 1, 0, 1, 0)
    with pytest.raises(ValueError), breaker:
        raise ValueError("bad")
    assert breaker.state is State.OPEN


def test_a_classification_that_fails_counts_as_failure_and_keeps_the_error() -> None:
    def classify(_exc: BaseException) -> bool:
        raise RuntimeError("classification")

    breaker = make(failure_threshold=1, is_failure=classify).breaker
    fail(breaker)
    assert breaker.state is State.OPEN


def test_a_returned_error_can_be_a_failure() -> None:
    breaker = make(failure_threshold=2, is_bad_result=lambda status: status >= 500).breaker
    assert [breaker.call(lambda code=code: code) for code in (503, 429, 503, 500)] == [503, 429, 503, 500]
    assert breaker.state is State.OPEN


def test_rejected_calls_are_no_failures() -> None:
    breaker, _clock, heard = make()
    fail(breaker, 3)
    for _call in range(4):
        with pytest.raises(CircuitOpenError):
            breaker.call(lambda: None)
    results = [result for _state, result in heard.results]
    assert results == ["failure"] * 3 + ["rejected"] * 4


# ---- open time


def test_open_time_grows_to_its_maximum_and_shrinks_again() -> None:
    breaker, clock, _heard = make(timeout=10.0, timeout_growth=2.0, timeout_max=35.0, success_threshold=1)
    fail(breaker, 3)
    waits = []
    for _round in range(4):
        waits.append(breaker.retry_after)
        clock.now += breaker.retry_after
        fail(breaker)
    assert waits == [10, 20, 35, 35]
    clock.now += 35
    work(breaker)
    fail(breaker, 3)
    assert breaker.retry_after == 10


@pytest.mark.parametrize(("drawn", "wait"), [(0.0, 8.0), (0.5, 10.0), (1.0, 12.0)])
def test_open_time_is_jittered(drawn: float, wait: float) -> None:
    breaker = make(timeout=10.0, timeout_jitter=0.2, rng=lambda: drawn).breaker
    fail(breaker, 3)
    assert breaker.retry_after == pytest.approx(wait)


def test_jitter_does_not_exceed_the_maximum() -> None:
    breaker = make(timeout=10.0, timeout_max=10.0, timeout_jitter=0.5, rng=lambda: 1.0).breaker
    fail(breaker, 3)
    assert breaker.retry_after == 10


def test_open_since_is_wall_clock_time() -> None:
    breaker, clock, _heard = make()
    assert breaker.open_since == 0
    clock.now = 2000.0
    fail(breaker, 3)
    clock.now += 2
    assert breaker.open_since == 1_002_000


# ---- rates


def test_a_failure_rate_opens_it_though_failures_alternate() -> None:
    breaker, clock, _heard = make(failure_rate=0.5, minimum_calls=10, rate_window=30.0)
    for _pair in range(4):
        work(breaker)
        fail(breaker)
        clock.now += 1
    work(breaker)
    assert breaker.state is State.CLOSED
    fail(breaker)
    assert breaker.state is State.OPEN


def test_old_failures_slide_out_of_the_window() -> None:
    breaker, clock, _heard = make(failure_rate=0.5, minimum_calls=4, rate_window=30.0, interval=0)
    work(breaker)
    fail(breaker, 2)
    clock.now += 40
    for _pair in range(2):
        work(breaker, 2)
        fail(breaker)
    assert breaker.state is State.CLOSED


def test_slow_calls_open_it() -> None:
    breaker, clock, _heard = make(slow_call=2.0, slow_call_rate=0.6, minimum_calls=5)

    def take(seconds: float) -> None:
        clock.now += seconds

    for seconds in (1.0, 2.0, 3.0, 1.9):
        breaker.call(take, seconds)
    assert breaker.state is State.CLOSED
    breaker.call(take, 2.5)
    assert breaker.state is State.OPEN


def test_a_slow_probe_does_not_close_it() -> None:
    breaker, clock, _heard = make(slow_call=2.0)

    def slow() -> None:
        clock.now += 3

    fail(breaker, 3)
    clock.now += 5
    breaker.call(slow)
    assert breaker.state is State.OPEN


# ---- operators


def test_forced_open_stays_open_and_says_why() -> None:
    breaker, clock, heard = make()
    breaker.force_open("maintenance")
    clock.now += 1e6
    with pytest.raises(CircuitOpenError, match="maintenance") as caught:
        breaker.call(lambda: None)
    assert caught.value.retry_after == 5 and breaker.control is Control.FORCED_OPEN
    breaker.enable()
    assert breaker.state is State.CLOSED and heard.changes == [(State.CLOSED, State.OPEN), (State.OPEN, State.CLOSED)]


def test_a_call_under_way_does_not_undo_forcing() -> None:
    breaker = make().breaker
    permit = breaker.admit()
    breaker.force_open()
    permit.succeeded()
    assert breaker.state is State.OPEN and breaker.counts == Counts()


def test_an_open_breaker_can_be_forced_open() -> None:
    breaker, clock, heard = make()
    fail(breaker, 3)
    breaker.force_open()
    clock.now += 100
    assert breaker.state is State.OPEN and len(heard.changes) == 1


def test_disabled_lets_everything_through_and_counts_nothing() -> None:
    breaker = make().breaker
    fail(breaker, 3)
    breaker.disable()
    fail(breaker, 10)
    work(breaker)
    assert breaker.state is State.CLOSED and breaker.counts == Counts()
    breaker.enable()
    fail(breaker, 3)
    assert breaker.state is State.OPEN


def test_enable_changes_nothing_without_an_operators_word() -> None:
    breaker = make().breaker
    fail(breaker, 3)
    breaker.enable()
    assert breaker.state is State.OPEN


def test_reset_closes_and_forgets() -> None:
    breaker = make().breaker
    fail(breaker, 2)
    breaker.reset()
    fail(breaker, 2)
    assert breaker.state is State.CLOSED
    fail(breaker)
    breaker.reset()
    assert breaker.state is State.CLOSED and breaker.counts == Counts()


# ---- forms of use


def test_with_blocks_may_be_nested_and_crossed() -> None:
    outer, inner = make().breaker, make().breaker
    with outer, inner, outer:
        pass
    with pytest.raises(ConnectionError), outer, inner:
        boom()
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    inner.__exit__(None, None, None)
    assert outer.counts == Counts(4, 3, 1, 1, 0) and inner.counts == Counts(3, 2, 1, 1, 0)


def test_leaving_a_block_that_was_not_entered_here_counts_nothing() -> None:
    breaker = make().breaker
    breaker.__exit__(None, None, None)
    assert breaker.counts == Counts()


def test_a_decorated_function_keeps_its_name_and_signature() -> None:
    breaker = make().breaker

    @breaker
    def add(a: int, b: int = 2) -> int:
        """Adds."""
        return a + b

    assert add(1) == 3 and add(a=1, b=1) == 2 and add.__name__ == "add" and add.__doc__ == "Adds."
    assert breaker.counts.requests == 2


def test_a_decorated_method_is_still_one() -> None:
    breaker = make().breaker

    class Client:
        word = "x"

        @breaker
        def get(self) -> str:
            return self.word

    assert Client().get() == "x"


def test_a_decorated_function_is_refused_and_counted_like_a_call() -> None:
    breaker = make().breaker
    guarded = breaker(boom)
    for _call in range(3):
        with pytest.raises(ConnectionError):
            guarded()
    with pytest.raises(CircuitOpenError):
        guarded()


def test_a_failure_late_in_a_generator_counts() -> None:
    breaker = make(failure_threshold=1).breaker

    @breaker
    def stream() -> t.Iterator[int]:
        yield 1
        boom()

    items = stream()
    assert next(items) == 1 and breaker.state is State.CLOSED
    with pytest.raises(ConnectionError):
        next(items)
    assert breaker.state is State.OPEN


def test_a_generator_that_nobody_reads_to_its_end_says_nothing() -> None:
    breaker = make(failure_threshold=1).breaker

    @breaker
    def stream() -> t.Iterator[int]:
        yield from range(10)

    items = stream()
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert breaker.counts == Counts(1, 0, 0, 0, 0)
    assert list(stream()) == list(range(10)) and breaker.counts.total_successes == 1


def test_a_coroutine_function_is_not_taken_for_a_success() -> None:
    async def later() -> None:
        boom()

    breaker = make().breaker
    with pytest.raises(TypeError, match="call_async"):
        breaker.call(later)
    assert breaker.counts.total_successes == 0


def test_a_permit_counts_once() -> None:
    breaker = make().breaker
    permit = breaker.admit()
    permit.failed(ValueError())
    permit.failed()
    permit.succeeded()
    permit.dropped()
    assert breaker.counts == Counts(1, 0, 1, 0, 1)


def test_arguments_named_like_the_breakers_own_are_passed_on() -> None:
    def echo(**named: t.Any) -> dict[str, t.Any]:
        return named

    assert make().breaker.call(echo, fn=1, name=2) == {"fn": 1, "name": 2}
