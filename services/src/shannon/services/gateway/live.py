# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Live events: one reader of a cell's Redis for all streams that clients have open.

Each stream with a blocking read of its own would take a connection each, and starve everything else.
"""

from __future__ import annotations

import asyncio
import logging
import typing as t

import redis.asyncio
import redis.exceptions

from shannon.resilience.circuit_breaker import BreakerError, CircuitBreaker
from shannon.services.common import logs

KEY = "shannon:workflow:events:"
#: Events that a slow reader may be behind; beyond that it reads what it missed from the orchestrator.
QUEUE = 512
_BLOCK_MS = 200
_AWAY = (redis.exceptions.RedisError, OSError, asyncio.TimeoutError, BreakerError)
_log: logging.Logger = logs.get(__name__)

Entry = tuple[tuple[int, int], dict[str, str]]


class Subscription:
    """A reader of one workflow's live events."""

    def __init__(self, workflow: str) -> None:
        self.workflow = workflow
        self._queue: asyncio.Queue[Entry] = asyncio.Queue(QUEUE)
        self._last = (0, 0)

    def put(self, entry: Entry) -> None:
        """Give it an entry, unless it had it; a full reader misses it, and will notice the gap."""
        if entry[0] <= self._last:
            return
        self._last = entry[0]
        if not self._queue.full():
            self._queue.put_nowait(entry)

    async def get(self, timeout: float) -> dict[str, str] | None:
        """The next entry's fields; None when none came in time."""
        try:
            return (await asyncio.wait_for(self._queue.get(), timeout))[1]
        except asyncio.TimeoutError:
            return None


class Hub:
    """Reads the streams of all subscribed workflows together.

    :param client: the cell's Redis.
    :param breaker: of kind redis.
    """

    def __init__(self, client: redis.asyncio.Redis, breaker: CircuitBreaker) -> None:
        self._client = client
        self._breaker = breaker
        self._readers: dict[str, set[Subscription]] = {}
        self._places: dict[str, str] = {}
        self._wanted = asyncio.Event()
        #: Whether Redis answered last; if not, subscribers get nothing and must ask elsewhere.
        self.healthy = False

    def subscribe(self, workflow: str) -> Subscription:
        """A new reader, who gets all that the stream holds and then what comes."""
        reader = Subscription(workflow)
        self._readers.setdefault(workflow, set()).add(reader)
        # From the beginning, never from "now": nothing falls between two reads (seed facts in full, 10, item 24).
        # Others who read the same workflow know what they had.
        self._places[workflow] = "0-0"
        self._wanted.set()
        return reader

    def unsubscribe(self, reader: Subscription) -> None:
        """Forget a reader."""
        readers = self._readers.get(reader.workflow, set())
        readers.discard(reader)
        if not readers:
            self._readers.pop(reader.workflow, None)
            self._places.pop(reader.workflow, None)

    async def run(self, stopping: asyncio.Event) -> None:
        """Read until stopping."""
        while not stopping.is_set():
            if not self._places:
                self._wanted.clear()
                await _either(self._wanted, stopping)
                continue
            try:
                await self.read()
            except _AWAY as exc:
                if self.healthy:
                    _log.warning(
                        "no live events from Redis", extra={"fields": {"error": f"{type(exc).__name__}: {exc}"}}
                    )
                self.healthy = False
                await _within(stopping.wait(), 0.5)

    async def read(self) -> None:
        """Read once, and give out what came."""
        asked = dict(self._places)
        found = await self._breaker.call_async(self._read, asked)
        self.healthy = True
        for key, entries in found or ():
            workflow = _text(key).removeprefix(KEY)
            for entry_id, fields in entries:
                entry = (_place(_text(entry_id)), {_text(name): _text(value) for name, value in fields.items()})
                for reader in self._readers.get(workflow, ()):
                    reader.put(entry)
            # A reader who came in the meantime wants it from the beginning.
            if entries and self._places.get(workflow) == asked.get(workflow):
                self._places[workflow] = _text(entries[-1][0])

    async def _read(self, places: t.Mapping[str, str]) -> t.Any:
        streams = {KEY + workflow: place for workflow, place in places.items()}
        read = self._client.xread(t.cast(t.Any, streams), count=100, block=_BLOCK_MS)
        return await asyncio.wait_for(read, _BLOCK_MS / 1000 + 1)


def _text(value: t.Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _place(entry_id: str) -> tuple[int, int]:
    milliseconds, _dash, number = entry_id.partition("-")
    return int(milliseconds), int(number or 0)


async def _within(waiting: t.Awaitable[t.Any], seconds: float) -> None:
    try:
        await asyncio.wait_for(waiting, seconds)
    except asyncio.TimeoutError:
        return


async def _either(first: asyncio.Event, second: asyncio.Event) -> None:
    tasks = {asyncio.ensure_future(event.wait()) for event in (first, second)}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
