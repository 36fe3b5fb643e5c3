# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Server-sent events of a task (seed facts in full, 9.2)."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import typing as t

import grpc
from grpc import aio

from shannon.services.common import logs, metrics
from shannon.services.common.config import Gateway
from shannon.services.common.grpc_client import NoEndpointError

from .errors import ApiError
from .live import Hub
from .merge import END, PARTIAL, Delivery, Merger, Stored

_NAMES = {
    PARTIAL: "thread.message.delta",
    "LLM_OUTPUT": "thread.message.completed",
    "ERROR_OCCURRED": "error",
    "WORKFLOW_PAUSING": "workflow.pausing",
    "WORKFLOW_PAUSED": "workflow.paused",
    "WORKFLOW_RESUMED": "workflow.resumed",
    "WORKFLOW_CANCELLING": "workflow.cancelling",
    "WORKFLOW_CANCELLED": "workflow.cancelled",
    END: "done",
}
_PING = b": ping\n\n"
_DONE = b"event: done\ndata: [DONE]\n\n"
#: What an orchestrator's absence looks like: the stream goes on when one is back.
_AWAY = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
    }
)
_log: logging.Logger = logs.get(__name__)


class Streams:
    """All open streams, of which there are at most C(max_streams)."""

    def __init__(self, settings: Gateway) -> None:
        self._settings = settings
        self._open = 0
        self._ending = asyncio.Event()
        self._gauge = metrics.gauge("shannon_gateway_streams", "Streams that clients have open.")

    def take(self) -> None:
        """Take a place; :meth:`release` gives it back.

        :raises ApiError: there is none, or the gateway ends.
        """
        if self._open >= self._settings.max_streams:
            raise ApiError(503, "too_many_streams", f"{self._open} streams are open, which is the limit", 5)
        if self._ending.is_set():
            raise ApiError(503, "unavailable", "this gateway is being stopped", 1)
        self._open += 1
        self._gauge.set(self._open)

    def release(self) -> None:
        """Give a place back."""
        self._open -= 1
        self._gauge.set(self._open)

    def end(self) -> None:
        """Let all streams end; clients come back, elsewhere, with Last-Event-ID."""
        self._ending.set()

    async def events(self, workflow: str, after: int, stored: Stored, hub: Hub) -> t.AsyncIterator[bytes]:
        """The stream's bytes. The place must have been taken; it is given back at the end."""
        reader = hub.subscribe(workflow)
        settings = self._settings
        merger = Merger(after, stored, hub, reader, poll=settings.stream_poll)
        deadline = time.monotonic() + settings.stream_max
        pinged = time.monotonic()
        try:
            yield b"retry: 1000\n: stream of " + workflow.encode() + b"\n\n"
            step: t.Callable[[], t.Awaitable[list[Delivery]]] = merger.start
            while not merger.finished and not self._ending.is_set() and time.monotonic() < deadline:
                try:
                    found = await step()
                except (aio.AioRpcError, NoEndpointError) as exc:
                    if isinstance(exc, aio.AioRpcError) and exc.code() not in _AWAY:
                        _log.warning("a stream ends", extra={"fields": {"workflow": workflow, "error": str(exc)}})
                        return
                    await asyncio.sleep(settings.stream_poll)
                    found = []
                else:
                    step = self._step(merger)
                for delivery in found:
                    yield frame(delivery)
                if found:
                    pinged = time.monotonic()
                elif time.monotonic() - pinged >= settings.stream_ping:
                    pinged = time.monotonic()
                    yield _PING
                if merger.finished and not any(delivery.event["type"] == END for delivery in found):
                    yield _DONE
        finally:
            hub.unsubscribe(reader)
            self.release()

    def _step(self, merger: Merger) -> t.Callable[[], t.Awaitable[list[Delivery]]]:
        # Not longer than a second, so that the gateway's end is noticed.
        wait = min(self._settings.stream_ping, 1.0)

        async def step() -> list[Delivery]:
            return await merger.next(wait)

        return step


def frame(delivery: Delivery) -> bytes:
    """An event on the wire."""
    event = delivery.event
    name = _NAMES.get(event["type"], event["type"])
    data = "[DONE]" if event["type"] == END else json.dumps(event, ensure_ascii=False)
    head = f"id: {delivery.resume}\n" if delivery.resume is not None else ""
    return f"{head}event: {name}\ndata: {data}\n\n".encode()
