# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks in PostgreSQL: accepted, leased to one worker at a time, and ended once.

A lease is judged by the database's clock alone. C(attempt) is its fencing token: whoever was given the task before can
write nothing to it any more.
"""

from __future__ import annotations

import collections
import hashlib
import json
import typing as t
import uuid
from dataclasses import dataclass, field

import psycopg

from shannon.services.database.client import Database, Row, Transaction

from . import ids
from .texts import clean, document

ENDED = frozenset({"completed", "failed", "cancelled", "timeout"})
_FOREIGN_KEY = "23503"
#: Users that are known to have a row.
_KNOWN_USERS = 10000

_SUBMIT = """
WITH made AS (
    INSERT INTO sessions (id, user_id, tenant_id, context, expires_at)
    VALUES (%(session_key)s::uuid, %(user)s::uuid, %(tenant)s::uuid, %(session_context)s::jsonb,
            now() + make_interval(secs => %(ttl)s::float8))
    ON CONFLICT (id) DO NOTHING RETURNING user_id
), owner AS (
    SELECT user_id FROM made UNION ALL SELECT user_id FROM sessions WHERE id = %(session_key)s::uuid LIMIT 1
), task AS (
    INSERT INTO task_executions (id, workflow_id, user_id, tenant_id, session_id, query, requested_mode, mode, cell,
                                 context, idempotency_key, request_hash)
    SELECT %(id)s::uuid, %(workflow)s, %(user)s::uuid, %(tenant)s::uuid, %(session)s, %(query)s, %(mode)s::text,
           %(mode)s::text, %(cell)s, %(context)s::jsonb, %(key)s::text, %(hash)s
      FROM owner WHERE owner.user_id = %(user)s::uuid
    ON CONFLICT (tenant_id, user_id, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
    RETURNING id, extract(epoch FROM created_at)::float8 AS created_at
)
SELECT (SELECT user_id FROM owner)::text AS owner, task.id::text AS id, task.created_at
  FROM (SELECT 1) AS one LEFT JOIN task ON true
"""
_REPLAY = """
SELECT id::text AS id, workflow_id, session_id, coalesce(requested_mode, '') AS mode, request_hash,
       extract(epoch FROM created_at)::float8 AS created_at
  FROM task_executions WHERE tenant_id = %(tenant)s AND user_id = %(user)s AND idempotency_key = %(key)s
"""
_MOMENTS = ", ".join(
    f"extract(epoch FROM {name})::float8 AS {name}"
    for name in ("created_at", "updated_at", "started_at", "completed_at")
)
_COLUMNS = f"""
    id::text AS id, workflow_id, coalesce(session_id, '') AS session_id, tenant_id::text AS tenant_id, query,
    coalesce(mode, '') AS mode, coalesce(requested_mode, '') AS requested_mode, status, coalesce(result, '') AS result,
    coalesce(error_message, '') AS error_message, coalesce(model_used, '') AS model_used,
    coalesce(provider, '') AS provider, prompt_tokens, completion_tokens, total_tokens,
    total_cost_usd::float8 AS cost_usd, coalesce(duration_ms, 0) AS duration_ms, agents_used, tools_invoked, cache_hits,
    metadata::text AS metadata, response::text AS response, {_MOMENTS}
"""
_CLAIM = """
UPDATE task_executions SET status = 'running', attempt = attempt + 1, lease_owner = %(owner)s,
       lease_expires_at = clock_timestamp() + make_interval(secs => %(lease)s::float8),
       started_at = coalesce(started_at, clock_timestamp())
 WHERE id IN (
    SELECT id FROM task_executions
     WHERE cell = %(cell)s
       AND (status = 'queued' OR (status = 'running' AND lease_expires_at < clock_timestamp()))
     ORDER BY created_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED)
RETURNING id::text AS id, workflow_id, user_id::text AS user_id, tenant_id::text AS tenant_id,
          coalesce(session_id, '') AS session_id, query, coalesce(requested_mode, '') AS requested_mode,
          context::text AS context, attempt, cancel_requested,
          extract(epoch FROM clock_timestamp() - created_at)::float8 AS age,
          (SELECT external_id FROM users WHERE users.id = task_executions.user_id) AS external_id
"""
_END = """
UPDATE task_executions SET status = %(status)s, mode = %(mode)s, result = %(result)s, error_message = %(error)s,
       model_used = %(model)s, provider = %(provider)s, prompt_tokens = %(prompt_tokens)s,
       completion_tokens = %(completion_tokens)s, total_tokens = %(prompt_tokens)s + %(completion_tokens)s,
       total_cost_usd = %(cost)s, duration_ms = %(duration_ms)s, agents_used = %(agents)s, tools_invoked = %(tools)s,
       cache_hits = %(cache_hits)s, complexity_score = %(complexity)s, metadata = %(metadata)s,
       response = %(response)s, completed_at = clock_timestamp(), lease_owner = NULL, lease_expires_at = NULL,
       embedding_state = %(embedding_state)s
 WHERE id = %(id)s AND status = 'running' AND lease_owner = %(owner)s AND attempt = %(attempt)s
"""
_MESSAGE = """
INSERT INTO session_messages (session_id, role, content, task_id)
SELECT %(session)s::uuid, %(role)s, %(content)s, %(task)s::uuid
 WHERE EXISTS (SELECT 1 FROM sessions WHERE id = %(session)s::uuid)
ON CONFLICT DO NOTHING
"""


class IdempotencyConflict(Exception):
    """The key was used for another request."""


class NotOwner(Exception):
    """The session is another user's."""


class NotFound(Exception):
    """There is no such thing, or it is another's; who asks is not told which."""


@dataclass(frozen=True)
class Submission:
    """What a client wants done.

    :ivar session: the client's name for the session; a new UUID when it gave none.
    :ivar context: a JSON object as text.
    """

    tenant: str
    user: str
    query: str
    session: str
    mode: str
    context: str
    key: str
    cell: str

    @property
    def hash(self) -> str:
        """Of what must be the same when the key is."""
        given = json.dumps([self.query, self.mode, self.context, self.cell], ensure_ascii=False)
        return hashlib.sha256(given.encode(errors="surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Accepted:
    """A task that is durable."""

    id: str
    workflow_id: str
    session: str
    mode: str
    created_at: float
    replayed: bool


@dataclass(frozen=True)
class Lease:
    """A task that a worker was given.

    :ivar age: seconds since it was accepted, when it was claimed.
    """

    id: str
    workflow_id: str
    tenant: str
    user_id: str
    user: str
    session: str
    query: str
    requested_mode: str
    context: dict[str, t.Any]
    attempt: int
    cancel_requested: bool
    age: float
    owner: str

    @property
    def session_key(self) -> str:
        """The session's id."""
        return ids.session_key(self.tenant, self.user, self.session)


@dataclass(frozen=True)
class Point:
    """An embedding for vector_log."""

    id: str
    vector: list[float]
    payload: dict[str, t.Any]
    collection: str = "task_embeddings"


@dataclass
class Ending:
    """How a task ended."""

    status: str
    mode: str
    result: str | None = None
    error: str | None = None
    model: str | None = None
    provider: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    duration_ms: int = 0
    agents: int = 0
    tools: int = 0
    cache_hits: int = 0
    complexity: float | None = None
    metadata: dict[str, t.Any] = field(default_factory=dict)
    response: dict[str, t.Any] | None = None
    points: list[Point] = field(default_factory=list)
    embedding_state: str = "none"


class TaskStore:
    """A cell's tasks."""

    def __init__(self, database: Database, cell: str) -> None:
        self.database = database
        self.cell = cell
        self._users: collections.OrderedDict[str, None] = collections.OrderedDict()

    async def submit(self, wanted: Submission, ttl: float) -> Accepted:
        """Accept a task; once this returns it is durable.

        :param ttl: seconds that a new session lives.
        :raises IdempotencyConflict, NotOwner: see there; nothing was stored.
        :raises DatabaseAway: it may have been stored or not; the same key finds out.
        """
        user = ids.user_key(wanted.tenant, wanted.user)
        task = str(uuid.uuid4())
        values = {
            "id": task,
            "workflow": f"task-{task}",
            "user": user,
            "tenant": wanted.tenant,
            "session": wanted.session,
            "session_key": ids.session_key(wanted.tenant, wanted.user, wanted.session),
            "session_context": json.dumps({} if ids.is_uuid(wanted.session) else {"external_id": wanted.session}),
            "ttl": ttl,
            "query": wanted.query,
            "mode": wanted.mode or None,
            "cell": wanted.cell,
            "context": wanted.context or "{}",
            "key": wanted.key or None,
            "hash": wanted.hash,
        }
        # Twice: a user's row that a restore took away, or a session that somebody else made at the same moment.
        for _turn in range(2):
            await self._know(user, wanted)
            try:
                row = await self.database.fetch_one(_SUBMIT, values)
            except psycopg.errors.ForeignKeyViolation:
                self._users.pop(user, None)
                continue
            if row is None or row["owner"] is None:
                continue
            if row["owner"] != user:
                raise NotOwner(f"the session {wanted.session} is not the caller's")
            if row["id"] is not None:
                return Accepted(task, f"task-{task}", wanted.session, wanted.mode, row["created_at"], False)
            return await self._replay(wanted, values)
        raise psycopg.errors.SerializationFailure("the session was being made and removed at the same time; try again")

    async def _replay(self, wanted: Submission, values: t.Mapping[str, t.Any]) -> Accepted:
        found = await self.database.fetch_one(_REPLAY, values)
        if found is None or found["request_hash"] != wanted.hash:
            raise IdempotencyConflict("the idempotency key was used for another request")
        return Accepted(
            found["id"], found["workflow_id"], found["session_id"], found["mode"], found["created_at"], True
        )

    async def _know(self, user: str, wanted: Submission) -> None:
        if user in self._users:
            self._users.move_to_end(user)
            return
        await self.database.execute(
            "INSERT INTO users (id, external_id, tenant_id) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
            (user, ids.external_id(wanted.tenant, wanted.user), wanted.tenant),
        )
        self._users[user] = None
        while len(self._users) > _KNOWN_USERS:
            self._users.popitem(last=False)

    async def get(self, tenant: str, user: str, task: str) -> Row:
        """A task's row, by its id or its workflow's.

        :raises NotFound: there is none of this user.
        """
        values = {"tenant": tenant, "user": ids.user_key(tenant, user), "task": task, "is_id": ids.is_uuid(task)}
        which = "id = %(task)s" if values["is_id"] else "workflow_id = %(task)s"
        row = await self.database.fetch_one(
            f"SELECT {_COLUMNS} FROM task_executions WHERE {which} AND tenant_id = %(tenant)s AND user_id = %(user)s",
            values,
        )
        if row is None:
            raise NotFound(f"there is no task {task}")
        return row

    async def listing(
        self, tenant: str, user: str, *, limit: int, offset: int, status: str = "", session: str = ""
    ) -> tuple[list[Row], int]:
        """A user's tasks, the newest first, and how many there are."""
        values = {
            "tenant": tenant,
            "user": ids.user_key(tenant, user),
            "status": status,
            "session": session,
            "limit": limit,
            "offset": offset,
        }
        where = "tenant_id = %(tenant)s AND user_id = %(user)s"
        where += " AND status = %(status)s" if status else ""
        where += " AND session_id = %(session)s" if session else ""
        rows = await self.database.fetch(
            f"SELECT {_COLUMNS} FROM task_executions WHERE {where}"
            " ORDER BY created_at DESC, id LIMIT %(limit)s OFFSET %(offset)s",
            values,
        )
        count = await self.database.fetch_one(f"SELECT count(*) AS n FROM task_executions WHERE {where}", values)
        return rows, int(count["n"]) if count else 0

    async def events(self, task: str, workflow: str, after: int, limit: int) -> tuple[list[Row], str]:
        """Stored events after a number, in order, and the task's status as of before they were read."""
        status = await self.database.fetch_one("SELECT status FROM task_executions WHERE id = %s", (task,))
        rows = await self.database.fetch(
            "SELECT workflow_id, type, coalesce(agent_id, '') AS agent_id, coalesce(message, '') AS message,"
            ' payload::text AS payload, extract(epoch FROM "timestamp")::float8 AS "timestamp", seq FROM event_logs'
            " WHERE workflow_id = %s AND seq > %s ORDER BY seq, id LIMIT %s",
            (workflow, after, limit),
        )
        return rows, str(status["status"]) if status else ""

    async def cancel(self, task: str) -> tuple[bool, str]:
        """Cancel a task that waits, and ask for the end of one that runs.

        :returns: whether it is cancelled or will be, and its status; C(cancelled now) if it was this call's doing.
        """
        row = await self.database.fetch_one(
            "UPDATE task_executions SET cancel_requested = true,"
            " status = CASE WHEN status = 'queued' THEN 'cancelled' ELSE status END,"
            " completed_at = CASE WHEN status = 'queued' THEN clock_timestamp() ELSE completed_at END"
            " WHERE id = %s AND status IN ('queued', 'running', 'paused') RETURNING status",
            (task,),
        )
        if row is not None:
            return True, str(row["status"])
        found = await self.database.fetch_one("SELECT status FROM task_executions WHERE id = %s", (task,))
        status = str(found["status"]) if found else ""
        return status == "cancelled", status

    async def claim(self, owner: str, limit: int, lease: float) -> list[Lease]:
        """Up to C(limit) tasks that wait or whose worker is gone, the oldest first."""
        values = {"owner": owner, "cell": self.cell, "limit": limit, "lease": lease}
        rows = await self.database.fetch(_CLAIM, values)
        rows.sort(key=lambda row: -row["age"])
        return [
            Lease(
                id=row["id"],
                workflow_id=row["workflow_id"],
                tenant=row["tenant_id"],
                user_id=row["user_id"],
                user=(row["external_id"] or "").partition(":")[2],
                session=row["session_id"],
                query=row["query"],
                requested_mode=row["requested_mode"],
                context=json.loads(row["context"]),
                attempt=row["attempt"],
                cancel_requested=row["cancel_requested"],
                age=row["age"],
                owner=owner,
            )
            for row in rows
        ]

    async def renew(self, leases: t.Sequence[Lease], seconds: float) -> dict[str, bool]:
        """Keep leases.

        :returns: the tasks that are still this worker's, and whether their end was asked for.
        """
        rows = await self.database.fetch(
            "UPDATE task_executions AS task"
            " SET lease_expires_at = clock_timestamp() + make_interval(secs => %s::float8)"
            " FROM unnest(%s::uuid[], %s::int[]) AS mine (id, attempt)"
            " WHERE task.id = mine.id AND task.attempt = mine.attempt AND task.status = 'running'"
            " AND task.lease_owner = %s RETURNING task.id::text AS id, task.cancel_requested",
            (seconds, [one.id for one in leases], [one.attempt for one in leases], leases[0].owner),
        )
        return {row["id"]: row["cancel_requested"] for row in rows}

    async def cancelled(self, tasks: t.Sequence[str]) -> list[str]:
        """Those of these tasks whose end was asked for."""
        rows = await self.database.fetch(
            "SELECT id::text AS id FROM task_executions WHERE id = ANY(%s::uuid[]) AND cancel_requested", (list(tasks),)
        )
        return [row["id"] for row in rows]

    async def release(self, leases: t.Sequence[Lease]) -> None:
        """Give tasks back, unfinished, so that another worker need not wait for the lease to end."""
        await self.database.execute(
            "UPDATE task_executions AS task SET status = 'queued', lease_owner = NULL, lease_expires_at = NULL"
            " FROM unnest(%s::uuid[], %s::int[]) AS mine (id, attempt)"
            " WHERE task.id = mine.id AND task.attempt = mine.attempt AND task.status = 'running'"
            " AND task.lease_owner = %s",
            ([one.id for one in leases], [one.attempt for one in leases], leases[0].owner),
        )

    async def end(self, lease: Lease, ending: Ending) -> bool:
        """End a task: its row, what was said, and its embeddings, in one transaction.

        :returns: whether it was this worker's to end, also when an earlier call has done so.
        :raises DatabaseAway: it is not known whether it was done; call it again.
        """
        async with self.database.transaction() as tx:
            if not await tx.execute(_END, _values(lease, ending)):
                done = await tx.fetch_one(
                    "SELECT 1 AS one FROM task_executions WHERE id = %s AND attempt = %s AND status = %s",
                    (lease.id, lease.attempt, ending.status),
                )
                return done is not None
            await self._say(tx, lease, ending)
            await append(tx, ending.points)
        return True

    async def _say(self, tx: Transaction, lease: Lease, ending: Ending) -> None:
        session = lease.session_key
        said = [("user", lease.query)]
        if ending.status == "completed":
            said.append(("assistant", clean(ending.result or "")))
        for role, content in said:
            await tx.execute(_MESSAGE, {"session": session, "role": role, "content": content, "task": lease.id})
        await tx.execute(
            "UPDATE sessions SET tokens_used = least(tokens_used::bigint + %s, 2147483647) WHERE id = %s",
            (ending.prompt_tokens + ending.completion_tokens, session),
        )

    async def unembedded(self, limit: int) -> list[Row]:
        """Completed tasks that have no embedding yet, the oldest first."""
        return await self.database.fetch(
            "SELECT id::text AS id, tenant_id::text AS tenant_id, coalesce(session_id, '') AS session_id, query,"
            " coalesce(result, '') AS result, extract(epoch FROM completed_at)::float8 AS completed_at,"
            " (SELECT external_id FROM users WHERE users.id = task_executions.user_id) AS external_id"
            " FROM task_executions WHERE embedding_state = 'pending' AND cell = %s ORDER BY completed_at LIMIT %s",
            (self.cell, limit),
        )

    async def embed(self, task: str, points: t.Sequence[Point]) -> bool:
        """Add a completed task's embeddings; whether that was still to do."""
        async with self.database.transaction() as tx:
            # The row's lock comes before the first write to the log: what its readers rely on (migration 0003).
            done = await tx.execute(
                "UPDATE task_executions SET embedding_state = 'done' WHERE id = %s AND embedding_state = 'pending'",
                (task,),
            )
            if done:
                await append(tx, points)
        return bool(done)


async def append(tx: Transaction, points: t.Sequence[Point]) -> None:
    """Write embeddings to vector_log, within the transaction of the row that they belong to."""
    for point in points:
        await tx.execute(
            "INSERT INTO vector_log (collection, point_id, operation, vector, payload)"
            " VALUES (%s, %s, 'upsert', %s::real[], %s)",
            (point.collection, point.id, point.vector, document(point.payload)),
        )


def _values(lease: Lease, ending: Ending) -> dict[str, t.Any]:
    plain = {name: clean(getattr(ending, name)) for name in ending.__dataclass_fields__ if name != "points"}
    return {
        **plain,
        "metadata": document(ending.metadata),
        "response": None if ending.response is None else document(ending.response),
        "id": lease.id,
        "owner": lease.owner,
        "attempt": lease.attempt,
    }
