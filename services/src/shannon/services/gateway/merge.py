# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stored and live events as one sequence: nothing missing, nothing twice.

The truth is what the orchestrator has stored; live events are faster, and may be lost. A live event is passed on at
once only when it directly follows the last one. After a gap the stored events are asked for; while what is missing is
not there either (it is written in batches, a moment later), the live event waits, for a bounded time.
"""

from __future__ import annotations

import asyncio
import json
import time
import typing as t

from .live import Hub, Subscription

END = "STREAM_END"
#: Only ever live: deltas of an answer that comes whole in a stored event.
PARTIAL = "LLM_PARTIAL"
#: Task states after which no event comes.
ENDED = frozenset({"completed", "failed", "cancelled", "timeout"})
_PAGE = 200

Event = dict[str, t.Any]
#: Asks for stored events after a number: the events in order, and the task's state.
Stored = t.Callable[[int, int], t.Awaitable[tuple[list[Event], str]]]


class Delivery(t.NamedTuple):
    """An event to pass on.

    :ivar resume: from where a client that had this one may go on without missing any; None: as before.
    """

    event: Event
    resume: int | None


class Merger:
    """The events of one task for one client.

    :param after: number of the last event that the client has.
    :param stored: asks the orchestrator; raises what it raises.
    :param poll: seconds between two questions while Redis is away or an event is missing.
    :param idle: seconds between two while live events come: the last of them may have been lost.
    :param patience: seconds that a live event waits for one before it.
    :param linger: seconds after the task's end without the event that says so.
    """

    def __init__(
        self,
        after: int,
        stored: Stored,
        hub: Hub,
        reader: Subscription,
        *,
        poll: float,
        idle: float = 5.0,
        patience: float = 5.0,
        linger: float = 30.0,
        clock: t.Callable[[], float] = time.monotonic,
    ) -> None:
        self._last = after
        self._ahead: set[int] = set()
        self._stored = stored
        self._hub = hub
        self._reader = reader
        self._poll = poll
        self._idle = idle
        self._patience = patience
        self._linger = linger
        self._clock = clock
        self._asked = float("-inf")
        self._ended_at: float | None = None
        self.finished = False

    async def start(self) -> list[Delivery]:
        """What is stored already."""
        return await self._catch_up()

    async def next(self, wait: float) -> list[Delivery]:
        """What comes next; nothing when nothing came within C(wait) seconds."""
        period = self._idle if self._hub.healthy else self._poll
        due = max(0.0, self._asked + period - self._clock())
        fields = await self._reader.get(min(wait, due) if due else 0.001)
        found: list[Delivery] = []
        if fields is not None and (event := live_event(self._reader.workflow, fields)) is not None:
            found += await self._live(event)
        elif self._clock() >= self._asked + period:
            found += await self._catch_up()
        return found

    async def _live(self, event: Event) -> list[Delivery]:
        seq = event["seq"]
        if event["type"] == PARTIAL:
            follows = seq == self._last + 1
            if follows:
                self._last = seq
            # A delta before the answer that it belongs to, or not at all.
            return [Delivery(event, None)] if follows or seq > self._last or not seq else []
        if seq <= self._last or seq in self._ahead:
            return []
        found: list[Delivery] = []
        deadline = self._clock() + self._patience
        while seq > self._last + 1:
            found += await self._catch_up()
            if seq <= self._last or seq in self._ahead or self._clock() >= deadline:
                break
            if found:
                # Pass on what there is; this one comes again with the stored ones.
                return found
            await asyncio.sleep(self._poll)
        if seq <= self._last or seq in self._ahead:
            return found
        return [*found, self._deliver(event, stored=False)]

    async def _catch_up(self) -> list[Delivery]:
        found: list[Delivery] = []
        while not self.finished:
            events, status = await self._stored(self._last, _PAGE)
            self._asked = self._clock()
            found += [self._deliver(event, stored=True) for event in events if event["seq"] not in self._ahead]
            if events:
                self._last = max(self._last, events[-1]["seq"])
                self._ahead = {seq for seq in self._ahead if seq > self._last}
            if len(events) < _PAGE:
                self._look(status, bool(events))
                break
        return found

    def _look(self, status: str, progress: bool) -> None:
        """A task that ended may have lost the event that says so."""
        if status not in ENDED or progress:
            self._ended_at = None
        elif self._ended_at is None:
            self._ended_at = self._clock()
        elif self._clock() - self._ended_at >= self._linger:
            self.finished = True

    def _deliver(self, event: Event, stored: bool) -> Delivery:
        seq = event["seq"]
        if event["type"] == END:
            self.finished = True
        if stored or seq == self._last + 1:
            self._last = max(self._last, seq)
            return Delivery(event, self._last)
        # Passed on with one before it missing: who resumes goes back to before the gap, rather than miss it.
        self._ahead.add(seq)
        return Delivery(event, None)


def live_event(workflow: str, fields: t.Mapping[str, str]) -> Event | None:
    """An entry of the Redis stream as an event; None when it is none."""
    try:
        payload = json.loads(fields["payload"]) if fields.get("payload") else None
        return {
            "workflow_id": workflow,
            "type": fields["type"],
            "agent_id": fields.get("agent_id", ""),
            "message": fields.get("message", ""),
            "payload": payload,
            "timestamp": fields.get("timestamp") or None,
            "seq": int(fields.get("seq") or 0),
        }
    except (KeyError, ValueError):
        return None
