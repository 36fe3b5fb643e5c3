# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL with pgBackRest: each region's host fills its own repository, from its region's hosts."""

from __future__ import annotations

import contextlib
import json
import time
import typing as t
from pathlib import Path

import psycopg

from shannon.resilience import postgres_manifest, wal_archive
from shannon.resilience.concurrently import gather
from shannon.resilience.errors import ResilienceError
from shannon.resilience.patroni import Patroni
from shannon.resilience.pgbackrest import PgBackRest
from shannon.resilience.postgres_engine import (
    PostgresEngine,
    Reach,
    RestoreTarget,
    choose_backup,
    parse_lsn,
    reach,
    target_problem,
)
from shannon.resilience.postgres_scratch import ScratchPostgres
from shannon.resilience.tls import client_context
from shannon.services.common import logs

from ..settings import Cell, Instance, Settings
from .base import Found, Made, Sandbox
from .files import Repositories, read_manifest

_log = logs.get(__name__)
#: Seconds within which what a manifest names must be in the archive: a segment is closed each minute.
ARCHIVED_WITHIN = 180.0
#: Seconds within which a replica must have replayed the end of a backup.
REPLAYED_WITHIN = 120.0
#: Seconds that one command of a look at the archive may take, and that one member may take to say what it is.
LOOK_TIMEOUT = 60.0
MEMBER_TIMEOUT = 2.0


