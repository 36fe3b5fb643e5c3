"""The indexer: whatever fails, Qdrant ends up as the log says, and nothing blocks it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import typing as t

import pytest

pytest.importorskip("psycopg")
pytest.importorskip("httpx")

from fake_vectors import FakeLog, FakeSink

from shannon.services.common import metrics
from shannon.services.common.config import VectorIndexer
from shannon.services.vectors import log_reader
from shannon.services.vectors.election import Alone, LeadershipLost
from shannon.services.vectors.indexer import CellIndexer
from shannon.services.vectors.placing import GRACE_SECONDS, Behind
from shannon.services.vectors.positions import Mark, Position
from shannon.services.vectors.rows import Row, plan
from shannon.services.vectors.sink import Unavailable


class Letters:
    def __init__(self) -> None:
        self.rows: list[str] = []

    def add(self, row: Row, reason: str) -> None:
        assert "dimension" in reason
        self.rows.append(row.point_id)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Rig:
    """An indexer and what it works on."""

    def __init__(self, log: FakeLog, sink: FakeSink, batch: int = 500) -> None:
        self.log, self.sink, self.letters, self.clock = log, sink, Letters(), Clock()
        settings = VectorIndexer(batch=batch, interval=0.001, retry_max=0.01)
        self.indexer = CellIndexer("main", log, sink, t.cast(t.Any, Alone()), self.letters, settings, self.clock)

    def catch_up(self) -> None:
        """Until there is no more."""

        async def run() -> None:
            while await self.indexer.step():
                pass

        asyncio.run(run())


def test_a_batch_is_one_request_for_each_collection_and_kind() -> None:
    log, sink = FakeLog(), FakeSink("c", "d")
    for number in range(6):
        log.add(f"p{number % 3}", f"[{number}]")
        log.add(f"q{number}", "[0]", "d")
    log.add("p0", None)
    Rig(log, sink).catch_up()
    assert sorted(sink.requests[:-1]) == ["delete c 1", "upsert c 2", "upsert d 6"]
    assert sink.requests[-1] == "save"
    assert sink.data["c"] == log.state() == {"p1": "[4]", "p2": "[5]"}


def test_the_last_operation_of_a_point_wins() -> None:
    log = FakeLog()
    for vector in ("[1]", None, "[2]"):
        log.add("back", vector)
    for vector in ("[1]", "[2]", None):
        log.add("gone", vector)
    work = plan(log.rows, {})["c"]
    assert [(row.point_id, row.vector) for row in work.upserts] == [("back", "[2]")]
    assert [row.point_id for row in work.deletes] == ["gone"]


@pytest.mark.parametrize("lost_answer", [False, True])
@pytest.mark.parametrize("request_number", range(1, 9))
def test_a_crash_anywhere_repeats_and_loses_nothing(request_number: int, lost_answer: bool) -> None:
    log, sink = FakeLog(), FakeSink("c", "d")
    for number in range(12):
        log.add(f"p{number % 5}", None if number % 4 == 3 else f"[{number}]", "cd"[number % 2])
    sink.fail_at, sink.fail_after = request_number, lost_answer
    with contextlib.suppress(Unavailable):  # it dies here, and another one begins
        Rig(log, sink, batch=4).catch_up()
    Rig(log, sink, batch=4).catch_up()
    assert sink.data == {"c": log.state("c"), "d": log.state("d")}
    assert sink.marks["c"] == log.rows[-1].mark


def test_the_position_is_stored_after_the_data() -> None:
    log, sink = FakeLog(), FakeSink()
    log.add("p")
    sink.fail_at, sink.fail_after = 1, True
    with pytest.raises(Unavailable):
        Rig(log, sink).catch_up()
    assert sink.data["c"] and not sink.marks


def test_a_row_that_commits_late_is_not_missed() -> None:
    log, sink = FakeLog(), FakeSink()
    rig = Rig(log, sink)
    early = log.begin()
    log.add("early", "[1]", txid=early)
    log.add("late", "[2]")
    rig.catch_up()
    assert sink.data["c"] == {}, "a transaction below is still open"
    log.commit(early)
    rig.catch_up()
    assert sink.data["c"] == {"early": "[1]", "late": "[2]"}


def test_an_emptied_qdrant_is_filled_again() -> None:
    log, sink = FakeLog(), FakeSink()
    log.add("p")
    Rig(log, sink).catch_up()
    sink.data, sink.marks = {"c": {}}, {}
    Rig(log, sink).catch_up()
    assert sink.data["c"] == log.state()


def test_qdrant_restored_under_a_running_indexer() -> None:
    log, sink = FakeLog(), FakeSink()
    rig = Rig(log, sink)
    log.add("a")
    rig.catch_up()
    snapshot = {name: dict(points) for name, points in sink.data.items()}, dict(sink.marks)
    log.add("b")
    rig.catch_up()
    sink.data, sink.marks = snapshot
    rig.clock.now += 6
    rig.catch_up()
    assert sink.data["c"] == log.state() == {"a": "[1]", "b": "[1]"}


def test_one_emptied_collection_is_filled_again_and_the_others_left_alone() -> None:
    log, sink = FakeLog(), FakeSink("c", "d")
    log.add("p", "[1]", "c")
    log.add("q", "[1]", "d")
    log.add("q", "[2]", "d")
    rig = Rig(log, sink, batch=1)
    rig.catch_up()
    sink.data["c"] = {}
    sink.requests.clear()
    rig.clock.now += 6
    rig.catch_up()
    assert sink.data == {"c": {"p": "[1]"}, "d": {"q": "[2]"}}
    assert not any(" d " in request for request in sink.requests), "d had all of it"


def test_a_collection_that_only_has_refused_rows_is_not_filled_for_ever() -> None:
    log, sink = FakeLog(), FakeSink()
    log.add("bad", "[wrong]")
    rig = Rig(log, sink)
    for _turn in range(4):
        rig.catch_up()
        rig.clock.now += 6
    assert len(rig.letters.rows) <= 2


def test_refused_rows_become_dead_letters_and_block_nobody() -> None:
    log, sink = FakeLog(), FakeSink()
    for number in range(50):
        log.add(f"p{number}", "[wrong]" if number in (7, 8, 31) else "[1]")
    rig = Rig(log, sink)
    rig.catch_up()
    assert sorted(rig.letters.rows) == ["p31", "p7", "p8"]
    assert len(sink.data["c"]) == 47
    assert sink.marks["c"] == log.rows[-1].mark


def test_a_missing_collection_waits_and_the_others_go_on() -> None:
    log, sink = FakeLog(), FakeSink("c")
    log.add("p", "[1]", "later")
    log.add("q", "[1]", "c")
    rig = Rig(log, sink)
    rig.catch_up()
    log.add("r", "[1]", "c")
    rig.catch_up()
    assert set(sink.data["c"]) == {"q", "r"}
    assert rig.indexer.status()["missing_collections"] == ["later"]
    assert rig.indexer.places.furthest_behind == Position(0, 0), "the lag tells of it"
    sink.data["later"] = {}
    rig.clock.now += 6
    rig.catch_up()
    assert sink.data["later"] == {"p": "[1]"}


def test_a_log_that_lost_rows_sets_the_position_back() -> None:
    log, sink = FakeLog(), FakeSink()
    for number in range(4):
        log.now += 1000
        log.add(f"p{number}")
    Rig(log, sink).catch_up()
    lost = log.rows.pop()
    # The restored server hands the same numbers out again, below the position and at it.
    log.next_txid, log.next_sequence = lost.position.txid - 1, lost.position.sequence
    log.now += 1000
    anew = log.add("anew")
    assert anew.position == lost.position
    before = metrics.value("shannon_vector_indexer_rewinds_total", cell="main", reason="lost rows")
    Rig(log, sink).catch_up()
    assert sink.data["c"]["anew"] == "[1]"
    assert metrics.value("shannon_vector_indexer_rewinds_total", cell="main", reason="lost rows") == before + 1
    assert "p3" in sink.data["c"], "what is gone from the log is reported, not guessed"


def test_a_replica_that_lags_is_waited_for_before_anything_is_set_back() -> None:
    log, sink = FakeLog(), FakeSink()
    for number in range(3):
        log.add(f"p{number}")
    Rig(log, sink).catch_up()
    hidden, log.rows = log.rows[-1], log.rows[:-1]
    log.next_txid = hidden.position.txid - 1
    rig = Rig(log, sink)
    with pytest.raises(Behind):
        rig.catch_up()
    log.rows.append(hidden)
    log.next_txid = hidden.position.txid
    rig.catch_up()
    assert sink.marks["c"] == hidden.mark

    log.rows.remove(hidden)
    log.next_txid = hidden.position.txid - 1
    rig = Rig(log, sink)
    with pytest.raises(Behind):
        rig.catch_up()
    rig.clock.now += GRACE_SECONDS
    rig.catch_up()
    assert sink.marks["c"] == log.rows[-1].mark, "by then it is lost"


def test_a_pruned_log_goes_on() -> None:
    log, sink = FakeLog(), FakeSink()
    for number in range(3):
        log.add(f"p{number}")
    Rig(log, sink).catch_up()
    log.rows.clear()
    log.add("new")
    Rig(log, sink).catch_up()
    assert set(sink.data["c"]) == {"p0", "p1", "p2", "new"}


def test_nothing_is_applied_once_the_lease_is_over() -> None:
    log, sink = FakeLog(), FakeSink("c", "d")
    log.add("p", "[1]", "c")
    log.add("q", "[1]", "d")
    rig = Rig(log, sink)

    class Lease(Alone):
        left = 4  # positions, two counts, one write

        def budget(self, timeout: float) -> float:
            self.left -= 1
            if self.left < 0:
                raise LeadershipLost("over")
            return timeout

    lease = Lease()
    rig.indexer._leadership = t.cast(t.Any, lease)
    with pytest.raises(LeadershipLost):
        rig.catch_up()
    assert sink.requests == ["upsert c 1"] and not sink.marks
    Rig(log, sink).catch_up()
    assert sink.data == {"c": {"p": "[1]"}, "d": {"q": "[1]"}}


def test_it_runs_through_outages_of_both_sides() -> None:
    log, sink = FakeLog(), FakeSink()
    rig = Rig(log, sink)

    async def until(condition: t.Callable[[], bool]) -> None:
        async def poll() -> None:
            while not condition():
                await asyncio.sleep(0.002)

        await asyncio.wait_for(poll(), 5)

    async def run() -> None:
        stopping = asyncio.Event()
        task = asyncio.create_task(rig.indexer.run(stopping))
        log.add("a")
        await until(lambda: "a" in sink.data["c"])
        sink.down = True
        log.add("b")
        await until(lambda: "Qdrant is away" in rig.indexer.status()["trouble"])
        sink.down = False
        await until(lambda: "b" in sink.data["c"])
        log.down = True
        await until(lambda: "log is away" in rig.indexer.status()["trouble"])
        log.down = False
        log.add("c")
        await until(lambda: "c" in sink.data["c"] and not rig.indexer.status()["trouble"])
        stopping.set()
        await asyncio.wait_for(task, 2)

    asyncio.run(run())


def test_lag_and_status() -> None:
    log, sink = FakeLog(), FakeSink()
    row = log.add("a")
    rig = Rig(log, sink)
    rig.catch_up()
    log.add("b")
    log.now += 3

    async def run() -> None:
        stopping = asyncio.Event()
        task = asyncio.create_task(rig.indexer.measure(stopping))
        await asyncio.sleep(0.01)
        stopping.set()
        await asyncio.wait_for(task, 2)

    asyncio.run(run())
    status = rig.indexer.status()
    assert (status["lag_rows"], status["lag_seconds"], status["leader"]) == (1, 3.0, True)
    assert status["position"] == {"txid": row.position.txid, "sequence": row.position.sequence}
    assert metrics.value("shannon_vector_indexer_lag_seconds", cell="main") == 3


def test_marks_survive_their_payload() -> None:
    mark = Mark(Position(2**40, 7), "p", 1.5)
    assert Mark.of(mark.payload("main", "c", 0.0)) == mark
    with pytest.raises(ValueError, match="no position"):
        Mark.of({"txid": 1})


@pytest.mark.parametrize("statement", [log_reader._READ, log_reader._BELOW])
def test_the_log_is_read_in_the_order_of_its_column_and_not_of_its_text(statement: str) -> None:
    """PostgreSQL takes a bare name in ORDER BY for the output's column first, and that is a text: "10000" < "9999"."""
    assert "SELECT txid::text" in statement
    order = statement[statement.index("ORDER BY") :]
    assert order.startswith("ORDER BY vector_log.txid") and "vector_log.sequence" in order
    assert not re.search(r"(?<![.\w])(txid|sequence)\b", order), order
