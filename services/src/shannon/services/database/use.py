# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One use of a connection: its statements, each with a bound, and what their errors mean for the breaker."""

from __future__ import annotations

import contextlib
import typing as t

import psycopg
from psycopg.pq import TransactionStatus

from shannon.resilience.circuit_breaker import CircuitBreaker, Permit

from .away import DRIVER, READ_ONLY, UNPREPARED, DatabaseAway, is_away
from .connection import SLACK, Connection, bounded, cut

Row = dict[str, t.Any]
Params = t.Sequence[t.Any] | t.Mapping[str, t.Any]
Statement = tuple[t.Any, Params]


class Use:
    """A connection that is in use.

    :param name: the cell.
    :param breaker: the server's.
    :param permit: of it; it is told of the first error of the driver.
    :param limit: seconds that a statement may take.
    :ivar away: whether PostgreSQL turned out not to be usable.
    :ivar demoted: whether it was a primary and is none any more.
    """

    connection: Connection

    def __init__(self, name: str, breaker: CircuitBreaker, permit: Permit, limit: float) -> None:
        self.away = self.demoted = False
        self._name = name
        self._breaker = breaker
        self._permit = permit
        self._limit = limit

    async def fetch(self, query: t.Any, params: Params, limit: float | None = None) -> list[Row]:
        """All rows of a statement.

        :raises DatabaseAway: PostgreSQL can't be used now.
        :raises psycopg.Error: the statement is wrong, its values are, or it took too long.
        """
        with self._guarded(limit):
            cursor = await self.connection.execute(query, params)
            return t.cast("list[Row]", await cursor.fetchall())

    async def execute(self, query: t.Any, params: Params) -> int:
        """The number of rows that a statement changed. Raises as :meth:`fetch`."""
        with self._guarded():
            return (await self.connection.execute(query, params)).rowcount

    async def execute_all(self, statements: t.Iterable[Statement]) -> None:
        """Statements in order, sent without waiting for the answer to each if libpq can. Raises as :meth:`fetch`."""
        together: t.Any = contextlib.nullcontext()
        if psycopg.capabilities.has_pipeline():
            together = self.connection.pipeline()
        with self._guarded():
            async with together:
                for query, params in statements:
                    # What is prepared behind a statement that fails is not there, yet the driver takes it to be.
                    await self.connection.execute(query, params, prepare=False)

    async def begin(self) -> None:
        """Raises as :meth:`fetch`."""
        with self._guarded():
            await self.connection.execute("BEGIN", prepare=False)

    async def commit(self) -> None:
        """Raises as :meth:`fetch`; after DatabaseAway it may have happened or not."""
        with self._guarded():
            cursor = await self.connection.execute("COMMIT", prepare=False)
            if cursor.statusmessage != "COMMIT":
                raise psycopg.errors.InFailedSqlTransaction(
                    "a statement of the transaction failed, so nothing of it was committed"
                )

    async def roll_back(self) -> None:
        """End the transaction, or else the connection, upon which the server ends it."""
        if self.connection.pgconn.transaction_status in (TransactionStatus.IDLE, TransactionStatus.UNKNOWN):
            return
        try:
            with bounded(self.connection, SLACK):
                await self.connection.execute("ROLLBACK", prepare=False)
        except DRIVER:
            await self.connection.close()

    def failed(self, exc: Exception) -> Exception:
        """Tell the breaker of an error of the driver.

        :returns: what callers are to see: the error itself, or DatabaseAway.
        """
        connection = getattr(self, "connection", None)
        state = getattr(exc, "sqlstate", None)
        if state in UNPREPARED and connection is not None:
            # On this connection it would fail again and again.
            cut(connection)
        if state == READ_ONLY:
            # By its class an answer to a wrong statement; but our statements are right, on a primary.
            self.demoted = True
            self._permit.failed()
        else:
            self._permit.failed(exc)
        if not is_away(exc, connection is None or connection.closed):
            return exc
        self.away = True
        what = "can't be reached" if connection is None else "failed"
        text = f"PostgreSQL of {self._name} {what}: {str(exc).strip() or type(exc).__name__}"
        return DatabaseAway(text, max(1.0, self._breaker.retry_after))

    @contextlib.contextmanager
    def _guarded(self, limit: float | None = None) -> t.Iterator[None]:
        try:
            with bounded(self.connection, limit or self._limit):
                yield
        except DRIVER as exc:
            found = self.failed(exc)
            if found is exc:
                raise
            raise found from exc


class Transaction:
    """Statements of one transaction. All of them raise as :meth:`.client.Database.fetch`."""

    def __init__(self, use: Use) -> None:
        self._use = use

    async def fetch(self, query: t.Any, params: Params = ()) -> list[Row]:
        """All rows of a statement."""
        return await self._use.fetch(query, params)

    async def fetch_one(self, query: t.Any, params: Params = ()) -> Row | None:
        """The first row; None when there is none."""
        rows = await self.fetch(query, params)
        return rows[0] if rows else None

    async def execute(self, query: t.Any, params: Params = ()) -> int:
        """The number of rows that a statement changed."""
        return await self._use.execute(query, params)

    async def execute_all(self, statements: t.Iterable[Statement]) -> None:
        """Statements in order whose results nobody wants, in as few round trips as can be."""
        await self._use.execute_all(statements)
