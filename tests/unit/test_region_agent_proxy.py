"""What the region agent tells the data proxy of its host, and when."""

from __future__ import annotations

import typing as t
from types import SimpleNamespace

import pytest

pytest.importorskip("prometheus_client")

from shannon.resilience.errors import ResilienceError
from shannon.resilience.region_lease import Position, Serving, View
from shannon.resilience.registry import CellRecord
from shannon.services.region_agent.keeper import Local, Standing
from shannon.services.region_agent.proxy import ProxyOfHost

HOSTS = {"a": {"a1": "192.0.2.1", "a2": "192.0.2.2"}, "b": {"b1": "198.51.100.1", "b2": "198.51.100.2"}}


class Proxy:
    def __init__(self) -> None:
        self.told: list[str] = []
        self.answer = ""
        self.error: ResilienceError | None = None
        settings: t.Any = SimpleNamespace(postgres=HOSTS, redis=HOSTS, data_proxy="/nowhere")
        cell: t.Any = SimpleNamespace(name="main")
        self.part = ProxyOfHost(settings, cell, self.command)

    def command(self, text: str) -> str:
        if self.error:
            raise self.error
        self.told.append(text)
        return self.answer

    def see(
        self,
        home: str = "a",
        epoch: int = 1,
        serving: Serving | None = None,
        position: Position | None = None,
        state: str = "active",
    ) -> list[str]:
        """What the registry says now; returns what the proxy was told of it."""
        self.told = []
        view = View(CellRecord("main", home, epoch, state), None, None, position, serving)
        self.part.tell(Standing(view, Local(), 0.0, 0.0, 0.0))
        return [one.removeprefix("set server main_") for one in self.told]


def served(home: str, epoch: int, host: str, redis: str = "") -> Serving:
    return Serving(home, epoch, 0.0, host, redis_primary=redis)


def test_a_new_home_is_told_at_once_and_once() -> None:
    proxy = Proxy()
    assert proxy.see("a", 1, served("a", 1, "a2", "192.0.2.1")) == []
    assert proxy.see("b", 2, served("a", 1, "a2", "192.0.2.1")) == [], "nobody serves yet"
    told = proxy.see("b", 2, served("b", 2, "b1", "198.51.100.2"))
    assert told == [
        "postgres_primary/b1 health up",
        "postgres_primary/a1 health down",
        "postgres_primary/a2 health down",
        "postgres_primary/b2 health down",
        "redis_primary/b2 health up",
        "redis_primary/a1 health down",
        "redis_primary/a2 health down",
        "redis_primary/b1 health down",
    ]
    assert proxy.see("b", 2, served("b", 2, "b1", "198.51.100.2")) == []


@pytest.mark.parametrize("state", ["entering", "taking_over"])
def test_the_home_that_was_left_is_not_tried_any_more(state: str) -> None:
    proxy = Proxy()
    proxy.see("a", 1, served("a", 1, "a2", "192.0.2.1"))
    assert proxy.see("a", 1, served("a", 1, "a2", "192.0.2.1"), state="draining") == []
    assert proxy.see("b", 2, served("a", 1, "a2", "192.0.2.1"), state=state) == [
        "postgres_primary/a1 health down",
        "postgres_primary/a2 health down",
        "redis_primary/a1 health down",
        "redis_primary/a2 health down",
    ]
    assert proxy.see("b", 2, served("a", 1, "a2", "192.0.2.1"), state=state) == [], "its checks may see otherwise"
    assert "postgres_primary/b1 health up" in proxy.see("b", 2, served("b", 2, "b1", "198.51.100.2"), state=state)


def test_who_serves_tells_its_own_proxy_before_anybody_is_let_in() -> None:
    proxy = Proxy()
    proxy.see("a", 1, served("a", 1, "a2", "192.0.2.1"))
    proxy.told = []
    proxy.part.lead(2, "b1", "198.51.100.2")
    assert len(proxy.told) == 8
    assert proxy.see("b", 2, served("b", 2, "b1", "198.51.100.2")) == []


def test_a_new_primary_of_the_same_home_is_told_by_where_it_writes() -> None:
    proxy = Proxy()
    proxy.see("a", 1, served("a", 1, "a2"), Position("a", 1, 100, 0.0, "a2"))
    told = proxy.see("a", 1, served("a", 1, "a2"), Position("a", 1, 200, 1.0, "a1"))
    assert told[0] == "postgres_primary/a1 health up" and len(told) == 4


@pytest.mark.parametrize(
    "position",
    [Position("a", 1, 100, 0.0, "a2", final=True), Position("a", 1, 100, 0.0, "a2"), None],
    ids=["where the old home ended", "where the old home was", "none"],
)
def test_an_old_position_says_nothing(position: Position | None) -> None:
    proxy = Proxy()
    proxy.see("a", 1, served("a", 1, "a2"))
    assert proxy.see("b", 2, served("b", 2, "b1"), position)[0] == "postgres_primary/b1 health up"


def test_a_host_that_is_not_known_is_not_told() -> None:
    proxy = Proxy()
    proxy.see("a", 1, served("a", 1, "a2", "192.0.2.1"))
    assert proxy.see("b", 2, served("b", 2, "b9", "203.0.113.9")) == []


def test_a_proxy_that_does_not_answer_finds_out_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    proxy = Proxy()
    proxy.see("a", 1, served("a", 1, "a2"))
    proxy.error = ResilienceError("no socket")
    assert proxy.see("b", 2, served("b", 2, "b1")) == []
    assert "finds its postgres_primary out by itself: no socket" in caplog.text
    proxy.error, proxy.answer = None, "No such server."
    proxy.see("a", 3, served("a", 3, "a1"))
    assert "No such server." in caplog.text
