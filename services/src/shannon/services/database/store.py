# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the write queue's records go: one table for each kind, all of a batch in one transaction.

A tool_execution refers to its agent_execution, which has to be there before it. So records of one task have the task's
id as their key: those of one key are written by one worker, in order.
"""

from __future__ import annotations

import functools
import json
import re
import typing as t

from psycopg import sql

from .away import may_pass
from .client import Database, Statement
from .records import Record

#: What JSON and Python can have in a text and PostgreSQL can't: NUL, and halves of surrogate pairs.
_IMPOSSIBLE = re.compile("[\x00\ud800-\udfff]")

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
        """Insert all rows in one transaction, in order; one that is there already is left alone.

        :raises DatabaseAway: nothing was written, or it is not known.
        :raises psycopg.Error, ValueError: a record is wrong; nothing was written.
        """
        statements = [statement(record) for record in records]
        async with self._database.transaction() as tx:
            await tx.execute_all(statements)

    def is_away(self, exc: BaseException) -> bool:
        """Whether an error of :meth:`write` says nothing against the records: later the same may work."""
        return may_pass(exc)


def statement(record: Record) -> Statement:
    """The insert of a record and its values; characters that PostgreSQL can't store become U+FFFD.

    :raises ValueError: it has a column that its kind does not have.
    """
    _table, columns = TABLES[record.kind]
    unknown = sorted(set(record.values) - set(columns))
    if unknown:
        raise ValueError(f"{record.kind} has no {', '.join(unknown)}")
    names = tuple(sorted(record.values))
    return _insert(record.kind, names), {
        "id": record.id,
        **{name: _plain(record.values[name], columns[name]) for name in names},
    }


@functools.lru_cache(maxsize=256)
def _insert(kind: str, names: tuple[str, ...]) -> sql.Composed:
    table, columns = TABLES[kind]
    # Everything goes over as text or a number and is cast there: the spool has turned it into JSON's types before.
    given = {"id": "uuid", **{name: columns[name] for name in names}}
    return sql.SQL("INSERT INTO {table} ({columns}) VALUES ({values}) ON CONFLICT DO NOTHING").format(
        table=sql.Identifier(table),
        columns=sql.SQL(", ").join(map(sql.Identifier, given)),
        values=sql.SQL(", ").join(
            sql.SQL("{value}::{kind}").format(value=sql.Placeholder(name), kind=sql.SQL(cast))
            for name, cast in given.items()
        ),
    )


def _plain(value: t.Any, kind: str) -> t.Any:
    found = _possible(value)
    return json.dumps(found, ensure_ascii=False) if kind == "jsonb" and found is not None else found


def _possible(value: t.Any) -> t.Any:
    if isinstance(value, str):
        return _IMPOSSIBLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_possible(key): _possible(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_possible(one) for one in value]
    return value
