"""Where cells are, as a service knows it: from the registry, or from an agent that has just asked it."""

from __future__ import annotations

import asyncio
import json
import time
import typing as t
from pathlib import Path

import pytest

pytest.importorskip("pydantic")

from shannon.resilience.errors import ResilienceError
from shannon.services.common import cells
from shannon.services.common.cells import CellDirectory, CellState
from shannon.services.common.deployment import Deployment
from shannon.services.common.lifecycle import Lifecycle

INTERVAL = 0.2


class World:
    """A registry that counts who asks, and an agent that writes a word a second or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = CellState("a", 1, "active")
        self.asked = 0
        self.silent = False

    def ask(self) -> dict[str, CellState]:
        self.asked += 1
        if self.silent:
            raise ResilienceError("no quorum")
        return {"main": self.state}

    def word(self, age: float = 0.0, error: str = "", **record: t.Any) -> None:
        told = {"name": "main", "home": self.state.home, "epoch": self.state.epoch, "state": self.state.state, **record}
        answered = time.clock_gettime(time.CLOCK_BOOTTIME) - age
        said = {"answered": answered, "record": told, "registry_error": error}
        # As the agent does it: nobody reads half a word.
        (self.folder / "main.new").write_text(json.dumps(said))
        (self.folder / "main.new").replace(self.folder / "main.json")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(cells, "WORDS", tmp_path / "words")
    monkeypatch.setattr(cells, "GLANCE", 0.02)
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    (tmp_path / "words").mkdir()
    return World(tmp_path / "words")


def follow(world: World, during: t.Callable[[CellDirectory], t.Awaitable[None]]) -> None:
    deployment = Deployment(region="b", host="b1", cells=[{"name": "main", "home": "a"}])

    async def run() -> None:
        directory = CellDirectory(deployment, fetch=world.ask, interval=INTERVAL)
        lifecycle = Lifecycle(1.0)
        await directory.start(lifecycle)
        world.asked = 0
        try:
            await during(directory)
        finally:
            lifecycle.stopping.set()
            await lifecycle.drain()

    asyncio.run(run())


async def until(met: t.Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 5
    while not met():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


def test_an_agent_that_has_just_asked_saves_the_question(world: World) -> None:
    async def during(directory: CellDirectory) -> None:
        for _each in range(80):
            world.word()
            await asyncio.sleep(0.02)
            assert directory.age() < 2 * INTERVAL or world.asked
        # Without a word it is asked eight times meanwhile. A busy machine may let one or two words grow old.
        assert world.asked <= 2

    follow(world, during)


@pytest.mark.parametrize("word", [{"age": 60.0}, {"error": "no quorum"}, None])
def test_without_a_good_word_the_registry_is_asked(world: World, word: dict[str, t.Any] | None) -> None:
    async def during(_directory: CellDirectory) -> None:
        if word is not None:
            world.word(**word)
        await until(lambda: world.asked >= 2, "the registry was not asked")

    follow(world, during)


def test_another_word_than_what_is_known_is_taken_over(world: World) -> None:
    """The registry would say something else here, so that it shows whose word it is."""

    async def during(directory: CellDirectory) -> None:
        world.word(home="b", epoch=2)
        await until(lambda: directory.is_home("main"), "the new home was not heard of")
        assert directory.epoch("main") == 2

    follow(world, during)


@pytest.mark.parametrize("age", [60.0, 3600.0])
def test_a_word_that_may_be_older_than_what_is_known_has_the_registry_asked(world: World, age: float) -> None:
    async def during(directory: CellDirectory) -> None:
        world.word(age=age, state="draining")
        await until(lambda: world.asked >= 1 or directory.state("main") != "active", "the registry was not asked")
        assert directory.state("main") == "active"

    follow(world, during)


def test_an_older_word_is_not_believed(world: World) -> None:
    world.state = CellState("b", 2, "active")

    async def during(directory: CellDirectory) -> None:
        world.word(home="a", epoch=1)
        await until(lambda: world.asked >= 1, "the registry was not asked")
        assert directory.home_of("main") == "b"

    follow(world, during)
