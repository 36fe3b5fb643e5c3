# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small synchronous client of Redis and Sentinel (RESP2 over TLS), so that hosts need no package for it."""

from __future__ import annotations

import socket
import ssl
import typing as t
from dataclasses import dataclass

from .errors import EndpointError, ResilienceError
from .http_client import describe

#: Roles as Redis names them, and as we do.
ROLES = {"master": "primary", "slave": "replica"}


class RedisReplyError(ResilienceError):
    """Redis refused a command; the text begins with its own word, such as NOAUTH or NOREPLICAS."""


@dataclass(frozen=True)
class Replication:
    """What an instance says of its replication (C(INFO replication) and C(INFO persistence)).

    :ivar role: primary or replica.
    :ivar offset: bytes of the replication stream that it wrote or applied.
    :ivar link: up or down, for a replica; empty for a primary.
    :ivar primary_address: whom a replica follows.
    :ivar replicas: how many replicas a primary has that are in line.
    :ivar priority: for Sentinel; 0 means never promoted.
    :ivar loading: whether it still reads its data from disk.
    """

    role: str
    offset: int
    link: str
    primary_address: str
    primary_port: int
    replicas: int
    priority: int
    loading: bool
    aof: bool
    keys: int = 0


class RedisClient:
    """One connection to one instance; it connects at the first command.

    :param host: name or address; it must be in the server's certificate when the context checks names.
    :param port: TCP port.
    :param username: ACL user; empty for no authentication.
    :param password: its password; it is in no error's text.
    :param context: TLS client context; None for plain TCP, which only tests use.
    :param timeout: seconds for connecting, and for each answer.
    """

    def __init__(
        self,
        host: str,
        port: int,
        username: str,
        password: str,
        context: ssl.SSLContext | None,
        timeout: float = 2.0,
    ) -> None:
        self.host = host
        self.port = port
        self.timeout = timeout
        self._credentials = (username, password)
        self._context = context
        self._socket: socket.socket | None = None
        self._reader: t.BinaryIO | None = None

    def __enter__(self) -> RedisClient:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def command(self, words: t.Sequence[str | int]) -> t.Any:
        """Send one command and return its reply: text, number, None, or a list of these.

        :raises RedisReplyError: Redis refused it.
        :raises EndpointError: no connection, or no complete answer in time; the connection is closed then.
        """
        try:
            if self._socket is None:
                self._connect()
            return self._exchange(words)
        except (OSError, ValueError) as exc:
            self.close()
            raise EndpointError(self.host, self.port, f"an answer to {words[0]}", describe(exc)) from exc

    def info(self, *sections: str) -> dict[str, str]:
        """C(INFO) as a mapping."""
        found: dict[str, str] = {}
        for section in sections or ("",):
            text = str(self.command(["INFO", section] if section else ["INFO"]))
            found.update(line.split(":", 1) for line in text.splitlines() if ":" in line)
        return found

    def replication(self) -> Replication:
        """What the instance says of its replication."""
        return parse_replication(self.info("replication", "persistence", "keyspace"))

    def close(self) -> None:
        """Close the connection; the next command opens a new one."""
        for thing in (self._reader, self._socket):
            if thing is not None:
                try:
                    thing.close()
                except OSError:
                    pass  # it is gone either way
        self._socket = self._reader = None

    def _connect(self) -> None:
        raw = socket.create_connection((self.host, self.port), timeout=self.timeout)
        try:
            connection = self._context.wrap_socket(raw, server_hostname=self.host) if self._context else raw
        except (OSError, ValueError):
            raw.close()
            raise
        connection.settimeout(self.timeout)
        self._socket = connection
        self._reader = connection.makefile("rb")
        username, password = self._credentials
        if username:
            try:
                self._exchange(["AUTH", username, password])
            except RedisReplyError:
                self.close()
                raise RedisReplyError(
                    f"{self.host}:{self.port}: expected to log in as {username}, got a refusal. "
                    "Is the password the one that was deployed?"
                ) from None

    def _exchange(self, words: t.Sequence[str | int]) -> t.Any:
        if self._socket is None or self._reader is None:
            raise ConnectionError("not connected")
        parts = [str(word).encode() for word in words]
        frame = [f"*{len(parts)}\r\n".encode()]
        for part in parts:
            frame += [f"${len(part)}\r\n".encode(), part, b"\r\n"]
        self._socket.sendall(b"".join(frame))
        reply = self._read()
        if isinstance(reply, RedisReplyError):
            raise RedisReplyError(f"{self.host}:{self.port}: {words[0]} was refused: {reply}")
        return reply

    def _read(self) -> t.Any:
        reader = t.cast(t.BinaryIO, self._reader)
        line = reader.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the connection was closed in the middle of an answer")
        kind, rest = line[:1], line[1:-2].decode(errors="replace")
        if kind == b"+":
            return rest
        if kind == b"-":
            return RedisReplyError(rest)
        if kind == b":":
            return int(rest)
        if kind == b"$":
            size = int(rest)
            if size < 0:
                return None
            body = reader.read(size + 2)
            if len(body) != size + 2:
                raise ConnectionError("the connection was closed in the middle of an answer")
            return body[:-2].decode(errors="replace")
        if kind == b"*":
            return None if int(rest) < 0 else [self._read() for _item in range(int(rest))]
        raise ValueError(f"an answer that is not RESP: {line[:20]!r}")


def parse_replication(info: t.Mapping[str, str]) -> Replication:
    """From C(INFO)'s replication, persistence and keyspace sections."""
    role = ROLES.get(info.get("role", ""), info.get("role", ""))
    is_primary = role == "primary"
    database = info.get("db0", "")
    keys = next((part.removeprefix("keys=") for part in database.split(",") if part.startswith("keys=")), "0")
    return Replication(
        role=role,
        offset=int(info.get("master_repl_offset" if is_primary else "slave_repl_offset", 0)),
        link="" if is_primary else info.get("master_link_status", "down"),
        primary_address="" if is_primary else info.get("master_host", ""),
        primary_port=0 if is_primary else int(info.get("master_port", 0)),
        replicas=int(info.get("connected_slaves", 0)),
        priority=int(info.get("slave_priority", 100)),
        loading=info.get("loading", "0") == "1",
        aof=info.get("aof_enabled", "0") == "1",
        keys=int(keys),
    )
