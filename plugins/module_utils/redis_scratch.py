# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Redis that loads one RDB file: to see what is in it, or to give it to a live instance by replication.

It starts as a replica of nobody, since a primary drops keys at loading that have expired meanwhile: only so the same
file has the same digest tomorrow.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import typing as t
from dataclasses import dataclass

from .concurrently import wait_until
from .errors import ResilienceError
from .redis import RedisClient
from .tls import TlsFiles

#: Whom it follows while nobody may change it: nobody listens there.
NOBODY = ("127.0.0.1", 1)
#: Name of the file in the scratch instance's folder.
FILE = "dump.rdb"
_PID = "redis.pid"
#: Where the folder of its socket is, for whoever has to remove it.
_SOCKET = "socket"
#: Longest path of a Unix socket.
_SOCKET_PATH = 100


@dataclass(frozen=True)
class Listener:
    """Where a scratch instance serves other instances, with the group's users.

    :ivar acl_file: the group's ACL; replicas log in with it.
    """

    port: int
    tls: TlsFiles | None
    acl_file: str = ""
    address: str = "127.0.0.1"


class RedisScratch:
    """A scratch instance, alive while the context lasts.

    :param folder: a folder of its own; the RDB file is linked or copied into it.
    :param rdb: the file to load.
    :param wait: seconds for loading.
    :param listener: serves TCP too; otherwise it has a Unix socket only.
    :param user: numeric user and group to run as; None for the process' own.
    :param admin: user and password for its own commands, when the listener has an ACL.
    """

    def __init__(
        self,
        folder: str,
        rdb: str,
        server: str = "redis-server",
        wait: float = 600.0,
        listener: Listener | None = None,
        user: tuple[int, int] | None = None,
        groups: t.Sequence[int] = (),
        admin: tuple[str, str] = ("", ""),
    ) -> None:
        self.folder = folder
        self._rdb = rdb
        self._server = server
        self._wait = wait
        self._listener = listener
        self._user = user
        self._groups = list(groups)
        self._admin = admin
        self._process: subprocess.Popen[bytes] | None = None
        self._socket_folder = ""

    def __enter__(self) -> RedisScratch:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def client(self, timeout: float = 30.0) -> RedisClient:
        """A connection to it."""
        return RedisClient(os.path.join(self._socket_folder, "s"), 0, *self._admin, None, timeout)

    def databases(self) -> dict[str, int]:
        """Keys per database, expired ones included."""
        with self.client() as client:
            info = client.info("keyspace")
        return {name[2:]: int(value.split(",")[0].split("=")[1]) for name, value in info.items() if name[:2] == "db"}

    def expires(self) -> int:
        """Keys with a time to live."""
        with self.client() as client:
            info = client.info("keyspace")
        return sum(int(value.split(",")[1].split("=")[1]) for name, value in info.items() if name[:2] == "db")

    def digest(self) -> str:
        """Redis' own digest of all it holds: equal data has equal digests, however it is laid out."""
        with self.client(self._wait) as client:
            return str(client.command(["DEBUG", "DIGEST"]))

    def version(self) -> str:
        with self.client() as client:
            return client.info("server").get("redis_version", "")

    def become_primary(self) -> None:
        """Let others follow it. Nothing expires, so that what they get is what the file holds."""
        with self.client() as client:
            client.command(["DEBUG", "SET-ACTIVE-EXPIRE", 0])
            client.command(["REPLICAOF", "NO", "ONE"])

    def close(self) -> None:
        """End it and remove its socket; its folder stays for whoever made it."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._socket_folder:
            _remove_socket(self.folder)
            self._socket_folder = ""

    def _start(self) -> None:
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        end_left_behind(self.folder)
        target = os.path.join(self.folder, FILE)
        if not (os.path.exists(target) and os.path.samefile(self._rdb, target)):
            shutil.copyfile(self._rdb, target)
        # The path of a socket is short, whatever the folder is called.
        self._socket_folder = tempfile.mkdtemp(prefix="shannon-redis-", dir=_short_folder())
        os.symlink(self._socket_folder, os.path.join(self.folder, _SOCKET))
        if self._user is not None:
            for path in (self.folder, target, self._socket_folder):
                os.chown(path, *self._user)
        log_path = os.path.join(self.folder, "log")
        with open(log_path, "wb") as log:
            try:
                self._process = subprocess.Popen(
                    [self._server, "-"],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                    **self._identity(),
                )
            except OSError as exc:
                raise ResilienceError(f"cannot run {self._server}: {exc}. Install the package redis-server") from exc
        stdin = t.cast(t.IO[bytes], self._process.stdin)
        with contextlib.suppress(BrokenPipeError):
            stdin.write(self._configuration().encode())
        stdin.close()
        self._wait_loaded(log_path)

    def _identity(self) -> dict[str, t.Any]:
        if self._user is None:
            return {}
        return {"user": self._user[0], "group": self._user[1], "extra_groups": self._groups}

    def _configuration(self) -> str:
        lines = [
            f"dir {self.folder}",
            f"dbfilename {FILE}",
            f"pidfile {os.path.join(self.folder, _PID)}",
            f"unixsocket {os.path.join(self._socket_folder, 's')}",
            "unixsocketperm 700",
            "daemonize no",
            'logfile ""',
            'save ""',
            "appendonly no",
            "maxmemory 0",
            "databases 16",
            "replicaof {} {}".format(*NOBODY),
            "replica-serve-stale-data yes",
            # A diskless transfer starts at once.
            "repl-diskless-sync yes",
            "repl-diskless-sync-delay 0",
            "repl-timeout 600",
        ]
        if self._debug_must_be_enabled():
            lines.append("enable-debug-command local")
        if self._listener is None:
            lines.append("port 0")
            return "\n".join([*lines, ""])
        it = self._listener
        lines.append(f"bind {it.address}")
        if it.acl_file:
            lines += [f"aclfile {it.acl_file}", "protected-mode no"]
        if it.tls is None:
            lines.append(f"port {it.port}")
        else:
            lines += [
                "port 0",
                f"tls-port {it.port}",
                f"tls-ca-cert-file {it.tls.ca}",
                f"tls-cert-file {it.tls.cert}",
                f"tls-key-file {it.tls.key}",
                "tls-auth-clients yes",
            ]
        return "\n".join([*lines, ""])

    def _debug_must_be_enabled(self) -> bool:
        """Redis 7 has DEBUG switched off; Redis 6 does not know the switch and would not start with it."""
        return server_version(self._server) >= (7, 0)

    def _wait_loaded(self, log_path: str) -> None:
        process = t.cast("subprocess.Popen[bytes]", self._process)

        def loaded() -> tuple[bool, str]:
            if process.poll() is not None:
                return True, "it ended"
            with self.client(2.0) as client:
                info = client.info("persistence")
            return info.get("loading") == "0", f"loaded {info.get('loading_loaded_perc', '?')} %"

        wait_until(loaded, f"a scratch Redis to load {self._rdb}", self._wait, interval=0.05)
        if process.poll() is not None:
            raise ResilienceError(
                f"Redis can't load {self._rdb}: {_reason(log_path)}. If that is about the file, it is damaged, or "
                "from a newer Redis than this host's. Nothing live was touched; take another backup."
            )


def server_version(server: str) -> tuple[int, ...]:
    """Version of a redis-server binary."""
    try:
        said = subprocess.run([server, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
        return tuple(int(part) for part in said.split("v=", 1)[1].split()[0].split(".")[:2])
    except (OSError, subprocess.SubprocessError, IndexError, ValueError) as exc:
        raise ResilienceError(f"cannot ask {server} for its version: {exc}. Install the package redis-server") from exc


def end_left_behind(folder: str) -> bool:
    """End a scratch instance that a killed run left in this folder; whether there was one."""
    _remove_socket(folder)
    path = os.path.join(folder, _PID)
    try:
        with open(path, encoding="ascii") as handle:
            pid = int(handle.read())
        # Another program may have the number by now.
        if os.path.realpath(f"/proc/{pid}/cwd") != os.path.realpath(folder):
            raise ProcessLookupError
        os.kill(pid, signal.SIGTERM)
    except (OSError, ValueError):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return False
    deadline = time.monotonic() + 15
    while os.path.exists(f"/proc/{pid}/cwd") and time.monotonic() < deadline:
        time.sleep(0.05)
    if os.path.exists(f"/proc/{pid}/cwd"):
        os.kill(pid, signal.SIGKILL)
    return True


def _remove_socket(folder: str) -> None:
    link = os.path.join(folder, _SOCKET)
    with contextlib.suppress(OSError):
        target = os.readlink(link)
        if os.path.basename(target).startswith("shannon-redis-"):
            shutil.rmtree(target, ignore_errors=True)
        os.unlink(link)


def _short_folder() -> str:
    found = tempfile.gettempdir()
    return found if len(found) < _SOCKET_PATH - 40 else "/tmp"


def _reason(log_path: str) -> str:
    """What Redis' log says of a file that it does not load."""
    with contextlib.suppress(OSError), open(log_path, encoding="utf-8", errors="replace") as handle:
        lines = [line.strip() for line in handle if line.strip()]
        telling = [line for line in lines if any(word in line for word in ("rror", "#", "Short read", "RDB"))]
        for number, line in enumerate(lines):
            # What it takes exception to, and why, comes after it.
            if "FATAL CONFIG FILE ERROR" in line:
                return " / ".join(lines[number:])[:500]
        return " / ".join((telling or lines)[-3:])[:500]
    return "it left no log"
