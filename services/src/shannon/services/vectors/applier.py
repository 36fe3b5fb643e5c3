# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Applies a batch of the log to Qdrant, and finds the rows that can't be applied."""

from __future__ import annotations

import typing as t

from shannon.services.common import metrics

from .positions import Mark
from .rows import Row, Work
from .sink import CollectionMissing, Refused


class Sink(t.Protocol):
    """What of Qdrant is used (:class:`~.sink.QdrantSink`)."""

    async def upsert(self, collection: str, rows: t.Sequence[Row], timeout: float) -> None: ...
    async def delete(self, collection: str, rows: t.Sequence[Row], timeout: float) -> None: ...
    async def count(self, collection: str, timeout: float) -> int: ...
    async def positions(self, timeout: float) -> dict[str, Mark]: ...
    async def save(self, marks: t.Mapping[str, Mark], timeout: float) -> None: ...
    async def close(self) -> None: ...


class Letters(t.Protocol):
    """Where refused rows go (:class:`~.dead_letters.DeadLetters`)."""

    def add(self, row: Row, reason: str) -> None: ...


Write = t.Callable[[str, t.Sequence[Row], float], t.Awaitable[None]]


class Applier:
    """Writes to one region's Qdrant.

    :param budget: seconds that the next request may take; raises LeadershipLost when nothing may be written any more.
    """

    def __init__(self, sink: Sink, letters: Letters, budget: t.Callable[[], float]) -> None:
        self._sink = sink
        self._letters = letters
        self._budget = budget
        self._applied = metrics.counter(
            "shannon_vector_indexer_applied_total", "Points applied to Qdrant.", ("collection", "operation")
        )

    async def apply(self, works: t.Mapping[str, Work]) -> set[str]:
        """One request for each collection and kind, unless Qdrant refuses some rows.

        :returns: the collections that do not exist; nothing of them was applied.
        :raises ResilienceError: Qdrant is away, or the lease is about to end; a part may have been applied.
        """
        missing: set[str] = set()
        for collection, work in works.items():
            try:
                await self._write(self._sink.upsert, "upsert", collection, work.upserts)
                await self._write(self._sink.delete, "delete", collection, work.deletes)
            except CollectionMissing:
                missing.add(collection)
        return missing

    async def _write(self, write: Write, operation: str, collection: str, rows: t.Sequence[Row]) -> None:
        """Write rows; when they are refused, halves of them, until those that are to blame are found."""
        if not rows:
            return
        try:
            await write(collection, rows, self._budget())
        except Refused as exc:
            if len(rows) == 1:
                self._letters.add(rows[0], str(exc))
                return
            middle = len(rows) // 2
            await self._write(write, operation, collection, rows[:middle])
            await self._write(write, operation, collection, rows[middle:])
        else:
            self._applied.labels(collection, operation).inc(len(rows))
