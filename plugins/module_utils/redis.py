# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small synchronous client of Redis and Sentinel (RESP2 or RESP3 over TLS), so that hosts need no package for it."""

from __future__ import annotations

import contextlib
import socket
import ssl
import typing as t
from dataclasses import dataclass

from .errors import EndpointError, ResilienceError
from .http_client import describe

#: Roles as Redis names them, and as we do.
ROLES = {"master": "primary", "slave": "replica"}


#: Replies are never nested deeper than this.
MAX_DEPTH = 16


class RedisReplyError(ResilienceError):
    """Redis refused a command; the text carries its own word, such as NOAUTH or NOREPLICAS."""


@dataclass(frozen=True)
class ReplicaLink:
    """A replica as its primary sees it (a C(slaveN) line of C(INFO replication)).

    :ivar state: online when it is in line; wait_bgsave or send_bulk while it copies.
    :ivar lag: seconds since it last said how far it is.
    """

    address: str
    port: int
    state: str
    offset: int
    lag: int


@dataclass(frozen=True)
class SentinelView:
    """Whom a Sentinel takes for the primary of a group.

    :ivar epoch: grows with each failover; of two that differ, the one with the higher epoch knows better.
    :ivar flags: what it thinks of it: master, s_down, o_down, failover_in_progress, ...
    """

    address: str
    port: int
    epoch: int
    flags: tuple[str, ...] = ()
    quorum: int = 0
    other_sentinels: int = 0


