"""The edge agent: an operator's word reaches every server of a region, and holds through all that may be away."""

from __future__ import annotations

import asyncio
import json
import pathlib
import queue
import typing as t

import pytest
from fake_haproxy import FakeHaproxy

from shannon.resilience.errors import ResilienceError
from shannon.resilience.etcd import EtcdClient, Lease
from shannon.resilience.haproxy import RuntimeApi
from shannon.resilience.registry import CellRecord
from shannon.resilience.routing import Control
from shannon.services.common import metrics
from shannon.services.edge_agent.changes import Changes
from shannon.services.edge_agent.edge import Edge
from shannon.services.edge_agent.holds import Holds


class Registry:
    """Gives controls, or does not answer."""

    def __init__(self) -> None:
        self.controls: dict[str, Control] = {}
        self.away = False

    def __call__(self) -> dict[str, Control]:
        if self.away:
            raise ResilienceError("the registry has no quorum")
        return dict(self.controls)

    def say(self, region: str, state: str) -> None:
        self.controls[region] = Control(region, state, "a test", "ada", "2026-11-23T12:00:00+00:00")


@pytest.fixture
def proxy(tmp_path: pathlib.Path) -> t.Iterator[FakeHaproxy]:
    fake = FakeHaproxy(tmp_path / "admin.sock", [("cell_main", "a_a1"), ("cell_main", "a_a2"), ("cell_main", "b_b1")])
    yield fake
    fake.close()


@pytest.fixture
def registry() -> Registry:
    return Registry()


def agent(proxy: FakeHaproxy, registry: Registry, tmp_path: pathlib.Path) -> Edge:
    return Edge(RuntimeApi(proxy.path), registry, str(tmp_path / "routing.json"), str(tmp_path / "servers.state"))


def admins(proxy: FakeHaproxy) -> dict[str, int]:
    return {name: state["admin"] for (_backend, name), state in proxy.servers.items()}


def test_without_a_word_nothing_is_told(proxy: FakeHaproxy, registry: Registry, tmp_path: pathlib.Path) -> None:
    edge = agent(proxy, registry, tmp_path)
    assert edge.step() == 0
    assert proxy.changes() == []


def test_off_reaches_all_servers_of_the_region_and_ends_their_sessions(
    proxy: FakeHaproxy, registry: Registry, tmp_path: pathlib.Path
) -> None:
    registry.say("a", "off")
    edge = agent(proxy, registry, tmp_path)
    assert edge.step() == 2
    assert admins(proxy) == {"a_a1": 1, "a_a2": 1, "b_b1": 0}
    assert "shutdown sessions server cell_main/a_a1" in proxy.commands
    assert edge.step() == 0, "what holds is not said again"


def test_drain_lets_sessions_end_and_auto_opens_again(
    proxy: FakeHaproxy, registry: Registry, tmp_path: pathlib.Path
) -> None:
    edge = agent(proxy, registry, tmp_path)
    registry.say("b", "drain")
    edge.step()
    assert admins(proxy)["b_b1"] == 8
    assert not any(command.startswith("shutdown") for command in proxy.commands)
    registry.say("b", "auto")
    edge.step()
    assert admins(proxy)["b_b1"] == 0


def test_on_outranks_the_health_check_and_auto_gives_it_back(
    proxy: FakeHaproxy, registry: Registry, tmp_path: pathlib.Path
) -> None:
    proxy.servers["cell_main", "b_b1"]["op"] = 0
    edge = agent(proxy, registry, tmp_path)
    registry.say("b", "on")
    edge.step()
    assert proxy.servers["cell_main", "b_b1"] == {"op": 2, "admin": 0, "check": 0x2}
    registry.say("b", "auto")
    edge.step()
    assert proxy.servers["cell_main", "b_b1"]["check"] == 0x6


def test_a_new_process_is_told_again(proxy: FakeHaproxy, registry: Registry, tmp_path: pathlib.Path) -> None:
    registry.say("a", "off")
    edge = agent(proxy, registry, tmp_path)
    edge.step()
    proxy.restart()
    assert edge.step() == 2
    assert admins(proxy)["a_a1"] == 1


def test_the_last_word_holds_without_the_registry_and_after_a_restart_of_the_agent(
    proxy: FakeHaproxy, registry: Registry, tmp_path: pathlib.Path
) -> None:
    registry.say("a", "off")
    agent(proxy, registry, tmp_path).step()
    registry.away = True
    proxy.restart()
    edge = agent(proxy, registry, tmp_path)
    assert edge.step() == 2
    assert not edge.registry_answers


def test_an_edge_without_haproxy_says_so_and_goes_on(
    proxy: FakeHaproxy, registry: Registry, tmp_path: pathlib.Path
) -> None:
    edge = agent(proxy, registry, tmp_path)
    edge.step()
    path, proxy.path = proxy.path, "nowhere"
    pathlib.Path(path).rename(tmp_path / "moved")
    assert edge.step() == 0
    assert not edge.proxy_answers
    pathlib.Path(tmp_path / "moved").rename(path)
    edge.step()
    assert edge.proxy_answers


