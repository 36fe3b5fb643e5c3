"""Server-sent events: nothing missing, nothing twice, whatever Redis loses (seed facts in full 10, items 18, 24)."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
import typing as t

import pytest

pytest.importorskip("fastapi")

import grpc
from fake_gateway import Rig, rpc_error

from shannon.services.common import metrics
from shannon.services.gateway.merge import Merger


def parse(text: str) -> list[tuple[str | None, str, str]]:
    """Id, name and data of each event."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(re.findall(r"^(id|event|data): (.*)$", block, re.M))
        if "event" in fields:
            found.append((fields.get("id"), fields["event"], fields["data"]))
    return found


def seqs(events: list[tuple[str | None, str, str]]) -> list[int]:
    return [json.loads(data)["seq"] for _id, _name, data in events if data != "[DONE]"]


def path(task: t.Any) -> str:
    return f"/api/v1/tasks/{task.task_id}/stream"


def follow(rig: Rig, task: t.Any, producer: t.Any, after: int = 0) -> str:
    """The stream's text while a producer is at work, until the stream ends."""

    async def run() -> str:
        stopping = asyncio.Event()
        hub = asyncio.create_task(rig.hub.run(stopping))
        working = asyncio.create_task(producer())
        try:
            async with rig.client() as client:
                headers = {"Last-Event-ID": str(after)} if after else {}
                return (await asyncio.wait_for(client.get(path(task), headers=headers), 15)).text
        finally:
            stopping.set()
            await asyncio.gather(working, hub)

    return asyncio.run(run())


def test_a_task_that_ended_long_ago() -> None:
    rig = Rig()
    task = rig.task()
    for seq in range(1, 451):
        rig.orchestrator.store(task, seq)
    rig.orchestrator.store(task, 451, "STREAM_END")

    async def nothing() -> None:
        return

    events = parse(follow(rig, task, nothing))
    assert seqs(events) == list(range(1, 451))
    assert events[-1] == ("451", "done", "[DONE]")
    assert metrics.value("shannon_gateway_streams") == 0
    resumed = parse(follow(rig, task, nothing, after=449))
    assert seqs(resumed) == [450]


