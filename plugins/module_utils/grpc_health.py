# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks the standard health service of a gRPC server, over HTTP/2 as far as one unary call needs it.

Request headers are sent without compression. Those of the answer are not read: what the health service says is in the
message, and a server without that service answers with headers alone.
"""

from __future__ import annotations

import ssl

from .errors import EndpointError
from .probe_connection import MAX_ANSWER, Frame, ProbeConnection, unpack_varint

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK = END_STREAM = 0x1
END_HEADERS = 0x4
PADDED = 0x8
STREAM = 1
METHOD = "/grpc.health.v1.Health/Check"
#: Of grpc.health.v1.HealthCheckResponse.
STATUSES = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}


def check(connection: ProbeConnection, host: str, port: int, context: ssl.SSLContext | None, service: str) -> None:
    """Be content when the server speaks gRPC and says that the service is serving.

    A server without the health service is fine unless a service was named.

    :param context: with C(h2) among its ALPN protocols; None for plain text.
    :param service: as the health service knows it; empty: the server as a whole.
    :raises EndpointError: it does not.
    :raises OSError: the connection broke.
    """
    if context is not None:
        agreed = connection.start_tls(context).selected_alpn_protocol()
        if agreed != "h2":
            raise EndpointError(host, port, "HTTP/2 (ALPN h2)", agreed or "no agreement", "Is it a gRPC server?")
    connection.send(PREFACE + frame(SETTINGS, 0, 0, b"") + _request(f"{host}:{port}", context is not None, service))
    message = bytearray()
    settled = False
    while True:
        found = _receive(connection, host, port)
        if found.kind == SETTINGS and not found.flags & ACK:
            settled = True
            connection.send(frame(SETTINGS, ACK, 0, b""))
        elif found.kind == PING and not found.flags & ACK:
            connection.send(frame(PING, ACK, 0, found.payload))
        elif found.kind in (RST_STREAM, GOAWAY):
            raise EndpointError(host, port, f"an answer to {METHOD}", "a stream that was reset", "Is it overloaded?")
        elif found.stream == STREAM and found.kind == DATA:
            message += _unpadded(found)
        if found.stream == STREAM and found.kind in (DATA, HEADERS) and found.flags & END_STREAM:
            break
    if not settled:
        raise EndpointError(host, port, "an HTTP/2 server", "an answer without SETTINGS", "Is it a gRPC server?")
    _judge(host, port, service, bytes(message))


def _judge(host: str, port: int, service: str, message: bytes) -> None:
    if not message:
        if service:
            raise EndpointError(host, port, f"the health of {service}", "no answer", "Does it have the health service?")
        return
    status = STATUSES.get(_status(message), "something else")
    if status != "SERVING":
        raise EndpointError(host, port, f"SERVING from {METHOD} of {service or 'the server'}", status)


def _status(message: bytes) -> int:
    """Field 1 of the only message; 0, its default, when it is left out."""
    body = message[5:]
    if message[0] or len(body) != int.from_bytes(message[1:5], "big"):
        return -1
    try:
        at = 0
        while at < len(body):
            key, at = unpack_varint(body, at)
            if key & 7 != 0:
                return -1
            value, at = unpack_varint(body, at)
            if key >> 3 == 1:
                return value
    except ValueError:
        return -1
    return 0


def _request(authority: str, secure: bool, service: str) -> bytes:
    name = service.encode()
    body = (b"\x0a" + _varint(len(name)) + name) if name else b""
    headers = {
        ":method": "POST",
        ":scheme": "https" if secure else "http",
        ":path": METHOD,
        ":authority": authority,
        "content-type": "application/grpc",
        "te": "trailers",
    }
    block = b"".join(b"\x00" + _text(key) + _text(value) for key, value in headers.items())
    data = b"\x00" + len(body).to_bytes(4, "big") + body
    return frame(HEADERS, END_HEADERS, STREAM, block) + frame(DATA, END_STREAM, STREAM, data)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """An HTTP/2 frame as it is sent."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _receive(connection: ProbeConnection, host: str, port: int) -> Frame:
    head = connection.receive(9)
    size = int.from_bytes(head[:3], "big")
    if size > MAX_ANSWER or head[3] > 0x20:
        raise EndpointError(host, port, "HTTP/2 frames", "something else", "Is it a gRPC server?")
    stream = int.from_bytes(head[5:9], "big") & 0x7FFFFFFF
    return Frame(head[3], head[4], stream, connection.receive(size))


def _unpadded(found: Frame) -> bytes:
    if not found.flags & PADDED or not found.payload:
        return found.payload
    return found.payload[1 : len(found.payload) - found.payload[0]]


def _text(value: str) -> bytes:
    """A string literal of HPACK, without Huffman coding."""
    raw = value.encode()
    if len(raw) < 127:
        return bytes([len(raw)]) + raw
    return b"\x7f" + _varint(len(raw) - 127) + raw


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
