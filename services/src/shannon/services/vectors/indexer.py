# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The indexer of one cell in one region: follows vector_log, and brings the local Qdrant to the same state.

At least once and idempotent: a batch's data first, then the positions. Whatever happens in between, the rows after the
stored positions are applied again, in the same order, to the same points.
"""

from __future__ import annotations

import asyncio
import logging
import time
import typing as t

import psycopg

from shannon.resilience.circuit_breaker import BreakerError
from shannon.resilience.errors import ResilienceError
from shannon.services.common import logs, metrics
from shannon.services.common.config import VectorIndexer as Settings

from .applier import Applier, Letters, Sink
from .election import LeadershipLost
from .placing import Behind, Places
from .placing import Log as CheckedLog
from .positions import Mark, Position
from .rows import Row, plan
from .sink import CollectionMissing

#: Seconds between two looks at Qdrant's positions and at emptied collections while all goes well.
LOOK_SECONDS = 5.0
_OUTAGES = (psycopg.Error, OSError, asyncio.TimeoutError, BreakerError, ResilienceError)

_log: logging.Logger = logs.get(__name__)


class Log(CheckedLog, t.Protocol):
    """The log as the indexer reads it (:class:`~.log_reader.PostgresLog`)."""

    generation: int

    async def read(self, after: Position, limit: int) -> list[Row]: ...
    async def lag(self, position: Position) -> tuple[int, float]: ...
    async def close(self) -> None: ...


class Leadership(t.Protocol):
    """Who may apply (:class:`~.election.Election`)."""

    holder: str

    @property
    def leading(self) -> bool: ...
    def budget(self, timeout: float) -> float: ...
    async def run(self, stopping: asyncio.Event) -> None: ...


class CellIndexer:
    """Follows one cell.

    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        cell: str,
        log: Log,
        sink: Sink,
        leadership: Leadership,
        letters: Letters,
        settings: Settings,
        clock: t.Callable[[], float] = time.monotonic,
    ) -> None:
        self.cell = cell
        self.places = Places(cell, clock)
        self._log = log
        self._sink = sink
        self._leadership = leadership
        self._settings = settings
        self._clock = clock
        self._applier = Applier(sink, letters, self._budget)
        self._placed = False
        self._generation = -1
        self._looked = float("-inf")
        self._lag: tuple[int, float] | None = None
        self._trouble = ""
        self._metrics = _Metrics(cell)

    def status(self) -> dict[str, t.Any]:
        """The entry of C(GET /status): lags are null while they are not known."""
        place = self.places.furthest_behind
        rows, seconds = self._lag or (None, None)
        return {
            "cell": self.cell,
            "leader": self._leadership.leading,
            "holder": self._leadership.holder,
            "position": {"txid": place.txid, "sequence": place.sequence},
            "collections": {
                name: {"txid": mark.position.txid, "sequence": mark.position.sequence}
                for name, mark in sorted(self.places.marks.items())
            },
            "missing_collections": sorted(self.places.missing),
            "lag_rows": rows,
            "lag_seconds": seconds,
            "trouble": self._trouble,
        }

    async def run(self, stopping: asyncio.Event) -> None:
        """Follow until stopping; whatever is away is waited for, a little longer each time, up to retry_max."""
        pause = self._settings.interval
        while not stopping.is_set():
            try:
                if not self._leadership.leading:
                    self._placed = False
                    wait = self._settings.interval
                elif await self.step():
                    wait = 0.0
                else:
                    wait = self._settings.interval
                pause = self._settings.interval
                self._say("")
            except LeadershipLost as exc:
                self._placed = False
                wait = self._settings.interval
                self._say(str(exc))
            except (*_OUTAGES, Behind) as exc:
                # What of the batch was applied is not known; the stored positions are what holds.
                self._placed = False
                wait = pause = min(pause * 2, self._settings.retry_max)
                self._say(f"{type(exc).__name__}: {exc}")
            if wait:
                await _pause(stopping, wait)
            else:
                await asyncio.sleep(0)  # a long catching up must not starve the lease

    async def step(self) -> bool:
        """Apply one batch.

        :returns: whether it was full, so that there is probably more.
        """
        await self._place()
        rows = await self._log.read(self.places.cursor, self._settings.batch)
        if self._log.generation != self._generation:
            # The connection was made anew for this very read: another server answered, which may have lost rows.
            self._placed = False
            return True
        if not rows:
            return False
        for row in rows:
            self.places.marks.setdefault(row.collection, Mark())
        works = plan(rows, self.places.marks)
        for name in self.places.missing:
            works.pop(name, None)
        self.places.missing |= await self._applier.apply(works)
        moved = self.places.moved(rows[-1].mark)
        if moved:
            await self._sink.save(moved, self._budget())
            self.places.marks.update(moved)
        return len(rows) == self._settings.batch

    async def measure(self, stopping: asyncio.Event) -> None:
        """Keep the lag known, whoever leads; once a second, or when the log can be asked again."""
        while not stopping.is_set():
            try:
                if not self._leadership.leading:
                    stored = await self._sink.positions(self._settings.timeout)
                    if not self._leadership.leading:
                        self.places.marks = stored
                rows, seconds = await self._log.lag(self.places.furthest_behind)
                self._lag = (rows, seconds)
                self._metrics.lag(rows, seconds)
            except _OUTAGES:
                self._lag = None
                self._metrics.unknown()
            self._metrics.state(self._leadership.leading, self.places)
            await _pause(stopping, 1.0)

    async def close(self) -> None:
        """Close connections."""
        await self._sink.close()
        await self._log.close()

    async def _place(self) -> None:
        """Take positions from Qdrant after whatever may have changed them, and every few seconds anyway."""
        now = self._clock()
        if self._placed and self._generation == self._log.generation and now - self._looked < LOOK_SECONDS:
            return
        stored = await self._sink.positions(self._budget())
        self.places.missing.clear()
        await self.places.load(stored, self._log)
        counts = {}
        for name in sorted(self.places.marks):
            try:
                counts[name] = await self._sink.count(name, self._budget())
            except CollectionMissing:
                self.places.missing.add(name)
        await self.places.refill(counts, self._log)
        # What was set back is kept at once, or the next look would take the old position again.
        changed = {name: mark for name, mark in self.places.marks.items() if stored.get(name, mark) != mark}
        if changed:
            await self._sink.save(changed, self._budget())
        self._generation, self._looked, self._placed = self._log.generation, now, True

    def _budget(self) -> float:
        return self._leadership.budget(self._settings.timeout)

    def _say(self, trouble: str) -> None:
        if trouble != self._trouble:
            fields = {"fields": {"cell": self.cell, "trouble": trouble or self._trouble}}
            _log.warning("the indexer is held up" if trouble else "the indexer goes on", extra=fields)
            self._trouble = trouble


