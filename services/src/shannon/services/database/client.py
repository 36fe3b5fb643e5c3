# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The database client (seed facts 3): a pool whose every use goes through the circuit breaker.

What the original misses counts here, too: an error that shows only when a row is read, a connection to a primary that
was demoted (SQLSTATE 25006), and a server that is gone without a word. What the caller's own code raises within a
transaction says nothing against PostgreSQL, and passes as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import typing as t

import psycopg
import psycopg_pool

from shannon.resilience.circuit_breaker import BreakerError, CircuitBreaker, State
from shannon.services.common import logs, metrics
from shannon.services.common.config import Database as Settings

from .away import DatabaseAway, DatabaseBusy
from .connection import SLACK, bounded
from .pool import Pool
from .use import Params, Row, Statement, Transaction, Use

__all__ = ["Database", "DatabaseAway", "DatabaseBusy", "Params", "Row", "Statement", "Transaction"]

_log = logs.get(__name__)
#: Seconds between two probes of a breaker that is not closed, at least.
_PROBE = 0.25
#: Seconds between two pings once anything failed: a dead server opens the breaker although nobody calls.
_AGAIN = 1.0


class Database:
    """A cell's primary.

    :param name: the cell, for logs and metrics.
    :param conninfo: see :func:`.connection.conninfo`.
    :param breaker: of kind database.
    :param observe: hears of each operation: seconds, whether PostgreSQL could not be used.
    :ivar latency: seconds that the last ping took; None when it failed.
    :ivar error: what the last ping failed with; empty when it did not.
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
        self.latency: float | None = None
        self.error = "not asked yet"
        self._settings = settings
        self._limit = settings.statement_timeout + SLACK
        self._pool = Pool(name, conninfo, settings)
        self._trouble = asyncio.Event()
        self._doubtful = True  # whether anything failed since the last ping that was answered
        self._said: bool | None = None
        connections = metrics.gauge("shannon_database_connections", "Connections of the pool.", ("cell", "state"))
        connections.labels(name, "open").set_function(lambda: self._pool.size)
        connections.labels(name, "idle").set_function(lambda: self._pool.idle)
        self._seconds = metrics.histogram(
            "shannon_database_operation_seconds", "Seconds that statements and transactions took.", ("cell", "result")
        )

    async def open(self) -> bool:
        """Start connecting, and ping.

        :returns: whether PostgreSQL answered within the time of a ping; if not, it is tried again in the background.
        """
        await self._pool.open()
        return await self.ping()

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.close()

    async def run(self, stopping: asyncio.Event) -> None:
        """Ping every so often; while the breaker is not closed, as soon as it lets a probe through.

        So a breaker opens and closes again although nobody calls.
        """
        now = asyncio.get_running_loop().time
        asked = now()
        ending = asyncio.ensure_future(stopping.wait())
        try:
            while not ending.done():
                self._trouble.clear()
                due = self._due(asked, now())
                if due <= now():
                    await self.ping()
                    asked = now()
                    continue
                # A failure of a caller may have opened the breaker, so when to ask next is found out anew.
                trouble = asyncio.ensure_future(self._trouble.wait())
                try:
                    await asyncio.wait({ending, trouble}, timeout=due - now(), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    trouble.cancel()
        finally:
            ending.cancel()

    async def ping(self) -> bool:
        """Ask PostgreSQL whether it is there, through the breaker, for as long as a ping may take.

        When all connections are in use it is not asked; the answer is that of the last time then.
        """
        started = time.perf_counter()
        limit = self._settings.ping_timeout
        try:
            async with self._used(limit) as use:
                await use.fetch("SELECT 1", (), max(0.1, limit - (time.perf_counter() - started)))
        except DatabaseBusy:
            return self.latency is not None
        except (DatabaseAway, psycopg.Error) as exc:
            self.latency, self.error = None, str(exc)
            if self._said is not False:
                _log.warning("PostgreSQL of %s does not answer: %s", self.name, exc)
            self._said = False
            return False
        self.latency, self.error, self._doubtful = time.perf_counter() - started, "", False
        if not self._said:
            _log.info("PostgreSQL of %s answers", self.name)
        self._said = True
        return True

    @property
    def full(self) -> bool:
        """Whether all connections are in use."""
        return self._pool.full

    async def fetch(self, query: t.Any, params: Params = ()) -> list[Row]:
        """All rows of a statement, which is a transaction of its own.

        :raises DatabaseAway: PostgreSQL can't be used now.
        :raises psycopg.Error: the statement is wrong, its values are, or it took too long.
        """
        async with self._used(self._settings.acquire_timeout) as use:
            return await use.fetch(query, params)

    async def fetch_one(self, query: t.Any, params: Params = ()) -> Row | None:
        """The first row; None when there is none. Raises as :meth:`fetch`."""
        rows = await self.fetch(query, params)
        return rows[0] if rows else None

    async def execute(self, query: t.Any, params: Params = ()) -> int:
        """The number of rows that a statement changed. Raises as :meth:`fetch`."""
        async with self._used(self._settings.acquire_timeout) as use:
            return await use.execute(query, params)

    @contextlib.asynccontextmanager
    async def transaction(self) -> t.AsyncIterator[Transaction]:
        """A transaction: committed at the end of the block, rolled back when it raises.

        What the block raises passes as it is, and is no failure of PostgreSQL. Raises as :meth:`fetch`, and
        C(InFailedSqlTransaction) when the block kept an error of a statement to itself: nothing was committed then.
        """
        async with self._used(self._settings.acquire_timeout) as use:
            await use.begin()
            # The server ends a transaction in which nothing happens; this ends one in which too much does.
            with bounded(use.connection, 4 * self._limit):
                try:
                    yield Transaction(use)
                except BaseException:
                    await use.roll_back()
                    raise
                await use.commit()

    def _due(self, asked: float, now: float) -> float:
        """When to ping next, by the loop's clock."""
        if self.breaker.state is not State.CLOSED:
            return max(asked + _PROBE, now + self.breaker.retry_after)
        return asked + min(self._settings.ping_interval, _AGAIN if self._doubtful else float("inf"))

    @contextlib.asynccontextmanager
    async def _used(self, patience: float) -> t.AsyncIterator[Use]:
        """A connection, with the breaker asked before and told after."""
        try:
            permit = self.breaker.admit()
        except BreakerError as exc:
            raise DatabaseAway(f"PostgreSQL of {self.name} is away: {exc}", exc.retry_after) from exc
        started = time.perf_counter()
        use = Use(self.name, self.breaker, permit, self._limit)
        taken = False
        try:
            try:
                use.connection = await self._pool.take(patience)
                taken = True
            except (DatabaseBusy, psycopg_pool.PoolClosed):
                permit.dropped()
                raise
            except (psycopg.Error, OSError) as exc:
                raise use.failed(exc) from exc
            yield use
        except psycopg_pool.PoolClosed as exc:
            raise DatabaseAway(f"the connections to PostgreSQL of {self.name} are closed") from exc
        except Exception:
            # Counts only when nothing was said of it yet: PostgreSQL did what it was asked, and the caller went on.
            permit.succeeded()
            raise
        except BaseException:
            permit.dropped()
            raise
        else:
            permit.succeeded()
        finally:
            if use.demoted:
                _log.warning("PostgreSQL of %s takes no writes any more; its connections are dropped", self.name)
                self._pool.renew()
            if use.away:
                self._doubtful = True
                self._trouble.set()
            seconds = time.perf_counter() - started
            self._seconds.labels(self.name, "failure" if use.away else "success").observe(seconds)
            if self.observe is not None:
                self.observe(seconds, use.away)
            if taken:
                await self._pool.give_back(use.connection)
