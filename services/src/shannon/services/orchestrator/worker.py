# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes tasks of a cell, runs them, and ends them: each once, whoever crashes in between."""

from __future__ import annotations

import asyncio
import contextlib
import time
import typing as t
from dataclasses import dataclass

import psycopg

from shannon.services.common import logs, metrics
from shannon.services.common.config import Orchestrator as Settings
from shannon.services.database.client import DatabaseAway

from .engine import AGENT, Engine
from .events import Events, Teller
from .tasks import Ending, Lease, TaskStore

_log = logs.get(__name__)
_EVENTS = {
    "completed": "WORKFLOW_COMPLETED",
    "cancelled": "WORKFLOW_CANCELLED",
    "failed": "ERROR_OCCURRED",
    "timeout": "ERROR_OCCURRED",
}
#: Seconds between two attempts to end a task while the database is away, at most.
_LONGEST_WAIT = 2.0
END = "STREAM_END"


@dataclass
class _Running:
    lease: Lease
    job: asyncio.Task[Ending] | None = None
    why: str = ""

    def stop(self, why: str) -> None:
        """End what runs, unless it is about to be written already."""
        if not self.why and self.job is not None and not self.job.done():
            self.why = why
            self.job.cancel()


class Worker:
    """Runs a cell's tasks while this region is the cell's home.

    :param owner: this process's name in leases; no other process, earlier or later, has the same.
    """

    def __init__(
        self,
        store: TaskStore,
        engine: Engine,
        events: Events,
        settings: Settings,
        owner: str,
        is_home: t.Callable[[], bool],
    ) -> None:
        self._store = store
        self._engine = engine
        self._events = events
        self._settings = settings
        self._owner = owner
        self._is_home = is_home
        self._running: dict[str, _Running] = {}
        self._works: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._ended = metrics.counter("shannon_tasks_total", "Tasks that ended, by how.", ("mode", "status"))
        self._seconds = metrics.histogram(
            "shannon_task_seconds", "Seconds from the start to the end of tasks.", ("mode",)
        )
        self._waited = metrics.histogram("shannon_task_wait_seconds", "Seconds that tasks waited for a worker.")
        self._taken_over = metrics.counter("shannon_tasks_taken_over_total", "Tasks whose earlier worker was gone.")
        metrics.gauge("shannon_tasks_running", "Tasks that run now.").set_function(lambda: len(self._running))

    @property
    def running(self) -> int:
        """Tasks that run now."""
        return len(self._running)

    def wake(self) -> None:
        """A task was accepted: look for it now rather than at the next turn."""
        self._wake.set()

    def cancel(self, task: str) -> None:
        """The end of a task was asked for; if it runs here, it ends at once."""
        if task in self._running:
            self._running[task].stop("cancelled")

    async def run(self) -> None:
        """Claim tasks until :meth:`stop`; one that crashes costs nothing but itself."""
        away = False
        while not self._stopping.is_set():
            self._wake.clear()
            free = self._settings.concurrency - len(self._works)
            if free > 0 and self._is_home():
                try:
                    leases = await self._store.claim(self._owner, free, self._settings.lease)
                    away = False
                except (DatabaseAway, psycopg.Error) as exc:
                    if not away:
                        _log.warning("no tasks are claimed: %s", exc)
                    away, leases = True, []
                for lease in leases:
                    self._begin(lease)
                if len(leases) == free:
                    continue
            try:
                await asyncio.wait_for(self._wake.wait(), self._settings.poll_interval)
            except asyncio.TimeoutError:
                continue

    async def watch(self) -> None:
        """Renew leases, and notice tasks that are to be cancelled, until :meth:`stop`."""
        renewed = time.monotonic()
        while not self._stopping.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._settings.cancel_interval)
            if not self._running:
                continue
            try:
                if time.monotonic() - renewed >= self._settings.lease / 3:
                    await self._renew()
                    renewed = time.monotonic()
                else:
                    for task in await self._store.cancelled(list(self._running)):
                        self.cancel(task)
            except (DatabaseAway, psycopg.Error) as exc:
                # What ends meanwhile is not written twice: the attempt's number sees to that.
                _log.warning("leases are not renewed: %s", exc)

    async def stop(self, patience: float) -> None:
        """Claim nothing more, give what runs some time, and hand over the rest."""
        self._stopping.set()
        self.wake()
        if self._works:
            await asyncio.wait(self._works, timeout=patience)
        left = list(self._running.values())
        for one in left:
            one.stop("stopping")
        if self._works:
            await asyncio.wait(self._works, timeout=2)
        for work in self._works:
            work.cancel()
        if left:
            try:
                await self._store.release([one.lease for one in left])
                _log.info("%d unfinished tasks are handed over", len(left))
            except (DatabaseAway, psycopg.Error) as exc:
                _log.warning("%d unfinished tasks are taken over when their leases end: %s", len(left), exc)

    def _begin(self, lease: Lease) -> None:
        self._running[lease.id] = _Running(lease)
        self._waited.observe(max(lease.age, 0.0))
        if lease.attempt > 1:
            self._taken_over.inc()
            _log.warning(
                "a task is taken over from a worker that is gone",
                extra={"fields": {"task": lease.id, "attempt": lease.attempt}},
            )
        work = asyncio.ensure_future(self._work(self._running[lease.id]))
        self._works.add(work)
        work.add_done_callback(self._works.discard)

    async def _work(self, one: _Running) -> None:
        lease = one.lease
        logs.request_id.set(lease.workflow_id)
        teller = self._events.of(lease.id, lease.workflow_id, lease.attempt)
        try:
            ending = await self._result(one, teller)
            if ending is not None and await self._end(lease, ending):
                await self._tell(teller, ending)
        except Exception:
            # The lease ends, and another attempt is made.
            _log.exception("a task could not be ended")
        finally:
            self._running.pop(lease.id, None)
            self.wake()

    async def _result(self, one: _Running, teller: Teller) -> Ending | None:
        """How the task ended; None when it is not this worker's to end."""
        lease = one.lease
        if lease.cancel_requested:
            return self._without(lease, "cancelled", "the task was cancelled")
        if lease.attempt > self._settings.max_attempts:
            text = f"the task was begun {self._settings.max_attempts} times, and no worker lived to end it"
            return self._without(lease, "failed", text)
        one.job = asyncio.ensure_future(self._engine.run(lease, teller))
        try:
            return await one.job
        except asyncio.CancelledError:
            if one.why == "cancelled":
                return self._without(lease, "cancelled", "the task was cancelled")
            if one.why:
                return None
            raise
        except Exception as exc:
            _log.exception("a task crashed")
            return self._without(lease, "failed", f"the task crashed: {type(exc).__name__}: {exc}")

    async def _end(self, lease: Lease, ending: Ending) -> bool:
        wait = 0.1
        while True:
            try:
                return await self._store.end(lease, ending)
            except DatabaseAway as exc:
                if self._stopping.is_set():
                    raise
                _log.warning("a task's result waits for the database: %s", exc)
                await asyncio.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)
            except psycopg.DataError as exc:
                if ending.response is None and ending.result is None:
                    raise
                _log.error("the database refuses a task's result: %s", exc)
                ending = self._without(lease, "failed", "the result can't be stored; the logs say why")

    async def _tell(self, teller: Teller, ending: Ending) -> None:
        self._ended.labels(ending.mode, ending.status).inc()
        self._seconds.labels(ending.mode).observe(ending.duration_ms / 1000)
        message = ending.error or ending.status
        await teller.tell(_EVENTS[ending.status], message, AGENT, status=ending.status, mode=ending.mode)
        await teller.tell(END, "", AGENT, status=ending.status)

    async def _renew(self) -> None:
        mine = list(self._running.values())
        held = await self._store.renew([one.lease for one in mine], self._settings.lease)
        for one in mine:
            if one.lease.id not in held:
                # It ended a moment ago, or another worker has it.
                one.stop("lost")
            elif held[one.lease.id]:
                one.stop("cancelled")

    @staticmethod
    def _without(lease: Lease, status: str, error: str) -> Ending:
        return Ending(status, lease.requested_mode, error=error, metadata={"attempt": lease.attempt})
