# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads vector_log from the region's own PostgreSQL, in an order in which nothing is missed."""

from __future__ import annotations

import asyncio
import contextlib
import typing as t

import psycopg

from shannon.resilience.circuit_breaker import CircuitBreaker

from .positions import START, Mark, Position
from .rows import Row

# Every transaction below the snapshot's xmin has ended, so nothing can appear behind the position (migration 0003). The
# order is the table's column: a bare txid would be the output's, a text, and "10000" comes before "9999" there.
_READ = """
SELECT txid::text, sequence, collection, point_id::text, operation, array_to_json(vector)::text, payload::text,
       extract(epoch FROM created_at)::float8
  FROM vector_log
 WHERE (txid, sequence) > (%s::xid8, %s) AND txid < pg_snapshot_xmin(pg_current_snapshot())
 ORDER BY vector_log.txid, vector_log.sequence LIMIT %s
"""
_AT = """
SELECT point_id::text, extract(epoch FROM created_at)::float8 FROM vector_log
 WHERE txid = %s::xid8 AND sequence = %s
"""
_BELOW = """
SELECT txid::text, sequence, point_id::text, extract(epoch FROM created_at)::float8 FROM vector_log
 WHERE (txid, sequence) <= (%s::xid8, %s) AND created_at <= to_timestamp(%s)
 ORDER BY vector_log.txid DESC, vector_log.sequence DESC LIMIT 1
"""
_EDGES = """
SELECT (SELECT (txid::text, sequence)::text FROM vector_log ORDER BY txid, sequence LIMIT 1),
       (SELECT (txid::text, sequence)::text FROM vector_log ORDER BY txid DESC, sequence DESC LIMIT 1),
       pg_snapshot_xmin(pg_current_snapshot())::text
"""
# A loose index scan over (collection, ...): as many steps as there are collections, however long the log is.
_COLLECTIONS = """
WITH RECURSIVE found AS (
    (SELECT collection FROM vector_log ORDER BY collection LIMIT 1)
    UNION ALL
    SELECT (SELECT collection FROM vector_log WHERE collection > found.collection ORDER BY collection LIMIT 1)
      FROM found WHERE found.collection IS NOT NULL
)
SELECT collection FROM found WHERE collection IS NOT NULL
"""
_LIVE = """
SELECT EXISTS (SELECT 1 FROM (SELECT DISTINCT ON (point_id) operation FROM vector_log WHERE collection = %s
                               ORDER BY point_id, sequence DESC) AS newest WHERE operation = 'upsert')
"""
_LAG = """
SELECT (SELECT count(*) FROM (SELECT 1 FROM vector_log WHERE (txid, sequence) > (%s::xid8, %s) LIMIT %s) AS rest),
       (SELECT greatest(0, extract(epoch FROM clock_timestamp() - created_at))::float8 FROM vector_log
         WHERE (txid, sequence) > (%s::xid8, %s) ORDER BY txid, sequence LIMIT 1)
"""
#: Beyond this many rows the lag is only said to be at least that; counting must not cost more than reading.
LAG_ROWS_COUNTED = 100_000


class Edges(t.NamedTuple):
    """The log's oldest and newest row, None when it is empty, and the transaction below which all have ended."""

    oldest: Position | None
    newest: Position | None
    horizon: int


class PostgresLog:
    """The log over one read-only connection, which is made anew when it breaks.

    Not to be used by two tasks at once without waiting: a lock sees to that. Every method raises psycopg.Error or
    TimeoutError when the server can't be asked, and BreakerError while the breaker is open.

    :param conninfo: libpq's connection string.
    :param breaker: of kind database.
    :param timeout: seconds that a statement may take.
    """

    def __init__(self, conninfo: str, breaker: CircuitBreaker, timeout: float) -> None:
        self._conninfo = conninfo
        self._breaker = breaker
        self._timeout = timeout
        self._lock = asyncio.Lock()
        self._connection: psycopg.AsyncConnection[t.Any] | None = None
        #: Grows with each connection: another server may answer, which may know less.
        self.generation = 0

    async def read(self, after: Position, limit: int) -> list[Row]:
        """Up to C(limit) rows after a position, in the log's order."""
        found = await self._query(_READ, (str(after.txid), after.sequence, limit))
        return [Row(Position(int(row[0]), row[1]), *row[2:]) for row in found]

    async def holds(self, mark: Mark) -> bool:
        """Whether the row of a mark is there, and is the very same."""
        found = await self._query(_AT, (str(mark.position.txid), mark.position.sequence))
        if not found:
            return False
        return not mark.row or (found[0][0] == mark.row and abs(found[0][1] - mark.created_at) < 1e-3)

    async def last_before(self, position: Position, created_at: float) -> Mark:
        """The last row up to a position and a time; the start when there is none."""
        found = await self._query(_BELOW, (str(position.txid), position.sequence, created_at))
        if not found:
            return Mark(START)
        txid, sequence, row, created = found[0]
        return Mark(Position(int(txid), sequence), row, created)

    async def edges(self) -> Edges:
        """Oldest and newest row, and the horizon."""
        oldest, newest, horizon = (await self._query(_EDGES, ()))[0]
        return Edges(_position(oldest), _position(newest), int(horizon))

    async def collections(self) -> set[str]:
        """The collections that the log names."""
        return {row[0] for row in await self._query(_COLLECTIONS, ())}

    async def has_points(self, collection: str) -> bool:
        """Whether a collection should have any point, after all that the log says of it."""
        return bool((await self._query(_LIVE, (collection,)))[0][0])

    async def lag(self, position: Position) -> tuple[int, float]:
        """Rows after a position (at most LAG_ROWS_COUNTED), and the age in seconds of the first of them."""
        place = (str(position.txid), position.sequence)
        rows, seconds = (await self._query(_LAG, (*place, LAG_ROWS_COUNTED, *place)))[0]
        return rows, seconds or 0.0

    async def close(self) -> None:
        """Close the connection."""
        async with self._lock:
            await self._drop()

    async def _query(self, sql: str, values: t.Sequence[t.Any]) -> list[tuple[t.Any, ...]]:
        async with self._lock:
            return t.cast(list[tuple[t.Any, ...]], await self._breaker.call_async(self._run, sql, values))

    async def _run(self, sql: str, values: t.Sequence[t.Any]) -> list[tuple[t.Any, ...]]:
        try:
            # A dead peer says nothing: the statement's own limit is the server's, this one is ours.
            return await asyncio.wait_for(self._ask(sql, values), self._timeout + 1)
        except BaseException:
            await self._drop()
            raise

    async def _ask(self, sql: str, values: t.Sequence[t.Any]) -> list[tuple[t.Any, ...]]:
        if self._connection is None:
            self._connection = await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)
            self.generation += 1
        cursor = await self._connection.execute(t.cast(t.Any, sql), values)
        return await cursor.fetchall()

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error, OSError):  # it is being given up: how it ends does not matter
                await connection.close()


def _position(text: str | None) -> Position | None:
    """A row value as PostgreSQL writes it: (txid,sequence)."""
    if text is None:
        return None
    txid, sequence = text.strip("()").split(",")
    return Position(int(txid), int(sequence))
