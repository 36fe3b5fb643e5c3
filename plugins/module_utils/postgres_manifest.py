# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in a cell's databases at one exact position of the WAL, small enough to keep and to compare a restore with.

A replica holds still for some milliseconds: replay is paused, a snapshot is taken in each database, the position is
read, replay goes on. A restore to just before that position must give the very same.
"""

from __future__ import annotations

import contextlib
import time
import typing as t

from .concurrently import wait_until
from .errors import ResilienceError
from .migrations import quoted
from .postgres_engine import LSN, RestoreTarget

Connect = t.Callable[[str], t.Any]
#: The database that is connected to for what concerns the whole server.
MAINTENANCE = "postgres"
_TABLES = """
SELECT n.nspname, c.relname
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm') AND c.relpersistence = 'p'
  AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
ORDER BY 1, 2
"""
_SEQUENCES = "SELECT schemaname, sequencename, last_value FROM pg_sequences ORDER BY 1, 2"
# Sum and exclusive or of a 64 bit hash of each row do not depend on the rows' order, so nothing is sorted; the sum
# tells a row that is there twice, to which the exclusive or alone is blind.
_CHECKSUM = """
SELECT count(*), coalesce(sum(h::numeric), 0)::text, coalesce(bit_xor(h), 0)::text
FROM (SELECT hashtextextended(shannon_row::text, 0) AS h FROM {table} AS shannon_row) AS hashes
"""
# How values become text must be the same on both sides.
_SETTINGS = (
    "SET statement_timeout = 0",
    "SET timezone = 'UTC'",
    "SET datestyle = 'ISO, YMD'",
    "SET intervalstyle = 'postgres'",
    "SET bytea_output = 'hex'",
    "SET extra_float_digits = 1",
    "SET search_path = pg_catalog",
)


def manifest(connect: Connect, databases: t.Sequence[str] = ("shannon",), pause: bool = True) -> dict[str, t.Any]:
    """Rows and checksum of every table, values of sequences, the schema's version, and the position they belong to.

    :param connect: gives a DB-API connection (psycopg or psycopg2) to a database.
    :param pause: on a replica; otherwise the server must hold still by itself, as a restored one does.
    :raises ResilienceError: a replica is wanted and this is none, or replay can't be paused.
    """
    with contextlib.ExitStack() as stack:
        server = _opened(stack, connect, MAINTENANCE)
        connections = {name: _opened(stack, connect, name) for name in databases}
        recovering = bool(_one(server, "SELECT pg_is_in_recovery()"))
        if pause and not recovering:
            raise ResilienceError(
                "the manifest is taken on a replica, whose replay can be paused; this server is a primary. "
                "Does the region have a replica that runs (playbooks/status.yml)?"
            )
        if pause:
            with _paused(server):
                sequences = {name: _snapshot(connection) for name, connection in connections.items()}
                lsn = str(_one(server, "SELECT pg_last_wal_replay_lsn()"))
        else:
            sequences = {name: _snapshot(connection) for name, connection in connections.items()}
            expression = "pg_last_wal_replay_lsn()" if recovering else "pg_current_wal_insert_lsn()"
            lsn = str(_one(server, f"SELECT {expression}"))
        timeline = int(_one(server, "SELECT timeline_id FROM pg_control_checkpoint()"))
        found = {
            name: {**_contents(connection), "sequences": sequences[name]} for name, connection in connections.items()
        }
    return {"lsn": lsn, "timeline": timeline, "taken_at": round(time.time(), 3), "databases": found}


def manifest_target(taken: t.Mapping[str, t.Any]) -> RestoreTarget:
    """Where a restore must go to give exactly what the manifest says."""
    return RestoreTarget(LSN, str(taken["lsn"]), exclusive=True)


def compare(wanted: t.Mapping[str, t.Any], found: t.Mapping[str, t.Any]) -> list[str]:
    """The differences between two manifests, a sentence each; positions and times are not compared."""
    differences = []
    for name, database in sorted(wanted["databases"].items()):
        other = found["databases"].get(name)
        if other is None:
            differences.append(f"the database {name} is not there")
            continue
        for table, facts in sorted(database["tables"].items()):
            there = other["tables"].get(table)
            if there is None:
                differences.append(f"{name}: the table {table} is not there")
            elif there["rows"] != facts["rows"]:
                differences.append(f"{name}: {table} has {there['rows']} rows, not {facts['rows']}")
            elif there["checksum"] != facts["checksum"]:
                differences.append(f"{name}: {table} has the right number of rows, with other values")
        differences += [
            f"{name}: the table {table} is too much" for table in sorted(set(other["tables"]) - set(database["tables"]))
        ]
        if database.get("schema_version") != other.get("schema_version"):
            differences.append(
                f"{name}: the schema's version is {other.get('schema_version')}, not {database.get('schema_version')}"
            )
        for sequence, value in sorted(database.get("sequences", {}).items()):
            # A recovered sequence may be ahead by the values that PostgreSQL logs in advance; never behind.
            there = other.get("sequences", {}).get(sequence)
            if value is not None and (there is None or there < value):
                differences.append(f"{name}: the sequence {sequence} is at {there}, before {value}")
    return differences


def amcheck(connect: Connect, databases: t.Sequence[str] = ("shannon",)) -> list[str]:
    """Check every B-tree index and every table's pages; what is wrong, a sentence each.

    The extension amcheck is made where it is not there, so this is for a scratch instance.
    """
    problems: list[str] = []
    with contextlib.ExitStack() as stack:
        for name in databases:
            connection = _opened(stack, connect, name)
            _run(connection, "CREATE EXTENSION IF NOT EXISTS amcheck WITH SCHEMA pg_catalog")
            for schema, index in _rows(connection, _INDEXES):
                relation = f"{quoted(schema)}.{quoted(index)}"
                try:
                    _rows(connection, f"SELECT bt_index_check('{_literal(relation)}'::regclass, true)")
                except Exception as exc:
                    problems.append(f"{name}: index {schema}.{index}: {' '.join(str(exc).split())[:300]}")
            for schema, table in _rows(connection, _HEAPS):
                relation = f"{quoted(schema)}.{quoted(table)}"
                try:
                    found = _rows(
                        connection, f"SELECT blkno, msg FROM verify_heapam('{_literal(relation)}'::regclass) LIMIT 3"
                    )
                except Exception as exc:
                    found = [("?", " ".join(str(exc).split())[:300])]
                problems += [f"{name}: table {schema}.{table}: block {block}: {said}" for block, said in found]
    return problems


_INDEXES = """
SELECT n.nspname, c.relname
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE a.amname = 'btree' AND c.relpersistence = 'p' AND i.indisready AND i.indisvalid AND c.relkind = 'i'
ORDER BY 1, 2
"""
_HEAPS = """
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence = 'p' ORDER BY 1, 2
"""


def _contents(connection: t.Any) -> dict[str, t.Any]:
    tables = {}
    for schema, table in _rows(connection, _TABLES):
        rows, total, parity = _rows(connection, _CHECKSUM.format(table=f"{quoted(schema)}.{quoted(table)}"))[0]
        tables[f"{schema}.{table}"] = {"rows": int(rows), "checksum": f"{total}:{parity}"}
    version = None
    if "public.schema_migrations" in tables:
        version = _one(connection, "SELECT max(version) FROM public.schema_migrations")
    return {"tables": tables, "schema_version": None if version is None else int(version)}


def _snapshot(connection: t.Any) -> dict[str, int | None]:
    """Take the connection's snapshot; returns the values of sequences, which no snapshot covers."""
    _run(connection, "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
    rows = _rows(connection, _SEQUENCES)
    return {f"{schema}.{name}": None if value is None else int(value) for schema, name, value in rows}


@contextlib.contextmanager
def _paused(server: t.Any) -> t.Iterator[None]:
    try:
        _run(server, "SELECT pg_wal_replay_pause()")
        wait_until(
            lambda: (str(_one(server, "SELECT pg_get_wal_replay_pause_state()")) == "paused", "not paused yet"),
            "the replica to pause its replay", 10.0, 0.02,
        )  # fmt: skip
        yield
    finally:
        # Whoever paused it before was a run that was killed: a replica is never to stay like that.
        _run(server, "SELECT pg_wal_replay_resume()")


def _opened(stack: contextlib.ExitStack, connect: Connect, database: str) -> t.Any:
    connection = connect(database)
    stack.callback(connection.close)
    connection.autocommit = True
    for setting in _SETTINGS:
        _run(connection, setting)
    return connection


def _run(connection: t.Any, statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def _rows(connection: t.Any, statement: str) -> list[t.Any]:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall())


def _one(connection: t.Any, statement: str) -> t.Any:
    return _rows(connection, statement)[0][0]


def _literal(text: str) -> str:
    return text.replace("'", "''")
