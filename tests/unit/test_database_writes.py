"""Writes that may wait: none that was acknowledged is lost, none is doubled, whatever crashes when."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import os
import pathlib
import typing as t

import pytest

from shannon.services.common import metrics
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


# ---- what is beyond memory, and beyond the ordinary


def test_segments_are_freed_while_others_are_written(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path, 10**6)
    before = spool.append([b"before"])
    fsync = os.fsync

    def slow(descriptor: int) -> None:
        spool.done(before)  # would wait forever if it needed what an append holds during its fsync
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    (place,) = spool.append([b"meanwhile"])
    monkeypatch.undo()
    assert spool.read(place) == b"meanwhile"
    spool.done([place])
    assert (spool.waiting, spool.size) == (0, 0)


def test_a_segment_that_cannot_be_cut_back_is_written_to_no_more(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path, 10**6)
    spool.append([b"before"])

    def broken(*_args: t.Any) -> t.NoReturn:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    monkeypatch.setattr(os, "ftruncate", broken)
    with pytest.raises(SpoolFullError, match="Input/output error"):
        spool.append([b"unsure"])
    monkeypatch.undo()
    spool.append([b"later"])
    spool.close()
    assert [raw for raw in contents(tmp_path) if raw != b"unsure"] == [b"before", b"later"]


def test_a_read_tells_damage(tmp_path: pathlib.Path) -> None:
    spool = Spool(tmp_path, 10**6)
    first, second = spool.append([b"first", b"second"])
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes().replace(b"second", b"sec0nd"))
    assert spool.read(first) == b"first"
    with pytest.raises(OSError, match="damaged"):
        spool.read(second)


def test_order_within_a_key_holds_between_memory_disk_and_what_comes_later(tmp_path: pathlib.Path) -> None:
    async def go() -> FakeDatabase:
        rig = Rig(tmp_path, size=4, workers=3, batch=7)
        await rig.queue.start()

        async def produce(key: int) -> None:
            for number in range(key, 600, 10):
                if number // 10 == 20:
                    rig.database.away = True
                elif number // 10 == 40:
                    rig.database.away = False
                await rig.queue.enqueue(record(number, key=f"k{key}"))

        await asyncio.gather(*(produce(key) for key in range(10)))
        assert await rig.queue.stop(20) == 0
        return rig.database

    order = asyncio.run(go()).order
    assert sorted(order) == list(range(600))
    for key in range(10):
        mine = [number for number in order if number % 10 == key]
        assert mine == sorted(mine)


def test_what_an_earlier_run_left_is_not_taken_into_memory(tmp_path: pathlib.Path) -> None:
    spool = Spool(tmp_path / "spool", 10**6)
    spool.append([record(number).encoded() for number in range(100)])
    spool.close()

    async def go() -> FakeDatabase:
        rig = Rig(tmp_path, size=5)
        rig.database.away = True
        assert await rig.queue.start() == 100
        assert sum(is_held(item) for lane in rig.queue._lanes for item in lane.items) <= 5
        rig.database.away = False
        await rig.queue.enqueue(record(100))
        assert await rig.queue.stop(5) == 0
        return rig.database

    assert asyncio.run(go()).order == list(range(101))


def test_a_record_that_cannot_be_read_back_costs_itself_alone_and_stays(tmp_path: pathlib.Path) -> None:
    async def go() -> Rig:
        rig = Rig(tmp_path, size=1, workers=1, flush_interval=5)
        await rig.queue.start()
        for number in range(1000, 1004):
            await rig.queue.enqueue(record(number))
        (path,) = (tmp_path / "spool").iterdir()
        path.write_bytes(path.read_bytes().replace(b"1002", b"10_2"))
        assert await rig.queue.stop(5) == 1
        return rig

    rig = asyncio.run(go())
    assert rig.database.order == [1000, 1001, 1003] and rig.spool.waiting == 1


def test_what_json_cannot_hold_is_its_callers_mistake_alone(tmp_path: pathlib.Path) -> None:
    async def go() -> FakeDatabase:
        rig = Rig(tmp_path)
        await rig.queue.start()
        with pytest.raises(TypeError):
            await rig.queue.enqueue(Record("event_log", "k", {"seq": object()}))
        await rig.queue.enqueue(record(1))
        await rig.queue.stop(5)
        return rig.database

    assert asyncio.run(go()).order == [1]


def test_half_a_surrogate_pair_survives_the_spool_and_the_dead_letters(tmp_path: pathlib.Path) -> None:
    made = Record("event_log", "k\udc00", {"seq": 1, "message": "cut \ud83d"})
    assert Record.decoded(made.encoded()) == made

    async def go() -> Rig:
        rig = Rig(tmp_path)
        rig.database.refused = {1}
        await rig.queue.start()
        await rig.queue.enqueue(made)
        assert await rig.queue.stop(5) == 0
        return rig

    assert json.loads(asyncio.run(go()).dead.read_text())["record"]["values"]["message"] == "cut \ud83d"


def test_a_record_whose_caller_gave_up_holds_no_segment(tmp_path: pathlib.Path) -> None:
    async def go() -> Rig:
        rig = Rig(tmp_path)
        await rig.queue.start()
        given_up = asyncio.ensure_future(rig.queue.enqueue(record(1)))
        while not rig.queue._waiting:
            await asyncio.sleep(0)
        given_up.cancel()
        await rig.queue.enqueue(record(2))
        assert await rig.queue.stop(5) == 0
        return rig

    rig = asyncio.run(go())
    assert rig.database.order == [1, 2] and rig.spool.size == 0


def test_a_database_that_is_slow_when_memory_is_full_does_not_hold_its_caller_up(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shannon.services.database.write_queue.PATIENCE", 0.01)

    class Hanging(FakeDatabase):
        def __init__(self) -> None:
            super().__init__()
            self.answers = asyncio.Event()

        async def write(self, records: t.Sequence[Record]) -> None:
            await self.answers.wait()
            await super().write(records)

    async def go() -> FakeDatabase:
        database = Hanging()
        rig = Rig(tmp_path, database, size=1)
        await rig.queue.start()
        for number in range(3):
            await asyncio.wait_for(rig.queue.enqueue(record(number, key=f"k{number}")), 5)
        database.answers.set()
        assert await rig.queue.stop(5) == 0
        return database

    assert sorted(asyncio.run(go()).order) == [0, 1, 2]


def test_what_the_database_refuses_directly_is_set_aside_unless_its_predecessor_waits(tmp_path: pathlib.Path) -> None:
    async def go() -> Rig:
        rig = Rig(tmp_path, limit=100)
        rig.database.refused = {1, 3}
        await rig.queue.start()
        await rig.queue.enqueue(record(1, key="k" * 100))  # no room on disk
        rig.queue._keys["waits"] += 1
        with pytest.raises(SpoolFullError, match="refuses it: violates"):
            await rig.queue.enqueue(Record("event_log", "waits", {"seq": 3, "message": "x" * 100}))
        await rig.queue.stop(5)
        return rig

    (line,) = asyncio.run(go()).dead.read_text().splitlines()
    assert json.loads(line)["record"]["values"] == {"seq": 1}


def test_a_record_that_is_longer_than_any_frame_does_not_go_to_the_disk(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shannon.services.database.write_queue.LONGEST", 200)

    async def go() -> Rig:
        rig = Rig(tmp_path)
        await rig.queue.start()
        long = Record("event_log", "k", {"seq": 1, "message": "x" * 200})
        await rig.queue.enqueue(long)
        rig.database.away = True
        with pytest.raises(SpoolFullError, match="at most 200, and the database is away"):
            await rig.queue.enqueue(long)
        assert await rig.queue.stop(5) == 0
        return rig

    assert asyncio.run(go()).database.order == [1]


def test_after_the_end_there_is_only_the_database(tmp_path: pathlib.Path) -> None:
    async def go() -> FakeDatabase:
        rig = Rig(tmp_path)
        await rig.queue.start()
        await rig.queue.stop(5)
        await asyncio.wait_for(rig.queue.enqueue(record(1)), 5)
        rig.database.away = True
        with pytest.raises(SpoolFullError, match="has ended"):
            await asyncio.wait_for(rig.queue.enqueue(record(2)), 5)
        return rig.database

    assert asyncio.run(go()).order == [1]


def test_the_metrics_are_of_all_queues_together(tmp_path: pathlib.Path) -> None:
    async def go() -> float:
        rigs = [Rig(tmp_path / name, size=9, flush_interval=5) for name in ("a", "b")]
        gc.collect()  # queues of other tests
        before = metrics.value("shannon_write_queue_depth")
        for rig in rigs:
            await rig.queue.start()
            await rig.queue.enqueue(record(1))
        found = metrics.value("shannon_write_queue_depth") - before
        for rig in rigs:
            await rig.queue.stop(5)
        return found

    assert asyncio.run(go()) == 2
