# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A connection that is over by a deadline, however slowly the other side talks."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
import typing as t

#: What an endpoint may say at most, in bytes; more is not an answer to a probe.
MAX_ANSWER = 1 << 20


class ProbeConnection:
    """A TCP connection, with TLS on request. All of it, connecting included, ends by the deadline.

    :param host: name or address.
    :param port: TCP port.
    :param timeout: seconds for everything that is done with it.
    :param server_name: the name that the certificate must have; empty: the host.
    :raises OSError: it can't be connected.
    """

    def __init__(self, host: str, port: int, timeout: float, server_name: str = "") -> None:
        self._deadline = time.monotonic() + timeout
        self._server_name = server_name or host
        self._read_so_far = 0
        self._socket: socket.socket = self._connect(host, port)

    def __enter__(self) -> ProbeConnection:
        return self

    def __exit__(self, *_exc: object) -> None:
        with contextlib.suppress(OSError):  # it is over either way
            self._socket.close()

    def _connect(self, host: str, port: int) -> socket.socket:
        failure: OSError | None = None
        for family, kind, protocol, _name, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            candidate = socket.socket(family, kind, protocol)
            try:
                candidate.settimeout(self._left())
                candidate.connect(address)
                candidate.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as exc:
                candidate.close()
                failure = exc
            else:
                return candidate
        raise failure or OSError(f"{host} has no address")

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left

    @property
    def socket(self) -> socket.socket:
        """The socket as it is now, its timeout what is left."""
        self._socket.settimeout(self._left())
        return self._socket

    def start_tls(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        """Go on in TLS.

        :raises OSError: no TLS, or another certificate than expected.
        """
        self._socket.settimeout(self._left())
        secured = context.wrap_socket(self._socket, server_hostname=self._server_name)
        self._socket = secured
        return secured

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self.socket.sendall(data)

    def receive(self, size: int) -> bytes:
        """Exactly so many bytes.

        :raises ConnectionError: the other side closed before, or said more than an answer has.
        """
        self._read_so_far += size
        if self._read_so_far > MAX_ANSWER:
            raise ConnectionError(f"more than {MAX_ANSWER} bytes, which is no answer to a probe")
        parts = bytearray()
        while len(parts) < size:
            part = self.socket.recv(size - len(parts))
            if not part:
                raise ConnectionError("the connection was closed in the middle of an answer")
            parts += part
        return bytes(parts)

    def receive_line(self, limit: int = 4096) -> bytes:
        """Up to the end of a line, without it.

        :raises ConnectionError: as :meth:`receive`, or the line is longer than the limit.
        """
        line = bytearray()
        while not line.endswith(b"\n"):
            line += self.receive(1)
            if len(line) > limit:
                raise ConnectionError(f"a line of more than {limit} bytes, which is no answer to a probe")
        return bytes(line).rstrip(b"\r\n")


def unpack_varint(data: bytes, at: int) -> tuple[int, int]:
    """A protobuf varint, and where it ends.

    :raises ValueError: it does not end.
    """
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number without an end")


class Frame(t.NamedTuple):
    """An HTTP/2 frame."""

    kind: int
    flags: int
    stream: int
    payload: bytes
