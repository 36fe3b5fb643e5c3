# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The circuit breaker among threads and among tasks."""

from __future__ import annotations

import asyncio
import itertools
import threading
import typing as t

import pytest

from ansible_collections.shannon.resilience.plugins.module_utils.circuit_breaker import (
    CircuitBreaker,
    CircuitOpenError,
    Counts,
    Listener,
    Settings,
    State,
    TooManyRequestsError,
)

THREADS = 8


def together(work: t.Callable[[int], None]) -> None:
    """Run it in several threads that begin at the same time."""
    ready = threading.Barrier(THREADS)
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            ready.wait(10)
            work(number)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not errors


def boom() -> None:
    raise ConnectionError("away")


async def boom_later() -> None:
    await asyncio.sleep(0)
    raise ConnectionError("away")


# ---- threads


def test_no_result_is_lost_among_threads() -> None:
    breaker = CircuitBreaker("a", "b", Settings(interval=0, failure_threshold=100_000))

    def work(number: int) -> None:
        for turn in range(500):
            if (turn + number) % 4:
                breaker.call(lambda: None)
            else:
                with pytest.raises(ConnectionError):
                    breaker.call(boom)

    together(work)
    counts = breaker.counts
    assert (counts.requests, counts.total_successes, counts.total_failures) == (4000, 3000, 1000)


def test_threads_open_it_once() -> None:
    changes: list[tuple[State, State]] = []
    breaker = CircuitBreaker(
        "a", "b", Settings(failure_threshold=5), on_state_change=lambda _b, old, new: changes.append((old, new))
    )

    def work(_number: int) -> None:
        for _turn in range(100):
            with pytest.raises((ConnectionError, CircuitOpenError)):
                breaker.call(boom)

    together(work)
    assert changes == [(State.CLOSED, State.OPEN)]


def test_threads_share_the_places_of_half_open() -> None:
    clock = [0.0]
    breaker = CircuitBreaker("a", "b", Settings(failure_threshold=1, timeout=1, max_requests=3), clock=lambda: clock[0])
    with pytest.raises(ConnectionError):
        breaker.call(boom)
    clock[0] = 1.0
    refused = threading.Semaphore(0)
    let_through: list[int] = []
    go_on = threading.Event()

    def probe(number: int) -> None:
        try:
            with breaker:
                let_through.append(number)
                assert go_on.wait(10)
        except TooManyRequestsError:
            refused.release()

    def work(number: int) -> None:
        if number:
            probe(number)
            return
        for _each in range(THREADS - 1 - 3):
            assert refused.acquire(timeout=10)
        go_on.set()

    together(work)
    assert len(let_through) == 3 and breaker.state is State.CLOSED


def test_changes_are_announced_one_by_one_and_in_order() -> None:
    inside = threading.Lock()
    changes: list[tuple[State, State]] = []

    def on_change(_breaker: CircuitBreaker, old: State, new: State) -> None:
        assert inside.acquire(blocking=False)
        changes.append((old, new))
        inside.release()

    breaker = CircuitBreaker("a", "b", on_state_change=on_change)

    def work(number: int) -> None:
        for _turn in range(50):
            if number % 2:
                breaker.force_open()
            else:
                breaker.reset()

    together(work)
    assert all(before[1] is after[0] for before, after in itertools.pairwise(changes))


def test_a_slow_callback_holds_up_nobody() -> None:
    called, go_on = threading.Event(), threading.Event()

    class Slow(Listener):
        def on_state_change(self, breaker: CircuitBreaker, old: State, new: State) -> None:
            called.set()
            assert go_on.wait(10)

    breaker = CircuitBreaker("a", "b", Settings(failure_threshold=1), listeners=[Slow()])
    opener = threading.Thread(target=breaker.force_open)
    opener.start()
    assert called.wait(10)
    with pytest.raises(CircuitOpenError):
        breaker.call(lambda: None)
    assert breaker.state is State.OPEN
    go_on.set()
    opener.join(10)


# ---- tasks


def test_tasks_use_it_in_every_form() -> None:
    breaker = CircuitBreaker("a", "b", Settings(failure_threshold=100))

    async def later(value: int) -> int:
        await asyncio.sleep(0)
        return value

    @breaker
    async def decorated(value: int) -> int:
        return await later(value)

    @breaker
    async def stream() -> t.AsyncIterator[int]:
        yield 1
        yield 2

    async def main() -> None:
        assert await breaker.call_async(later, 1) == 1
        assert await decorated(value=2) == 2
        async with breaker:
            assert await later(3) == 3
        assert [item async for item in stream()] == [1, 2]
        with pytest.raises(ConnectionError):
            async with breaker:
                await boom_later()
        with pytest.raises(ConnectionError):
            await breaker.call_async(boom_later)
        with breaker:
            await later(1)

    asyncio.run(main())
    assert breaker.counts == Counts(7, 5, 2, 1, 0)


