# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hands requests for a cell to the gateways of its home region."""

from __future__ import annotations

import contextlib
import logging
import typing as t

import httpx
from fastapi import Request
from starlette.background import BackgroundTask
from starlette.responses import Response, StreamingResponse

from shannon.resilience.circuit_breaker import BreakerError, CircuitBreaker
from shannon.services.common import logs, metrics
from shannon.services.common.turns import Turns

from .errors import ApiError

#: The regions that a request came through: it is forwarded once, never round in circles.
FORWARDED = "X-Shannon-Forwarded"
#: Headers of one connection (RFC 9110, 7.6.1), and what is made anew.
_NOT_PASSED = frozenset(
    {
        "connection",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-request-id",
        "x-shannon-forwarded",
    }
)
_RETRY_AFTER = 2.0
_log: logging.Logger = logs.get(__name__)


class Forwarder:
    """Forwards with mutual TLS, bodies streamed both ways.

    :param region: the own one.
    :param gateways: per region, a client with its base URL and the breaker (kind http) of each gateway.
    :param timeout: seconds until the answer begins, and between two parts of it; for streams C(idle) instead.
    """

    def __init__(
        self,
        region: str,
        gateways: t.Mapping[str, t.Sequence[tuple[httpx.AsyncClient, CircuitBreaker]]],
        timeout: float,
        idle: float,
    ) -> None:
        self._region = region
        self._gateways = gateways
        self._timeout = timeout
        self._idle = idle
        self._turns = Turns()
        self._count = metrics.counter(
            "shannon_gateway_forwarded_total", "Requests for cells of another region.", ("region", "result")
        )

    async def forward(self, request: Request, cell: str, home: str | None, headers: t.Mapping[str, str]) -> Response:
        """The answer of the home region.

        :raises ApiError: 508 when the request was forwarded already, 503 when nobody is there.
        """
        if FORWARDED.lower() in headers:
            # Two regions each take the other for the home: one of them has not heard of a change yet.
            raise ApiError(508, "loop", f"this region is not the home of cell {cell} either; try again", _RETRY_AFTER)
        if home is None:
            raise ApiError(503, "unavailable", f"the home of cell {cell} is not known yet; try again", _RETRY_AFTER)
        candidates = self._gateways.get(home, ())
        for client, breaker in self._turns.order(candidates):
            outgoing = _Body(request)
            try:
                answer = await breaker.call_async(self._send, client, request, outgoing)
            except BreakerError:
                continue
            except httpx.TransportError as exc:
                fields = {"gateway": str(client.base_url), "error": f"{type(exc).__name__}: {exc}"}
                _log.warning("a gateway of the home region does not answer", extra={"fields": fields})
                if isinstance(exc, (httpx.ConnectError, httpx.ConnectTimeout)) and not outgoing.begun:
                    continue  # it never got the request
                break
            self._count.labels(home, "ok").inc()
            return _answer(answer)
        self._count.labels(home, "failed").inc()
        text = f"the home region of cell {cell} ({home}) can't be reached; try again"
        raise ApiError(503, "unavailable", text, _RETRY_AFTER)

    async def close(self) -> None:
        """Close all connections."""
        for candidates in self._gateways.values():
            for client, _breaker in candidates:
                await client.aclose()

    async def _send(self, client: httpx.AsyncClient, request: Request, body: _Body) -> httpx.Response:
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _NOT_PASSED]
        headers += [(FORWARDED, self._region), ("X-Request-ID", logs.request_id.get())]
        streaming = request.url.path.endswith("/stream")
        timeout = httpx.Timeout(self._timeout, connect=min(2.0, self._timeout))
        if streaming:
            timeout = httpx.Timeout(self._timeout, connect=min(2.0, self._timeout), read=self._idle)
        has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
        target = httpx.URL(path=request.url.path, query=request.url.query.encode())
        outgoing = client.build_request(
            request.method, target, headers=headers, content=body.parts() if has_body else None, timeout=timeout
        )
        return await client.send(outgoing, stream=True)


class _Body:
    """A request's body, and whether any of it was sent."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self.begun = False

    async def parts(self) -> t.AsyncIterator[bytes]:
        async for part in self._request.stream():
            self.begun = True
            yield part


def _answer(answer: httpx.Response) -> Response:
    async def parts() -> t.AsyncIterator[bytes]:
        try:
            async for part in answer.aiter_raw():
                yield part
        except httpx.TransportError as exc:
            # The head is sent: all that is left is to break off, so that the client sees that something is missing.
            _log.warning("a forwarded answer broke off", extra={"fields": {"error": f"{type(exc).__name__}: {exc}"}})
            raise

    async def close() -> None:
        with contextlib.suppress(httpx.TransportError):
            await answer.aclose()

    response = StreamingResponse(parts(), status_code=answer.status_code, background=BackgroundTask(close))
    raw = [(name, value) for name, value in answer.headers.raw if name.decode("latin-1").lower() not in _NOT_PASSED]
    response.raw_headers = [(name.lower(), value) for name, value in raw]
    return response
