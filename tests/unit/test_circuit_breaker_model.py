# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The circuit breaker against a small reference model that keeps a list of everything that happened."""

from __future__ import annotations

import typing as t

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ansible_collections.shannon.resilience.plugins.module_utils.circuit_breaker import (
    CircuitBreaker,
    CircuitOpenError,
    Control,
    Permit,
    Settings,
    State,
    TooManyRequestsError,
)
from ansible_collections.shannon.resilience.plugins.module_utils.sliding_window import BUCKETS, SlidingWindow

limits = st.builds(
    Settings,
    max_requests=st.integers(1, 3),
    interval=st.sampled_from([0.0, 7.0, 20.0]),
    timeout=st.sampled_from([3.0, 10.0]),
    failure_threshold=st.integers(1, 4),
    success_threshold=st.integers(1, 4),
    probe_timeout=st.sampled_from([4.0, 50.0]),
    timeout_growth=st.sampled_from([1.0, 2.0]),
    timeout_max=st.sampled_from([10.0, 25.0]),
)


class Model:
    """The rules, said as plainly as possible: a history of this term, and what follows from it."""

    def __init__(self, limits: Settings) -> None:
        self.limits = limits
        self.now = 0.0
        self.control = Control.NONE
        self.begin(State.CLOSED)
        self.open_time = 0.0

    def begin(self, state: State) -> None:
        if state is State.OPEN:
            again = getattr(self, "state", None) is State.HALF_OPEN
            grown = self.open_time * self.limits.timeout_growth if again else self.limits.timeout
            self.open_time = min(max(grown, self.limits.timeout), self.limits.timeout_max)
        self.state = state
        self.since = self.window_since = self.now
        #: (when, whether it was good, or None when given up), oldest first.
        self.history: list[tuple[float, bool | None]] = []
        self.term = object()
        self.probes: dict[int, float] = {}
        self.admitted = 0

    def look(self) -> None:
        if self.control is not Control.NONE:
            return
        if self.state is State.OPEN and self.now - self.since >= self.open_time:
            self.begin(State.HALF_OPEN)
        if self.state is State.CLOSED and self.limits.interval and self.now - self.window_since >= self.limits.interval:
            self.window_since = self.now

    def admit(self, number: int) -> str:
        self.look()
        if self.control is Control.DISABLED:
            return "uncounted"
        if self.state is State.OPEN:
            return "open"
        if self.state is State.HALF_OPEN:
            if len(self.live_probes()) >= self.limits.max_requests:
                return "too many"
            self.probes[number] = self.now + self.limits.probe_timeout
            self.admitted += 1
        return "admitted"

    def live_probes(self) -> list[int]:
        return [number for number, deadline in self.probes.items() if deadline > self.now]

    def end(self, number: int, term: object, good: bool | None) -> None:
        self.look()
        self.probes.pop(number, None)
        if term is not self.term:
            return
        self.history.append((self.now, good))
        if good is None:
            return
        if not good and (self.state is State.HALF_OPEN or self.in_a_row(False) >= self.limits.failure_threshold):
            self.begin(State.OPEN)
        elif good and self.state is State.HALF_OPEN and self.in_a_row(True) >= self.limits.success_threshold:
            self.begin(State.CLOSED)

    def in_a_row(self, good: bool) -> int:
        results = [one for _when, one in self.history if one is not None]
        count = 0
        for one in reversed(results):
            if one is not good:
                break
            count += 1
        return count

    def counts(self) -> tuple[int, ...]:
        recent = [one for when, one in self.history if when >= self.window_since]
        requests = self.admitted if self.state is State.HALF_OPEN else len(recent)
        return requests, recent.count(True), recent.count(False), self.in_a_row(True), self.in_a_row(False)


