# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done in the background: embeddings that could not be had before, and sessions that expired."""

from __future__ import annotations

import asyncio
import typing as t

import psycopg

from shannon.resilience.errors import ResilienceError
from shannon.services.common import logs, metrics
from shannon.services.database.client import Database

from .memory import Memory
from .tasks import TaskStore

_log = logs.get(__name__)
#: Tasks and sessions of one turn.
_BATCH = 50
#: Seconds between two looks for expired sessions.
_SESSIONS = 600.0
#: Puts expired sessions with their messages into session_archives, and removes them; its parameter is how many.
ARCHIVE = """
WITH old AS (
    SELECT id, user_id, expires_at, context, tokens_used FROM sessions
     WHERE expires_at < now() ORDER BY expires_at LIMIT %s FOR UPDATE SKIP LOCKED
), kept AS (
    INSERT INTO session_archives (session_id, user_id, snapshot_data, message_count, ttl_expires_at)
    SELECT old.id::text, old.user_id,
           jsonb_build_object('context', old.context, 'tokens_used', old.tokens_used,
                              'messages', coalesce(said.messages, '[]')),
           coalesce(said.total, 0), old.expires_at
      FROM old LEFT JOIN LATERAL (
           SELECT jsonb_agg(jsonb_build_object('role', role, 'content', content, 'task_id', task_id, 'at', created_at)
                            ORDER BY seq) AS messages, count(*)::int AS total
             FROM session_messages WHERE session_id = old.id) AS said ON true
)
DELETE FROM sessions USING old WHERE sessions.id = old.id
"""


class Chores:
    """Of a cell, while this region is its home."""

    def __init__(
        self,
        store: TaskStore,
        database: Database,
        memory: Memory,
        interval: float,
        is_home: t.Callable[[], bool],
    ) -> None:
        self._store = store
        self._database = database
        self._memory = memory
        self._interval = interval
        self._is_home = is_home
        self._embedded = metrics.counter("shannon_late_embeddings_total", "Tasks that got their embedding later.")
        self._archived = metrics.counter("shannon_sessions_archived_total", "Sessions that expired.")

    async def embeddings(self, stopping: asyncio.Event) -> None:
        """Give embeddings to tasks that were completed without, every so often."""
        while not await _pause(stopping, self._interval):
            if not self._is_home():
                continue
            try:
                while await self.embed_some() == _BATCH:
                    pass
            except (ResilienceError, psycopg.Error) as exc:
                _log.warning("embeddings still have to wait: %s", exc)

    async def sessions(self, stopping: asyncio.Event) -> None:
        """Archive sessions that expired, every so often."""
        while not await _pause(stopping, _SESSIONS):
            if not self._is_home():
                continue
            try:
                while await self.archive_some() == _BATCH:
                    pass
            except (ResilienceError, psycopg.Error) as exc:
                _log.warning("expired sessions stay a while: %s", exc)

    async def embed_some(self) -> int:
        """Embed some tasks; how many there were."""
        rows = await self._store.unembedded(_BATCH)
        for row in rows:
            points = await self._memory.points(
                task=row["id"],
                tenant=row["tenant_id"],
                user=(row["external_id"] or "").partition(":")[2],
                session=row["session_id"],
                query=row["query"],
                answer=row["result"],
                at=row["completed_at"],
            )
            if await self._store.embed(row["id"], points):
                self._embedded.inc()
        return len(rows)

    async def archive_some(self) -> int:
        """Archive and remove some sessions; how many there were."""
        count = await self._database.execute(ARCHIVE, (_BATCH,))
        self._archived.inc(count)
        return count


async def _pause(stopping: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(stopping.wait(), seconds)
    except asyncio.TimeoutError:
        return False
    return True