class _Metrics:
    def __init__(self, cell: str) -> None:
        self._cell = cell
        label = ("cell",)
        name = "shannon_vector_indexer"
        self._seconds = metrics.gauge(f"{name}_lag_seconds", "Age of the oldest row not applied; -1: unknown.", label)
        self._rows = metrics.gauge(f"{name}_lag_rows", "Rows not applied (counting ends at 100000).", label)
        self._leader = metrics.gauge(f"{name}_leader", "1 when this indexer applies.", label)
        self._missing = metrics.gauge(f"{name}_missing_collections", "Collections that Qdrant lacks.", label)
        self._position = metrics.gauge(f"{name}_position", "Sequence number of the position.", ("cell", "collection"))

    def lag(self, rows: int, seconds: float) -> None:
        self._seconds.labels(self._cell).set(seconds)
        self._rows.labels(self._cell).set(rows)

    def unknown(self) -> None:
        self.lag(-1, -1)

    def state(self, leading: bool, places: Places) -> None:
        self._leader.labels(self._cell).set(1 if leading else 0)
        self._missing.labels(self._cell).set(len(places.missing))
        for collection, mark in places.marks.items():
            self._position.labels(self._cell, collection).set(mark.position.sequence)


async def _pause(stopping: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(stopping.wait(), seconds)
    except asyncio.TimeoutError:
        return
