# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes that may wait: on disk before they are acknowledged, in the database in batches, none lost, none doubled.

Seed facts 3: 1000 requests, 10 workers, batches of up to 100 flushed at least every second; a full queue is tried three
times, ten milliseconds apart, and then its caller writes by himself. What the original loses (facts in full, 10.3, item
17) is kept here: the spool outlives a crash, and a batch that fails because the database is away is tried until it is
there. A long outage fills the disk's share and not memory: of what is beyond the queue's size only its place is kept.
"""

from __future__ import annotations

import asyncio
import json
import pathlib
import time
import typing as t
from dataclasses import asdict, dataclass
from zlib import crc32

from shannon.services.common import logs, metrics

from .records import Record
from .spool import Place, Spool, SpoolFullError

_log = logs.get(__name__)
#: Tries and seconds between them before a caller writes by himself.
TRIES, PAUSE = 3, 0.01
#: Seconds between two tries of a batch while the database is away, at first and at most.
FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0


class Store(t.Protocol):
    """The database."""

    async def write(self, records: t.Sequence[Record]) -> None:
        """Insert all rows in one transaction, those that are there already left alone."""

    def is_away(self, exc: BaseException) -> bool:
        """Whether an error of :meth:`write` says that the database is away, rather than that a record is wrong."""


@dataclass(frozen=True)
class _Item:
    """A record that is to be written; one that is only on disk has just its place."""

    record: Record | None
    place: Place


_Placed = tuple[Place, Record]


class WriteQueue:
    """The queue.

    :param store: where batches go.
    :param spool: where records are until they are there.
    :param dead_letters: a file that takes records which the database refuses, one JSON object a line.
    """

    def __init__(
        self,
        store: Store,
        spool: Spool,
        dead_letters: str | pathlib.Path,
        *,
        size: int = 1000,
        workers: int = 10,
        batch: int = 100,
        flush_interval: float = 1.0,
    ) -> None:
        self._store = store
        self._spool = spool
        self._dead_letters = pathlib.Path(dead_letters)
        self._size = size
        self._batch = batch
        self._flush = flush_interval
        self._queues: list[asyncio.Queue[_Item]] = [asyncio.Queue() for _worker in range(workers)]
        self._waiting: list[tuple[Record, asyncio.Future[Place]]] = []
        self._arrived = asyncio.Event()
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._depth = 0
        self._held = 0  # of them those that are in memory
        self._away = False  # whether the last batch found the database away
        self._depth_gauge = metrics.gauge("shannon_write_queue_depth", "Records that are not in the database yet.")
        self._depth_gauge.set_function(lambda: self._depth)
        metrics.gauge("shannon_write_spool_bytes", "Bytes of the spool on disk.").set_function(lambda: spool.size)
        self._written = metrics.counter("shannon_write_records_total", "Records by what became of them.", ("result",))
        self._seconds = metrics.histogram("shannon_write_flush_seconds", "Seconds that batches took.")

    async def start(self) -> int:
        """Take up what an earlier process left, and begin to write.

        :returns: how many records were left.
        """
        left = 0
        loop = asyncio.get_running_loop()
        found = self._spool.recover()
        while (one := await loop.run_in_executor(None, next, found, None)) is not None:
            place, raw = one
            left += 1
            try:
                record = Record.decoded(raw)
            except ValueError as exc:
                _log.error("a frame of the spool is set aside: %s", exc)
                self._bury({"raw": raw.decode(errors="replace")}, str(exc))
                self._spool.done([place])
                continue
            self._put(record, place)
        if left:
            _log.info("%d records of an earlier run are written now", left)
        self._tasks = [asyncio.ensure_future(self._work(queue)) for queue in self._queues]
        self._tasks.append(asyncio.ensure_future(self._keep()))
        return left

    async def enqueue(self, record: Record) -> None:
        """Take a record; when this returns it is on disk, or, if there was no room, in the database.

        :raises SpoolFullError: neither can be had.
        """
        if not self._away:
            for _turn in range(TRIES):
                if self._held < self._size:
                    break
                await asyncio.sleep(PAUSE)
            else:
                if await self._written_directly(record):
                    return
        try:
            place = await self._kept(record)
        except SpoolFullError as exc:
            if not await self._written_directly(record):
                raise SpoolFullError(f"{exc}, and the database is away") from exc
            return
        self._put(record, place)

    async def stop(self, timeout: float) -> int:
        """Write what is there, for so long; what is left stays in the spool.

        :returns: how many records are left.
        """
        self._stopping.set()
        self._arrived.set()
        if self._tasks:
            _done, late = await asyncio.wait(self._tasks, timeout=timeout)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self._spool.close()
        if self._spool.waiting:
            _log.warning("%d records stay in the spool for the next start", self._spool.waiting)
        return self._spool.waiting

    async def _kept(self, record: Record) -> Place:
        """Put a record on disk, together with those that come at the same time."""
        kept: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        self._waiting.append((record, kept))
        self._arrived.set()
        return await asyncio.shield(kept)

    def _put(self, record: Record, place: Place) -> None:
        self._depth += 1
        held = self._held < self._size
        self._held += held
        # Records of one key always go to the same worker, so they keep their order.
        worker = self._queues[crc32(record.key.encode()) % len(self._queues)]
        worker.put_nowait(_Item(record if held else None, place))

    async def _keep(self) -> None:
        # Whoever comes while an fsync is under way shares the next one.
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            waiting, self._waiting = self._waiting, []
            if waiting:
                contents = [record.encoded() for record, _kept in waiting]
                try:
                    numbers = await loop.run_in_executor(None, self._spool.append, contents)
                except Exception as exc:
                    for _record, kept in waiting:
                        if not kept.done():
                            kept.set_exception(exc)
                    continue
                for (_record, kept), number in zip(waiting, numbers, strict=True):
                    if not kept.done():
                        kept.set_result(number)
            if self._stopping.is_set() and not self._waiting:
                return

    async def _work(self, queue: asyncio.Queue[_Item]) -> None:
        while True:
            batch = await self._next(queue)
            if batch:
                await self._write([(item.place, await self._loaded(item)) for item in batch])
                self._depth -= len(batch)
                self._held -= sum(item.record is not None for item in batch)
            elif self._stopping.is_set():
                return

    async def _next(self, queue: asyncio.Queue[_Item]) -> list[_Item]:
        """The next batch: full, or as old as it may get; empty when the queue is and the service ends."""
        loop = asyncio.get_running_loop()
        batch: list[_Item] = []
        if not self._stopping.is_set():
            getting = asyncio.ensure_future(queue.get())
            ending = asyncio.ensure_future(self._stopping.wait())
            await asyncio.wait({getting, ending}, return_when=asyncio.FIRST_COMPLETED)
            ending.cancel()
            if getting.done():
                batch.append(getting.result())
            else:
                getting.cancel()
        deadline = loop.time() + self._flush
        while len(batch) < self._batch:
            try:
                batch.append(queue.get_nowait())
                continue
            except asyncio.QueueEmpty:
                pass
            remaining = deadline - loop.time()
            if not batch or remaining <= 0 or self._stopping.is_set():
                break
            try:
                batch.append(await asyncio.wait_for(queue.get(), remaining))
            except asyncio.TimeoutError:
                break
        return batch

    async def _loaded(self, item: _Item) -> Record:
        if item.record is not None:
            return item.record
        raw = await asyncio.get_running_loop().run_in_executor(None, self._spool.read, item.place)
        return Record.decoded(raw)

    async def _write(self, batch: list[_Placed]) -> None:
        wait = FIRST_WAIT
        while True:
            started = time.monotonic()
            try:
                await self._store.write([record for _place, record in batch])
            except Exception as exc:
                if not self._store.is_away(exc):
                    self._away = False
                    await self._one_by_one(batch)
                    return
                if not self._away:
                    _log.warning("%d records wait for the database: %s", self._depth, exc)
                self._away = True
                await asyncio.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT)
                continue
            self._away = False
            self._seconds.observe(time.monotonic() - started)
            self._spool.done(place for place, _record in batch)
            self._written.labels("written").inc(len(batch))
            return

    async def _one_by_one(self, batch: list[_Placed]) -> None:
        """A record of the batch is wrong: find out which, so that the others are not held up."""
        if len(batch) > 1:
            for one in batch:
                await self._write([one])
            return
        ((place, record),) = batch
        try:
            await self._store.write([record])
        except Exception as exc:
            if self._store.is_away(exc):
                await self._write(batch)
                return
            _log.error("the database refuses a record of kind %s: %s", record.kind, exc)
            self._bury(asdict(record), str(exc))
            self._written.labels("refused").inc()
        else:
            self._written.labels("written").inc()
        self._spool.done([place])

    async def _written_directly(self, record: Record) -> bool:
        """Write a record now; whether the database was there for it."""
        try:
            await self._store.write([record])
        except Exception as exc:
            if not self._store.is_away(exc):
                raise
            return False
        self._written.labels("direct").inc()
        return True

    def _bury(self, record: t.Mapping[str, t.Any], error: str) -> None:
        line = json.dumps({"at": time.time(), "error": error, "record": record}, ensure_ascii=False, default=str)
        with self._dead_letters.open("a", encoding="utf-8") as handle:
            handle.write(line + "\n")
