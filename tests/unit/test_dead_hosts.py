"""Dead hosts cost a bounded time, however many there are: fifty of them are asked at once, and cost one timeout."""

from __future__ import annotations

import socket
import threading
import typing as t
from types import SimpleNamespace

import pytest

from ansible_collections.shannon.resilience.plugins.module_utils import cell_probe, move_world, topology
from ansible_collections.shannon.resilience.plugins.module_utils.cell_probe import Probe
from ansible_collections.shannon.resilience.plugins.module_utils.concurrently import gather
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.move_world import PATIENCE, Deployment
from ansible_collections.shannon.resilience.plugins.module_utils.reachability import probe
from ansible_collections.shannon.resilience.plugins.module_utils.tls import TlsFiles

DEAD = 50
TIMEOUT = 0.5


class Network:
    """Where nobody answers. Each connection waits until so many wait together, or for ten seconds, and then times out.

    So the tests see whether all are asked at once, and do not depend on how fast the machine is.
    """

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._now = 0
        self.together = 1
        self.asked: set[tuple[str, int]] = set()
        self.reached = False

    def connect(self, address: tuple[str, int], *_more: t.Any, **_named: t.Any) -> socket.socket:
        with self._change:
            self.asked.add(address)
            self._now += 1
            self.reached = self.reached or self._now >= self.together
            self._change.notify_all()
            self._change.wait_for(lambda: self.reached, 10.0)
            self._now -= 1
        raise TimeoutError("timed out")


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    found = Network()
    monkeypatch.setattr(socket, "create_connection", found.connect)
    for module in (cell_probe, move_world):
        monkeypatch.setattr(module, "client_context", lambda _tls: None)
    return found


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> dict[str, t.Any]:
    """Two regions, the first of which has fifty hosts more than usual, each with everything."""
    hosts = {"a": [f"a{n}" for n in range(DEAD + 3)], "b": ["b1", "b2", "b3"]}
    everyone = [*hosts["a"], *hosts["b"]]
    groups: dict[str, list[str]] = {f"region_{region}": names for region, names in hosts.items()}
    groups.update(dict.fromkeys((*topology.REGIONAL_COMPONENTS, "gateway", "orchestrator"), everyone))
    groups.update(witness=["w1"], registry=["a0", "b1", "w1"], edge=["w1"])
    addresses = {host: f"198.18.0.{number}" for number, host in enumerate([*everyone, "w1"], 1)}
    return topology.derive({"a": {}, "b": {}}, {"main": {"home": "a"}}, groups, addresses, {})


def test_all_calls_run_at_once() -> None:
    started = threading.Barrier(5 * (DEAD + 7))
    assert set(gather({n: lambda: started.wait(10) >= 0 for n in range(started.parties)}).values()) == {True}


def test_all_ports_of_all_hosts_are_asked_at_once(network: Network, large: dict[str, t.Any]) -> None:
    # Patroni, Redis, Qdrant, indexer and certificate of each.
    network.together = 5 * DEAD
    seen = Probe(large, TlsFiles(), "monitor", "x", "x", TIMEOUT).observe()
    assert network.reached
    assert all(isinstance(answer, ResilienceError) for answer in seen.patroni.values())


def test_a_mover_asks_agents_and_gateways_with_the_stores(network: Network, large: dict[str, t.Any]) -> None:
    network.together = 7 * DEAD
    look = Probe(large, TlsFiles(), "monitor", "x", "x", TIMEOUT)
    world = Deployment(large, TlsFiles(), look, "x", TIMEOUT, ahead=["a"])
    world.info()
    assert network.reached
    network.asked.clear()
    assert len(world.agents("a")) == len(world.gateways("a")) == DEAD + 3
    assert not network.asked, "they were asked already"
    world.agents("b")
    assert len(network.asked) == 3, "these were not"


def test_who_is_to_be_refused_is_looked_at_once_more_for_all_cells(
    network: Network, large: dict[str, t.Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed: list[float] = []
    look: t.Any = SimpleNamespace(allow=allowed.append)
    world = Deployment(large, TlsFiles(), look, "x", TIMEOUT, ahead=["a"])
    looks = iter([{"look": 1}, {"look": 2}])
    monkeypatch.setattr(world, "_look", lambda: next(looks))
    assert world.info() == {"look": 1}
    for _cell in range(2):
        world.be_patient()
        # At once: agents and gateways are asked together with the stores, and no old word of theirs may be left.
        assert next(looks, None) is None
        assert world.info() == {"look": 2}
    assert allowed == [PATIENCE]


def test_a_host_to_ask_from_is_looked_for_everywhere_at_once(network: Network) -> None:
    hosts = {f"a{n}": (f"198.18.0.{n}", 22) for n in range(DEAD + 7)}
    network.together = len(hosts)
    reachable, silent = probe(hosts, TIMEOUT)
    assert network.reached
    assert reachable == [] and len(silent) == DEAD + 7


def test_what_a_call_raises_stands_for_it() -> None:
    def fails() -> str:
        raise ResilienceError("no")

    found = gather({"one": fails, "two": lambda: "yes"})
    assert str(found["one"]) == "no" and found["two"] == "yes"
