"""Each task is ended once, whoever crashes, is away, or changes his mind in between."""

from __future__ import annotations

import asyncio
import dataclasses
import typing as t

from shannon.services.common.config import Orchestrator
from shannon.services.database.client import DatabaseAway
from shannon.services.orchestrator.tasks import Ending, Lease
from shannon.services.orchestrator.worker import Worker

SETTINGS = Orchestrator(concurrency=2, poll_interval=0.02, cancel_interval=0.02, lease=5, max_attempts=3)


def lease(number: int, attempt: int = 1, cancelled: bool = False) -> Lease:
    return Lease(
        id=f"task-{number}",
        workflow_id=f"workflow-{number}",
        tenant="t",
        user_id="u",
        user="ann",
        session="s",
        query="q",
        requested_mode="simple",
        context={},
        attempt=attempt,
        cancel_requested=cancelled,
        age=0.0,
        owner="me",
    )


class Store:
    """Tasks in memory."""

    def __init__(self, *waiting: Lease) -> None:
        self.waiting = list(waiting)
        self.ended: dict[str, Ending] = {}
        self.released: list[str] = []
        self.lost: set[str] = set()
        self.to_cancel: set[str] = set()
        self.away = 0
        self.claimed: list[int] = []

    async def claim(self, _owner: str, limit: int, _lease: float) -> list[Lease]:
        self.claimed.append(limit)
        found, self.waiting = self.waiting[:limit], self.waiting[limit:]
        return found

    async def end(self, one: Lease, ending: Ending) -> bool:
        if self.away:
            self.away -= 1
            raise DatabaseAway("the database is away")
        if one.id in self.lost:
            return False
        assert one.id not in self.ended
        self.ended[one.id] = ending
        return True

    async def renew(self, leases: t.Sequence[Lease], _seconds: float) -> dict[str, bool]:
        return {one.id: one.id in self.to_cancel for one in leases if one.id not in self.lost}

    async def cancelled(self, tasks: t.Sequence[str]) -> list[str]:
        return [task for task in tasks if task in self.to_cancel]

    async def release(self, leases: t.Sequence[Lease]) -> None:
        self.released += [one.id for one in leases]


class Engine:
    """Completes at once, unless a task is to hang or to crash."""

    def __init__(self) -> None:
        self.hanging: set[str] = set()
        self.crashing: set[str] = set()
        self.running = self.most = 0

    async def run(self, one: Lease, _teller: t.Any) -> Ending:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(3600 if one.id in self.hanging else 0.005)
            if one.id in self.crashing:
                raise RuntimeError("a mistake in the engine")
            return Ending("completed", "simple", result="done")
        finally:
            self.running -= 1


class Told:
    """What was told, by task."""

    def __init__(self) -> None:
        self.kinds: dict[str, list[str]] = {}

    def of(self, task: str, _workflow: str, _attempt: int) -> t.Any:
        told = self.kinds.setdefault(task, [])

        class Teller:
            async def tell(self, kind: str, *_args: t.Any, **_more: t.Any) -> None:
                told.append(kind)

        return Teller()


class Rig:
    """A worker between fakes."""

    def __init__(self, *waiting: Lease) -> None:
        self.store, self.engine, self.told = Store(*waiting), Engine(), Told()
        self.home = True
        fakes = [t.cast(t.Any, one) for one in (self.store, self.engine, self.told)]
        self.worker = Worker(*fakes, SETTINGS, "me", lambda: self.home)

    async def until(self, condition: t.Callable[[], bool]) -> None:
        async def poll() -> None:
            while not condition():
                await asyncio.sleep(0.005)

        await asyncio.wait_for(poll(), 5)

    def play(self, scene: t.Callable[[], t.Awaitable[None]], patience: float = 5) -> None:
        async def go() -> None:
            loops = [asyncio.ensure_future(self.worker.run()), asyncio.ensure_future(self.worker.watch())]
            await scene()
            await self.worker.stop(patience)
            await asyncio.wait_for(asyncio.gather(*loops), 5)

        asyncio.run(go())


