# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where an indexer stands: each collection's position, checked against the log and against Qdrant."""

from __future__ import annotations

import logging
import typing as t

from shannon.services.common import logs, metrics

from .log_reader import Edges
from .positions import START, Mark, Position

#: A rewind goes back this many seconds beyond the lost row. After a failover rows that were written anew may stand at
#: places below it; all of those are younger. Applying older rows once more changes nothing in the end.
REWIND_SECONDS = 300.0
#: Seconds for which a position that the server does not know may be due to a replica that is behind.
GRACE_SECONDS = 10.0

_log: logging.Logger = logs.get(__name__)


class Log(t.Protocol):
    """What of the log is asked here (:class:`~.log_reader.PostgresLog`)."""

    async def holds(self, mark: Mark) -> bool: ...
    async def last_before(self, position: Position, created_at: float) -> Mark: ...
    async def edges(self) -> Edges: ...
    async def collections(self) -> set[str]: ...
    async def has_points(self, collection: str) -> bool: ...


class Behind(Exception):
    """The server knows less than what was applied already, and may yet catch up: a replica that lags."""


class Places:
    """Positions of a cell's collections.

    :ivar marks: what each collection has.
    :ivar missing: collections that Qdrant does not have; they wait, the others go on.
    """

    def __init__(self, cell: str, clock: t.Callable[[], float]) -> None:
        self.marks: dict[str, Mark] = {}
        self.missing: set[str] = set()
        self._cell = cell
        self._clock = clock
        self._unknown_since: float | None = None
        self._refilled: set[str] = set()
        self._rewinds = metrics.counter(
            "shannon_vector_indexer_rewinds_total", "Positions that had to be set back.", ("cell", "reason")
        )

    @property
    def cursor(self) -> Position:
        """Where to read on: what the collection has that is furthest behind, without those that are missing."""
        moving = [mark.position for name, mark in self.marks.items() if name not in self.missing]
        return min(moving, default=START)

    @property
    def furthest_behind(self) -> Position:
        """As the cursor, but with the collections that are missing: what the lag counts from."""
        return min((mark.position for mark in self.marks.values()), default=START)

    async def load(self, stored: t.Mapping[str, Mark], log: Log) -> None:
        """Take the positions from Qdrant; a collection without one has nothing yet.

        :raises Behind: see :meth:`check`.
        """
        names = await log.collections()
        for name, mark in self.marks.items():
            found = stored.get(name, Mark())
            if found.position < mark.position:
                # A snapshot was restored, or the collection of positions emptied, under our feet.
                self._say("restored", name, mark, found)
        self.marks = {name: stored.get(name, Mark()) for name in {*names, *stored}}
        await self.check(log)

    async def check(self, log: Log) -> None:
        """Set back each position whose row is gone: PostgreSQL was restored, or failed over with loss.

        :raises Behind: that can't be told yet, since the server may only be behind.
        """
        wrong = [mark for mark in set(self.marks.values()) if mark.position > START and not await log.holds(mark)]
        if not wrong:
            self._unknown_since = None
            return
        edges = await log.edges()
        if any(mark.position.txid >= edges.horizon for mark in wrong):
            now = self._clock()
            self._unknown_since = now if self._unknown_since is None else self._unknown_since
            if now - self._unknown_since < GRACE_SECONDS:
                raise Behind(f"the log ends at {edges.newest}, before {max(wrong, key=_place).position}")
        self._unknown_since = None
        for mark in wrong:
            target = await self._target(mark, edges, log)
            for name in [name for name, held in self.marks.items() if held == mark]:
                self.marks[name] = target
                self._say("lost rows", name, mark, target, str(edges.oldest), str(edges.newest))

    async def refill(self, counts: t.Mapping[str, int], log: Log) -> None:
        """Begin anew with collections that were emptied or made anew while their position was kept.

        Once for each time: if nothing comes of it (all rows refused), it is not tried again.
        """
        for name, count in counts.items():
            mark = self.marks.get(name, Mark())
            if count:
                self._refilled.discard(name)
            elif mark.position > START and name not in self._refilled and await log.has_points(name):
                self._refilled.add(name)
                self.marks[name] = Mark()
                self._say("emptied", name, mark, Mark())

    def moved(self, end: Mark) -> dict[str, Mark]:
        """The positions to keep now that everything up to this row is applied; none goes backwards.

        Collections that are missing stay where they are. C(marks) is updated by the caller, once these are stored.
        """
        return {
            name: end for name, mark in self.marks.items() if name not in self.missing and mark.position < end.position
        }

    async def _target(self, mark: Mark, edges: Edges, log: Log) -> Mark:
        if edges.oldest is not None and mark.position < edges.oldest:
            # The log was pruned beyond what was read: reading goes on at its beginning, and something may be missing.
            return Mark()
        return await log.last_before(mark.position, mark.created_at - REWIND_SECONDS)

    def _say(self, reason: str, name: str, old: Mark, new: Mark, oldest: str = "", newest: str = "") -> None:
        self._rewinds.labels(self._cell, reason).inc()
        texts = {
            "restored": "Qdrant holds an older position than this indexer: it was restored; the rest is applied again",
            "emptied": "Qdrant holds no point of a collection that should have some: all of the log is applied again",
            "lost rows": (
                "the row at the position is gone from vector_log: PostgreSQL was restored or failed over with loss, or "
                "the log was pruned. The position is set back to a row that exists. Points whose rows are gone stay in "
                "Qdrant: delete them by hand, or empty the collection, which is then filled again"
            ),
        }
        fields = {"cell": self._cell, "collection": name, "was": str(old.position), "now": str(new.position)}
        if oldest:
            fields |= {"oldest_row": oldest, "newest_row": newest}
        _log.error(texts[reason], extra={"fields": fields})


def _place(mark: Mark) -> Position:
    return mark.position
