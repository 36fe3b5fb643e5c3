# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes that may wait: on disk before they are acknowledged, in the database in batches, none lost, none doubled.

Seed facts 3: 1000 requests, 10 workers, batches of up to 100 flushed at least every second; a full queue is tried three
times, ten milliseconds apart, and then its caller writes by himself. What the original loses (facts in full, 10.3, item
17) is kept here: the spool outlives a crash, and a batch that fails because the database is away is tried until it is
there. A long outage fills the disk's share and not memory: of what is beyond the queue's size only its place is kept.

Records of one key are written in order. So nobody writes by himself while others of his key wait, but goes to the disk;
only when that is full, too, order gives way.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import json
import os
import pathlib
import time
import typing as t
import weakref
from dataclasses import asdict
from zlib import crc32

from shannon.services.common import logs, metrics

from .lane import Item, Lane, is_held
from .records import Record
from .spool import LONGEST, Place, Spool, SpoolFullError

_log = logs.get(__name__)
#: Tries and seconds between them before a caller writes by himself.
TRIES, PAUSE = 3, 0.01
#: Seconds that he waits for the database then; after them the disk takes the record, too: twice is once.
PATIENCE = 1.0
#: Seconds between two tries of a batch while the database is away, at first and at most.
FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0
#: Records of an earlier run that are taken up at a time.
_TAKEN_UP = 1000
#: All queues of the process (one for each cell); the metrics are their sums.
_queues: weakref.WeakSet[WriteQueue] = weakref.WeakSet()


class Store(t.Protocol):
    """The database."""

    async def write(self, records: t.Sequence[Record]) -> None:
        """Insert all rows in one transaction, those that are there already left alone."""

    def is_away(self, exc: BaseException) -> bool:
        """Whether an error of :meth:`write` says that the database is away, rather than that a record is wrong."""


_Placed = tuple[Place, Record]


