# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A PostgreSQL of one's own over a restored data folder: it archives nothing and listens in a closed folder alone.

The restored folder's own configuration is not read: it names certificates, addresses and an archive that belong to the
cell. What recovery needs (postgresql.auto.conf) is read.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import time
import types
import typing as t
from dataclasses import dataclass

from .concurrently import wait_until
from .errors import ResilienceError
from .pgbackrest import RESTORE_CONFIG
from .postgres_engine import TIME, RestoreTarget, parse_time

#: Parameters that a server in recovery must have at least as large as the server that wrote the WAL had.
_AT_LEAST = {
    "max_connections setting": "max_connections",
    "max_worker_processes setting": "max_worker_processes",
    "max_wal_senders setting": "max_wal_senders",
    "max_prepared_xacts setting": "max_prepared_transactions",
    "max_locks_per_xact setting": "max_locks_per_transaction",
}
_RECOVERY = re.compile(r"^\s*(restore_command|recovery_target\w*|archive_cleanup_command|recovery_end_command)\s*=")
_ENDED_EARLY = "recovery ended before configured recovery target was reached"


@dataclass
class ScratchPostgres:
    """One instance; a context manager that leaves nothing running.

    :param data: the restored data folder.
    :param folder: for socket, configuration and log; made when missing, closed to everybody else.
    :param port: it is only part of the socket's name.
    :param bin_dir: of PostgreSQL; empty finds Debian's by the folder's version.
    :param user: superuser to connect as.
    :param fsync: whether the data folder is to be kept: then a power cut must not damage it.
    """

    data: str
    folder: str
    port: int = 54329
    bin_dir: str = ""
    user: str = "postgres"
    fsync: bool = False

    def __post_init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ScratchPostgres:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.stop(fast=kind is not None or not self.fsync)

    @property
    def socket_directory(self) -> str:
        """Host of a connection, as libpq takes it."""
        return self.folder

    @property
    def log(self) -> pathlib.Path:
        return pathlib.Path(self.folder) / "postgres.log"

    def start(self, timeout: float = 60.0) -> None:
        """Start it and return at once; :meth:`serve` and :meth:`recover` wait for what it does."""
        self.stop_left_behind()
        folder = pathlib.Path(self.folder)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        (folder / "hba.conf").write_text("local all all trust\n", encoding="utf-8")
        (folder / "ident.conf").write_text("", encoding="utf-8")
        (folder / "postgresql.conf").write_text(self._configuration(), encoding="utf-8")
        command = [self._program("postgres"), "-D", self.data, "-c", f"config_file={folder / 'postgresql.conf'}"]
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True
            )

    def serve(self, timeout: float = 60.0) -> None:
        """Start it over a folder that has nothing to recover, and wait until it takes connections.

        :raises ResilienceError: it ended, or does not get there; with PostgreSQL's own words.
        """
        self.start()

        def serves() -> tuple[bool, str]:
            if self._process is None or self._process.poll() is not None:
                return True, ""
            return bool(self.query("SELECT 1", timeout=10)), ""

        wait_until(serves, f"PostgreSQL in {self.data} to take connections", timeout, 0.1)
        if self._process is None or self._process.poll() is not None:
            raise _Died(f"{self.data}: PostgreSQL did not start: {self._last_words()}")

    def recover(self, target: RestoreTarget, archive_ended_at: float = 0.0, timeout: float = 3600.0) -> None:
        """Start it, and wait until it has recovered to the target and takes writes.

        :param archive_ended_at: when the last WAL came into the archive. Nothing was committed between the last commit
            in it and then, so that a point in time in between is the archive's end; PostgreSQL alone calls it missed.
        :raises ResilienceError: it ended before the target, or does not get there; with PostgreSQL's own words.
        """
        self.start()
        try:
            self._wait_promoted(target, timeout)
        except _EndedEarly:
            if target.kind != TIME or parse_time(target.value) > archive_ended_at:
                raise
            self._forget_target()
            self.start()
            self._wait_promoted(target, timeout)

    def stop(self, fast: bool = False, timeout: float = 120.0) -> None:
        """End it: cleanly, or at once when nobody will use the folder again."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGQUIT if fast else signal.SIGINT)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
            if not fast:
                raise ResilienceError(
                    f"{self.data}: PostgreSQL did not stop within {timeout:.0f} s: {self._last_words()}"
                ) from None

    def finish(self) -> None:
        """Take out of the folder what the recovery needed, so that a cluster can run it: after a clean stop only."""
        if self._process is not None and self._process.poll() is None:
            raise ResilienceError(f"{self.data}: PostgreSQL still runs there")
        state = self.control().get("Database cluster state", "")
        if state != "shut down":
            raise ResilienceError(f"{self.data}: expected a folder that was shut down, got one that is '{state}'")
        auto = pathlib.Path(self.data) / "postgresql.auto.conf"
        lines = auto.read_text(encoding="utf-8").splitlines(keepends=True) if auto.exists() else []
        kept = [line for line in lines if not _RECOVERY.match(line) and "generated by pgBackRest" not in line]
        if kept != lines:
            auto.write_text("".join(kept), encoding="utf-8")
        for name in ("recovery.signal", "standby.signal"):
            (pathlib.Path(self.data) / name).unlink(missing_ok=True)
        self.forget_config()

    def forget_config(self) -> None:
        """Remove the configuration, with its passphrase, that the recovery read WAL by."""
        pathlib.Path(self.data + RESTORE_CONFIG).unlink(missing_ok=True)

    def query(self, statement: str, database: str = "postgres", timeout: float = 600.0) -> list[list[str]]:
        """What a statement gives, as texts."""
        command = [self._program("psql"), "-XAtq", "-F", "\x1f", "-v", "ON_ERROR_STOP=1"]
        command += ["-h", self.folder, "-p", str(self.port), "-U", self.user, "-d", database, "-c", statement]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, cwd="/")
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise ResilienceError(f"{self.data}: the scratch PostgreSQL can't be asked: {exc}") from exc
        if done.returncode:
            raise ResilienceError(f"{self.data}: the scratch PostgreSQL: {done.stderr.strip()[:500]}")
        return [line.split("\x1f") for line in done.stdout.splitlines()]

    def control(self) -> dict[str, str]:
        """What pg_controldata says."""
        environment = {**os.environ, "LC_ALL": "C"}
        try:
            done = subprocess.run(
                [self._program("pg_controldata"), "-D", self.data],
                capture_output=True, text=True, timeout=30, check=False, env=environment,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise ResilienceError(f"{self.data}: pg_controldata can't be run: {exc}") from exc
        if done.returncode:
            raise ResilienceError(f"{self.data} is no data folder that can be used: {done.stderr.strip()[:300]}")
        pairs = (line.partition(":") for line in done.stdout.splitlines())
        return {key.strip(): value.strip() for key, _colon, value in pairs}

    # -- inside --------------------------------------------------------------------------------------------------

    def _program(self, name: str) -> str:
        if self.bin_dir:
            return f"{self.bin_dir}/{name}"
        try:
            version = (pathlib.Path(self.data) / "PG_VERSION").read_text(encoding="utf-8").strip()
        except OSError as exc:
            raise ResilienceError(f"{self.data} is no data folder of PostgreSQL: {exc}") from exc
        return f"/usr/lib/postgresql/{version}/bin/{name}"

    def _configuration(self) -> str:
        settings = {
            "listen_addresses": "",
            "port": str(self.port),
            "unix_socket_directories": self.folder,
            "unix_socket_permissions": "0700",
            "hba_file": f"{self.folder}/hba.conf",
            "ident_file": f"{self.folder}/ident.conf",
            # A folder that is to take a cell's place has to remember what it has not archived: its new timeline's
            # history and first segments. The command refuses them all; the cell's own takes them when it starts.
            "archive_mode": "on" if self.fsync else "off",
            "archive_command": "/bin/false",
            "hot_standby": "on",
            "ssl": "off",
            "shared_buffers": "128MB",
            "wal_level": "replica",
            "wal_log_hints": "on",
            "track_commit_timestamp": "on",
            "fsync": "on" if self.fsync else "off",
            "full_page_writes": "on" if self.fsync else "off",
            "logging_collector": "off",
            "log_destination": "stderr",
            "lc_messages": "C",
            "autovacuum": "off",
            "max_wal_size": "4GB",
            "checkpoint_timeout": "30min",
        }
        facts = self.control()
        settings.update({name: facts[key] for key, name in _AT_LEAST.items() if facts.get(key, "").isdigit()})
        return "".join(f"{name} = '{value}'\n" for name, value in settings.items())

    def _wait_promoted(self, target: RestoreTarget, timeout: float) -> None:
        def reached() -> tuple[bool, str]:
            if self._process is None or self._process.poll() is not None:
                words = self._last_words()
                kind = _EndedEarly if _ENDED_EARLY in words else _Died
                raise kind(f"{self.data}: PostgreSQL did not reach {target}: {words}")
            in_recovery = self.query("SELECT pg_is_in_recovery()", timeout=10)[0][0] == "t"
            return not in_recovery, f"it is in recovery; {self._last_words()}"

        deadline = time.monotonic() + timeout
        while True:
            try:
                wait_until(reached, f"PostgreSQL in {self.data} to recover to {target}", 5.0, 0.2)
                return
            except ResilienceError as exc:
                process = self._process
                if process is None or process.poll() is not None:
                    words = self._last_words()
                    kind = _EndedEarly if _ENDED_EARLY in words else _Died
                    raise kind(f"{self.data}: PostgreSQL did not reach {target}: {words}") from None
                if time.monotonic() > deadline:
                    self.stop(fast=True)
                    raise ResilienceError(f"after {timeout:.0f} s: {exc}") from None

    def _forget_target(self) -> None:
        auto = pathlib.Path(self.data) / "postgresql.auto.conf"
        lines = auto.read_text(encoding="utf-8").splitlines(keepends=True)
        gone = re.compile(r"^\s*recovery_target(_time|_inclusive|_action)?\s*=")
        auto.write_text("".join(line for line in lines if not gone.match(line)), encoding="utf-8")

    def _last_words(self) -> str:
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return "it left no log"
        telling = [line for line in lines if re.search(r"FATAL|PANIC|ERROR|HINT|LOG: +(last completed|recovery)", line)]
        return " | ".join((telling or lines)[-4:])[-900:] or "it left no log"

    def stop_left_behind(self) -> None:
        """End the instance over this very folder that a killed run left, and remove what says that it runs."""
        pidfile = pathlib.Path(self.data) / "postmaster.pid"
        try:
            pid = int(pidfile.read_text(encoding="utf-8").split()[0])
            command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except FileNotFoundError:
            pidfile.unlink(missing_ok=True)  # no such process
            return
        except (OSError, ValueError, IndexError):
            return
        if self.data.encode() not in command:
            pidfile.unlink(missing_ok=True)  # another program has its number by now
            return
        if f"config_file={self.folder}/postgresql.conf".encode() not in command:
            raise ResilienceError(f"{self.data}: a PostgreSQL (process {pid}) that is not ours runs there")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)
        wait_until(
            lambda: (not pathlib.Path(f"/proc/{pid}").exists(), "it still runs"),
            f"the scratch PostgreSQL that was left running (process {pid})", 60.0, 0.2,
        )  # fmt: skip


class _Died(ResilienceError):
    """PostgreSQL ended before it was ready."""


class _EndedEarly(_Died):
    """It reached the end of the WAL before the target."""


def staged_matches(control: t.Mapping[str, str], system_id: str) -> str:
    """Why a staged folder must not take the place of a cell's; empty when it may."""
    if control.get("Database cluster state") != "shut down":
        return f"it was not shut down cleanly ({control.get('Database cluster state', 'unknown')})"
    if system_id and control.get("Database system identifier") != system_id:
        return f"it belongs to another system ({control.get('Database system identifier')}, not {system_id})"
    return ""
