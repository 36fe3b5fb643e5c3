# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The database client (seed facts 3): a pool whose every use goes through the circuit breaker.

What the original misses counts here, too: an error that shows only when a row is read, a connection to a primary that
was demoted (SQLSTATE 25006), and a server that is gone without a word.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import typing as t

import psycopg
import psycopg_pool
from psycopg.rows import dict_row

from shannon.resilience.circuit_breaker import BreakerError, CircuitBreaker, Permit, State
from shannon.resilience.errors import ResilienceError
from shannon.services.common import logs, metrics
from shannon.services.common.config import Database as Settings

from .connection import SLACK, Connection, bounded, went_away

_log = logs.get(__name__)
Row = dict[str, t.Any]
Params = t.Sequence[t.Any] | t.Mapping[str, t.Any]
#: SQLSTATE of a write on a server that takes none.
READ_ONLY = "25006"
#: Seconds that a caller waits for a connection when the last attempt to make one failed.
_IMPATIENT = 1.0
#: Seconds after which the pool gives up an attempt to connect; the next caller starts a new one.
_RECONNECT = 3.0
#: Seconds between two probes of an open breaker, at least.
_PROBE = 0.25


class DatabaseAway(ResilienceError):
    """PostgreSQL can't be used now. What was asked may have been done only if it was a commit that was under way.

    :ivar retry_after: seconds after which it may be worth trying again.
    """

    def __init__(self, text: str, retry_after: float = 1.0) -> None:
        self.retry_after = retry_after
        super().__init__(text)


class DatabaseBusy(DatabaseAway):
    """All connections are in use; PostgreSQL itself may be well."""


class Transaction:
    """Statements of one transaction."""

    def __init__(self, connection: Connection, limit: float) -> None:
        self._connection = connection
        self._limit = limit

    async def fetch(self, query: t.Any, params: Params = ()) -> list[Row]:
        """All rows of a statement."""
        with bounded(self._connection, self._limit):
            cursor = await self._connection.execute(query, params)
            return t.cast(list[Row], await cursor.fetchall())

    async def fetch_one(self, query: t.Any, params: Params = ()) -> Row | None:
        """The first row; None when there is none."""
        rows = await self.fetch(query, params)
        return rows[0] if rows else None

    async def execute(self, query: t.Any, params: Params = ()) -> int:
        """The number of rows that a statement changed."""
        with bounded(self._connection, self._limit):
            return (await self._connection.execute(query, params)).rowcount


