# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Logical dumps: one database as rows and definitions, the second and independent kind of backup.

It survives what a physical backup copies faithfully (damaged pages), goes into another major version, and gives back a
single table. A dump is a folder: pg_dump's directory format, and a manifest with a checksum of every file.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import time
import typing as t

from .errors import ResilienceError
from .files import sync, write

MANIFEST = "manifest.json"
DATA = "dump"
#: What a connection may say, and libpq's environment variable for it: nothing of it stands in a process list.
_ENVIRONMENT = {
    "host": "PGHOST",
    "port": "PGPORT",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
}
#: Who reads hears nothing of a network that is cut: without these it would wait for two hours. No environment variable
#: of libpq's says them.
_NOTICED = "keepalives_idle=10 keepalives_interval=5 keepalives_count=3 tcp_user_timeout=30000"


def dump(
    folder: str,
    database: str,
    connection: t.Mapping[str, t.Any],
    jobs: int = 2,
    bin_dir: str = "",
    timeout: float = 14400.0,
) -> dict[str, t.Any]:
    """Dump a database into a folder that is not there yet; returns the manifest.

    The folder appears whole or not at all.

    :param connection: host, port, user, password, sslmode, sslrootcert, sslcert, sslkey.
    :raises ResilienceError: the folder is there, or pg_dump fails.
    """
    place = pathlib.Path(folder)
    if place.exists():
        raise ResilienceError(f"{folder} is there already: a dump goes into a folder of its own")
    making = place.with_name(f".{place.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(mode=0o700, parents=True)
    try:
        began = time.time()
        _call(
            [_program("pg_dump", bin_dir), "-Fd", "-Z", "5", "-j", str(jobs), "--lock-wait-timeout=30s",
             "-f", str(making / DATA), "-d", conninfo(database)],
            connection, timeout, f"pg_dump of {database}",
        )  # fmt: skip
        listed = _call([_program("pg_restore", bin_dir), "-l", str(making / DATA)], {}, 600.0, "pg_restore -l")
        taken = {
            "database": database,
            "dumped_at": round(began, 3),
            "seconds": round(time.time() - began, 3),
            "tables": sorted(tables_of(listed)),
            "files": checksums(making),
        }
        taken["bytes"] = sum(facts["bytes"] for facts in taken["files"].values())
        write(str(making / MANIFEST), (json.dumps(taken, indent=1, sort_keys=True) + "\n").encode(), 0o600)
        os.rename(making, place)
        sync(str(place.parent))
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    return taken


def read_manifest(folder: str) -> dict[str, t.Any]:
    """The manifest of a dump.

    :raises ResilienceError: there is none that can be read.
    """
    path = pathlib.Path(folder) / MANIFEST
    try:
        taken = json.loads(path.read_text(encoding="utf-8"))
        taken["files"], taken["database"]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ResilienceError(f"{path}: expected the manifest of a dump, got {exc!r}") from exc
    return t.cast("dict[str, t.Any]", taken)


def verify(folder: str) -> list[str]:
    """What differs from the manifest, a sentence each."""
    try:
        wanted = read_manifest(folder)["files"]
    except ResilienceError as exc:
        return [str(exc)]
    found = checksums(pathlib.Path(folder))
    problems = [f"{name} is missing" for name in sorted(set(wanted) - set(found))]
    problems += [f"{name} is too much" for name in sorted(set(found) - set(wanted))]
    for name in sorted(set(wanted) & set(found)):
        if found[name]["sha256"] != wanted[name]["sha256"]:
            problems.append(f"{name} is damaged: its checksum is not the manifest's")
    return problems


def restore(
    folder: str,
    database: str,
    connection: t.Mapping[str, t.Any],
    jobs: int = 2,
    bin_dir: str = "",
    timeout: float = 14400.0,
    owners: bool = True,
) -> None:
    """Restore into a database that is made here; one that is there already is never touched.

    :param owners: whether tables get their owners and grants; the roles must be there then.
    :raises ResilienceError: the dump is damaged, the database is there, or pg_restore fails.
    """
    problems = verify(folder)
    if problems:
        raise ResilienceError(f"{folder} is not restored: {'; '.join(problems[:5])}")
    psql = _psql(bin_dir)
    if exists(database, connection, bin_dir):
        raise ResilienceError(
            f"the database {database} is there already; restore into another name, and rename when it is right"
        )
    identifier = '"' + database.replace('"', '""') + '"'
    _call([*psql, "-c", f"CREATE DATABASE {identifier} TEMPLATE template0"], connection, 120.0, "psql")
    command = [_program("pg_restore", bin_dir), "-j", str(jobs), "--exit-on-error", "-d", conninfo(database)]
    command += [] if owners else ["--no-owner", "--no-acl"]
    try:
        _call([*command, str(pathlib.Path(folder) / DATA)], connection, timeout, f"pg_restore into {database}")
    except ResilienceError:
        # Half of a database must not be taken for one.
        _call([*psql, "-c", f"DROP DATABASE IF EXISTS {identifier} WITH (FORCE)"], connection, 120.0, "psql")
        raise


def conninfo(database: str) -> str:
    """A database's name as pg_dump takes it, with how soon a connection that is cut is noticed."""
    quoted = database.replace("\\", "\\\\").replace("'", "\\'")
    return f"dbname='{quoted}' {_NOTICED}"


def exists(database: str, connection: t.Mapping[str, t.Any], bin_dir: str = "") -> bool:
    """Whether the server has a database of that name."""
    name = database.replace("'", "''")
    statement = f"SELECT count(*) FROM pg_database WHERE datname = '{name}'"
    return _call([*_psql(bin_dir), "-c", statement], connection, 60.0, "psql").strip() != "0"


def checksums(folder: pathlib.Path) -> dict[str, dict[str, t.Any]]:
    """SHA-256 and size of every file of a dump, the manifest excepted."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / MANIFEST:
            digest = hashlib.sha256()
            with path.open("rb") as handle:
                while block := handle.read(1 << 20):
                    digest.update(block)
            found[str(path.relative_to(folder))] = {"sha256": digest.hexdigest(), "bytes": path.stat().st_size}
    return found


def tables_of(listed: str) -> set[str]:
    """The tables whose rows a dump holds, from what C(pg_restore -l) lists."""
    found = set()
    for line in listed.splitlines():
        words = line.split()
        if line[:1].isdigit() and words[3:5] == ["TABLE", "DATA"] and len(words) >= 7:
            found.add(f"{words[5]}.{words[6]}")
    return found


def _program(name: str, bin_dir: str) -> str:
    return f"{bin_dir}/{name}" if bin_dir else name


def _psql(bin_dir: str) -> list[str]:
    return [_program("psql", bin_dir), "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "postgres"]


def _call(command: list[str], connection: t.Mapping[str, t.Any], timeout: float, what: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    environment.update({_ENVIRONMENT[key]: str(value) for key, value in connection.items() if key in _ENVIRONMENT})
    environment.setdefault("PGCONNECT_TIMEOUT", "5")
    where = f"{connection['host']}:{connection.get('port', 5432)}: " if connection.get("host") else ""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False, env=environment, cwd="/",
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise ResilienceError(f"{where}{what} can't be run to its end: {exc}") from exc
    if done.returncode:
        raise ResilienceError(f"{where}{what} failed: {' '.join(done.stderr.split())[:600]}")
    return done.stdout
