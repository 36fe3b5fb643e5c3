# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens in a task, told twice: live through Redis, and stored through the write queue.

Redis is only ever the faster way; what was lost there a gateway reads from PostgreSQL. Numbers do not come from Redis
(facts in full, 10.3, item 18): those of the first attempt begin at 1, those of each later one a million higher, so that
an attempt that was given up can't collide with the next.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import typing as t

import redis.asyncio
import redis.exceptions

from shannon.resilience.circuit_breaker import BreakerError, CircuitBreaker
from shannon.services.common import logs, metrics
from shannon.services.common.config import Streaming
from shannon.services.database.records import Record
from shannon.services.database.spool import SpoolFullError
from shannon.services.database.write_queue import WriteQueue

from . import ids
from .texts import clean

_log = logs.get(__name__)
KEY = "shannon:workflow:events:"
#: Numbers of one attempt.
PER_ATTEMPT = 1_000_000
_AWAY = (redis.exceptions.RedisError, OSError, asyncio.TimeoutError, BreakerError)


class Events:
    """Tells of a cell's tasks."""

    def __init__(
        self, cache: redis.asyncio.Redis, breaker: CircuitBreaker, queue: WriteQueue, settings: Streaming
    ) -> None:
        self._cache = cache
        self._breaker = breaker
        self._queue = queue
        self._settings = settings
        self._lost = metrics.counter("shannon_events_lost_total", "Events that could not be stored.")

    def of(self, task: str, workflow: str, attempt: int) -> Teller:
        """Tells of one attempt of a task."""
        return Teller(self, task, workflow, attempt)

    async def publish(self, task: str, workflow: str, event: dict[str, t.Any]) -> None:
        """Store an event, and send it to whoever listens."""
        record = Record(
            "event_log",
            task,
            {"task_id": task, "workflow_id": workflow, **event},
            ids.part_key(task, 0, f"event {event['seq']}"),
        )
        await self.keep(record)
        await self._send(workflow, event)

    async def keep(self, record: Record) -> None:
        """Give a record to the write queue. When even the disk has no room a task goes on without it."""
        try:
            await self._queue.enqueue(record)
        except SpoolFullError as exc:
            self._lost.inc()
            _log.error("a record of kind %s is lost: %s", record.kind, exc)

    async def _send(self, workflow: str, event: dict[str, t.Any]) -> None:
        fields = {name: str(value) for name, value in event.items() if name != "payload" and value is not None}
        fields["payload"] = json.dumps(event["payload"], ensure_ascii=False)
        pipeline = self._cache.pipeline(transaction=False)
        pipeline.xadd(KEY + workflow, t.cast(t.Any, fields), maxlen=self._settings.ring_capacity, approximate=True)
        pipeline.expire(KEY + workflow, int(self._settings.ttl))
        try:
            await self._breaker.call_async(pipeline.execute)
        except _AWAY:
            return  # who listens finds it in PostgreSQL


class Teller:
    """Numbers the events of one attempt."""

    def __init__(self, events: Events, task: str, workflow: str, attempt: int) -> None:
        self._events = events
        self.task = task
        self.workflow = workflow
        self.attempt = attempt
        self._seq = max(attempt - 1, 0) * PER_ATTEMPT

    async def tell(self, kind: str, message: str = "", agent: str = "", **payload: t.Any) -> None:
        """Something happened."""
        self._seq += 1
        event = {
            "type": kind,
            "agent_id": agent,
            "message": clean(message),
            "payload": clean(payload),
            "timestamp": datetime.datetime.now(datetime.timezone.utc).isoformat(),
            "seq": self._seq,
        }
        await self._events.publish(self.task, self.workflow, event)

    async def keep(self, kind: str, part: str, **values: t.Any) -> str:
        """A record of this attempt; returns its id."""
        record = Record(kind, self.task, clean(values), ids.part_key(self.task, self.attempt, part))
        await self._events.keep(record)
        return record.id
