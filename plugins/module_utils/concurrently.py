# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask many endpoints at once, and wait on conditions: both bounded."""

from __future__ import annotations

import threading
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor

from .errors import ResilienceError, WaitTimeout

K = t.TypeVar("K", bound=t.Hashable)
R = t.TypeVar("R")


#: Threads at most. Nearly all of them only wait, and when all ask dead hosts the rest waits for another timeout: fifty
#: dead hosts with five ports each are to cost one.
LIMIT = 512


def gather(calls: t.Mapping[K, t.Callable[[], R]], limit: int = LIMIT) -> dict[K, R | ResilienceError]:
    """Run all calls at once; a call that raises a ResilienceError yields that error as its result.

    Each call bounds its own time (every client here has a timeout), so all dead endpoints together cost one timeout.

    :param calls: a name for each call, and the call.
    :param limit: how many threads at most.
    """
    if not calls:
        return {}

    def guarded(call: t.Callable[[], R]) -> R | ResilienceError:
        try:
            return call()
        except ResilienceError as exc:
            return exc

    with ThreadPoolExecutor(max_workers=min(limit, len(calls))) as pool:
        futures = {name: pool.submit(guarded, call) for name, call in calls.items()}
        return {name: future.result() for name, future in futures.items()}


def wait_until(
    condition: t.Callable[[], tuple[bool, str]],
    what: str,
    timeout: float,
    interval: float = 0.5,
    clock: t.Callable[[], float] = time.monotonic,
) -> str:
    """Poll until the condition holds.

    :param condition: returns whether it holds and what was last seen; a ResilienceError counts as "not yet".
    :param what: what is waited for, as a noun phrase, for the error.
    :param timeout: seconds.
    :param interval: seconds between polls.
    :returns: what was seen when it held.
    :raises WaitTimeout: it never held; the text says what was waited for, how long, and what was seen last.
    """
    deadline = clock() + timeout
    pause = threading.Event()
    while True:
        try:
            holds, seen = condition()
        except ResilienceError as exc:
            holds, seen = False, str(exc)
        if holds:
            return seen
        if clock() >= deadline:
            raise WaitTimeout(f"waited {timeout:.0f} s for {what}; last seen: {seen}")
        pause.wait(interval)