@dataclass(frozen=True)
class Replication:
    """What an instance says of its replication (C(INFO replication) and C(INFO persistence)).

    :ivar role: primary or replica.
    :ivar offset: bytes of the replication stream that it wrote or applied.
    :ivar link: up or down, for a replica; empty for a primary.
    :ivar primary_address: whom a replica follows.
    :ivar replicas: how many replicas an instance has that are in line.
    :ivar priority: for Sentinel; 0 means never promoted.
    :ivar loading: whether it still reads its data, from disk or from its primary; C(keys) is not true yet then.
    :ivar aof: whether it keeps an append-only file.
    :ivar keys: keys in all databases.
    :ivar links: its replicas, one by one.
    :ivar version: of the server.
    :ivar id: of the history that C(offset) counts in; a process that was started anew as a primary has a new one.
    :ivar former_id: of the history that it went on from when it became the primary; empty when there is none.
    :ivar former_end: the offset in that history up to which it is its own, too.
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
    links: tuple[ReplicaLink, ...] = ()
    version: str = ""
    id: str = ""
    former_id: str = ""
    former_end: int = 0


class RedisClient:
    """One connection to one instance; it connects at the first command.

    :param host: name or address; it must be in the server's certificate when the context checks names. A path names a
        Unix socket.
    :param port: TCP port; not used for a Unix socket.
    :param username: ACL user; empty for no authentication.
    :param password: its password; it is in no error's text.
    :param context: TLS client context; None for plain TCP, which only tests use.
    :param timeout: seconds for connecting, and for each part of an answer.
    :param protocol: 2, or 3 for typed replies (mappings, sets, floats, booleans).
    """

    def __init__(
        self,
        host: str,
        port: int,
        username: str,
        password: str,
        context: ssl.SSLContext | None,
        timeout: float = 2.0,
        protocol: int = 2,
    ) -> None:
        self.host = host
        self.port = port
        self.timeout = timeout
        self.protocol = protocol
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
        (reply,) = self.pipeline([words])
        if isinstance(reply, RedisReplyError):
            raise reply
        return reply

    def pipeline(self, commands: t.Sequence[t.Sequence[str | int]]) -> list[t.Any]:
        """Send several commands at once and return their replies; one that was refused yields its RedisReplyError.

        :raises RedisReplyError: the login was refused.
        :raises EndpointError: no connection, or no complete answer in time; the connection is closed then, and nobody
            knows which of the commands were carried out.
        """
        if not commands:
            return []
        try:
            if self._socket is None:
                self._connect()
            return self._exchange(commands)
        except (OSError, ValueError) as exc:
            self.close()
            raise EndpointError(self.host, self.port, f"an answer to {commands[0][0]}", describe(exc)) from exc

    def info(self, *sections: str) -> dict[str, str]:
        """C(INFO) as a mapping; without sections, Redis' own choice of them."""
        found: dict[str, str] = {}
        for reply in self.pipeline([["INFO", section] if section else ["INFO"] for section in sections or ("",)]):
            if isinstance(reply, RedisReplyError):
                raise reply
            found.update(parse_info(str(reply)))
        return found

    def role(self) -> list[t.Any]:
        """C(ROLE), with the first word as we name it: primary, replica or sentinel."""
        name, *rest = self.command(["ROLE"])
        return [ROLES.get(name, name), *rest]

    def sentinel_view(self, group: str) -> SentinelView | None:
        """Whom a Sentinel takes for the group's primary; None when it does not know the group."""
        (reply,) = self.pipeline([["SENTINEL", "MASTER", group]])
        if isinstance(reply, RedisReplyError):
            if "No such master" in str(reply):
                return None
            raise reply
        found = as_mapping(reply)
        return SentinelView(
            address=str(found["ip"]),
            port=int(found["port"]),
            epoch=int(found.get("config-epoch", 0)),
            flags=tuple(str(found.get("flags", "")).split(",")),
            quorum=int(found.get("quorum", 0)),
            other_sentinels=int(found.get("num-other-sentinels", 0)),
        )

    def replication(self) -> Replication:
        """What the instance says of its replication."""
        return parse_replication(self.info("server", "replication", "persistence", "keyspace"))

    def close(self) -> None:
        """Close the connection; the next command opens a new one."""
        for thing in (self._reader, self._socket):
            if thing is not None:
                with contextlib.suppress(OSError):  # it is gone either way
                    thing.close()
        self._socket = self._reader = None

    def _connect(self) -> None:
        raw = self._connected()
        try:
            connection = self._context.wrap_socket(raw, server_hostname=self.host) if self._context else raw
        except (OSError, ValueError):
            raw.close()
            raise
        connection.settimeout(self.timeout)
        self._socket = connection
        self._reader = connection.makefile("rb")
        username, password = self._credentials
        greeting: list[str | int] = []
        if self.protocol == 3:
            greeting = ["HELLO", 3, *(["AUTH", username, password] if username else [])]
        elif username:
            greeting = ["AUTH", username, password]
        if not greeting:
            return
        (reply,) = self._exchange([greeting])
        if isinstance(reply, RedisReplyError):
            self.close()
            raise RedisReplyError(
                f"{self.host}:{self.port}: expected to log in as {username or 'nobody'}, got "
                f"{_first_word(str(reply))}. Is the password the one that was deployed?"
            )

    def _connected(self) -> socket.socket:
        if not self.host.startswith("/"):
            return socket.create_connection((self.host, self.port), timeout=self.timeout)
        local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            local.settimeout(self.timeout)
            local.connect(self.host)
        except OSError:
            local.close()
            raise
        return local

    def _exchange(self, commands: t.Sequence[t.Sequence[str | int]]) -> list[t.Any]:
        if self._socket is None:
            raise ConnectionError("not connected")
        self._socket.sendall(b"".join(encode(words) for words in commands))
        replies = []
        for words in commands:
            reply = self._read()
            if isinstance(reply, RedisReplyError):
                text = self._without_secrets(str(reply), words)
                reply = RedisReplyError(f"{self.host}:{self.port}: {words[0]} was refused: {text}")
            replies.append(reply)
        return replies

    def _without_secrets(self, text: str, words: t.Sequence[str | int]) -> str:
        """Redis repeats arguments in some of its errors, and a password may be among them."""
        secrets = {self._credentials[1]}
        secrets |= {part for word in words[1:] for part in (str(word), str(word).lstrip("><#!")) if len(part) >= 12}
        for secret in sorted(filter(None, secrets), key=len, reverse=True):
            text = text.replace(secret, "***")
        return text

    def _read(self, depth: int = 0) -> t.Any:
        if depth > MAX_DEPTH:
            raise ValueError("an answer that is nested too deeply")
        reader = t.cast(t.BinaryIO, self._reader)
        line = reader.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the connection was closed in the middle of an answer")
        kind, rest = line[:1], line[1:-2].decode(errors="replace")
        if kind in _SCALARS:
            return _SCALARS[kind](rest)
        if kind in (b"$", b"=", b"!"):
            size = int(rest)
            if size < 0:
                return None
            body = reader.read(size + 2)
            if len(body) != size + 2:
                raise ConnectionError("the connection was closed in the middle of an answer")
            text = body[:-2].decode(errors="replace")
            return RedisReplyError(text) if kind == b"!" else text[4:] if kind == b"=" else text
        if kind in (b"*", b"~"):
            return None if int(rest) < 0 else [self._read(depth + 1) for _item in range(int(rest))]
        if kind == b"%":
            return {str(self._read(depth + 1)): self._read(depth + 1) for _item in range(int(rest))}
        if kind in (b"|", b">"):  # attributes and pushes stand before an answer, and are not part of it
            for _item in range(int(rest) * (2 if kind == b"|" else 1)):
                self._read(depth + 1)
            return self._read(depth)
        raise ValueError(f"an answer that is not RESP: {line[:20]!r}")