def test_what_haproxy_was_told_is_in_the_file_that_it_starts_with(
    proxy: FakeHaproxy, registry: Registry, tmp_path: pathlib.Path
) -> None:
    registry.say("a", "off")
    agent(proxy, registry, tmp_path).step()
    kept = (tmp_path / "servers.state").read_text()
    assert [line.split()[6] for line in kept.splitlines()[2:] if line] == ["1", "1", "0"]


def test_a_broken_memory_is_not_fatal(proxy: FakeHaproxy, registry: Registry, tmp_path: pathlib.Path) -> None:
    (tmp_path / "routing.json").write_text("{broken")
    edge = agent(proxy, registry, tmp_path)
    assert edge.controls == {}
    assert edge.step() == 0


class Cells:
    """A registry of cells with its clock and its leases; the controls are elsewhere."""

    def __init__(self) -> None:
        self.found: dict[str, CellRecord] = {"main": CellRecord("main", "a", 3)}
        self.away = False
        self.now = 1_800_000_000.0
        self.keys: dict[str, tuple[str, int]] = {}
        self.leases: dict[int, float] = {}

    def __call__(self) -> dict[str, CellRecord]:
        self._answer()
        return dict(self.found)

    def say(self, home: str, epoch: int, state: str) -> None:
        self.found["main"] = CellRecord("main", home, epoch, state)

    def told(self, cell: str = "main") -> dict[str, t.Any]:
        """What the edge w1 says, if its lease still runs."""
        value, lease = self.keys[f"/shannon/edges/w1/{cell}"]
        assert self.leases[lease] > self.now
        found = json.loads(value)
        assert found.pop("at").startswith("20")
        return t.cast("dict[str, t.Any]", found)

    def put(self, key: str, value: str, lease: int = 0) -> int:
        self._answer()
        self.keys[key] = (value, lease)
        return 1

    def lease_grant(self, ttl: int) -> Lease:
        self._answer()
        self.leases[len(self.leases) + 1] = self.now + ttl
        return Lease(len(self.leases), ttl)

    def lease_keepalive(self, lease: int) -> int:
        self._answer()
        if self.leases[lease] <= self.now:
            return 0
        self.leases[lease] = self.now + 10
        return 10

    def _answer(self) -> None:
        if self.away:
            raise ResilienceError("the registry has no quorum")


@pytest.fixture
def cells() -> Cells:
    return Cells()


@pytest.fixture
def holder(proxy: FakeHaproxy, registry: Registry, cells: Cells, tmp_path: pathlib.Path) -> Edge:
    return holding(proxy, registry, cells, tmp_path)


def holding(proxy: FakeHaproxy, registry: Registry, cells: Cells, tmp_path: pathlib.Path) -> Edge:
    api = RuntimeApi(proxy.path)
    holds = Holds(api, cells, t.cast(EtcdClient, cells), "w1", proxy.map_path, 15.0, lambda: cells.now)
    return Edge(api, registry, str(tmp_path / "routing.json"), str(tmp_path / "servers.state"), holds)


def word(proxy: FakeHaproxy, cells: Cells, cell: str = "main") -> tuple[str, float] | None:
    """What HAProxy was told of a cell, and for how many seconds it holds."""
    if cell not in proxy.map:
        return None
    said, _dash, until = proxy.map[cell].partition("-")
    return said, round(float(until) - cells.now, 3)


def test_a_cell_that_drains_is_held_and_the_registry_hears_of_it(
    proxy: FakeHaproxy, cells: Cells, holder: Edge
) -> None:
    assert (holder.step(), holder.busy(), proxy.changes(), cells.keys) == (0, False, [], {})
    proxy.sessions["cell_main"], proxy.streams["cell_main"] = 5, 2
    cells.say("a", 3, "draining")
    holder.step()
    assert holder.busy() and holder.held() == ["main"]
    assert word(proxy, cells) == ("hold", 15.0)
    assert cells.told() == {"epoch": 3, "held": True, "in_flight": 3}, "event streams need not end"
    assert metrics.value("shannon_edge_held", cell="main") == 1
    proxy.sessions["cell_main"] = 2
    cells.now += 0.1
    holder.step()
    assert cells.told()["in_flight"] == 0
    assert word(proxy, cells) == ("hold", 14.9), "the end is moved once a second, not at every step"


def test_requests_that_name_no_cell_count_for_each(proxy: FakeHaproxy, cells: Cells, holder: Edge) -> None:
    proxy.sessions.update(any=2, cell_main=1)
    proxy.streams["any"] = 1
    cells.say("a", 3, "draining")
    holder.step()
    assert cells.told()["in_flight"] == 2