def test_tasks_are_run_a_few_at_a_time_and_each_is_ended_once() -> None:
    rig = Rig(*(lease(number) for number in range(9)))

    async def scene() -> None:
        await rig.until(lambda: len(rig.store.ended) == 9)

    rig.play(scene)
    assert rig.engine.most == 2
    assert {ending.status for ending in rig.store.ended.values()} == {"completed"}
    assert set(map(tuple, rig.told.kinds.values())) == {("WORKFLOW_COMPLETED", "STREAM_END")}


def test_away_from_home_nothing_is_claimed() -> None:
    rig = Rig(lease(1))
    rig.home = False

    async def scene() -> None:
        await asyncio.sleep(0.1)

    rig.play(scene)
    assert rig.store.claimed == []


def test_a_crash_in_the_engine_fails_its_task_and_no_other() -> None:
    rig = Rig(lease(1), lease(2))
    rig.engine.crashing = {"task-1"}

    async def scene() -> None:
        await rig.until(lambda: len(rig.store.ended) == 2)

    rig.play(scene)
    assert rig.store.ended["task-1"].status == "failed"
    assert "a mistake in the engine" in (rig.store.ended["task-1"].error or "")
    assert rig.store.ended["task-2"].status == "completed"


def test_a_result_waits_for_a_database_that_is_away() -> None:
    rig = Rig(lease(1))
    rig.store.away = 3

    async def scene() -> None:
        await rig.until(lambda: bool(rig.store.ended))

    rig.play(scene)
    assert rig.store.ended["task-1"].status == "completed"


def test_a_task_that_another_worker_has_is_neither_written_nor_told_of() -> None:
    rig = Rig(lease(1))
    rig.store.lost = {"task-1"}

    async def scene() -> None:
        await rig.until(lambda: rig.store.claimed != [] and not rig.worker.running)

    rig.play(scene)
    assert rig.store.ended == {}
    assert rig.told.kinds["task-1"] == []


def test_a_cancelled_task_ends_at_once_wherever_it_was_asked_for() -> None:
    for elsewhere in (True, False):
        rig = Rig(lease(1))
        rig.engine.hanging = {"task-1"}

        async def scene(rig: Rig = rig, elsewhere: bool = elsewhere) -> None:
            await rig.until(lambda: rig.engine.running == 1)
            if elsewhere:
                rig.store.to_cancel = {"task-1"}
            else:
                rig.worker.cancel("task-1")
            await rig.until(lambda: bool(rig.store.ended))

        rig.play(scene)
        assert rig.store.ended["task-1"].status == "cancelled"
        assert rig.told.kinds["task-1"] == ["WORKFLOW_CANCELLED", "STREAM_END"]


def test_what_was_cancelled_before_it_began_is_not_begun() -> None:
    rig = Rig(lease(1, cancelled=True))

    async def scene() -> None:
        await rig.until(lambda: bool(rig.store.ended))

    rig.play(scene)
    assert (rig.store.ended["task-1"].status, rig.engine.most) == ("cancelled", 0)


def test_a_task_that_kills_its_workers_is_given_up() -> None:
    rig = Rig(lease(1, attempt=SETTINGS.max_attempts + 1), lease(2, attempt=SETTINGS.max_attempts))

    async def scene() -> None:
        await rig.until(lambda: len(rig.store.ended) == 2)

    rig.play(scene)
    assert rig.store.ended["task-1"].status == "failed"
    assert "begun 3 times" in (rig.store.ended["task-1"].error or "")
    assert rig.store.ended["task-2"].status == "completed"


def test_an_orderly_end_hands_unfinished_tasks_over() -> None:
    rig = Rig(lease(1), lease(2))
    rig.engine.hanging = {"task-1"}

    async def scene() -> None:
        await rig.until(lambda: "task-2" in rig.store.ended and rig.engine.running == 1)

    rig.play(scene, patience=0.05)
    assert rig.store.released == ["task-1"]
    assert "task-1" not in rig.store.ended


def test_an_ending_has_the_columns_that_the_statement_names() -> None:
    names = {field.name for field in dataclasses.fields(Ending)} - {"points"}
    from shannon.services.orchestrator.tasks import _END

    assert {name for name in names if f"%({name})s" not in _END} == set()
