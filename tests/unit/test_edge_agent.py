"""The edge agent: an operator's word reaches every server of a region, and holds through all that may be away."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
from fake_haproxy import FakeHaproxy

from shannon.resilience.errors import ResilienceError
from shannon.resilience.haproxy import RuntimeApi
from shannon.resilience.routing import Control
from shannon.services.edge_agent.edge import Edge


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