class PostgresKind:
    """Backups of a cell's PostgreSQL, with an exact manifest."""

    name = "postgres"
    per_cell = True
    each_region = True

    def __init__(self, settings: Settings, repositories: Repositories) -> None:
        self._settings = settings
        self._manifests = ManifestStore(settings, repositories)

    def engine(self, cell: Cell, timeout: float = 86400.0) -> PostgresEngine:
        """What makes and restores the backups; another engine would take its place here.

        :param timeout: seconds for each of its commands.
        """
        settings = self._settings
        # A repository has the same number on every host.
        return PgBackRest(
            cell.name,
            config=settings.pgbackrest_config,
            repo=settings.regions.index(settings.region) + 1,
            timeout=timeout,
            work=settings.runtime,
            process_max=settings.jobs,
        )

    def backup(self, cell: Cell | None, type_: str, staging: Path) -> Made:
        cell = _needed(cell)
        engine = self.engine(cell)
        made = engine.backup(type_ or "diff")
        # Until the manifest's position is known the backup is one that restores, but not one that is proven.
        manifest = self._manifest(cell, made.stop_lsn)
        manifest["backup"] = made.label
        # A restore to just before a position needs what comes after it, and an idle cell writes nothing: this closes a
        # segment on the primary, and waits until the repository has it.
        engine.check()
        notes = self._manifests.put(cell, made.label, manifest, staging)
        return Made(
            made.label, made.size, [self._settings.region], manifest, notes,
            {"type": made.kind, "timeline": made.timeline, "repository_bytes": made.repo_size},
        )  # fmt: skip

    def _manifest(self, cell: Cell, stop_lsn: int) -> dict[str, t.Any]:
        """Rows and checksums at a position that a restore of this backup can reach."""
        deadline = time.monotonic() + REPLAYED_WITHIN
        while True:
            replica = replica_of(self._settings, cell)
            taken = postgres_manifest.manifest(connector(self._settings, replica), tuple(self._settings.databases))
            if postgres_manifest.manifest_target(taken).value and _position(taken) >= stop_lsn:
                return taken
            if time.monotonic() > deadline:
                raise ResilienceError(
                    f"{replica.host} has not replayed the end of the backup within {REPLAYED_WITHIN:.0f} s: it is at "
                    f"{taken['lsn']}. The backup is there, without a manifest; look at the replica's lag (status.yml)."
                )
            time.sleep(1.0)

    def found(self, cell: Cell | None, region: str) -> list[Found]:
        cell = _needed(cell)
        if region != self._settings.region:
            host = self._settings.repositories[region].host if region in self._settings.repositories else "none"
            raise ResilienceError(
                f"PostgreSQL's repository of region {region} is opened on its own host only ({host}): run it there"
            )
        return [
            Found(one.label, region, one.ended_at, one.size, {"stop_lsn": one.stop_lsn, "timeline": one.timeline})
            for one in self.engine(cell).info().backups
            if not one.error
        ]

    def reach(self, cell: Cell | None, region: str, to: str) -> Found:
        """The backup that a restore to a target starts from; the archive must reach from it to the target.

        :raises ResilienceError: it does not; the text says what is in reach.
        """
        cell = _needed(cell)
        known = {one.id: one for one in self.found(cell, region)}
        info = self.engine(cell).info()
        target = RestoreTarget.parse(to or "latest")
        if problem := target_problem(info, target):
            raise ResilienceError(f"{problem.rstrip('.')}. Nothing was changed.")
        chosen = choose_backup(info, target)
        return known.get(chosen.label) or Found(chosen.label, region, chosen.ended_at, chosen.size)

    def archived(self, cell: Cell, clock: t.Callable[[], float]) -> tuple[Reach, wal_archive.Age] | None:
        """How far the WAL in the own region's repository goes, and how old what it lacks is; None: it has no backup.

        :param clock: gives seconds since 1970.
        :raises ResilienceError: the repository can't be read.
        """
        # The primary first: what it had written then is in what is found after that, or is missing.
        written = written_by(self._settings, cell)
        reached = reach(self.engine(cell, LOOK_TIMEOUT).info())
        return None if reached is None else (reached, wal_archive.age(reached, written, clock()))

    def fetch(self, cell: Cell | None, found: Found, into: Path) -> dict[str, t.Any]:
        """Its manifest; the files come with a restore only."""
        manifest = self._manifests.get(_needed(cell), found.id)
        if manifest is None:
            raise ResilienceError(
                f"nothing says what is in the backup {found.id}: its manifest is lost. Take a new backup."
            )
        into.mkdir(mode=0o700, parents=True, exist_ok=True)
        (into / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        return manifest

    @contextlib.contextmanager
    def sandbox(self, cell: Cell | None, found: Found, folder: Path, to: str) -> t.Iterator[Sandbox]:
        cell = _needed(cell)
        engine = self.engine(cell)
        manifest = None if to else self.fetch(cell, found, folder / "manifest")
        target = RestoreTarget.parse(to) if manifest is None else postgres_manifest.manifest_target(manifest)
        self._wait_until_archived(engine, target, 0.0 if manifest is None else ARCHIVED_WITHIN)
        data = folder / "data"
        began = time.monotonic()
        restored = engine.restore(target, str(data))
        copied = time.monotonic() - began
        ranges = engine.info().ranges
        with ScratchPostgres(str(data), str(folder / "run"), bin_dir=self._settings.postgres_bin) as scratch:
            scratch.recover(target, archive_ended_at=max((one.ended_at for one in ranges), default=0.0))
            replayed = time.monotonic() - began - copied
            connect = scratch_connector(scratch)
            databases = tuple(self._settings.databases)
            again = postgres_manifest.manifest(connect, databases, pause=False)
            differences = [] if manifest is None else postgres_manifest.compare(manifest, again)
            differences += postgres_manifest.amcheck(connect, databases)
            tables = [table for one in again["databases"].values() for table in one["tables"].values()]
            facts = {
                "backup": restored.label,
                "target": f"{target.kind} {target.value}".strip(),
                "timeline": again.get("timeline"),
                "tables": len(tables),
                "rows": sum(int(table["rows"]) for table in tables),
                "bytes": restored.size,
                "restore_seconds": round(copied, 1),
                "replay_seconds": round(replayed, 1),
                "mb_per_second": round(restored.size / 1e6 / max(copied, 0.001), 1),
            }
            try:
                yield Sandbox(differences, facts, f"psql -h {scratch.socket_directory} -p {scratch.port}")
            finally:
                # It holds the repository's passphrase, and a folder may be kept.
                scratch.forget_config()

    @staticmethod
    def _wait_until_archived(engine: PostgresEngine, target: RestoreTarget, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while problem := target_problem(engine.info(), target):
            if time.monotonic() >= deadline:
                raise ResilienceError(problem)
            time.sleep(2.0)


class ManifestStore:
    """Manifests of PostgreSQL's backups: beside the runner, and in the restic repositories of all regions."""

    def __init__(self, settings: Settings, repositories: Repositories) -> None:
        self._settings = settings
        self._repositories = repositories

    def _path(self, cell: Cell, label: str) -> Path:
        return self._settings.folder("manifests") / f"postgres-{cell.name}-{label}.json"

    def put(self, cell: Cell, label: str, manifest: t.Mapping[str, t.Any], staging: Path) -> list[str]:
        """Keep one; returns what went wrong on the way into the repositories."""
        text = json.dumps(manifest, sort_keys=True)
        path = self._path(cell, label)
        staged = path.with_suffix(".new")
        staged.write_text(text, encoding="utf-8")
        staged.replace(path)
        (staging / "manifest.json").write_text(text, encoding="utf-8")
        try:
            return self._repositories.put(staging, self._tags(cell, label))[3]
        except ResilienceError as exc:
            return [str(exc)]

    def get(self, cell: Cell, label: str) -> dict[str, t.Any] | None:
        """One by the backup's label."""
        path = self._path(cell, label)
        if path.exists():
            return t.cast("dict[str, t.Any]", json.loads(path.read_text(encoding="utf-8")))
        for region in self._settings.repositories:
            with contextlib.suppress(ResilienceError):
                known = self._repositories.found(region, self._tags(cell, label))
                if known:
                    folder = self._settings.folder("scratch") / f"manifest-{label}"
                    self._repositories.fetch(known[-1], folder)
                    return read_manifest(folder, known[-1])
        return None

    @staticmethod
    def _tags(cell: Cell, label: str) -> list[str]:
        return ["kind=postgres-manifest", f"cell={cell.name}", f"backup={label}"]


def replica_of(settings: Settings, cell: Cell) -> Instance:
    """A running replica of the own region whose replay may be paused; the leader only where there is no other."""
    context = client_context(settings.tls)
    seen: dict[str, str] = {}
    followers, leaders = [], []
    for instance in cell.postgres.get(settings.region, []):
        try:
            said = Patroni(instance.address, instance.patroni, context, timeout=3.0).status()
        except ResilienceError as exc:
            seen[instance.host] = str(exc)
            continue
        role = str(said.get("role", ""))
        seen[instance.host] = f"{role}, {said.get('state')}"
        if said.get("state") == "running" and role == "replica":
            followers.append((bool(said.get("sync_standby") or said.get("quorum_standby")), instance))
        elif said.get("state") == "running" and role == "standby_leader":
            leaders.append((False, instance))
    # A replica that commits wait for is taken last.
    order = sorted(followers, key=lambda pair: pair[0]) + leaders
    if not order:
        said_by = "; ".join(f"{host}: {word}" for host, word in seen.items()) or "it has no PostgreSQL"
        raise ResilienceError(
            f"cell {cell.name}: region {settings.region} has no running replica to take a manifest from ({said_by}). "
            "Look at it with status.yml."
        )
    return order[0][1]


def written_by(settings: Settings, cell: Cell) -> wal_archive.Written | None:
    """How far the cell's primary has written, in whichever region it is; None when none says it."""
    context = client_context(settings.tls)
    instances = {one.host: one for members in cell.postgres.values() for one in members}
    answers = gather(
        {host: Patroni(one.address, one.patroni, context, timeout=MEMBER_TIMEOUT).status
         for host, one in instances.items()}
    )  # fmt: skip
    primaries = [
        (int(said.get("timeline") or 0), host)
        for host, said in answers.items()
        if isinstance(said, dict) and said.get("role") == "primary" and said.get("state") == "running"
    ]
    # One that was superseded and does not know it yet is on an older timeline.
    for _timeline, host in sorted(primaries, reverse=True):
        try:
            with connector(settings, instances[host])(postgres_manifest.MAINTENANCE) as connection:
                return wal_archive.ask(connection)
        except (ResilienceError, psycopg.Error) as exc:
            _log.warning("%s does not say how far cell %s has written: %s", host, cell.name, exc)
    return None


def connector(settings: Settings, instance: Instance) -> t.Callable[[str], psycopg.Connection[t.Any]]:
    """Connections to an instance as the user of backups."""

    def connect(database: str) -> psycopg.Connection[t.Any]:
        try:
            return psycopg.connect(
                host=instance.address, port=instance.port, dbname=database, user=settings.postgres_user,
                password=settings.secret("postgres_backup"), sslmode="verify-full", sslrootcert=settings.ca_file,
                sslcert=settings.cert_file, sslkey=settings.key_file,
                connect_timeout=5, application_name="shannon-backup",
                # Who waits for an answer hears nothing of a network that is cut: without these for two hours.
                keepalives_idle=10, keepalives_interval=5, keepalives_count=3, tcp_user_timeout=30000,
            )  # fmt: skip
        except psycopg.Error as exc:
            raise ResilienceError(
                f"{instance.host}:{instance.port}: no connection to {database} as {settings.postgres_user}: {exc}"
            ) from exc

    return connect


def scratch_connector(scratch: ScratchPostgres) -> t.Callable[[str], psycopg.Connection[t.Any]]:
    """Connections to a scratch instance through its socket."""

    def connect(database: str) -> psycopg.Connection[t.Any]:
        try:
            return psycopg.connect(host=scratch.socket_directory, port=scratch.port, dbname=database, user="postgres")
        except psycopg.Error as exc:
            raise ResilienceError(f"the scratch instance takes no connection to {database}: {exc}") from exc

    return connect


def _position(manifest: t.Mapping[str, t.Any]) -> int:
    lsn = manifest["lsn"]
    return lsn if isinstance(lsn, int) else parse_lsn(str(lsn))


def _needed(cell: Cell | None) -> Cell:
    if cell is None:
        raise ResilienceError("PostgreSQL belongs to a cell: say which with --cell")
    return cell
