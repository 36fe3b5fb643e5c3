"""The region agent says where a cell is: in DNS without ever waiting for it, and in the registry under its lease."""

from __future__ import annotations

import pathlib
import threading
import time
import typing as t

import pytest

pytest.importorskip("prometheus_client")

from fake_etcd import FakeCluster
from module_runner import run_module

from ansible_collections.shannon.resilience.plugins.modules import registry_endpoints_info
from shannon.resilience.dns_update import Change, Found
from shannon.resilience.endpoints import ENDPOINTS, endpoints_of, read_endpoints
from shannon.resilience.errors import ResilienceError
from shannon.resilience.etcd import EtcdClient
from shannon.resilience.redis import Replication
from shannon.resilience.region_lease import LEASES, SERVING, RegionLease, RegionLeases, Serving
from shannon.resilience.registry import CellRecord, Registry
from shannon.services.region_agent import discovery, dns
from shannon.services.region_agent.discovery import EndpointsOfCell
from shannon.services.region_agent.dns import AGAIN, HOLDS, RETRY, NamesOfCell
from shannon.services.region_agent.keeper import Local, Standing
from shannon.services.region_agent.settings import DnsName, Settings
from shannon.services.region_agent.settings import now as clock_of_the_host
from shannon.services.region_agent.worker import Worker

HOSTS = {"a": {"a1": "192.0.2.1", "a2": "192.0.2.2"}, "b": {"b1": "198.51.100.1"}}
NAME = {
    "cell": "main",
    "zone": "example.org",
    "name": "main.example.org",
    "ttl": 5,
    "servers": ["192.0.2.53:53", "198.51.100.53:53"],
    "key_name": "shannon-update",
    "key_secret": "hush" * 4,
    "key_algorithm": "hmac-sha256",
    "regions": {"a": {"A": ["192.0.2.1"]}, "b": {"A": ["198.51.100.1"]}},
}


def configured(**changes: t.Any) -> Settings:
    ports = {"postgres": 5432, "patroni": 8008, "redis": 6379, "sentinel": 26379}
    given: dict[str, t.Any] = {
        "region": "a",
        "host": "a1",
        "address": "192.0.2.1",
        "port": 8443,
        "cells": [{"name": "main", **ports}],
        "postgres": HOSTS,
        "redis": HOSTS,
        "agents": HOSTS,
        "registry": ["192.0.2.1:12379"],
        "etcd": ["192.0.2.1:2379"],
        "edges": ["203.0.113.1:443"],
        "gateways": {"a": ["192.0.2.1:8080"], "b": ["198.51.100.1:8080"]},
        "dns": [NAME],
        "patroni_password": "x",
        "redis_password": "x",
    }
    return Settings(**{**given, **changes})


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    for module in (dns, discovery):
        monkeypatch.setattr(module, "now", found)
    return found


class Servers:
    """What each server says, and which of them are dead."""

    def __init__(self) -> None:
        self.says: dict[str, str] = {}
        self.dead: set[str] = set()
        self.asked = 0

    def __call__(self, name: DnsName, server: str, home: str) -> Change:
        self.asked += 1
        if server in self.dead:
            raise ResilienceError(f"the DNS server {server} gives no answer")
        before, self.says[server] = self.says.get(server, ""), home
        return Change(server, Found({}), Found(name.regions[home], name.ttl), before != home, 0.1)


def names(servers: t.Callable[..., Change]) -> NamesOfCell:
    return NamesOfCell("main", [DnsName(**NAME)], servers)


# -- names in DNS ----------------------------------------------------------------------------------------------------


def test_every_server_says_the_home(clock: Clock) -> None:
    servers = Servers()
    one = names(servers)
    assert one.step() and servers.asked == 0, "nobody has said that this host speaks for the home"
    one.want("b")
    assert one.step()
    assert servers.says == {"192.0.2.53:53": "b", "198.51.100.53:53": "b"}


def test_a_dead_server_keeps_no_other_from_its_change_and_is_tried_again(clock: Clock) -> None:
    servers = Servers()
    servers.dead = {"192.0.2.53:53"}
    one = names(servers)
    one.want("a")
    assert not one.step()
    assert servers.says == {"198.51.100.53:53": "a"} and "192.0.2.53:53 gives no answer" in one.trouble
    servers.dead = set()
    assert one.step() and one.trouble == ""
    assert servers.says["192.0.2.53:53"] == "a"
    assert RETRY < AGAIN


