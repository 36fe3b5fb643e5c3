# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guarded call costs, beside pybreaker and purgatory, all in this one run.

Each form is used as its library's documentation shows it. Rounds are interleaved, so that whatever else the machine
does hits all alike; the figure is the median of the rounds, less the bare call. A ratio of 1 or less is the target:
ours costs no more than the cheapest of the others in the same form.

purgatory's blocks have a second row, C(breaker kept): one breaker object fetched once, which skips purgatory's
look-up. That object keeps no counts of calls, looks at no clock and takes no lock, so it is shown and not a target.

    python tests/bench/bench_breaker.py [--rounds 15] [--calls 2000] [--strict]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
import typing as t

try:
    import purgatory
    import pybreaker
except ImportError as exc:
    sys.exit(f"bench_breaker: {exc.name} is needed to compare with: pip install pybreaker purgatory")

from ansible_collections.shannon.resilience.plugins.module_utils.circuit_breaker import CircuitBreaker

Sync = t.Callable[[], t.Any]
Async = t.Callable[[], t.Awaitable[t.Any]]
#: Rows that are shown for information: another's form that does less than ours.
KEPT = "breaker kept"


def work() -> int:
    """What is guarded."""
    return 1


async def work_later() -> int:
    """What is guarded, for tasks."""
    return 1


def sync_forms() -> dict[str, dict[str, Sync]]:
    """For each form, each library's callable that makes one guarded call."""
    ours = CircuitBreaker("bench", "bench")
    theirs = pybreaker.CircuitBreaker()
    factory = purgatory.SyncCircuitBreakerFactory()
    kept = factory.get_breaker("kept")

    def our_block() -> None:
        with ours:
            work()

    def pybreaker_block() -> None:
        with theirs.calling():
            work()

    def purgatory_block() -> None:
        with factory.get_breaker("bench"):
            work()

    def kept_block() -> None:
        with kept:
            work()

    return {
        "decorator": {"ours": ours(work), "pybreaker": theirs(work), "purgatory": factory("bench")(work)},
        "call": {"ours": lambda: ours.call(work), "pybreaker": lambda: theirs.call(work)},
        "with": {"ours": our_block, "pybreaker": pybreaker_block, "purgatory": purgatory_block, KEPT: kept_block},
    }


async def async_forms() -> dict[str, dict[str, Async]]:
    """As :func:`sync_forms`; pybreaker has none but for Tornado."""
    ours = CircuitBreaker("bench", "bench")
    factory = purgatory.AsyncCircuitBreakerFactory()
    kept = await factory.get_breaker("kept")

    async def our_block() -> None:
        async with ours:
            await work_later()

    async def purgatory_block() -> None:
        async with await factory.get_breaker("bench"):
            await work_later()

    async def kept_block() -> None:
        async with kept:
            await work_later()

    return {
        "async decorator": {"ours": ours(work_later), "purgatory": factory("bench")(work_later)},
        "async with": {"ours": our_block, "purgatory": purgatory_block, KEPT: kept_block},
    }


def nanoseconds(call: Sync, calls: int) -> float:
    """For one call."""
    begun = time.perf_counter_ns()
    for _call in range(calls):
        call()
    return (time.perf_counter_ns() - begun) / calls


async def nanoseconds_async(call: Async, calls: int) -> float:
    """For one call."""
    begun = time.perf_counter_ns()
    for _call in range(calls):
        await call()
    return (time.perf_counter_ns() - begun) / calls


Times = dict[tuple[str, str], list[float]]


async def measure(rounds: int, calls: int) -> Times:
    """All forms of all libraries, and the bare calls, in turn."""
    found: Times = {}
    sync, later = sync_forms(), await async_forms()
    for number in range(rounds + 1):
        taken: dict[tuple[str, str], float] = {
            ("sync", "bare"): nanoseconds(work, calls),
            ("async", "bare"): await nanoseconds_async(work_later, calls),
        }
        for form, calls_of in sync.items():
            for library, call in calls_of.items():
                taken[form, library] = nanoseconds(call, calls)
        for form, calls_later in later.items():
            for library, call_later in calls_later.items():
                taken[form, library] = await nanoseconds_async(call_later, calls)
        if number:  # the first round warms up
            for key, value in taken.items():
                found.setdefault(key, []).append(value)
    return found


def report(found: Times) -> bool:
    """Print the table; returns whether every form met its target."""
    columns = ("ours", "pybreaker", "purgatory", KEPT)
    print(f"{'overhead per call, ns':<22}" + "".join(f"{name:>14}" for name in columns) + f"{'ratio':>9}")
    good = True
    for form in dict.fromkeys(key[0] for key in found if key[1] != "bare"):
        bare = statistics.median(found["async" if form.startswith("async") else "sync", "bare"])
        costs = {library: statistics.median(times) - bare for (name, library), times in found.items() if name == form}
        ratio = costs["ours"] / min(cost for library, cost in costs.items() if library not in ("ours", KEPT))
        good = good and ratio <= 1
        cells = "".join(f"{costs[name]:>14.0f}" if name in costs else f"{'-':>14}" for name in columns)
        print(f"{form:<22}{cells}{ratio:>9.2f}")
    print(f"ratio: ours over the cheapest of the others, {KEPT!r} aside; target: 1.00 or less")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="measured rounds (default: 15)")
    parser.add_argument("--calls", type=int, default=2000, help="calls of each kind in a round (default: 2000)")
    parser.add_argument("--strict", action="store_true", help="fail when a target is missed")
    options = parser.parse_args()
    begun = time.monotonic()
    good = report(asyncio.run(measure(options.rounds, options.calls)))
    print(f"{options.rounds} rounds of {options.calls} calls of each in {time.monotonic() - begun:.1f} s")
    return 0 if good or not options.strict else 1


if __name__ == "__main__":
    sys.exit(main())
