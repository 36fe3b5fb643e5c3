# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the write queue's records go: one table for each kind, all of a batch in one transaction."""

from __future__ import annotations

import json
import typing as t

from psycopg import sql

from .client import Database, DatabaseAway
from .records import Record

#: Table of each kind, and the columns that its records may have beside C(id), with the type that values are cast to.
TABLES: dict[str, tuple[str, dict[str, str]]] = {
    "agent_execution": (
        "agent_executions",
        {
            "task_execution_id": "uuid",
            "agent_id": "text",
            "execution_order": "integer",
            "input": "text",
            "output": "text",
            "mode": "text",
            "state": "text",
            "error_message": "text",
            "tokens_used": "integer",
            "cost_usd": "numeric",
            "model_used": "text",
            "duration_ms": "bigint",
            "metadata": "jsonb",
        },
    ),
    "tool_execution": (
        "tool_executions",
        {
            "agent_execution_id": "uuid",
            "task_execution_id": "uuid",
            "tool_name": "text",
            "input_params": "jsonb",
            "output": "jsonb",
            "success": "boolean",
            "error": "text",
            "duration_ms": "bigint",
            "sandboxed": "boolean",
        },
    ),
    "session_archive": (
        "session_archives",
        {
            "session_id": "text",
            "user_id": "uuid",
            "snapshot_data": "jsonb",
            "message_count": "integer",
            "ttl_expires_at": "timestamptz",
        },
    ),
    "audit_log": (
        "audit_logs",
        {
            "user_id": "uuid",
            "action": "text",
            "resource_type": "text",
            "resource_id": "text",
            "changes": "jsonb",
            "ip_address": "inet",
            "user_agent": "text",
        },
    ),
    "event_log": (
        "event_logs",
        {
            "workflow_id": "text",
            "task_id": "uuid",
            "type": "text",
            "agent_id": "text",
            "message": "text",
            "payload": "jsonb",
            "timestamp": "timestamptz",
            "seq": "bigint",
            "stream_id": "text",
        },
    ),
    "session_message": (
        "session_messages",
        {"session_id": "uuid", "role": "text", "content": "text", "task_id": "uuid"},
    ),
    "token_usage": (
        "token_usage",
        {
            "user_id": "uuid",
            "task_id": "uuid",
            "agent_id": "text",
            "provider": "text",
            "model": "text",
            "prompt_tokens": "integer",
            "completion_tokens": "integer",
            "cost_usd": "numeric",
        },
    ),
}


class PostgresStore:
    """Writes records through a database's pool and breaker."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(self, records: t.Sequence[Record]) -> None:
        """Insert all rows in one transaction; one that is there already is left alone.

        :raises DatabaseAway: nothing was written, or it is not known.
        :raises psycopg.Error, ValueError: a record is wrong; nothing was written.
        """
        statements = [statement(record) for record in records]

        async with self._database.transaction() as tx:
            for text, values in statements:
                await tx.execute(text, values)

    def is_away(self, exc: BaseException) -> bool:
        """Whether an error of :meth:`write` says that the database is away."""
        return isinstance(exc, DatabaseAway)


def statement(record: Record) -> tuple[sql.Composed, dict[str, t.Any]]:
    """The insert of a record and its values.

    :raises ValueError: it has a column that its kind does not have.
    """
    table, columns = TABLES[record.kind]
    unknown = sorted(set(record.values) - set(columns))
    if unknown:
        raise ValueError(f"{record.kind} has no {', '.join(unknown)}")
    names = sorted(record.values)
    values = {name: _plain(record.values[name], columns[name]) for name in names}
    text = sql.SQL("INSERT INTO {table} (id, {columns}) VALUES (%(id)s::uuid, {values}) ON CONFLICT DO NOTHING").format(
        table=sql.Identifier(table),
        columns=sql.SQL(", ").join(map(sql.Identifier, names)),
        values=sql.SQL(", ").join(_cast(name, columns[name]) for name in names),
    )
    return text, {"id": record.id, **values}


def _cast(name: str, kind: str) -> sql.Composed:
    return sql.SQL("{value}::{kind}").format(value=sql.Placeholder(name), kind=sql.SQL(kind))


def _plain(value: t.Any, kind: str) -> t.Any:
    # Everything goes over as text and is cast there: the spool has turned it into JSON's types before.
    return json.dumps(value, ensure_ascii=False) if kind == "jsonb" and value is not None else value