@pytest.mark.parametrize("seed", range(6))
def test_with_a_redis_that_loses_events(seed: int) -> None:
    """Live entries get lost, Redis goes away and comes back, storing is late: all events come, in order, once."""
    rig = Rig()
    task = rig.task()
    chance = random.Random(seed)
    last = 60

    async def produce() -> None:
        unstored: list[tuple[int, str]] = []
        for number in range(1, last + 1):
            seq = 1_000_000 * (1 + number // 31) + number  # a takeover in the middle
            kind = "STREAM_END" if number == last else "AGENT_STARTED"
            if chance.random() < 0.7:
                rig.redis.add(task, seq, kind)
            unstored.append((seq, kind))
            if chance.random() < 0.3 or number == last:
                for late in unstored:
                    rig.orchestrator.store(task, *late)
                unstored.clear()
            rig.redis.down = chance.random() < 0.1
            await asyncio.sleep(0.002 * chance.random())
        rig.redis.down = False

    expected = [1_000_000 * (1 + number // 31) + number for number in range(1, last)]
    events = parse(follow(rig, task, produce))
    assert seqs(events) == expected
    assert events[-1][1] == "done"
    cut = expected[chance.randrange(len(expected))]

    async def nothing() -> None:
        return

    assert seqs(parse(follow(rig, task, nothing, after=cut))) == [seq for seq in expected if seq > cut]


def test_an_event_between_replay_and_following_is_not_missed() -> None:
    """The original began to follow at "new only" when its replay was empty; what came in between was lost."""
    rig = Rig()
    task = rig.task()
    asked = rig.orchestrator._ListEvents

    def late(request: t.Any) -> t.Any:
        answer = asked(request)
        if not rig.redis.streams:
            rig.redis.add(task, 1)
            rig.redis.add(task, 2, "STREAM_END")
        return answer

    rig.orchestrator._ListEvents = late  # type: ignore[method-assign]

    async def nothing() -> None:
        return

    events = parse(follow(rig, task, nothing))
    assert seqs(events) == [1]
    assert events[-1] == ("2", "done", "[DONE]")


def test_without_redis_events_come_from_the_orchestrator() -> None:
    rig = Rig()
    rig.redis.down = True
    task = rig.task()

    async def produce() -> None:
        for seq in range(1, 6):
            await asyncio.sleep(0.02)
            rig.orchestrator.store(task, seq, "STREAM_END" if seq == 5 else "AGENT_STARTED")

    assert seqs(parse(follow(rig, task, produce))) == [1, 2, 3, 4]


def test_names_and_deltas() -> None:
    rig = Rig()
    task = rig.task()
    asked, replays = rig.orchestrator._ListEvents, []

    def noting(request: t.Any) -> t.Any:
        answer = asked(request)
        replays.append(request)
        return answer

    rig.orchestrator._ListEvents = noting  # type: ignore[method-assign]

    async def produce() -> None:
        deadline = time.monotonic() + 10
        while not replays:
            assert time.monotonic() < deadline, "waited 10 s for the replay to be asked for"
            await asyncio.sleep(0.005)
        rig.redis.add(task, 1, "LLM_PARTIAL", "Hel")
        rig.redis.add(task, 2, "LLM_PARTIAL", "lo")
        rig.redis.add(task, 3, "LLM_OUTPUT", "Hello")
        rig.redis.add(task, 4, "STREAM_END")
        rig.orchestrator.store(task, 3, "LLM_OUTPUT", "Hello")
        rig.orchestrator.store(task, 4, "STREAM_END")

    events = parse(follow(rig, task, produce))
    assert [(i, name) for i, name, _data in events] == [
        (None, "thread.message.delta"),
        (None, "thread.message.delta"),
        ("3", "thread.message.completed"),
        ("4", "done"),
    ]


def test_an_orchestrator_that_is_away_for_a_while_ends_no_stream() -> None:
    rig = Rig()
    task = rig.task()
    rig.redis.down = True
    rig.orchestrator.store(task, 1)

    async def produce() -> None:
        await asyncio.sleep(0.1)
        rig.orchestrator.error = rpc_error(grpc.StatusCode.UNAVAILABLE)
        await asyncio.sleep(0.1)
        rig.orchestrator.error = None
        rig.orchestrator.store(task, 2)
        rig.orchestrator.store(task, 3, "STREAM_END")

    assert seqs(parse(follow(rig, task, produce))) == [1, 2]


def test_pings_and_the_gateways_end() -> None:
    rig = Rig()
    task = rig.task()

    async def produce() -> None:
        await asyncio.sleep(0.7)
        rig.streams.end()

    text = follow(rig, task, produce)
    assert text.count(": ping\n\n") >= 2
    assert "[DONE]" not in text, "the client is to come back"


def test_streams_are_bounded() -> None:
    rig = Rig(gateway={"max_streams": 1})
    task = rig.task()
    rig.streams.take()
    response = rig.ask("GET", path(task))
    assert (response.status_code, response.json()["code"]) == (503, "too_many_streams")
    assert response.headers["retry-after"] == "5"


@pytest.mark.parametrize("value", ["x", "-1", "1" * 19, "1-1"])
def test_a_bad_last_event_id(value: str) -> None:
    rig = Rig()
    response = rig.ask("GET", path(rig.task()), headers={"Last-Event-ID": value})
    assert response.status_code == 422


def test_an_unknown_task_has_no_stream() -> None:
    assert Rig().ask("GET", "/api/v1/tasks/none/stream").status_code == 404


def test_a_gap_that_never_fills_does_not_hold_the_stream_for_ever() -> None:
    """What comes after it is passed on without an id, so that who resumes then gets the missing one too."""
    rig = Rig()
    task = rig.task()
    now = [0.0]

    async def run() -> None:
        reader = rig.hub.subscribe(task.workflow_id)

        async def stored(after: int, limit: int) -> tuple[list[t.Any], str]:
            now[0] += 2
            found = [e for e in rig.orchestrator.events.get(task.task_id, []) if e.seq > after]
            return [{"seq": e.seq, "type": e.type} for e in found], "running"

        merger = Merger(0, stored, rig.hub, reader, poll=0.001, clock=lambda: now[0])
        rig.redis.add(task, 1)
        rig.redis.add(task, 3)
        await rig.hub.read()
        assert [d.resume for d in await merger.next(1)] == [1]
        assert [(d.event["seq"], d.resume) for d in await merger.next(1)] == [(3, None)]
        rig.orchestrator.store(task, 2)
        rig.orchestrator.store(task, 3)
        now[0] += 100
        assert [(d.event["seq"], d.resume) for d in await merger.next(0.01)] == [(2, 2)]

    asyncio.run(run())


def test_a_task_that_ended_without_saying_so_ends_its_stream() -> None:
    rig = Rig()
    task = rig.task()
    task.status = "failed"
    now = [0.0]

    async def run() -> None:
        async def stored(after: int, limit: int) -> tuple[list[t.Any], str]:
            return [], task.status

        reader = rig.hub.subscribe(task.workflow_id)
        merger = Merger(0, stored, rig.hub, reader, poll=0.001, linger=30, clock=lambda: now[0])
        await merger.start()
        assert not merger.finished
        now[0] += 31
        await merger.next(0.01)
        assert merger.finished

    asyncio.run(run())


def test_all_streams_share_one_read() -> None:
    rig = Rig()
    tasks = [rig.task() for _turn in range(20)]

    async def run() -> None:
        readers = [rig.hub.subscribe(task.workflow_id) for task in tasks for _turn in range(2)]
        for task in tasks:
            rig.redis.add(task, 1)
        await rig.hub.read()
        assert rig.redis.reads == 1
        for reader in readers:
            entry = await reader.get(0.1)
            assert entry is not None and entry["seq"] == "1"
            rig.hub.unsubscribe(reader)
        assert not rig.hub._places

    asyncio.run(run())


def test_a_slow_reader_costs_nobody_anything() -> None:
    rig = Rig()
    task = rig.task()

    async def run() -> None:
        reader = rig.hub.subscribe(task.workflow_id)
        for seq in range(1, 701):
            rig.redis.add(task, seq)
            rig.orchestrator.store(task, seq)
        for _turn in range(7):
            await rig.hub.read()

        async def stored(after: int, limit: int) -> tuple[list[t.Any], str]:
            found = [e for e in rig.orchestrator.events[task.task_id] if e.seq > after][:limit]
            return [{"seq": e.seq, "type": e.type} for e in found], "running"

        merger = Merger(0, stored, rig.hub, reader, poll=0.001, idle=0.01)
        found: list[int] = []
        while len(found) < 700:
            found += [delivery.event["seq"] for delivery in await merger.next(0.05)]
        assert found == list(range(1, 701))

    asyncio.run(run())