def test_the_word_holds_for_some_seconds_only(clock: Clock) -> None:
    servers = Servers()
    one = names(servers)
    one.want("a")
    clock.now += HOLDS
    assert one.step() and servers.asked == 0
    one.want("a")
    one.rest()
    assert one.step() and servers.asked == 0


def test_a_home_that_leaves_in_the_middle_is_no_trouble(clock: Clock) -> None:
    def slow(_name: DnsName, _server: str, _home: str) -> Change:
        one.rest()
        raise ResilienceError("too late")

    one = names(slow)
    one.want("a")
    assert one.step() and one.trouble == ""


def test_a_dead_server_does_not_delay_who_speaks() -> None:
    held, begun = threading.Event(), threading.Event()

    def hang(_name: DnsName, server: str, _home: str) -> Change:
        begun.set()
        held.wait(10)
        raise ResilienceError(f"{server} is dead")

    one = names(hang)
    one.start()
    try:
        one.want("a")
        assert begun.wait(5)
        before = time.monotonic()
        one.want("a")
        one.rest()
        one.want("b")
        assert time.monotonic() - before < 1
    finally:
        one.stop()
        held.set()


def test_a_new_home_is_told_at_once() -> None:
    done = threading.Event()

    def bring(name: DnsName, server: str, home: str) -> Change:
        if home == "b":
            done.set()
        return Change(server, Found({}), Found(name.regions[home]), False, 0.0)

    one = names(bring)
    one.start()
    try:
        one.want("a")
        time.sleep(0.1)
        one.want("b")
        assert done.wait(5), f"not before the {AGAIN} s of a look were over"
    finally:
        one.stop()


def test_a_crash_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns, "RETRY", 0.01)
    tries: list[int] = []
    twice = threading.Event()

    def crash(*_given: t.Any) -> t.NoReturn:
        tries.append(1)
        if len(tries) > 3:
            twice.set()
        raise ValueError("something else")

    one = names(crash)
    one.start()
    try:
        one.want("a")
        assert twice.wait(5)
    finally:
        one.stop()


def test_the_key_is_not_shown() -> None:
    assert "hush" not in repr(configured())


# -- endpoints in the registry ---------------------------------------------------------------------------------------


@pytest.fixture
def client() -> t.Iterator[EtcdClient]:
    with FakeCluster(1) as cluster:
        found = EtcdClient([cluster.endpoints[0]], timeout=5.0)
        Registry(found).create("main", "a")
        yield found


def lease_of(client: EtcdClient) -> RegionLease:
    record = Registry(client).get("main")
    assert record
    lease = RegionLeases(client).acquire(record, "a1")
    assert lease
    return lease


def published(client: EtcdClient) -> dict[str, t.Any]:
    return dict(read_endpoints(client))


def test_the_home_publishes_where_everything_is(client: EtcdClient, clock: Clock) -> None:
    given = configured()
    EndpointsOfCell(given, given.cells[0], RegionLeases(client)).publish(lease_of(client), "192.0.2.2")
    one = published(client)["main"]
    assert (one.cell, one.epoch, one.home) == ("main", 1, "a")
    assert one.edges == ["https://203.0.113.1:443"] and one.gateways["b"] == ["198.51.100.1:8080"]
    assert one.postgres == {
        "primary": ["192.0.2.1:5432"],
        "replicas": ["192.0.2.2:5432"],
        "standby": ["198.51.100.1:5432"],
    }
    assert one.redis["primary"] == ["192.0.2.2:6379"] and one.redis["replicas"] == ["192.0.2.1:6379"]
    assert one.updated_at


def test_it_writes_what_is_new_and_once_a_minute(client: EtcdClient, clock: Clock) -> None:
    given = configured()
    one = EndpointsOfCell(given, given.cells[0], RegionLeases(client))
    lease = lease_of(client)

    def revision() -> int:
        found = client.get(ENDPOINTS + "main")
        assert found
        return found.mod_revision

    one.publish(lease, "192.0.2.1")
    first = revision()
    one.publish(lease, "192.0.2.1")
    assert revision() == first
    one.publish(lease, "192.0.2.2")
    second = revision()
    assert second > first, "Redis' primary is another one"
    clock.now += discovery.AGAIN
    one.publish(lease, "192.0.2.2")
    third = revision()
    assert third > second
    one.forget()
    one.publish(lease, "192.0.2.2")
    assert revision() > third, "another host may have written meanwhile"