class Database:
    """A cell's primary.

    :param name: the cell, for logs and metrics.
    :param conninfo: see :func:`.connection.conninfo`.
    :param breaker: of kind database.
    :param observe: hears of each operation: seconds, whether it failed.
    """

    def __init__(
        self,
        name: str,
        conninfo: str,
        settings: Settings,
        breaker: CircuitBreaker,
        observe: t.Callable[[float, bool], None] | None = None,
    ) -> None:
        self.name = name
        self.breaker = breaker
        self.observe = observe
        self._settings = settings
        self._limit = settings.statement_timeout + SLACK
        self._generation = 0
        self._refused = False
        #: Seconds that the last ping took; None when it failed.
        self.latency: float | None = None
        self.error = "not asked yet"
        self._pool = psycopg_pool.AsyncConnectionPool(
            conninfo,
            connection_class=self._connection_class(),
            kwargs={"autocommit": True, "row_factory": dict_row, "prepare_threshold": 5},
            min_size=settings.idle_connections,
            max_size=settings.max_connections,
            max_lifetime=settings.max_lifetime,
            timeout=settings.acquire_timeout,
            reconnect_timeout=_RECONNECT,
            open=False,
            name=f"database {name}",
        )
        self._in_use = metrics.gauge("shannon_database_connections", "Connections of the pool.", ("cell", "state"))
        self._seconds = metrics.histogram(
            "shannon_database_operation_seconds", "Seconds that statements and transactions took.", ("cell", "result")
        )

    async def open(self) -> bool:
        """Start connecting, and ping.

        :returns: whether PostgreSQL answered within the time of a ping; if not, it is tried again in the background.
        """
        await self._pool.open(wait=False)
        return await self.ping()

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.close(timeout=5)

    async def run(self, stopping: asyncio.Event) -> None:
        """Ping every so often; while the breaker is not closed, as soon as it lets a probe through.

        So a breaker that opened closes again although nobody calls.
        """
        while not stopping.is_set():
            pause = self._settings.ping_interval
            if self.breaker.state is not State.CLOSED:
                pause = min(pause, max(_PROBE, self.breaker.retry_after))
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stopping.wait(), pause)
                return
            await self.ping()

    async def ping(self) -> bool:
        """Ask PostgreSQL whether it is there, through the breaker."""
        started = time.perf_counter()
        try:
            await self._run(_ping, min(self._limit, self._settings.ping_timeout), self._settings.ping_timeout)
        except (DatabaseAway, psycopg.Error) as exc:
            if self.latency is not None or self.error == "not asked yet":
                _log.warning("PostgreSQL of %s does not answer: %s", self.name, exc)
            self.latency, self.error = None, str(exc)
            return False
        if self.latency is None:
            _log.info("PostgreSQL of %s answers", self.name)
        self.latency, self.error = time.perf_counter() - started, ""
        return True

    @property
    def full(self) -> bool:
        """Whether all connections are in use."""
        found = self._pool.get_stats()
        return found.get("pool_available", 0) == 0 and found.get("pool_size", 0) >= self._settings.max_connections

    async def fetch(self, query: t.Any, params: Params = ()) -> list[Row]:
        """All rows of a statement, which is a transaction of its own.

        :raises DatabaseAway: PostgreSQL can't be used now.
        :raises psycopg.Error: the statement is wrong, or its values are.
        """
        return await self._run(lambda connection: Transaction(connection, self._limit).fetch(query, params))

    async def fetch_one(self, query: t.Any, params: Params = ()) -> Row | None:
        """The first row; None when there is none. Raises as :meth:`fetch`."""
        rows = await self.fetch(query, params)
        return rows[0] if rows else None

    async def execute(self, query: t.Any, params: Params = ()) -> int:
        """The number of rows that a statement changed. Raises as :meth:`fetch`."""
        return await self._run(lambda connection: Transaction(connection, self._limit).execute(query, params))

    @contextlib.asynccontextmanager
    async def transaction(self) -> t.AsyncIterator[Transaction]:
        """A transaction: committed at the end of the block, rolled back when it raises. Raises as :meth:`fetch`."""
        async with self._connected(self._settings.acquire_timeout) as connection:
            # BEGIN, COMMIT and ROLLBACK have no limit of their own in the driver.
            with bounded(connection, 4 * self._limit):
                async with connection.transaction():
                    yield Transaction(connection, self._limit)

    async def _run(
        self,
        work: t.Callable[[Connection], t.Awaitable[t.Any]],
        limit: float | None = None,
        acquire: float | None = None,
    ) -> t.Any:
        async with self._connected(acquire or self._settings.acquire_timeout) as connection:
            with bounded(connection, limit or self._limit):
                return await work(connection)

    @contextlib.asynccontextmanager
    async def _connected(self, patience: float) -> t.AsyncIterator[Connection]:
        """A connection, with the breaker asked before and told after."""
        try:
            permit = self.breaker.admit()
        except BreakerError as exc:
            raise DatabaseAway(f"PostgreSQL of {self.name} is away: {exc}", exc.retry_after) from exc
        started = time.perf_counter()
        failed = False
        connection: Connection | None = None
        try:
            connection = await self._acquire(patience)
            yield connection
        except BaseException as exc:
            failed = self._judge(permit, connection, exc)
            if failed:
                raise DatabaseAway(self._sentence(exc), max(1.0, self.breaker.retry_after)) from exc
            raise
        else:
            permit.succeeded()
        finally:
            if connection is not None:
                await self._pool.putconn(connection)
            seconds = time.perf_counter() - started
            self._seconds.labels(self.name, "failure" if failed else "success").observe(seconds)
            if self.observe is not None:
                self.observe(seconds, failed)

    def _judge(self, permit: Permit, connection: Connection | None, exc: BaseException) -> bool:
        """Tell the breaker what an error says of PostgreSQL.

        :returns: whether it says that PostgreSQL can't be used.
        """
        if isinstance(exc, DatabaseBusy):
            permit.dropped()
            return False
        state = getattr(exc, "sqlstate", None)
        if state == READ_ONLY:
            # A primary that was demoted: nothing that was connected to it is of use.
            permit.failed()
            self._generation += 1
            _log.warning("PostgreSQL of %s takes no writes any more; its connections are dropped", self.name)
            return True
        if isinstance(exc, (psycopg.Error, OSError, asyncio.TimeoutError)):
            permit.failed(exc)
            broken = connection is None or connection.closed or connection.broken
            # 57P01 to 57P03: it shuts down, crashed, or starts; 53: it has no room.
            return broken or isinstance(exc, (OSError, asyncio.TimeoutError)) or (state or "")[:3] in ("57P", "533")
        if isinstance(exc, asyncio.CancelledError):
            permit.dropped()
        else:
            # What the caller's own code raised within a transaction; PostgreSQL did what it was asked.
            permit.succeeded()
        return False

    async def _acquire(self, patience: float) -> Connection:
        """A connection that is neither stale nor ended; those that are go back to be replaced.

        :raises DatabaseBusy: all are in use.
        """
        deadline = time.monotonic() + (min(_IMPATIENT, patience) if self._refused else patience)
        while True:
            try:
                connection = t.cast(Connection, await self._pool.getconn(max(deadline - time.monotonic(), 0.01)))
            except psycopg_pool.TooManyRequests as exc:
                raise DatabaseBusy(f"too many wait for a connection to PostgreSQL of {self.name}") from exc
            except psycopg_pool.PoolTimeout as exc:
                if self.full:
                    raise DatabaseBusy(
                        f"all {self._settings.max_connections} connections to PostgreSQL of {self.name} are in use"
                    ) from exc
                raise
            if connection.generation == self._generation and not went_away(connection):
                found = self._pool.get_stats()
                self._in_use.labels(self.name, "open").set(found.get("pool_size", 0))
                self._in_use.labels(self.name, "idle").set(found.get("pool_available", 0))
                return connection
            await connection.close()
            await self._pool.putconn(connection)

    def _connection_class(self) -> type[Connection]:
        """The pool makes its connections of this class, so that it is known whether they can be made."""
        database = self

        class Made(Connection):
            @classmethod
            async def connect(cls, *args: t.Any, **kwargs: t.Any) -> t.Any:
                generation = database._generation
                try:
                    made = await super().connect(*args, **kwargs)
                except (psycopg.Error, OSError) as exc:
                    database._refused = True
                    database.error = str(exc).strip()
                    raise
                database._refused = False
                made.generation = generation
                return made

        return Made

    def _sentence(self, exc: BaseException) -> str:
        if isinstance(exc, psycopg_pool.PoolTimeout):
            return f"PostgreSQL of {self.name} can't be reached: {self.error or exc}"
        return f"PostgreSQL of {self.name} failed: {str(exc).strip() or type(exc).__name__}"


async def _ping(connection: Connection) -> None:
    await connection.execute("SELECT 1")