def test_a_failure_late_in_an_async_stream_counts() -> None:
    breaker = CircuitBreaker("a", "b", Settings(failure_threshold=1))

    @breaker
    async def stream() -> t.AsyncIterator[int]:
        yield 1
        await boom_later()

    async def main() -> None:
        with pytest.raises(ConnectionError):
            async for _item in stream():
                assert breaker.state is State.CLOSED

    asyncio.run(main())
    assert breaker.state is State.OPEN


def test_a_cancelled_task_is_no_failure_but_frees_its_probe() -> None:
    clock = [0.0]
    breaker = CircuitBreaker(
        "a",
        "b",
        Settings(failure_threshold=1, success_threshold=1, timeout=1, max_requests=1),
        clock=lambda: clock[0],
    )

    async def forever() -> None:
        await asyncio.Event().wait()

    async def cancelled(awaitable: t.Coroutine[t.Any, t.Any, None]) -> None:
        task = asyncio.ensure_future(awaitable)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def block() -> None:
        async with breaker:
            await forever()

    async def main() -> None:
        await cancelled(breaker.call_async(forever))
        assert breaker.state is State.CLOSED
        with pytest.raises(ConnectionError):
            await breaker.call_async(boom_later)
        for way in (breaker.call_async(forever), breaker(forever)(), block()):
            clock[0] += 1
            await cancelled(way)
            assert breaker.state is State.HALF_OPEN
        await breaker.call_async(asyncio.sleep, 0)
        assert breaker.state is State.CLOSED

    asyncio.run(main())


def test_a_timeout_of_the_caller_is_a_failure_when_it_is_raised_inside() -> None:
    breaker = CircuitBreaker("a", "b", Settings(failure_threshold=1))

    async def bounded() -> None:
        await asyncio.wait_for(asyncio.Event().wait(), 0.001)

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await breaker.call_async(bounded)

    asyncio.run(main())
    assert breaker.state is State.OPEN


def test_tasks_do_not_mix_up_their_blocks() -> None:
    """Blocks that overlap in one thread: each result counts where its own block was entered."""
    clock = [0.0]
    breaker = CircuitBreaker(
        "a", "b", Settings(failure_threshold=1, success_threshold=2, timeout=1, max_requests=5), clock=lambda: clock[0]
    )

    async def main() -> None:
        entered, leave = asyncio.Event(), asyncio.Event()

        async def old() -> None:
            async with breaker:
                entered.set()
                await leave.wait()

        task = asyncio.ensure_future(old())
        await entered.wait()
        with pytest.raises(ConnectionError):
            async with breaker:
                await boom_later()
        clock[0] = 1.0
        async with breaker:
            leave.set()
            await task
            assert breaker.counts == Counts(1, 0, 0, 0, 0)
        assert breaker.counts == Counts(1, 1, 0, 1, 0) and breaker.state is State.HALF_OPEN

    asyncio.run(main())


def test_a_child_task_does_not_inherit_a_block() -> None:
    breaker = CircuitBreaker("a", "b")

    async def child() -> None:
        async with breaker:
            await asyncio.sleep(0)

    async def main() -> None:
        async with breaker:
            await asyncio.gather(child(), child())

    asyncio.run(main())
    assert breaker.counts == Counts(3, 3, 0, 3, 0)


def test_many_tasks_probe_within_bounds() -> None:
    clock = [0.0]
    breaker = CircuitBreaker(
        "a",
        "b",
        Settings(failure_threshold=1, success_threshold=2, timeout=1, max_requests=2),
        clock=lambda: clock[0],
    )

    async def main() -> None:
        with pytest.raises(ConnectionError):
            await breaker.call_async(boom_later)
        clock[0] = 1.0
        results = await asyncio.gather(
            *(breaker.call_async(asyncio.sleep, 0) for _task in range(10)), return_exceptions=True
        )
        assert sum(isinstance(one, TooManyRequestsError) for one in results) == 8

    asyncio.run(main())
    assert breaker.state is State.CLOSED