def test_a_hold_lasts_as_long_as_the_registry_says(proxy: FakeHaproxy, cells: Cells, holder: Edge) -> None:
    cells.say("a", 3, "draining")
    for _each in range(40):
        holder.step()
        said = word(proxy, cells)
        assert said is not None and said[0] == "hold" and said[1] >= 14
        assert cells.told()["held"] is True
        cells.now += 1
    assert len(cells.leases) == 1, "one lease is kept alive"


def test_once_released_requests_go_to_the_new_home_only_until_health_checks_have_followed(
    proxy: FakeHaproxy, registry: Registry, cells: Cells, holder: Edge
) -> None:
    cells.say("a", 3, "draining")
    holder.step()
    assert admins(proxy) == {"a_a1": 0, "a_a2": 0, "b_b1": 8}
    cells.say("b", 4, "active")
    proxy.commands.clear()
    holder.step()
    assert admins(proxy) == {"a_a1": 8, "a_a2": 8, "b_b1": 0}
    servers = [number for number, it in enumerate(proxy.commands) if it.startswith("set server")]
    assert max(servers) < next(number for number, it in enumerate(proxy.commands) if it.startswith("set map"))
    assert word(proxy, cells) == ("wait", 10.0)
    assert cells.told() == {"epoch": 4, "held": False, "in_flight": 0}
    assert metrics.value("shannon_edge_held", cell="main") == 0
    assert holder.busy() and holder.held() == []
    cells.now += 10
    holder.step()
    assert not holder.busy()
    assert admins(proxy) == {"a_a1": 0, "a_a2": 0, "b_b1": 0}
    assert proxy.map == {}


def test_an_operators_word_on_a_region_outranks_the_home(
    proxy: FakeHaproxy, registry: Registry, cells: Cells, holder: Edge
) -> None:
    registry.say("b", "off")
    cells.say("a", 3, "draining")
    holder.step()
    assert admins(proxy)["b_b1"] == 1
    registry.say("b", "on")
    holder.step()
    assert admins(proxy)["b_b1"] == 0


def test_without_the_registry_a_hold_ends_at_its_limit_and_health_checks_decide(
    proxy: FakeHaproxy, cells: Cells, holder: Edge
) -> None:
    cells.say("a", 3, "draining")
    holder.step()
    cells.away = True
    cells.now += 14
    holder.step()
    assert word(proxy, cells) == ("hold", 1.0), "HAProxy ends it even if this agent does not"
    cells.now += 1
    holder.step()
    assert word(proxy, cells) == ("wait", 10.0)
    assert admins(proxy) == {"a_a1": 0, "a_a2": 0, "b_b1": 0}
    cells.away = False
    holder.step()
    assert word(proxy, cells) == ("hold", 15.0), "it drains still"


def test_a_new_process_holds_at_once_and_a_new_agent_releases_what_is_old(
    proxy: FakeHaproxy, registry: Registry, cells: Cells, holder: Edge, tmp_path: pathlib.Path
) -> None:
    cells.say("a", 3, "draining")
    holder.step()
    proxy.restart()
    holder.step()
    assert word(proxy, cells) == ("hold", 15.0)
    cells.say("a", 3, "active")
    cells.away = True
    another = holding(proxy, registry, cells, tmp_path)
    another.step()
    assert word(proxy, cells) == ("hold", 15.0), "it knows nothing yet; HAProxy's word has an end"
    cells.away = False
    another.step()
    assert proxy.map == {}


def test_an_edge_that_can_not_hold_still_routes_and_does_not_claim_to_hold(
    proxy: FakeHaproxy, registry: Registry, cells: Cells, holder: Edge
) -> None:
    proxy.map_path = "/another.map"
    cells.say("a", 3, "draining")
    registry.say("a", "off")
    assert holder.step() > 0
    assert admins(proxy)["a_a1"] == 1
    assert cells.keys == {}


def test_a_lease_that_ended_is_replaced(cells: Cells, holder: Edge) -> None:
    cells.say("a", 3, "draining")
    holder.step()
    cells.now += 11
    holder.step()
    assert cells.told()["held"] is True
    assert len(cells.leases) == 2


def test_a_change_is_heard_at_once_and_a_broken_watch_is_tried_again() -> None:
    class Watcher:
        def __init__(self) -> None:
            self.events: queue.Queue[bool | None] = queue.Queue()
            self.asked: list[tuple[str, ...]] = []

        def watch(self, prefixes: t.Sequence[str], seconds: float) -> bool:
            self.asked.append(tuple(prefixes))
            event = self.events.get()
            if event is None:
                raise ResilienceError("no member can watch")
            return event

    async def scenario() -> None:
        watcher = Watcher()
        changes = Changes(watcher, ("/x/", "/y/"), 0.01)
        assert await changes.wait(0.05) is False
        watcher.events.put(None)
        watcher.events.put(False)
        watcher.events.put(True)
        assert await changes.wait(5) is True
        assert await changes.wait(0.05) is False, "one change is heard once"
        assert set(watcher.asked) == {("/x/", "/y/")}

    asyncio.run(scenario())
