# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Logical dumps: a second way back that depends on neither pgBackRest nor PostgreSQL's file format."""

from __future__ import annotations

import contextlib
import subprocess
import typing as t
from pathlib import Path

from psycopg import sql

from shannon.resilience import postgres_dump
from shannon.resilience.errors import ResilienceError
from shannon.resilience.postgres_scratch import ScratchPostgres

from ..settings import Cell
from .base import Sandbox
from .files import FilesKind
from .postgres import replica_of, scratch_connector


class DumpKind(FilesKind):
    """A dump of each database of a cell, taken from a replica of the own region."""

    name = "dump"
    per_cell = True

    def fill(self, cell: Cell | None, folder: Path) -> dict[str, t.Any]:
        if cell is None:
            raise ResilienceError("a dump is of a cell's databases: say which with --cell")
        replica = replica_of(self.settings, cell)
        connection = {
            "host": replica.address,
            "port": replica.port,
            "user": self.settings.postgres_user,
            "password": self.settings.secret("postgres_backup"),
            "sslmode": "verify-full",
            "sslrootcert": self.settings.ca_file,
            "sslcert": self.settings.cert_file,
            "sslkey": self.settings.key_file,
        }
        databases = {}
        for name in self.settings.databases:
            databases[name] = postgres_dump.dump(
                str(folder / name), name, connection, jobs=self.settings.jobs, bin_dir=self.settings.postgres_bin
            )
        return {"kind": self.name, "taken_from": replica.host, "databases": databases}

    @contextlib.contextmanager
    def prove(self, cell: Cell | None, folder: Path) -> t.Iterator[Sandbox]:
        differences: list[str] = []
        for name in self.settings.databases:
            differences += postgres_dump.verify(str(folder / name))
        data = folder.parent / "data"
        initdb = str(Path(self.settings.postgres_bin) / "initdb") if self.settings.postgres_bin else "initdb"
        made = subprocess.run(
            [initdb, "--pgdata", str(data), "--username", "postgres", "--auth", "trust", "--encoding", "UTF8",
             "--no-sync"],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        if made.returncode:
            raise ResilienceError(f"no scratch instance for the dump could be made: {made.stderr.strip()[-500:]}")
        with ScratchPostgres(str(data), str(folder.parent / "run"), bin_dir=self.settings.postgres_bin) as scratch:
            scratch.serve()
            connection = {"host": scratch.socket_directory, "port": scratch.port, "user": "postgres"}
            rows = tables = 0
            for name in self.settings.databases:
                again = f"verify_{name}"
                # A scratch instance has none of the roles that own and may use what was dumped.
                postgres_dump.restore(str(folder / name), again, connection, jobs=self.settings.jobs, owners=False)
                wanted = postgres_dump.read_manifest(str(folder / name)).get("tables") or []
                with scratch_connector(scratch)(again) as connected:
                    counted = _counts(connected)
                differences += [
                    f"{name}: the table {table} was not restored" for table in wanted if table not in counted
                ]
                rows += sum(counted.values())
                tables += len(counted)
            yield Sandbox(
                differences, {"rows": rows, "tables": tables}, f"psql -h {scratch.socket_directory} -p {scratch.port}"
            )


def _counts(connected: t.Any) -> dict[str, int]:
    """The rows of each table of a database."""
    listed = connected.execute(
        "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
    ).fetchall()
    counted = {}
    for schema, table in listed:
        query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(schema, table))
        counted[f"{schema}.{table}"] = int(connected.execute(query).fetchone()[0])
    return counted
