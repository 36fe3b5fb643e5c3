"""Writes that may wait: none that was acknowledged is lost, none is doubled, whatever crashes when."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import pathlib
import typing as t

import pytest

from shannon.services.database.lane import is_held
from shannon.services.database.records import KINDS, Record
from shannon.services.database.spool import Spool, SpoolFullError
from shannon.services.database.write_queue import WriteQueue


def record(number: int, key: str = "w") -> Record:
    return Record("event_log", key, {"seq": number})


# ---- the spool


def contents(folder: pathlib.Path) -> list[bytes]:
    return [content for _segment, content in Spool(folder, 10**6).recover()]


def test_what_was_appended_is_found_again_in_order(tmp_path: pathlib.Path) -> None:
    spool = Spool(tmp_path, 10**6, segment=40)
    list(spool.recover())
    for number in range(10):
        spool.append([f"record {number}".encode()])
    spool.close()
    assert len(list(tmp_path.iterdir())) > 1
    assert contents(tmp_path) == [f"record {number}".encode() for number in range(10)]


def test_a_crash_at_any_byte_loses_nothing_that_was_acknowledged(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "whole"
    spool = Spool(folder, 10**6)
    ends = [0]
    for number in range(4):
        spool.append([f"record {number}".encode() * (number + 1)])
        ends.append(spool.size)
    spool.close()
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        torn = tmp_path / f"cut-{cut}"
        torn.mkdir()
        (torn / path.name).write_bytes(whole[:cut])
        acknowledged = sum(end <= cut for end in ends) - 1
        found = contents(torn)
        assert found == [f"record {number}".encode() * (number + 1) for number in range(acknowledged)]
        # It can be written to again, and what is new is found after what was there.
        again = Spool(torn, 10**6)
        list(again.recover())
        again.append([b"new"])
        again.close()
        assert contents(torn) == [*found, b"new"]


def test_a_damaged_record_in_the_middle_costs_itself_alone(tmp_path: pathlib.Path) -> None:
    spool = Spool(tmp_path, 10**6)
    spool.append([b"first", b"second", b"third"])
    spool.close()
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes().replace(b"second", b"sec0nd"))
    damaged = Spool(tmp_path, 10**6)
    assert [content for _segment, content in damaged.recover()] == [b"first", b"third"]
    assert damaged.damaged > 0 and b"sec0nd" in path.with_suffix(".damaged").read_bytes()


def test_segments_whose_contents_are_done_are_removed(tmp_path: pathlib.Path) -> None:
    spool = Spool(tmp_path, 10**6, segment=30)
    numbers = [spool.append([b"x" * 30])[0] for _turn in range(3)]
    spool.done(numbers[:2])
    assert len(list(tmp_path.iterdir())) == 1 and spool.waiting == 1
    spool.done(numbers[2:])
    assert (spool.waiting, spool.size) == (0, 0)
    spool.append([b"after"])
    spool.close()
    assert contents(tmp_path) == [b"after"]


def test_a_spool_has_a_bound_and_says_so(tmp_path: pathlib.Path) -> None:
    spool = Spool(tmp_path, 100)
    spool.append([b"x" * 50])
    with pytest.raises(SpoolFullError, match="58 of 100 bytes"):
        spool.append([b"x" * 50])
    spool.close()
    assert contents(tmp_path) == [b"x" * 50]


def test_a_full_disk_leaves_what_was_acknowledged_and_nothing_else(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path, 10**6)
    spool.append([b"before"])
    write = os.write

    def full(descriptor: int, data: t.Any) -> int:
        if len(data) > 5:
            return write(descriptor, bytes(data)[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(SpoolFullError, match="No space left"):
        spool.append([b"too much"])
    monkeypatch.undo()
    spool.append([b"later"])
    spool.close()
    assert contents(tmp_path) == [b"before", b"later"]


def test_what_is_no_record_is_refused() -> None:
    for raw in (b"{}", b"[1]", b"{", b'{"kind": "x", "key": "k", "values": {}, "id": "i"}'):
        with pytest.raises(ValueError):
            Record.decoded(raw)
    for kind in KINDS:
        made = Record(kind, "k", {"a": 1})
        assert Record.decoded(made.encoded()) == made


# ---- the queue


class Away(Exception):
    """The database is away."""


class FakeDatabase:
    """Rows by id; each write is one transaction. It can be away, refuse records, or crash after a commit."""

    def __init__(self) -> None:
        self.rows: dict[str, Record] = {}
        self.order: list[int] = []
        self.sizes: list[int] = []
        self.away = False
        self.refused: set[int] = set()
        self.lost_answers = 0

    async def write(self, records: t.Sequence[Record]) -> None:
        await asyncio.sleep(0)
        if self.away:
            raise Away("connection refused")
        if any(item.values["seq"] in self.refused for item in records):
            raise ValueError("violates a constraint")
        self.sizes.append(len(records))
        for item in records:
            if item.id not in self.rows:
                self.rows[item.id] = item
                self.order.append(item.values["seq"])
        if self.lost_answers:
            self.lost_answers -= 1
            raise Away("the connection broke after the commit")

    def is_away(self, exc: BaseException) -> bool:
        return isinstance(exc, Away)


class Rig:
    """A queue over a fake database."""

    def __init__(self, folder: pathlib.Path, database: FakeDatabase | None = None, **options: t.Any) -> None:
        self.database = database or FakeDatabase()
        self.dead = folder / "dead.jsonl"
        self.spool = Spool(folder / "spool", options.pop("limit", 10**6))
        self.queue = WriteQueue(
            self.database, self.spool, self.dead, **{"workers": 3, "flush_interval": 0.02, **options}
        )

    async def crash(self) -> None:
        """As a process does: without a word, in the middle of everything."""
        for task in self.queue._tasks:
            task.cancel()
        await asyncio.gather(*self.queue._tasks, return_exceptions=True)
        self.spool.close()


def test_records_reach_the_database_in_batches_and_in_the_order_of_their_key(tmp_path: pathlib.Path) -> None:
    async def go() -> Rig:
        rig = Rig(tmp_path)
        await rig.queue.start()
        for number in range(200):
            await rig.queue.enqueue(record(number, key=f"w{number % 2}"))
        assert await rig.queue.stop(5) == 0
        return rig

    rig = asyncio.run(go())
    for rest in (0, 1):
        order = [number for number in rig.database.order if number % 2 == rest]
        assert order == sorted(order)
    assert sorted(rig.database.order) == list(range(200)) and rig.spool.size == 0


def test_those_who_come_together_share_a_batch_and_it_is_bounded(tmp_path: pathlib.Path) -> None:
    async def go() -> Rig:
        rig = Rig(tmp_path, batch=10, workers=1)
        await rig.queue.start()
        await asyncio.gather(*(rig.queue.enqueue(record(number)) for number in range(35)))
        await rig.queue.stop(5)
        return rig

    assert max(asyncio.run(go()).database.sizes) == 10


def test_an_outage_is_waited_out(tmp_path: pathlib.Path) -> None:
    async def go() -> Rig:
        rig = Rig(tmp_path)
        rig.database.away = True
        await rig.queue.start()
        for number in range(20):
            await asyncio.wait_for(rig.queue.enqueue(record(number)), 1)
        assert rig.database.rows == {}
        rig.database.away = False
        assert await rig.queue.stop(5) == 0
        return rig

    assert sorted(asyncio.run(go()).database.order) == list(range(20))


def test_a_crash_during_an_outage_loses_nothing_and_doubles_nothing(tmp_path: pathlib.Path) -> None:
    database = FakeDatabase()

    async def first() -> None:
        rig = Rig(tmp_path, database)
        await rig.queue.start()
        for number in range(10):
            await rig.queue.enqueue(record(number))
        # Some are written, and their commit's answer is lost with the process.
        database.lost_answers = 1
        await asyncio.sleep(0.05)
        database.away = True
        for number in range(10, 20):
            await rig.queue.enqueue(record(number))
        await rig.crash()

    async def second() -> int:
        database.away = False
        rig = Rig(tmp_path, database)
        left = await rig.queue.start()
        assert await rig.queue.stop(5) == 0
        return left

    asyncio.run(first())
    assert asyncio.run(second()) >= 10
    assert sorted(database.order) == list(range(20))


def test_a_commit_whose_answer_is_lost_is_not_written_twice(tmp_path: pathlib.Path) -> None:
    async def go() -> FakeDatabase:
        rig = Rig(tmp_path)
        rig.database.lost_answers = 2
        await rig.queue.start()
        for number in range(5):
            await rig.queue.enqueue(record(number))
        await rig.queue.stop(5)
        return rig.database

    database = asyncio.run(go())
    assert database.order == list(range(5)) and len(database.sizes) > 1


def test_a_record_that_the_database_refuses_holds_nobody_up_and_is_kept(tmp_path: pathlib.Path) -> None:
    async def go() -> Rig:
        rig = Rig(tmp_path, workers=1)
        rig.database.refused = {3}
        await rig.queue.start()
        await asyncio.gather(*(rig.queue.enqueue(record(number)) for number in range(6)))
        assert await rig.queue.stop(5) == 0
        return rig

    rig = asyncio.run(go())
    assert rig.database.order == [0, 1, 2, 4, 5]
    (line,) = rig.dead.read_text().splitlines()
    buried = json.loads(line)
    assert buried["record"]["values"] == {"seq": 3} and "violates a constraint" in buried["error"]


def test_a_full_queue_lets_its_caller_write_by_himself(tmp_path: pathlib.Path) -> None:
    async def go() -> Rig:
        rig = Rig(tmp_path, size=1, flush_interval=5)
        await rig.queue.start()
        await rig.queue.enqueue(record(1))
        await asyncio.wait_for(rig.queue.enqueue(record(2, key="another")), 1)
        assert rig.database.order == [2]
        # One whose predecessor waits goes to the disk, full or not: it may refer to it.
        await asyncio.wait_for(rig.queue.enqueue(record(3)), 1)
        assert rig.database.order == [2]
        await rig.queue.stop(5)
        return rig

    assert asyncio.run(go()).database.order == [2, 1, 3]


def test_without_room_on_disk_the_database_takes_it_and_without_both_the_caller_hears_of_it(
    tmp_path: pathlib.Path,
) -> None:
    async def go() -> FakeDatabase:
        rig = Rig(tmp_path, limit=10)
        await rig.queue.start()
        await rig.queue.enqueue(record(1))
        rig.database.away = True
        with pytest.raises(SpoolFullError, match=r"of 10 bytes.*the database is away"):
            await rig.queue.enqueue(record(2))
        await rig.queue.stop(1)
        return rig.database

    assert asyncio.run(go()).order == [1]


def test_a_long_outage_fills_the_disk_and_not_the_queue(tmp_path: pathlib.Path) -> None:
    async def go() -> Rig:
        rig = Rig(tmp_path, size=5, workers=2)
        rig.database.away = True
        await rig.queue.start()
        for number in range(200):
            await asyncio.wait_for(rig.queue.enqueue(record(number)), 5)
        items = [item for lane in rig.queue._lanes for item in lane.items]
        assert len(items) >= 195 and sum(map(is_held, items)) <= 5
        rig.database.away = False
        await rig.queue.enqueue(record(200))
        assert await rig.queue.stop(20) == 0
        return rig

    rig = asyncio.run(go())
    assert rig.database.order == list(range(201)) and rig.spool.size == 0


def test_what_is_not_written_in_time_stays_for_the_next_start(tmp_path: pathlib.Path) -> None:
    database = FakeDatabase()
    database.away = True

    async def first() -> int:
        rig = Rig(tmp_path, database)
        await rig.queue.start()
        await rig.queue.enqueue(record(7))
        return await rig.queue.stop(0.2)

    async def second() -> int:
        rig = Rig(tmp_path, database)
        await rig.queue.start()
        return await rig.queue.stop(5)

    assert asyncio.run(first()) == 1
    database.away = False
    assert asyncio.run(second()) == 0
    assert database.order == [7]
