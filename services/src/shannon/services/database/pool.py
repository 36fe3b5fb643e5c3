# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connections to one server: how many there are, and that none is handed out that has ended meanwhile."""

from __future__ import annotations

import asyncio
import time
import typing as t

import psycopg
import psycopg_pool
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

from shannon.services.common.config import Database as Settings

from .away import DatabaseBusy
from .connection import Connection, went_away

#: Seconds that a caller waits for a connection when the last attempt to make one failed.
_IMPATIENT = 1.0
#: Seconds after which the pool gives an attempt to connect up, and a caller who waits has a new one started. By itself
#: the pool would wait for a second and then for two, while a cell that has moved is there again long since.
_RECONNECT = 0.3


class Pool:
    """Connections, made as they are needed.

    :param name: the cell.
    :param conninfo: see :func:`.connection.conninfo`.
    :ivar error: what the last attempt to connect said; empty when it worked.
    :ivar size: connections that there are, those that are being made among them.
    :ivar idle: those of them that wait for a caller.
    """

    def __init__(self, name: str, conninfo: str, settings: Settings) -> None:
        self.error = ""
        self._name = name
        self._most = settings.max_connections
        self._generation = 0
        self._taken = 0
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

    async def open(self) -> None:
        """Start connecting; it goes on in the background."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Close all connections; one that is in use when it is given back."""
        await self._pool.close(timeout=5)

    async def take(self, patience: float) -> Connection:
        """A connection that is neither of a demoted primary nor ended; give it back.

        :param patience: seconds to wait for one.
        :raises DatabaseBusy: all are in use.
        :raises psycopg.Error: none can be made.
        """
        deadline = time.monotonic() + (min(_IMPATIENT, patience) if self.error else patience)
        while True:
            try:
                left = max(deadline - time.monotonic(), 0.01)
                # Asking again starts the next attempt where one was given up; who waits for others keeps the place.
                turn = left if self.full else min(left, _RECONNECT)
                connection = t.cast(Connection, await self._pool.getconn(turn))
            except psycopg_pool.PoolTimeout as exc:
                if left > turn:
                    continue
                if self.full:
                    raise DatabaseBusy(
                        f"all {self._most} connections to PostgreSQL of {self._name} are in use"
                    ) from exc
                raise psycopg.OperationalError(self.error or f"no connection within {patience:g} s") from exc
            self._taken += 1
            if connection.generation == self._generation and not went_away(connection):
                return connection
            await connection.close()
            await self.give_back(connection)

    async def give_back(self, connection: Connection) -> None:
        """Have a connection used by others, or replaced when it is in the middle of something."""
        self._taken -= 1
        if connection.pgconn.transaction_status != TransactionStatus.IDLE:
            # The pool would roll back, and wait for the server's answer without an end.
            await connection.close()
        # One that is lost on the way, to a cancelled task, would count as in use forever.
        await asyncio.shield(self._pool.putconn(connection))

    def renew(self) -> None:
        """Use none of the present connections again."""
        self._generation += 1

    @property
    def full(self) -> bool:
        """Whether callers have all connections. Those that are being made do not count: that may be in vain."""
        return self._taken >= self._most

    @property
    def size(self) -> int:
        return self._pool.get_stats().get("pool_size", 0)

    @property
    def idle(self) -> int:
        return self._pool.get_stats().get("pool_available", 0)

    def _connection_class(self) -> type[Connection]:
        """The pool makes its connections of this class, so that it is known whether they can be made."""
        pool = self

        class Made(Connection):
            @classmethod
            async def connect(cls, *args: t.Any, **kwargs: t.Any) -> t.Any:
                generation = pool._generation
                try:
                    made = await super().connect(*args, **kwargs)
                except (psycopg.Error, OSError) as exc:
                    pool.error = str(exc).strip() or type(exc).__name__
                    raise
                pool.error = ""
                made.generation = generation
                return made

        return Made