_SCALARS: dict[bytes, t.Callable[[str], t.Any]] = {
    b"+": str,
    b"-": RedisReplyError,
    b":": int,
    b"(": int,
    b",": float,
    b"#": lambda rest: rest == "t",
    b"_": lambda _rest: None,
}


def replication_info(
    host: str,
    port: int,
    username: str,
    password: str,
    context: ssl.SSLContext | None,
    timeout: float = 2.0,
) -> Replication:
    """What one instance says of its replication, over a connection of its own."""
    with RedisClient(host, port, username, password, context, timeout) as client:
        return client.replication()


def encode(words: t.Sequence[str | int]) -> bytes:
    """A command as Redis reads it."""
    parts = [str(word).encode() for word in words]
    frame = [f"*{len(parts)}\r\n".encode()]
    for part in parts:
        frame += [f"${len(part)}\r\n".encode(), part, b"\r\n"]
    return b"".join(frame)


def as_mapping(reply: t.Any) -> dict[str, t.Any]:
    """A mapping, which RESP2 sends as a flat list of names and values."""
    if isinstance(reply, dict):
        return reply
    return {str(name): value for name, value in zip(reply[::2], reply[1::2], strict=False)}


def parse_info(text: str) -> dict[str, str]:
    """C(INFO)'s lines as a mapping."""
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line and not line.startswith("#"))
    return {name: value.strip() for name, value in pairs}


def parse_replication(info: t.Mapping[str, str]) -> Replication:
    """From C(INFO)'s server, replication, persistence and keyspace sections."""
    role = ROLES.get(info.get("role", ""), info.get("role", ""))
    is_primary = role == "primary"
    databases = [_fields(value) for name, value in info.items() if name.startswith("db") and name[2:].isdigit()]
    links = [_fields(value) for name, value in info.items() if name.startswith("slave") and name[5:].isdigit()]
    # Redis writes an id that there is not as zeros.
    former_id = info.get("master_replid2", "").strip("0") and info["master_replid2"]
    return Replication(
        role=role,
        offset=int(info.get("master_repl_offset" if is_primary else "slave_repl_offset", 0)),
        link="" if is_primary else info.get("master_link_status", "down"),
        primary_address="" if is_primary else info.get("master_host", ""),
        primary_port=0 if is_primary else int(info.get("master_port", 0)),
        replicas=sum(link.get("state") == "online" for link in links),
        priority=int(info.get("slave_priority", 100)),
        loading=info.get("loading", "0") == "1",
        aof=info.get("aof_enabled", "0") == "1",
        keys=sum(int(database.get("keys", 0)) for database in databases),
        links=tuple(
            ReplicaLink(
                address=link.get("ip", ""),
                port=int(link.get("port", 0)),
                state=link.get("state", ""),
                offset=int(link.get("offset", 0)),
                lag=int(link.get("lag", -1)),
            )
            for link in links
        ),
        version=info.get("redis_version", ""),
        id=info.get("master_replid", ""),
        former_id=former_id,
        # Redis says the first byte that is no longer the former history's.
        former_end=max(0, int(info.get("second_repl_offset", 0)) - 1) if former_id else 0,
    )


def _fields(value: str) -> dict[str, str]:
    """C(a=1,b=2) as a mapping."""
    return dict(part.split("=", 1) for part in value.split(",") if "=" in part)


def _first_word(text: str) -> str:
    return text.split(maxsplit=1)[0] if text.split() else "a refusal"
