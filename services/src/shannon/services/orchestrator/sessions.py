# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sessions: PostgreSQL has the truth, Redis a copy that is used only when it is as new as the truth.

Asking PostgreSQL how many messages there are is cheap; reading a thousand of them is not. So each read compares the two
(the original keeps a copy in each process, and serves stale and deleted sessions: facts in full, 10.3, item 23). With
one of the two away the other answers alone.
"""

from __future__ import annotations

import asyncio
import json
import typing as t

import redis.asyncio
import redis.exceptions

from shannon.resilience.circuit_breaker import BreakerError, CircuitBreaker
from shannon.services.common import logs, metrics
from shannon.services.common.config import Session as Settings
from shannon.services.database.client import Database, DatabaseAway, Row

from . import ids
from .tasks import NotFound

_log = logs.get(__name__)
_KEY = "shannon:session:"
_AWAY = (redis.exceptions.RedisError, OSError, asyncio.TimeoutError, BreakerError)
_SESSION = """
SELECT id::text AS id, context::text AS context, token_budget, tokens_used,
       extract(epoch FROM created_at)::float8 AS created_at, extract(epoch FROM updated_at)::float8 AS updated_at,
       coalesce(extract(epoch FROM expires_at), 0)::float8 AS expires_at,
       (SELECT count(*) FROM session_messages WHERE session_id = sessions.id)::int AS message_count,
       (SELECT coalesce(max(seq), 0) FROM session_messages WHERE session_id = sessions.id) AS seq
  FROM sessions
"""
_MESSAGES = """
SELECT role, content, coalesce(task_id::text, '') AS task_id, extract(epoch FROM created_at)::float8 AS at
  FROM session_messages WHERE session_id = %s ORDER BY seq DESC LIMIT %s
"""


class Found(t.NamedTuple):
    """A session.

    :ivar session: its row: id, name, context, token_budget, tokens_used, message_count, seq and moments.
    :ivar messages: the newest ones, the oldest of them first: role, content, task_id, at.
    :ivar source: redis or postgresql: where the messages came from.
    """

    session: Row
    messages: list[Row]
    source: str


class Sessions:
    """A cell's sessions."""

    def __init__(
        self, database: Database, cache: redis.asyncio.Redis, breaker: CircuitBreaker, settings: Settings
    ) -> None:
        self._database = database
        self._cache = cache
        self._breaker = breaker
        self._settings = settings
        self._reads = metrics.counter(
            "shannon_session_reads_total", "Reads of sessions by where the answer came from.", ("source",)
        )

    async def get(self, tenant: str, user: str, name: str, limit: int) -> Found:
        """A session with its newest messages.

        :param name: the client's own name for it, or its id.
        :raises NotFound: the user has none of this name.
        :raises DatabaseAway: PostgreSQL is away, and Redis has no copy.
        """
        key = ids.session_key(tenant, user, name)
        owner = ids.user_key(tenant, user)
        try:
            row = await self._database.fetch_one(_SESSION + " WHERE id = %s AND user_id = %s", (key, owner))
        except DatabaseAway:
            copy = await self._copy(key)
            if copy is None or copy["owner"] != owner:
                raise
            self._reads.labels("redis_alone").inc()
            return Found(_named(copy["session"]), copy["messages"][-limit:] if limit else [], "redis")
        if row is None:
            raise NotFound(f"there is no session {name}")
        if not limit:
            return Found(_named(row), [], "postgresql")
        copy = await self._copy(key)
        if copy is not None and copy["owner"] == owner and copy["session"]["seq"] == row["seq"]:
            self._reads.labels("redis").inc()
            return Found(_named(row), copy["messages"][-limit:], "redis")
        messages = await self._database.fetch(_MESSAGES, (key, self._settings.max_history))
        messages.reverse()
        self._reads.labels("postgresql").inc()
        await self._keep(key, owner, row, messages)
        return Found(_named(row), messages[-limit:], "postgresql")

    async def listing(self, tenant: str, user: str, limit: int, offset: int) -> tuple[list[Row], int]:
        """A user's sessions, those used last first, and how many there are."""
        owner = ids.user_key(tenant, user)
        rows = await self._database.fetch(
            _SESSION + " WHERE user_id = %s ORDER BY updated_at DESC, id LIMIT %s OFFSET %s", (owner, limit, offset)
        )
        count = await self._database.fetch_one("SELECT count(*) AS n FROM sessions WHERE user_id = %s", (owner,))
        return [_named(row) for row in rows], int(count["n"]) if count else 0

    async def _copy(self, key: str) -> dict[str, t.Any] | None:
        try:
            raw = await self._breaker.call_async(self._cache.get, _KEY + key)
            return t.cast("dict[str, t.Any]", json.loads(raw)) if raw else None
        except _AWAY:
            return None
        except ValueError:
            _log.warning("Redis has a session that is no JSON: %s", key)
            return None

    async def _keep(self, key: str, owner: str, session: Row, messages: list[Row]) -> None:
        text = json.dumps({"owner": owner, "session": session, "messages": messages}, ensure_ascii=False)
        try:
            await self._breaker.call_async(self._cache.set, _KEY + key, text, px=int(self._settings.ttl * 1000))
        except _AWAY:
            return  # the next read comes here again


def _named(row: Row) -> Row:
    """With the client's own name for the session."""
    name = json.loads(row["context"] or "{}").get("external_id") or row["id"]
    return {**row, "name": name}
