# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Health probes by protocol, with nothing but the standard library.

Each asks for what its kind of endpoint answers when it is well. A probe changes nothing where it asks,
and ends within its time.
"""

from __future__ import annotations

import http.client
import json
import ssl
import typing as t
from dataclasses import dataclass, field

from . import grpc_health
from .errors import EndpointError
from .http_client import describe
from .probe_connection import MAX_ANSWER, ProbeConnection
from .redis import encode

#: Default port by kind; http, grpc and tcp have none.
PORTS = {"postgres": 5432, "patroni": 8008, "redis": 6379, "sentinel": 26379, "qdrant": 6333, "etcd": 2379}
KINDS = (*PORTS, "http", "grpc", "tcp")
#: Paths that say whether it is well, of those that speak HTTP.
PATHS = {"patroni": "/health", "qdrant": "/readyz", "etcd": "/health", "http": "/"}

_SSL_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")
_PROTOCOL_3 = (196608).to_bytes(4, "big")
#: Errors to a startup packet that only a server gives that takes connections: wrong credentials, no such database.
_SQLSTATES_OF_A_SERVER_THAT_WORKS = ("28", "3D")


@dataclass(frozen=True)
class Target:
    """What to probe.

    :ivar kind: one of :data:`KINDS`.
    :ivar context: TLS client context; None: without TLS.
    :ivar server_name: the name that its certificate must have; empty: the host.
    :ivar username: of Redis' ACL, or of PostgreSQL's startup packet.
    :ivar password: of Redis.
    :ivar api_key: of Qdrant.
    :ivar database: of PostgreSQL's startup packet.
    :ivar path: of HTTP; empty: the kind's.
    :ivar statuses: that HTTP may answer with.
    :ivar service: that gRPC's health service is asked about; empty: the server as a whole.
    """

    kind: str
    host: str
    port: int
    timeout: float = 2.0
    context: ssl.SSLContext | None = field(default=None, repr=False)
    server_name: str = ""
    username: str = ""
    password: str = field(default="", repr=False)
    api_key: str = field(default="", repr=False)
    database: str = "postgres"
    path: str = ""
    statuses: tuple[int, ...] = (200,)
    service: str = ""


def probe(target: Target) -> None:
    """Be content when the endpoint is well.

    :raises EndpointError: it is not; the text says what it should have done, and what it did.
    """
    expected, ask = _PROBES[target.kind]
    try:
        with ProbeConnection(target.host, target.port, target.timeout, target.server_name) as connection:
            ask(target, connection)
    except EndpointError:
        raise
    except (OSError, ValueError, http.client.HTTPException) as exc:
        raise EndpointError(target.host, target.port, expected, describe(exc)) from exc


def _tcp(target: Target, connection: ProbeConnection) -> None:
    if target.context is not None:
        connection.start_tls(target.context)


def _postgres(target: Target, connection: ProbeConnection) -> None:
    """As pg_isready does it: who answers a startup packet takes connections, even if it refuses this one."""
    if target.context is not None:
        connection.send(_SSL_REQUEST)
        if connection.receive(1) != b"S":
            raise _unexpected(target, "TLS", "a server without TLS", "Set ssl = on, or probe it with tls: false.")
        connection.start_tls(target.context)
    words = ("user", target.username or "postgres", "database", target.database, "application_name", "health_check")
    body = _PROTOCOL_3 + b"".join(word.encode() + b"\0" for word in words) + b"\0"
    connection.send((len(body) + 4).to_bytes(4, "big") + body)
    kind = connection.receive(1)
    if kind == b"R":
        return
    if kind != b"E":
        raise _unexpected(target, "an answer to a startup packet", repr(kind), "Is it PostgreSQL?")
    size = int.from_bytes(connection.receive(4), "big") - 4
    parts = connection.receive(size).split(b"\0")
    fields = {part[:1]: part[1:].decode(errors="replace") for part in parts if part}
    state = fields.get(b"C", "")
    if state[:2] not in _SQLSTATES_OF_A_SERVER_THAT_WORKS:
        raise _unexpected(target, "a server that takes connections", f"{state} {fields.get(b'M', '')}".strip())


def _redis(target: Target, connection: ProbeConnection) -> None:
    if target.context is not None:
        connection.start_tls(target.context)
    if target.password:
        credentials = [target.username, target.password] if target.username else [target.password]
        connection.send(encode(["AUTH", *credentials]))
        answer = connection.receive_line()
        if answer != b"+OK":
            # Redis does not repeat the password here, but its first word says all there is to say.
            word = answer.decode(errors="replace").lstrip("-").split(" ", 1)[0]
            raise _unexpected(target, "to log in", word, "Is the password the one that was deployed?")
    connection.send(encode(["PING"]))
    answer = connection.receive_line()
    if answer != b"+PONG":
        remedy = "Give username and password." if answer.startswith(b"-NOAUTH") else ""
        raise _unexpected(target, "PONG to PING", answer.decode(errors="replace")[:200], remedy)


def _http(target: Target, connection: ProbeConnection) -> None:
    status, body = _get(target, connection)
    if status not in target.statuses:
        wanted = " or ".join(str(one) for one in target.statuses)
        raise _unexpected(target, f"HTTP {wanted} to GET {_path(target)}", f"HTTP {status}{_said(body)}")


def _etcd(target: Target, connection: ProbeConnection) -> None:
    status, body = _get(target, connection)
    try:
        health = json.loads(body)
    except ValueError:
        health = None
    if not isinstance(health, dict) or str(health.get("health", "")).lower() != "true":
        raise _unexpected(
            target, f"a member that can read through a quorum ({_path(target)})", f"HTTP {status}{_said(body)}"
        )


def _grpc(target: Target, connection: ProbeConnection) -> None:
    grpc_health.check(connection, target.host, target.port, target.context, target.service)


def _get(target: Target, connection: ProbeConnection) -> tuple[int, bytes]:
    if target.context is not None:
        connection.start_tls(target.context)
    client = http.client.HTTPConnection(target.host, target.port)
    client.sock = connection.socket
    headers = {"Accept": "*/*", "Connection": "close"}
    if target.api_key:
        headers["api-key"] = target.api_key
    client.request("GET", _path(target), headers=headers)
    answer = client.getresponse()
    return answer.status, answer.read(MAX_ANSWER)


def _path(target: Target) -> str:
    return target.path or PATHS[target.kind]


def _said(body: bytes) -> str:
    text = " ".join(body[:200].decode(errors="replace").split())
    return f": {text}" if text else ""


def _unexpected(target: Target, expected: str, seen: str, remedy: str = "") -> EndpointError:
    return EndpointError(target.host, target.port, expected, seen, remedy)


_PROBES: dict[str, tuple[str, t.Callable[[Target, ProbeConnection], None]]] = {
    "postgres": ("an answer to a startup packet", _postgres),
    "patroni": ("a member whose PostgreSQL runs", _http),
    "redis": ("PONG to PING", _redis),
    "sentinel": ("PONG to PING", _redis),
    "qdrant": ("a peer that is ready", _http),
    "etcd": ("a member that can read through a quorum", _etcd),
    "http": ("an HTTP answer", _http),
    "grpc": ("an answer of the health service", _grpc),
    "tcp": ("a connection", _tcp),
}