class Machine(RuleBasedStateMachine):
    """Does the same to both."""

    def __init__(self) -> None:
        super().__init__()
        self.wall_ahead = 0.0
        self.calls: list[tuple[int, Permit, object]] = []
        self.number = 0

    @initialize(limits=limits)
    def make(self, limits: Settings) -> None:
        self.model = Model(limits)
        self.breaker = self.fresh()

    def fresh(self) -> CircuitBreaker:
        return CircuitBreaker(
            "a", "", self.model.limits, clock=lambda: self.model.now, wall=lambda: self.model.now + 1e6
        )

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0, 7.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.model.now += seconds

    @rule()
    def begin_call(self) -> None:
        self.number += 1
        said = self.model.admit(self.number)
        if said == "open":
            with pytest.raises(CircuitOpenError):
                self.breaker.admit()
        elif said == "too many":
            with pytest.raises(TooManyRequestsError):
                self.breaker.admit()
        else:
            term = self.model.term if said == "admitted" else object()
            self.calls.append((self.number, self.breaker.admit(), term))

    @rule(pick=st.integers(0, 100), good=st.sampled_from([True, False, False, None]))
    def end_call(self, pick: int, good: bool | None) -> None:
        if not self.calls:
            return
        number, permit, term = self.calls.pop(pick % len(self.calls))
        self.model.end(number, term, good)
        if good is None:
            permit.dropped()
        elif good:
            permit.succeeded()
        else:
            permit.failed()

    @rule(good=st.booleans())
    def whole_call(self, good: bool) -> None:
        before = len(self.calls)
        self.begin_call()
        if len(self.calls) > before:
            self.end_call(before, good)

    @rule(control=st.sampled_from(["force_open", "disable", "enable", "reset"]))
    def operate(self, control: str) -> None:
        # Not at every turn, else it would never get far by itself.
        if self.number % 5:
            return
        self.model.look()
        model = self.model
        if control == "force_open":
            if model.state is not State.OPEN:
                model.begin(State.OPEN)
            model.control = Control.FORCED_OPEN
        elif control == "disable":
            model.begin(State.CLOSED)
            model.control = Control.DISABLED
        elif control == "reset" or model.control is not Control.NONE:
            model.begin(State.CLOSED)
            model.control = Control.NONE
        getattr(self.breaker, control)()

    @rule()
    def through_a_file(self) -> None:
        """Its record has all that matters: another object goes on with it, and calls under way find their place."""
        other = self.fresh()
        other.restore(self.breaker.snapshot())
        assert other.snapshot() == self.breaker.snapshot()
        self.breaker.restore(other.snapshot())

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "breaker"):
            return
        self.model.look()
        counts = self.breaker.counts
        assert self.breaker.state is self.model.state
        assert self.breaker.control is self.model.control
        if self.model.control is not Control.DISABLED:
            assert (
                counts.requests,
                counts.total_successes,
                counts.total_failures,
                counts.consecutive_successes,
                counts.consecutive_failures,
            ) == self.model.counts()

    @invariant()
    def there_is_a_way_out(self) -> None:
        """Whatever happened, a breaker that nobody holds open closes again once calls go well."""
        if not hasattr(self, "breaker") or self.model.control is not Control.NONE:
            return
        limits, later = self.model.limits, self.model.now
        other = CircuitBreaker("a", "", limits, clock=lambda: later, wall=lambda: later + 1e6)
        other.restore(self.breaker.snapshot())
        later += max(limits.timeout_max, limits.probe_timeout)
        for _probe in range(limits.success_threshold):
            other.call(int)
        assert other.state is State.CLOSED


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAgainstTheModel = Machine.TestCase


@given(
    st.lists(st.tuples(st.floats(0, 5), st.booleans(), st.booleans()), max_size=60),
    st.sampled_from([1.0, 10.0, 33.0]),
)
@settings(max_examples=100, deadline=None)
def test_the_sliding_window_has_what_is_recent(steps: list[tuple[float, bool, bool]], length: float) -> None:
    window = SlidingWindow(length)
    now = 100.0
    history: list[tuple[int, bool, bool]] = []
    width = length / BUCKETS
    for seconds, failed, slow in steps:
        now += seconds
        window.add(now, failed, slow, seconds=1.0)
        history.append((int(now // width), failed, slow))
        recent = [one for one in history if one[0] > int(now // width) - BUCKETS]
        assert window.calls == len(recent)
        assert window.failure_rate == pytest.approx(sum(one[1] for one in recent) / len(recent))
        assert window.slow_rate == pytest.approx(sum(one[2] for one in recent) / len(recent))
        assert window.mean_seconds == pytest.approx(1.0)
    other = SlidingWindow(length)
    other.load(window.dump(5e5), -5e5)
    assert other.calls == window.calls and other.failure_rate == pytest.approx(window.failure_rate)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
        max_leaves=6,
    ),
    st.sampled_from(["state", "control", "term", "generation", "counts", "opened_at", "open_for", "until", "probes"]),
)
@settings(max_examples=150, deadline=None)
def test_a_damaged_record_is_refused_as_a_whole_or_works(junk: t.Any, key: str) -> None:
    breaker = CircuitBreaker("a", "", Settings(failure_threshold=1))
    breaker.force_open()
    breaker.enable()
    before = breaker.snapshot()
    record = {**before, key: junk}
    try:
        breaker.restore(record)
    except ValueError:
        assert breaker.snapshot()["term"] == before["term"]
    assert breaker.state in State
    breaker.reset()
    assert breaker.call(int) == 0