def test_who_lost_the_lease_writes_nothing(client: EtcdClient, clock: Clock) -> None:
    given = configured()
    lease = lease_of(client)
    client.delete(LEASES + "main")
    EndpointsOfCell(given, given.cells[0], RegionLeases(client)).publish(lease, "192.0.2.1")
    assert published(client) == {}


def test_a_key_of_a_newer_version_is_read_and_nonsense_is_named() -> None:
    known = endpoints_of(ENDPOINTS + "main", '{"cell": "main", "epoch": "3", "home": "b", "new": 1}')
    assert (known.epoch, known.home, known.edges) == (3, "b", [])
    for text in ("[]", "{", '{"cell": "main"}', '{"cell": "other", "epoch": 1, "home": "a"}'):
        with pytest.raises(ResilienceError, match="/shannon/endpoints/main"):
            endpoints_of(ENDPOINTS + "main", text)


def test_the_module_says_so_when_the_registry_is_silent() -> None:
    found = run_module(registry_endpoints_info, endpoints=["127.0.0.1:1"], timeout=0.5)
    assert found["failed"] and found["msg"]


# -- the worker says both --------------------------------------------------------------------------------------------


class FakeKeeper:
    def __init__(self, client: EtcdClient) -> None:
        self.leases = RegionLeases(client)
        self.registry = Registry(client)


class Postgres:
    def __init__(self) -> None:
        self.leads = True

    def conducts(self, _standing: Standing) -> bool:
        return self.leads


class Redis:
    def be_home(self) -> str:
        return "192.0.2.1"

    def primary_of(self, _region: str) -> str:
        return "192.0.2.1"

    def watch(self, _wanted: bool) -> None:
        return

    def stand_by(self, _standing: Standing, _home: str, _hold: bool) -> None:
        return


PRIMARY = Local(
    postgres={"role": "primary", "state": "running", "xlog": {"location": 7}},
    redis=Replication(
        role="primary",
        offset=1,
        link="",
        primary_address="",
        primary_port=0,
        replicas=0,
        priority=100,
        loading=False,
        aof=True,
    ),
)


@pytest.fixture
def worker(client: EtcdClient, tmp_path: pathlib.Path) -> Worker:
    given = configured(runtime_directory=str(tmp_path), state_directory=str(tmp_path))
    keeper: t.Any = FakeKeeper(client)
    found = Worker(given, given.cells[0], keeper, client, client, None)
    found.postgres = t.cast(t.Any, Postgres())
    found.redis = t.cast(t.Any, Redis())
    return found


def standing(client: EtcdClient, record: CellRecord | None = None) -> Standing:
    view = RegionLeases(client).look("main")
    if record:
        view = type(view)(record, view.lease, view.held, view.position, view.serving)
    begun = clock_of_the_host()
    return Standing(view, PRIMARY, begun, begun, begun + 7)


def test_only_a_home_that_serves_says_where_the_cell_is(client: EtcdClient, worker: Worker) -> None:
    lease = lease_of(client)
    RegionLeases(client).publish(lease, SERVING, Serving("a", 1, 0.0, "a1"))
    t.cast(Postgres, worker.postgres).leads = False
    worker.step(standing(client))
    assert published(client) == {} and worker._names._wanted() == "", "another host of the home conducts"
    t.cast(Postgres, worker.postgres).leads = True
    worker.step(standing(client))
    assert published(client)["main"].home == "a" and worker._names._wanted() == "a"


def test_a_home_that_does_not_serve_yet_says_nothing(client: EtcdClient, worker: Worker) -> None:
    lease_of(client)
    now_standing = standing(client)
    worker._served = 1  # it has said that it serves, and the registry has not answered yet
    worker.step(now_standing)
    assert published(client) == {} and worker._names._wanted() == ""


def test_a_region_that_is_left_falls_silent(client: EtcdClient, worker: Worker) -> None:
    lease = lease_of(client)
    RegionLeases(client).publish(lease, SERVING, Serving("a", 1, 0.0, "a1"))
    worker.step(standing(client))
    assert worker._names._wanted() == "a"
    worker._follow = lambda _standing: None  # type: ignore[method-assign]
    worker._give_back = lambda _standing, _record: None  # type: ignore[method-assign]
    worker.step(standing(client, CellRecord("main", "b", 2, "active")))
    assert worker._names._wanted() == ""
