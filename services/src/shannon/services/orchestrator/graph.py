# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the steps of a plan: those that wait for nothing side by side, up to a limit, and all of them within a time."""

from __future__ import annotations

import asyncio
import time
import typing as t

from shannon.resilience.partial_results import PartialResult

from .plan import Step

Done = dict[str, PartialResult]
Work = t.Callable[[Step, Done], t.Awaitable[PartialResult]]
#: Asked whenever a step has ended: seconds that the others may still take; None: as long as there is time.
Patience = t.Callable[[Done], float | None]


async def run(
    steps: t.Sequence[Step],
    work: Work,
    *,
    parallel: int,
    deadline: float,
    patience: Patience = lambda done: None,
) -> tuple[list[PartialResult], bool]:
    """Run all steps.

    A step whose predecessor failed fails, too. What is not done in time fails, and is cancelled.

    :param steps: in an order in which they can be run.
    :param work: does one; it does not raise.
    :param deadline: on the loop's clock.
    :returns: the results in the steps' order, and whether the time was up.
    """
    loop = asyncio.get_running_loop()
    done: Done = {}
    running: dict[asyncio.Task[PartialResult], Step] = {}
    waiting = list(steps)
    limit = deadline
    late = False
    try:
        while waiting or running:
            _begin(waiting, running, done, work, parallel)
            if not running:
                continue
            finished, _open = await asyncio.wait(
                running, timeout=max(limit - loop.time(), 0), return_when=asyncio.FIRST_COMPLETED
            )
            for task in finished:
                done[running.pop(task).id] = task.result()
            if not finished:
                late = True
                break
            more = patience(done)
            if more is not None:
                limit = min(limit, loop.time() + more)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    for step in steps:
        if step.id not in done:
            done[step.id] = PartialResult(step.id, False, error="it was not done in time", timestamp=time.time())
    return [done[step.id] for step in steps], late


def _begin(
    waiting: list[Step], running: dict[asyncio.Task[PartialResult], Step], done: Done, work: Work, parallel: int
) -> None:
    for step in list(waiting):
        failed = [one for one in step.after if one in done and not done[one].success]
        if failed:
            waiting.remove(step)
            text = f"it needs the result of step {', '.join(failed)}, which failed"
            done[step.id] = PartialResult(step.id, False, error=text)
        elif len(running) < parallel and all(one in done for one in step.after):
            waiting.remove(step)
            before = {one: done[one] for one in step.after}
            running[asyncio.ensure_future(work(step, before))] = step