class WriteQueue:
    """The queue.

    :param store: where batches go.
    :param spool: where records are until they are there.
    :param dead_letters: a file that takes records which the database refuses, one JSON object a line.
    :param size: records in memory; beside them each worker has a batch that it has read from the spool.
    :param flush_interval: seconds that a batch which is not full waits for more.
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
        self._lanes = [Lane(batch, flush_interval) for _worker in range(workers)]
        self._waiting: list[tuple[Record, bytes, asyncio.Future[None]]] = []
        self._arrived = asyncio.Event()
        self._ended = False
        self._tasks: list[asyncio.Task[None]] = []
        self._slow: set[asyncio.Task[bool]] = set()  # direct writes that nobody waits for any more
        self._keys: collections.Counter[str] = collections.Counter()  # of records that are not written yet
        self._depth = 0
        self._held = 0  # of them those that are in memory
        self._away = False  # whether the last batch found the database away
        _queues.add(self)
        depth = metrics.gauge("shannon_write_queue_depth", "Records that are not in the database yet.")
        depth.set_function(lambda: sum(queue._depth for queue in tuple(_queues)))
        size_on_disk = metrics.gauge("shannon_write_spool_bytes", "Bytes of the spool on disk.")
        size_on_disk.set_function(lambda: sum(queue._spool.size for queue in tuple(_queues)))
        self._written = metrics.counter("shannon_write_records_total", "Records by what became of them.", ("result",))
        self._seconds = metrics.histogram("shannon_write_flush_seconds", "Seconds that batches took.")

    async def start(self) -> int:
        """Take up what an earlier process left, and begin to write.

        :returns: how many records were left.
        :raises OSError: the spool can't be read.
        """
        left = 0
        loop = asyncio.get_running_loop()
        found = self._spool.recover()
        while some := await loop.run_in_executor(None, lambda: list(itertools.islice(found, _TAKEN_UP))):
            left += len(some)
            for place, raw in some:
                try:
                    self._put(Record.decoded(raw), place)
                except ValueError as exc:
                    _log.error("a frame of the spool is set aside: %s", exc)
                    if await self._buried({"raw": raw.decode(errors="replace")}, str(exc)):
                        self._spool.done([place])
        if left:
            _log.info("%d records of an earlier run are written now", left)
        self._tasks = [asyncio.ensure_future(self._work(lane)) for lane in self._lanes]
        self._tasks.append(asyncio.ensure_future(self._keep()))
        return left

    async def enqueue(self, record: Record) -> None:
        """Take a record; when this returns it is on disk, or, if there was no room, in the database.

        :raises SpoolFullError: neither can be had.
        :raises TypeError, ValueError: JSON can't hold the record.
        """
        raw = record.encoded()
        if await self._is_full() and record.key not in self._keys and await self._written_soon(record):
            return
        try:
            await self._kept(record, raw)
        except SpoolFullError as exc:
            if not await self._written_directly(record):
                raise SpoolFullError(f"{exc}, and the database is away") from None

    async def stop(self, timeout: float) -> int:
        """Write what is there, for so long; what is left stays in the spool.

        :param timeout: seconds.
        :returns: how many records are left.
        """
        for lane in self._lanes:
            lane.end()
        if self._tasks:
            *workers, keeper = self._tasks
            _done, late = await asyncio.wait(workers, timeout=timeout)
            unfinished = [*late, *self._slow]
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)
            # Who came until now is still to hear that his record is on disk.
            self._ended = True
            self._arrived.set()
            await asyncio.gather(keeper, return_exceptions=True)
        self._ended = True
        self._spool.close()
        if self._spool.waiting:
            _log.warning("%d records stay in the spool for the next start", self._spool.waiting)
        return self._spool.waiting

    async def _is_full(self) -> bool:
        """Whether memory has no room and won't have in a moment; while the database is away the disk is the place."""
        for _turn in range(TRIES):
            if self._away or self._held < self._size:
                return False
            await asyncio.sleep(PAUSE)
        return True

    async def _kept(self, record: Record, raw: bytes) -> None:
        """Put a record on disk, together with those that come at the same time, and in line."""
        if len(raw) > LONGEST:
            raise SpoolFullError(f"a record has {len(raw)} bytes, and one of the spool at most {LONGEST}")
        if self._ended:
            raise SpoolFullError("the write queue has ended")
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._keys[record.key] += 1
        self._waiting.append((record, raw, kept))
        self._arrived.set()
        await asyncio.shield(kept)

    def _put(self, record: Record, place: Place, counted: bool = False) -> None:
        self._depth += 1
        if not counted:
            self._keys[record.key] += 1
        held = self._held < self._size
        self._held += held
        # Records of one key always go to the same worker, so they keep their order.
        lane = self._lanes[crc32(record.key.encode(errors="surrogatepass")) % len(self._lanes)]
        lane.put((place, record) if held else place)

    def _forget(self, records: t.Iterable[Record]) -> None:
        for record in records:
            self._keys[record.key] -= 1
            if self._keys[record.key] <= 0:
                del self._keys[record.key]

    async def _keep(self) -> None:
        # Whoever comes while an fsync is under way shares the next one. Places are put in line here, not by those who
        # wait: one of them may be cancelled meanwhile, and his record is on disk all the same.
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            waiting, self._waiting = self._waiting, []
            if waiting:
                contents = [raw for _record, raw, _kept in waiting]
                try:
                    places = await loop.run_in_executor(None, self._spool.append, contents)
                except Exception as exc:
                    self._forget(record for record, _raw, _kept in waiting)
                    for _record, _raw, kept in waiting:
                        kept.set_exception(exc)
                        # Who was cancelled does not look.
                        kept.exception()
                else:
                    for (record, _raw, kept), place in zip(waiting, places, strict=True):
                        self._put(record, place, counted=True)
                        kept.set_result(None)
            if self._ended and not self._waiting:
                return

    async def _work(self, lane: Lane) -> None:
        while items := await lane.next():
            batch = await self._loaded(items)
            await self._write(batch)
            self._forget(record for _place, record in batch)
            self._depth -= len(items)
            self._held -= sum(map(is_held, items))

    async def _loaded(self, items: t.Sequence[Item]) -> list[_Placed]:
        if all(map(is_held, items)):
            return t.cast("list[_Placed]", items)
        return await asyncio.get_running_loop().run_in_executor(None, self._read, items)

    def _read(self, items: t.Sequence[Item]) -> list[_Placed]:
        found: list[_Placed] = []
        for item in items:
            if not isinstance(item, Place):
                found.append(item)
                continue
            try:
                found.append((item, Record.decoded(self._spool.read(item))))
            except (OSError, ValueError) as exc:
                # It is not done, so its segment stays: the next start looks at it again, and sets damage aside.
                _log.error("a record of the spool can't be read; it stays there: %s", exc)
                self._written.labels("unreadable").inc()
        return found

    async def _write(self, batch: t.Sequence[_Placed]) -> None:
        wait = FIRST_WAIT
        while batch:
            started = time.monotonic()
            try:
                await self._store.write([record for _place, record in batch])
            except Exception as exc:
                if self._store.is_away(exc):
                    if not self._away:
                        _log.warning("%d records wait for the database: %s", self._depth, exc)
                    self._away = True
                    await asyncio.sleep(wait)
                    wait = min(2 * wait, LONGEST_WAIT)
                    continue
                self._away = False
                if len(batch) == 1:
                    await self._refused(*batch[0], exc)
                else:
                    # One of them is wrong: by halves it is found out which, so that the others are not held up.
                    middle = len(batch) // 2
                    await self._write(batch[:middle])
                    await self._write(batch[middle:])
                return
            self._away = False
            self._seconds.observe(time.monotonic() - started)
            self._spool.done(place for place, _record in batch)
            self._written.labels("written").inc(len(batch))
            return

    async def _refused(self, place: Place, record: Record, exc: Exception) -> None:
        if await self._set_aside(record, exc):
            self._spool.done([place])

    async def _written_soon(self, record: Record) -> bool:
        """As :meth:`_written_directly`, unless the database lets its caller wait."""
        writing = asyncio.ensure_future(self._written_directly(record))
        self._slow.add(writing)
        writing.add_done_callback(self._slow.discard)
        await asyncio.wait({writing}, timeout=PATIENCE)
        if writing.done():
            return writing.result()
        # What becomes of it does not matter: the record is written, or refused, in its turn.
        writing.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return False

    async def _written_directly(self, record: Record) -> bool:
        """Write a record now; whether it is taken care of, rather than the database away.

        :raises SpoolFullError: the database refuses it, and there is no place to set it aside.
        """
        try:
            await self._store.write([record])
        except Exception as exc:
            if self._store.is_away(exc):
                return False
            # One that waits, perhaps this very one, may be what it refers to; or else it is as wrong as in a batch.
            if record.key in self._keys or not await self._set_aside(record, exc):
                raise SpoolFullError(f"there is no room for a record, and the database refuses it: {exc}") from exc
            return True
        self._written.labels("direct").inc()
        return True

    async def _set_aside(self, record: Record, exc: Exception) -> bool:
        _log.error("the database refuses a record of kind %s: %s", record.kind, exc)
        self._written.labels("refused").inc()
        return await self._buried(asdict(record), str(exc))

    async def _buried(self, record: t.Mapping[str, t.Any], error: str) -> bool:
        """Keep what can't be written for whoever looks after it; whether that worked."""
        line = json.dumps({"at": time.time(), "error": error, "record": record}, ensure_ascii=False, default=str)
        try:
            await asyncio.get_running_loop().run_in_executor(None, self._append_letter, line)
        except OSError as exc:
            _log.error("%s takes nothing, so a record stays in the spool: %s", self._dead_letters, exc)
            return False
        return True

    def _append_letter(self, line: str) -> None:
        with self._dead_letters.open("a", encoding="utf-8", errors="backslashreplace") as handle:
            handle.write(line + "\n")
            handle.flush()
            os.fsync(handle.fileno())
