# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small JSON-over-HTTPS client: one request, one bounded time, one clear error."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import typing as t
import weakref
from dataclasses import dataclass, field

from .errors import EndpointError


@dataclass(frozen=True)
class Response:
    """Status code and decoded body (None when empty, text when it is not JSON)."""

    status: int
    body: t.Any


@dataclass
class JsonEndpoint:
    """One HTTP(S) endpoint that speaks JSON.

    :param host: name or address; it must be in the server's certificate when the context checks names.
    :param port: TCP port.
    :param context: TLS client context; None means plain HTTP.
    :param timeout: seconds for connecting and again for each read.
    :param headers: sent with every request (an API key, say).
    """

    host: str
    port: int
    context: ssl.SSLContext | None = None
    timeout: float = 2.0
    headers: dict[str, str] = field(default_factory=dict)

    def request(
        self,
        method: str,
        path: str,
        body: t.Any = None,
        timeout: float | None = None,
        kept: http.client.HTTPConnection | None = None,
    ) -> Response:
        """Send one request; any HTTP status is an answer, not an error.

        :param kept: an open connection to use, and to leave open; a failure closes it.
        :raises EndpointError: no connection, no TLS, or no complete answer within the timeout.
        """
        connection = kept or self.connection(timeout)
        headers = {"Accept": "application/json", **self.headers}
        payload = None
        if body is not None:
            payload = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        whole = False
        try:
            connection.request(method, path, body=payload, headers=headers)
            answer = connection.getresponse()
            raw = answer.read()
            status = answer.status
            whole = not answer.will_close
        except (OSError, http.client.HTTPException) as exc:
            raise EndpointError(self.host, self.port, f"an answer to {method} {path}", describe(exc)) from exc
        finally:
            if kept is None or not whole:
                connection.close()
        return Response(status, _decode(raw))

    def connection(self, timeout: float | None = None) -> http.client.HTTPConnection:
        """A connection that is not open yet, for an answer that comes in parts."""
        limit = self.timeout if timeout is None else timeout
        if self.context is None:
            return http.client.HTTPConnection(self.host, self.port, timeout=limit)
        return _Resuming(self.host, self.port, timeout=limit, context=self.context)

    def expect(
        self,
        method: str,
        path: str,
        body: t.Any = None,
        statuses: tuple[int, ...] = (200,),
        timeout: float | None = None,
    ) -> t.Any:
        """Like :meth:`request`, but only the given statuses are fine; returns the body.

        :raises EndpointError: as :meth:`request`, or another status.
        """
        response = self.request(method, path, body, timeout)
        if response.status not in statuses:
            wanted = " or ".join(str(status) for status in statuses)
            raise EndpointError(
                self.host,
                self.port,
                f"HTTP {wanted} to {method} {path}",
                f"HTTP {response.status}: {_brief(response.body)}",
            )
        return response.body


#: By context, and by host and port: the last TLS session. Who is asked every second need not show its certificate, and
#: look at the other's, each time; a server that was restarted, or does not want to, has both done anew.
_SESSIONS: weakref.WeakKeyDictionary[ssl.SSLContext, dict[tuple[str, int], ssl.SSLSession]] = (
    weakref.WeakKeyDictionary()
)


class _Resuming(http.client.HTTPSConnection):
    """An HTTPS connection that takes its server's last TLS session up again."""

    def __init__(self, host: str, port: int, *, timeout: float, context: ssl.SSLContext) -> None:
        super().__init__(host, port, timeout=timeout, context=context)
        self._tls = context

    def connect(self) -> None:
        http.client.HTTPConnection.connect(self)
        session = _SESSIONS.get(self._tls, {}).get((self.host, self.port))
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self.host, session=session)

    def getresponse(self) -> http.client.HTTPResponse:
        # The server's ticket comes with its first words; the socket is gone from here once those are read.
        sock = self.sock
        answer = super().getresponse()
        session = sock.session if isinstance(sock, ssl.SSLSocket) else None
        if session is not None and session.has_ticket:
            _SESSIONS.setdefault(self._tls, {})[(self.host, self.port)] = session
        return answer


def describe(exc: BaseException) -> str:
    """What went wrong on a connection, in a few words that an operator knows."""
    if isinstance(exc, socket.timeout):  # is TimeoutError from 3.10 on
        return "no answer in time (host down, or a firewall drops packets)"
    if isinstance(exc, ConnectionRefusedError):
        return "connection refused (nothing listens there)"
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"a certificate that does not verify: {exc.verify_message}"
    if isinstance(exc, ssl.SSLError):
        return f"a TLS failure: {exc.reason or exc}"
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__


def _decode(raw: bytes) -> t.Any:
    if not raw.strip():
        return None
    try:
        return json.loads(raw)
    except ValueError:
        return raw.decode(errors="replace")


def _brief(body: t.Any, limit: int = 200) -> str:
    text = body if isinstance(body, str) else json.dumps(body)
    return text if len(text) <= limit else text[:limit] + "..."
