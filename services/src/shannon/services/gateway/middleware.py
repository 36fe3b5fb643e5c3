# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Around every request: its id, its size, its metrics, and an answer even when a handler crashes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import typing as t
import uuid

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shannon.services.common import logs, metrics
from shannon.services.common.config import Gateway

from .errors import answer

_WELL_FORMED = re.compile(rb"[A-Za-z0-9_.:-]{1,128}")
_log: logging.Logger = logs.get(__name__)


class Envelope:
    """ASGI middleware; the outermost.

    :param large: path whose bodies may have C(max_tool_body) bytes: uploads.
    """

    def __init__(self, app: ASGIApp, settings: Gateway, large: str) -> None:
        self._app = app
        self._settings = settings
        self._large = large
        self._requests = metrics.counter(
            "shannon_gateway_requests_total", "HTTP requests.", ("method", "route", "status")
        )
        self._seconds = metrics.histogram(
            "shannon_gateway_request_duration_seconds", "Seconds until the answer's head was sent.", ("route",)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if _WELL_FORMED.fullmatch(given) else uuid.uuid4().hex
        token = logs.request_id.set(request_id)
        started = time.perf_counter()
        status = 0

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                kept = [(name, value) for name, value in message["headers"] if name.lower() != b"x-request-id"]
                message["headers"] = [*kept, (b"x-request-id", request_id.encode())]
                self._count(scope, status, time.perf_counter() - started)
            await send(message)

        limit = self._settings.max_tool_body if scope["path"] == self._large else self._settings.max_body
        try:
            if _length(headers) > limit:
                await _swallow(receive)
                closed = {"connection": "close"}
                await answer(413, "too_large", f"the body has more than {limit} bytes", closed)(scope, receive, tagged)
                return
            await self._app(scope, _bounded(receive, limit), tagged)
        except ClientDisconnect:
            # Nobody is there to be answered; an edge that ends its sessions does this to many at once.
            _log.info("a client left before its request was read")
        except Exception:
            _log.exception("a request crashed")
            if not status:
                text = "the request failed; the logs have its request_id"
                await answer(500, "internal", text)(scope, receive, tagged)
        finally:
            logs.request_id.reset(token)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        # Routes, not paths: ids in them would make a series of each task.
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)


#: Bytes, and seconds, that are spent on a body that is refused.
_MOST_SWALLOWED = 32 * 2**20
_LONGEST_SWALLOW = 10.0
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def _length(headers: t.Mapping[bytes, bytes]) -> int:
    value = headers.get(b"content-length", b"0")
    return int(value) if value.isdigit() else 0


async def _swallow(receive: Receive) -> None:
    """Read what a client still sends, within bounds, and forget it.

    A connection that is closed on unread data is reset, and then neither the edge nor the client sees the answer.
    """

    async def rest() -> None:
        seen = 0
        while seen < _MOST_SWALLOWED:
            message = await receive()
            if message["type"] != "http.request" or not message.get("more_body"):
                return
            seen += len(message.get("body", b""))

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(rest(), _LONGEST_SWALLOW)


def _bounded(receive: Receive, limit: int) -> Receive:
    """What comes without a length is counted as it comes."""
    seen = 0

    async def bounded() -> Message:
        nonlocal seen
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            if seen > limit:
                if message.get("more_body"):
                    await _swallow(receive)
                raise HTTPException(413, f"the body has more than {limit} bytes", {"connection": "close"})
        return message

    return bounded
