"""The region agent: a host serves as a primary only while it may, and two regions never may at once."""

from __future__ import annotations

import json
import pathlib
import re
import threading
import typing as t
from dataclasses import replace

import pytest

pytest.importorskip("prometheus_client")

from fake_etcd import FakeCluster

from shannon.resilience.errors import ResilienceError
from shannon.resilience.etcd import EtcdClient, NoQuorumError
from shannon.resilience.redis import Replication
from shannon.resilience.region_lease import AUTHORITY, GRACE, LEASE_TTL, LEASES, PROMISE, RegionLeases
from shannon.resilience.registry import CELLS, RESTORING, CellRecord, Registry
from shannon.services.common.config import ConfigError
from shannon.services.region_agent import diverged, keeper, settings, worker
from shannon.services.region_agent.diverged import Notes
from shannon.services.region_agent.fence import Fence
from shannon.services.region_agent.keeper import SILENCE, Keeper, Local
from shannon.services.region_agent.promises import Peers, Promises
from shannon.services.region_agent.settings import Settings
from shannon.services.region_agent.worker import FENCED, HOME, STANDBY, STEP_DOWN, WAITING, Worker

POSTGRES, REDIS = 5432, 6379
AGENTS = {"a": {"a1": "192.0.2.1", "a2": "192.0.2.2"}, "b": {"b1": "198.51.100.1", "b2": "198.51.100.2"}}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    for module in (keeper, worker):
        monkeypatch.setattr(module, "now", found)
    return found


def configured(host: str = "a1", **changes: t.Any) -> Settings:
    region = host[0]
    ports = {"postgres": POSTGRES, "patroni": 8008, "redis": REDIS, "sentinel": 26379}
    given: dict[str, t.Any] = {
        "region": region,
        "host": host,
        "address": AGENTS[region].get(host, "192.0.2.9"),
        "port": 8443,
        "cells": [{"name": "main", **ports}],
        "postgres": AGENTS,
        "redis": AGENTS,
        "agents": AGENTS,
        "registry": ["192.0.2.1:12379"],
        "etcd": ["192.0.2.1:2379"],
        "patroni_password": "x",
        "redis_password": "x",
    }
    return Settings(**{**given, **changes})


# -- the settings ----------------------------------------------------------------------------------------------------


def test_a_file_that_is_wrong_is_refused_with_what_is_wrong(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "agent.json"
    with pytest.raises(ConfigError, match=r"agent\.json"):
        settings.load(path)
    path.write_text(json.dumps({**configured().model_dump(mode="json"), "failover": "perhaps"}))
    with pytest.raises(ConfigError, match="failover"):
        settings.load(path)


def test_passwords_are_not_shown() -> None:
    assert "hush" not in repr(configured(redis_password="hush", patroni_password="hush"))


# -- the fence -------------------------------------------------------------------------------------------------------


class Nft:
    """Takes scripts, and knows until when ports are open by the last of them."""

    def __init__(self) -> None:
        self.scripts: list[str] = []

    def __call__(self, script: str) -> None:
        self.scripts.append(script)

    def seconds(self) -> dict[int, float]:
        """By port the time that the last script gave it."""
        adds = re.findall(r"^add element inet shannon_fence open { (\d+) timeout (\d+)ms }$", self.scripts[-1], re.M)
        return {int(port): int(milliseconds) / 1000 for port, milliseconds in adds}


def test_an_open_port_gets_its_new_time_in_one_step() -> None:
    nft = Nft()
    Fence(nft).open([5432, 6379], 2.5)
    (script,) = nft.scripts
    expected = []
    for port in (5432, 6379):
        add = f"add element inet shannon_fence open {{ {port} timeout 2500ms }}"
        expected += [add, f"delete element inet shannon_fence open {{ {port} }}", add]
    assert script.splitlines() == expected


@pytest.mark.parametrize(("ports", "seconds"), [([5432], 0.0), ([5432], -1.0), ([], 5.0)])
def test_no_time_opens_nothing(ports: list[int], seconds: float) -> None:
    nft = Nft()
    Fence(nft).open(ports, seconds)
    assert nft.scripts == []


def test_a_port_is_closed_whether_it_was_open_or_not() -> None:
    nft = Nft()
    Fence(nft).close([5432])
    assert nft.scripts[0].splitlines() == [
        "add element inet shannon_fence open { 5432 timeout 1s }",
        "delete element inet shannon_fence open { 5432 }",
    ]


def test_a_closed_port_keeps_the_connections_that_may_stay() -> None:
    nft = Nft()
    Fence(nft).close([5432], [("198.51.100.1", 43210), ("2001:db8::1", 43211)], 20.0)
    assert nft.scripts[0].splitlines() == [
        "add element inet shannon_fence streams4 { 198.51.100.1 . 43210 timeout 20000ms }",
        "add element inet shannon_fence streams6 { 2001:db8::1 . 43211 timeout 20000ms }",
        "add element inet shannon_fence open { 5432 timeout 1s }",
        "delete element inet shannon_fence open { 5432 }",
    ]


def test_the_rules_are_loaded_as_they_are(tmp_path: pathlib.Path) -> None:
    nft = Nft()
    (tmp_path / "fence.nft").write_text("table inet shannon_fence\n")
    Fence(nft).load(str(tmp_path / "fence.nft"))
    assert nft.scripts == ["table inet shannon_fence\n"]
    with pytest.raises(ResilienceError, match="--tags region_agent"):
        Fence(nft).load(str(tmp_path / "other.nft"))


# -- promises --------------------------------------------------------------------------------------------------------


def test_a_promise_binds_against_every_other_region_and_ends(tmp_path: pathlib.Path) -> None:
    clock = Clock()
    promises = Promises(tmp_path / "promises.json", clock)
    assert promises.bound("main", "b") == 0
    assert promises.give("main", "a") == PROMISE
    clock.now += 3
    assert promises.bound("main", "b") == pytest.approx(PROMISE - 3)
    assert promises.bound("main", "a") == 0
    assert promises.bound("other", "b") == 0
    clock.now += PROMISE - 3
    assert promises.bound("main", "b") == 0


def test_a_promise_is_prolonged_by_whom_it_was_given_to(tmp_path: pathlib.Path) -> None:
    clock = Clock()
    promises = Promises(tmp_path / "promises.json", clock)
    promises.give("main", "a")
    clock.now += PROMISE - 1
    promises.give("main", "a")
    assert promises.bound("main", "b") == pytest.approx(PROMISE)


def test_a_cell_is_promised_to_one_region_at_a_time(tmp_path: pathlib.Path) -> None:
    clock = Clock()
    promises = Promises(tmp_path / "promises.json", clock)
    promises.give("main", "a")
    with pytest.raises(ResilienceError, match="promised to region a"):
        promises.give("main", "c")
    promises.give("other", "c")
    clock.now += PROMISE
    promises.give("main", "c")


def test_a_promise_outlives_a_restart_of_the_agent(tmp_path: pathlib.Path) -> None:
    clock = Clock()
    Promises(tmp_path / "promises.json", clock).give("main", "a")
    clock.now += 2
    assert Promises(tmp_path / "promises.json", clock).bound("main", "b") == pytest.approx(PROMISE - 2)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"main": 5}', '{"main": ["a"]}', '{"main": ["a", "soon"]}'])
def test_who_does_not_know_what_it_promised_is_bound_for_a_while(tmp_path: pathlib.Path, text: str) -> None:
    clock = Clock()
    (tmp_path / "promises.json").write_text(text)
    promises = Promises(tmp_path / "promises.json", clock)
    assert promises.bound("main", "b") == PROMISE
    clock.now += PROMISE
    assert promises.bound("main", "b") == 0


def test_a_promise_that_would_not_outlive_a_restart_is_not_given(tmp_path: pathlib.Path) -> None:
    promises = Promises(tmp_path / "missing" / "promises.json", Clock())
    with pytest.raises(ResilienceError, match="can't be kept"):
        promises.give("main", "a")


# -- what other agents say -------------------------------------------------------------------------------------------

Answer = dict[str, t.Any] | ResilienceError
YES: Answer = {"promised": True, "seconds": 8.0}
NO: Answer = {"promised": False, "reason": "the registry answers"}
SILENT: Answer = ResilienceError("no answer")


def peers(monkeypatch: pytest.MonkeyPatch, agents: dict[str, dict[str, Answer]], host: str = "a1") -> Peers:
    """Agents by region and host, with what each answers; hosts stand for their addresses."""
    answers = {name: answer for hosts in agents.values() for name, answer in hosts.items()}

    def asker(_self: Peers, address: str, _path: str, _body: dict[str, t.Any]) -> t.Callable[[], t.Any]:
        def ask() -> t.Any:
            answer = answers[address]
            if isinstance(answer, ResilienceError):
                raise answer
            return answer

        return ask

    monkeypatch.setattr(Peers, "_asker", asker)
    known = {region: {name: name for name in hosts} for region, hosts in agents.items()}
    return Peers(configured(host, agents=known), None)


@pytest.mark.parametrize(
    ("others", "kept"),
    [
        ({"b": [YES]}, True),
        ({"b": [NO]}, False),
        ({"b": [SILENT]}, False),
        ({"b": [YES, YES, SILENT]}, True),
        ({"b": [YES, SILENT, SILENT]}, False),
        ({"b": [YES, YES, NO]}, True),
        ({"b": [YES, NO, NO]}, False),
        ({"b": [YES, SILENT]}, False),  # half is no majority
        ({"b": [YES], "c": [YES]}, True),
        ({"b": [YES], "c": [NO]}, False),  # of every region
        ({"b": [YES, YES, YES], "c": []}, False),
        ({}, True),  # there is nobody who could take over
    ],
)
def test_a_majority_of_each_other_region_must_promise(
    monkeypatch: pytest.MonkeyPatch, others: dict[str, list[Answer]], kept: bool
) -> None:
    agents = {region: {f"{region}{n}": it for n, it in enumerate(said, 1)} for region, said in others.items()}
    asked = peers(monkeypatch, {"a": {"a1": SILENT}, **agents})
    found, said = asked.promised("main", 1)
    assert found is kept
    assert all(f"{region}: " in said for region in others)


FREE: Answer = {"seconds": 0.0}
BOUND: Answer = {"seconds": 3.5}


@pytest.mark.parametrize(
    ("own", "others", "free", "said"),
    [
        (0.0, [], True, ""),
        (0.0, [FREE, FREE], True, ""),
        (0.0, [FREE, SILENT], True, ""),
        (0.0, [SILENT, SILENT], False, "only 1 of 3 agents"),
        (0.0, [SILENT], False, "only 1 of 2 agents"),
        (0.0, [FREE, BOUND], False, "another 3.5 s"),
        (0.0, [SILENT, BOUND], False, "another 3.5 s"),
        (2.0, [FREE, FREE], False, "another 2.0 s"),
        (0.0, [FREE, {}], True, ""),
        (0.0, [SILENT, {}], False, "only 1 of 3 agents"),
    ],
)
def test_a_region_takes_over_when_a_majority_of_its_own_is_bound_by_nothing(
    monkeypatch: pytest.MonkeyPatch, own: float, others: list[Answer], free: bool, said: str
) -> None:
    own_region = {"a1": SILENT, **{f"a{n}": it for n, it in enumerate(others, 2)}}
    found, why = peers(monkeypatch, {"a": own_region, "b": {"b1": BOUND}}).unbound("main", own)
    assert found is free
    assert said in why


# -- what this host's stores say -------------------------------------------------------------------------------------


def patroni(role: str, state: str = "running") -> dict[str, t.Any]:
    return {"role": role, "state": state}


def redis(role: str) -> Replication:
    return Replication(role, 0, "up", "", 0, 0, 100, False, True)


PRIMARY = Local(postgres=patroni("primary"), redis=redis("primary"))
FOLLOWER = Local(postgres=patroni("replica"), redis=redis("replica"))
LEADER_OF_STANDBY = Local(postgres=patroni("standby_leader"), redis=redis("replica"))


@pytest.mark.parametrize(
    ("local", "writes"),
    [
        (PRIMARY, True),
        (FOLLOWER, False),
        (LEADER_OF_STANDBY, False),
        (replace(FOLLOWER, redis=redis("primary")), True),
        (replace(FOLLOWER, postgres=patroni("primary")), True),
        (replace(FOLLOWER, postgres=patroni("primary", "stopped")), False),
        (replace(FOLLOWER, postgres=patroni("primary", "starting")), True),
        (replace(FOLLOWER, postgres={}), True),  # it does not say what it is
        (replace(FOLLOWER, postgres=None, postgres_listens=True), True),
        (replace(FOLLOWER, postgres=None), False),  # nothing runs
        (replace(FOLLOWER, redis=None, redis_listens=True), True),
        (replace(FOLLOWER, redis=None), False),
    ],
)
def test_what_is_not_known_counts_as_taking_writes(local: Local, writes: bool) -> None:
    assert local.takes_writes is writes


# -- the keeper ------------------------------------------------------------------------------------------------------


class StubPeers(Peers):
    """Other agents that say what they are told to."""

    def __init__(self) -> None:
        self.kept = False
        self.free = True
        self.asked = 0
        self.meanwhile: t.Callable[[], None] = lambda: None

    def promised(self, cell: str, epoch: int) -> tuple[bool, str]:
        self.asked += 1
        self.meanwhile()
        return self.kept, "as told"

    def unbound(self, cell: str, own: float) -> tuple[bool, str]:
        self.asked += 1
        return (self.free, "") if not own else (False, "bound itself")


class Host:
    """A keeper, and what it works with."""

    def __init__(
        self, name: str, endpoint: str, clock: Clock, folder: pathlib.Path, local: Local, **changes: t.Any
    ) -> None:
        self.nft = Nft()
        self.peers = StubPeers()
        self.local = local
        self.changed = 0
        self.promises = Promises(folder / f"{name}.json", clock)
        client = EtcdClient([endpoint], timeout=5.0, name="the registry")
        given = configured(name, **changes)
        fence, context = Fence(self.nft), None
        self.keeper = Keeper(given, given.cells[0], client, fence, self.promises, self.peers, context, self.count)
        self.keeper._look_here = lambda: self.local  # type: ignore[method-assign]

    def count(self) -> None:
        self.changed += 1

    def round(self) -> float:
        """One round; the authority after it."""
        self.keeper.round()
        return self.authority

    @property
    def authority(self) -> float:
        return self.keeper.standing().authority()

    @property
    def error(self) -> str:
        return self.keeper.standing().registry_error

    @property
    def record(self) -> CellRecord | None:
        return self.keeper.standing().record


class Site:
    """Two regions, whose hosts reach the registry each through a member of their own; the third is the operator's."""

    def __init__(self, cluster: FakeCluster, clock: Clock, folder: pathlib.Path) -> None:
        self.cluster = cluster
        self.clock = clock
        self._folder = folder
        self.client = EtcdClient([cluster.endpoints[2]], timeout=5.0)
        self.registry = Registry(self.client)
        self.registry.create("main", "a")

    def host(self, name: str, local: Local | None = None, **changes: t.Any) -> Host:
        usual = {"a1": PRIMARY, "b1": LEADER_OF_STANDBY}.get(name, FOLLOWER)
        endpoint = self.cluster.endpoints[0 if name.startswith("a") else 1]
        return Host(name, endpoint, self.clock, self._folder, local or usual, **changes)

    def cut(self, region: str, away: bool = True) -> None:
        """A region and the registry don't reach each other."""
        self.cluster.members["ab".index(region)].mode = "no leader" if away else ""

    def move(self, home: str) -> CellRecord:
        record = self.registry.get("main")
        assert record
        new = replace(record, home=home, epoch=record.epoch + (home != record.home))
        return self.registry.compare_and_swap(record, new, "a test", "ada")


@pytest.fixture
def site(clock: Clock, tmp_path: pathlib.Path) -> t.Iterator[Site]:
    with FakeCluster(3, clock=clock) as cluster:
        yield Site(cluster, clock, tmp_path)


def test_the_home_takes_the_lease_and_may_serve(site: Site) -> None:
    one = site.host("a1")
    assert not one.keeper.is_home()
    assert one.round() == AUTHORITY
    assert one.keeper.is_home()
    assert one.changed == 1


def test_what_this_host_wrote_itself_need_not_be_asked_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    one = site.host("a1")
    one.round()
    assert one.record
    real, written = one.keeper.leases.look, replace(one.record, state="draining")

    def look_and_write(cell: str) -> t.Any:
        view = real(cell)
        site.clock.now += 0.5
        one.keeper.wrote(written, site.clock.now)
        return view

    monkeypatch.setattr(one.keeper.leases, "look", look_and_write)
    site.clock.now += 1
    one.round()
    assert one.record == written, "the round had asked before"
    assert one.authority == AUTHORITY
    one.keeper.wrote(replace(written, state="active"), site.clock.now - 5)
    assert one.record == written, "what was asked since is newer"
    monkeypatch.setattr(one.keeper.leases, "look", real)
    site.clock.now += 1
    one.round()
    assert one.record and one.record.state == "active", "the registry has the last word"


def test_all_hosts_of_the_home_renew_one_lease(site: Site) -> None:
    first, second = site.host("a1"), site.host("a2")
    assert (first.round(), second.round()) == (AUTHORITY, AUTHORITY)
    assert site.cluster.granted == 1
    site.clock.now += LEASE_TTL - 1
    second.round()
    site.clock.now += LEASE_TTL - 1
    assert first.round() == AUTHORITY, "the other has kept it"
    assert site.cluster.granted == 1


def test_a_standby_takes_nothing(site: Site) -> None:
    standby = site.host("b1")
    assert standby.round() == 0
    assert not standby.keeper.is_home()
    assert site.cluster.granted == 0


def test_authority_grows_only_by_renewing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    one = site.host("a1")
    one.round()
    site.clock.now += 3
    assert one.authority == AUTHORITY - 3
    assert one.round() == AUTHORITY
    monkeypatch.setattr(one.keeper.leases, "keep", lambda _lease: False)
    site.clock.now += 3
    assert one.round() == AUTHORITY - 3, "the lease was gone when it was to be renewed"


def test_authority_counts_from_before_the_renewal(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    one = site.host("a1")
    real = one.keeper.leases.keep

    def slow(lease: t.Any) -> bool:
        kept = real(lease)
        site.clock.now += 2
        return kept

    monkeypatch.setattr(one.keeper.leases, "keep", slow)
    assert one.round() == AUTHORITY - 2


def test_a_renewal_that_fails_is_no_renewal(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    one = site.host("a1")
    one.round()

    def fail(_lease: t.Any) -> t.NoReturn:
        raise NoQuorumError("the registry", {})

    monkeypatch.setattr(one.keeper.leases, "keep", fail)
    site.clock.now += 3
    assert one.round() == AUTHORITY - 3
    assert "no quorum" in one.error


def test_a_host_that_was_superseded_keeps_what_it_has_and_renews_nothing(site: Site) -> None:
    one = site.host("a1")
    one.round()
    site.move("b")
    site.clock.now += 2
    assert one.round() == AUTHORITY - 2
    assert not one.keeper.is_home()
    assert one.nft.seconds() == {POSTGRES: AUTHORITY - 2, REDIS: AUTHORITY - 2}


def test_the_new_home_waits_for_the_lease_of_the_old_one(site: Site) -> None:
    old, new = site.host("a1"), site.host("b1")
    old.round()
    site.move("b")
    assert new.round() == 0
    site.clock.now += LEASE_TTL
    assert new.round() == AUTHORITY


def test_its_own_lease_is_taken_again_without_asking(site: Site) -> None:
    one = site.host("a1")
    one.round()
    site.clock.now += LEASE_TTL
    assert one.round() == AUTHORITY
    assert (one.peers.asked, site.cluster.granted) == (0, 2)


def test_anothers_lease_is_not_taken_while_a_promise_holds(site: Site) -> None:
    old, new = site.host("a1"), site.host("b1")
    old.round()
    site.move("b")
    site.clock.now += LEASE_TTL
    new.peers.free = False
    assert new.round() == 0
    new.peers.free = True
    new.promises.give("main", "a")
    assert new.round() == 0, "its own counts as well"
    site.clock.now += PROMISE
    assert new.round() == AUTHORITY


# -- the keeper, without the registry --------------------------------------------------------------------------------


def test_a_short_silence_troubles_nobody(site: Site) -> None:
    one = site.host("a1")
    one.round()
    site.cut("a")
    site.clock.now += SILENCE - 0.1
    assert one.round() == pytest.approx(AUTHORITY - SILENCE + 0.1)
    assert one.peers.asked == 0
    assert one.changed == 2
    assert "no quorum" in one.error


def test_without_promises_authority_ends(site: Site) -> None:
    one = site.host("a1")
    one.round()
    site.cut("a")
    site.clock.now += SILENCE
    assert one.round() == AUTHORITY - SILENCE
    assert one.peers.asked == 1
    site.clock.now += AUTHORITY - SILENCE
    assert one.round() == 0
    assert not one.keeper.is_home()


def test_with_promises_the_home_goes_on_for_as_long_as_it_is_promised(site: Site) -> None:
    one = site.host("a1")
    one.round()
    site.cut("a")
    one.peers.kept = True
    for _round in range(10):
        site.clock.now += SILENCE
        assert 0 < one.round() < PROMISE
        assert one.keeper.standing().failsafe
    one.peers.kept = False
    site.clock.now += PROMISE
    assert one.round() == 0
    assert not one.keeper.standing().failsafe


def test_a_promise_counts_from_when_it_was_asked_for(site: Site) -> None:
    one = site.host("a1")
    one.round()
    site.cut("a")
    one.peers.kept = True
    one.peers.meanwhile = lambda: setattr(site.clock, "now", site.clock.now + 1)
    site.clock.now += SILENCE
    assert one.round() == PROMISE - 1 - 1


def test_what_has_lapsed_is_not_brought_back_by_promises(site: Site) -> None:
    one = site.host("a1")
    one.round()
    site.cut("a")
    one.peers.kept = True
    site.clock.now += AUTHORITY
    assert one.round() == 0
    assert one.peers.asked == 0


def test_what_lapses_while_others_are_asked_has_lapsed(site: Site) -> None:
    one = site.host("a1")
    one.round()
    site.cut("a")
    one.peers.kept = True
    one.peers.meanwhile = lambda: setattr(site.clock, "now", site.clock.now + AUTHORITY)
    site.clock.now += SILENCE
    assert one.round() == 0
    assert not one.keeper.standing().failsafe


def test_the_registry_brings_it_back(site: Site) -> None:
    one = site.host("a1")
    one.round()
    site.cut("a")
    site.clock.now += 60
    assert one.round() == 0
    site.cut("a", away=False)
    assert one.round() == AUTHORITY
    assert one.error == ""


def test_an_agent_that_was_just_started_may_nothing_without_the_registry(site: Site) -> None:
    site.host("a2").round()
    site.cut("a")
    one = site.host("a1")
    one.peers.kept = True
    assert one.round() == 0
    assert one.nft.scripts == []


def test_a_standby_asks_nobody(site: Site) -> None:
    standby = site.host("b1")
    standby.round()
    site.cut("b")
    site.clock.now += SILENCE
    standby.round()
    assert standby.peers.asked == 0


@pytest.mark.parametrize("old", ['{"home": "a", "epoch": 1, "state": "active"}', None])
def test_an_old_copy_of_the_registry_is_not_believed(site: Site, old: str | None) -> None:
    one = site.host("a1")
    for home in ("b", "a"):
        site.move(home)
    one.round()
    if old:
        site.client.put(f"{CELLS}main", old)
    else:
        site.client.delete(f"{CELLS}main")
    site.clock.now += 1
    assert one.round() == AUTHORITY - 1
    assert "somebody restored an old copy" in one.error
    assert one.record and one.record.epoch == 3


def test_a_lease_of_an_older_epoch_is_not_renewed(site: Site) -> None:
    one = site.host("a1")
    one.round()
    for home in ("b", "a"):
        site.move(home)
    site.clock.now += 2
    assert one.round() == AUTHORITY - 2
    site.clock.now += LEASE_TTL - 2
    assert one.round() == AUTHORITY
    found = site.client.get(f"{LEASES}main")
    assert found and json.loads(found.value)["epoch"] == 3


# -- the keeper: promises to others ----------------------------------------------------------------------------------

ASKED = {"cell": "main", "epoch": 1, "region": "a"}


def test_who_reaches_the_registry_promises_nothing(site: Site) -> None:
    one = site.host("b1")
    one.round()
    assert "the registry answers on b1" in one.keeper.promise(ASKED)["reason"]
    site.clock.now += 3 * SILENCE
    assert one.keeper.promise(ASKED)["promised"], "its last answer is old"


def test_who_lost_the_registry_promises_what_it_last_knew(site: Site) -> None:
    one = site.host("b1")
    one.round()
    site.cut("b")
    one.round()
    assert one.keeper.promise({**ASKED, "epoch": 2}) == {
        "promised": False,
        "reason": "b1 last knew of home a, epoch 1, state active",
    }
    assert not one.keeper.promise({**ASKED, "region": "c"})["promised"]
    assert one.promises.bound("main", "b") == 0
    assert one.keeper.promise(ASKED) == {"promised": True, "seconds": PROMISE}
    assert one.promises.bound("main", "b") == PROMISE


def test_who_never_knew_promises_nothing(site: Site) -> None:
    site.cut("b")
    one = site.host("b1")
    one.round()
    assert one.keeper.promise(ASKED) == {"promised": False, "reason": "b1 last knew of nothing"}


# -- the keeper: two regions never serve at once ---------------------------------------------------------------------


def connect_agents(*hosts: Host) -> None:
    """Have these keepers ask each other, as long as they are in each other's reach."""
    for one in hosts:
        others = [other for other in hosts if other is not one]
        one.peers.promised = lambda cell, epoch, others=others: (  # type: ignore[method-assign,misc]
            all(other.keeper.promise(ASKED)["promised"] for other in others),
            "asked",
        )


def serving(*hosts: Host) -> list[str]:
    return [one.keeper._settings.host for one in hosts if one.authority > 0]


def test_a_home_that_is_cut_off_ends_before_the_next_begins(site: Site) -> None:
    old, new = site.host("a1"), site.host("b1")
    seen = []
    for second in range(16):
        if second == 3:
            site.cut("a")
            site.move("b")
        old.round()
        new.round()
        seen.append(serving(old, new))
        site.clock.now += 1
    assert all(len(names) < 2 for names in seen)
    assert (seen[0], seen[-1]) == (["a1"], ["b1"])


def test_a_home_that_lives_on_promises_ends_before_the_next_begins(site: Site) -> None:
    old, new = site.host("a1"), site.host("b1")
    connect_agents(old, new)
    seen = []
    for second in range(40):
        if second == 3:
            site.cut("a")
            site.cut("b")
        if second == 15:  # for more than a lease's life nobody reached it; now the standby does
            site.cut("b", away=False)
            site.move("b")
        old.round()
        new.round()
        seen.append(serving(old, new))
        site.clock.now += 1
    assert all(len(names) < 2 for names in seen)
    assert seen[:15] == [["a1"]] * 15
    assert seen[-1] == ["b1"]


# -- the keeper: automatic failover ----------------------------------------------------------------------------------


def lose_home(site: Site) -> None:
    """The home served, and is gone without a word; its lease has just ended."""
    lease = RegionLeases(site.client)
    record = site.registry.get("main")
    assert record and lease.acquire(record, "a1")
    site.clock.now += LEASE_TTL


def home(site: Site) -> tuple[str, int]:
    record = site.registry.get("main")
    assert record
    return record.home, record.epoch


def test_a_standby_takes_over_after_a_grace(site: Site) -> None:
    lose_home(site)
    one = site.host("b1", failover="automatic")
    one.round()
    site.clock.now += GRACE - 0.1
    one.round()
    assert home(site) == ("a", 1)
    site.clock.now += 0.1
    one.round()
    assert home(site) == ("b", 2)
    assert one.record and one.record.home == "b"
    entry = site.registry.history("main")[-1]
    assert (entry.operator, entry.reason) == ("region agent of b1", "the lease of region a ended")
    assert one.round() == AUTHORITY


def test_the_grace_begins_anew_when_the_home_comes_back(site: Site) -> None:
    lose_home(site)
    one = site.host("b1", failover="automatic")
    one.round()
    site.host("a1").round()
    site.clock.now += GRACE
    one.round()
    site.clock.now += LEASE_TTL
    one.round()
    assert home(site) == ("a", 1)


@pytest.mark.parametrize("role", ["replica", "primary", "", "uninitialized"])
def test_only_a_standby_leader_takes_over(site: Site, role: str) -> None:
    lose_home(site)
    one = site.host("b1", replace(FOLLOWER, postgres=patroni(role)), failover="automatic")
    take_time(site, one)
    assert home(site) == ("a", 1)


def take_time(site: Site, one: Host) -> None:
    """Enough rounds to take over."""
    for _round in range(3):
        one.round()
        site.clock.now += GRACE


def test_without_the_word_automatic_nobody_takes_over(site: Site) -> None:
    lose_home(site)
    take_time(site, site.host("b1"))
    assert home(site) == ("a", 1)


def test_a_cell_that_is_being_restored_is_not_taken_over(site: Site) -> None:
    record = site.registry.get("main")
    assert record
    site.registry.compare_and_swap(record, replace(record, state=RESTORING), "restore", "ada")
    lose_home(site)
    take_time(site, site.host("b1", failover="automatic"))
    assert home(site) == ("a", 1)


def test_a_home_that_never_served_is_not_lost(site: Site) -> None:
    take_time(site, site.host("b1", failover="automatic"))
    assert home(site) == ("a", 1)


def test_a_home_that_has_not_served_since_the_last_move_is_not_lost(site: Site) -> None:
    lose_home(site)
    for name in ("b", "a"):
        site.move(name)
    take_time(site, site.host("b1", failover="automatic"))
    assert home(site) == ("a", 3)


def test_a_region_whose_agents_are_bound_does_not_take_over(site: Site) -> None:
    lose_home(site)
    one = site.host("b1", failover="automatic")
    one.peers.free = False
    take_time(site, one)
    assert home(site) == ("a", 1)


def test_of_two_that_take_over_at_once_one_does(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    lose_home(site)
    hosts = [site.host(name, LEADER_OF_STANDBY, failover="automatic") for name in ("b1", "b2")]
    for one in hosts:
        one.round()
    site.clock.now += GRACE
    start = threading.Barrier(2)
    for one in hosts:
        monkeypatch.setattr(one.peers, "unbound", lambda *_args: (start.wait(2) >= 0, ""))
    threads = [threading.Thread(target=one.round) for one in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert home(site) == ("b", 2)
    assert len(site.registry.history("main")) == 2
    assert [one.error for one in hosts] == ["", ""]


# -- the keeper and the fence ----------------------------------------------------------------------------------------


def test_a_primary_is_open_for_as_long_as_it_has_authority(site: Site) -> None:
    one = site.host("a1")
    one.round()
    assert one.nft.seconds() == {POSTGRES: AUTHORITY, REDIS: AUTHORITY}
    site.cut("a")
    site.clock.now += 3
    one.round()
    assert one.nft.seconds() == {POSTGRES: AUTHORITY - 3, REDIS: AUTHORITY - 3}
    site.clock.now += AUTHORITY - 3
    scripts = len(one.nft.scripts)
    one.round()
    opened = [script for script in one.nft.scripts[scripts:] if "timeout" in script and "timeout 1s" not in script]
    assert opened == [], "nothing is opened any more"


def test_a_follower_is_open_without_authority(site: Site) -> None:
    one = site.host("b1")
    one.round()
    assert one.nft.seconds() == {POSTGRES: AUTHORITY, REDIS: AUTHORITY}


@pytest.mark.parametrize(
    "local",
    [PRIMARY, Local(postgres_listens=True, redis=redis("replica")), replace(FOLLOWER, redis=None, redis_listens=True)],
    ids=["primary", "a PostgreSQL that does not say", "a Redis that does not say"],
)
def test_what_may_take_writes_is_not_opened_in_a_standby(site: Site, local: Local) -> None:
    one = site.host("b1", local)
    one.round()
    assert [script for script in one.nft.scripts if "000ms" in script] == []


def test_a_host_that_left_has_no_authority_and_opens_nothing_until_it_follows(site: Site) -> None:
    one = site.host("a1")
    one.round()
    record = site.move("b")
    assert one.round() > 0
    one.keeper.leave(record, [("198.51.100.1", 43210)], 20.0)
    assert one.authority == 0
    scripts = len(one.nft.scripts)
    assert one.round() == 0
    assert [script for script in one.nft.scripts[scripts:] if "000ms" in script] == []
    one.local = FOLLOWER
    one.round()
    assert one.nft.seconds() == {POSTGRES: AUTHORITY, REDIS: AUTHORITY}
    one.local = PRIMARY
    site.move("a")
    one.round()
    site.clock.now += LEASE_TTL
    assert one.round() == AUTHORITY, "the cell came back"


def test_a_host_that_could_not_be_closed_has_not_left(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    one = site.host("a1")
    one.round()
    record = site.move("b")
    one.round()

    def fail(_script: str) -> t.NoReturn:
        raise ResilienceError("nft refused")

    with monkeypatch.context() as patched:
        patched.setattr(one.keeper._fence, "_run", fail)
        with pytest.raises(ResilienceError, match="nft refused"):
            one.keeper.leave(record, [], 20.0)
    assert one.round() > 0


def test_a_fence_that_fails_does_not_end_the_round(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    one = site.host("a1")

    def fail(_script: str) -> t.NoReturn:
        raise ResilienceError("nft refused")

    monkeypatch.setattr(one.keeper._fence, "_run", fail)
    assert one.round() == AUTHORITY
    assert one.changed == 1


# -- the worker's duty -----------------------------------------------------------------------------------------------


@pytest.fixture
def laborer(site: Site, tmp_path: pathlib.Path) -> tuple[Host, Worker]:
    host = site.host("a1")
    given = configured("a1", runtime_directory=str(tmp_path), state_directory=str(tmp_path))
    client = site.client
    return host, Worker(given, given.cells[0], host.keeper, client, client, None)


def test_with_authority_the_duty_is_the_homes(laborer: tuple[Host, Worker]) -> None:
    host, worker_ = laborer
    host.round()
    assert worker_.duty(host.keeper.standing()) == HOME


def test_another_home_makes_it_a_standby_whatever_authority_is_left(site: Site, laborer: tuple[Host, Worker]) -> None:
    host, worker_ = laborer
    host.round()
    site.move("b")
    assert host.round() > 0
    assert worker_.duty(host.keeper.standing()) == STANDBY


def test_without_authority_it_waits_and_then_steps_down(site: Site, laborer: tuple[Host, Worker]) -> None:
    host, worker_ = laborer
    host.round()
    worker_.duty(host.keeper.standing())
    site.cut("a")
    site.clock.now += AUTHORITY
    host.round()
    assert worker_.duty(host.keeper.standing()) == WAITING
    site.clock.now += STEP_DOWN
    assert worker_.duty(host.keeper.standing()) == WAITING
    site.clock.now += 0.1
    assert worker_.duty(host.keeper.standing()) == FENCED


def test_authority_that_came_back_counts_anew(site: Site, laborer: tuple[Host, Worker]) -> None:
    host, worker_ = laborer
    for _time in range(2):
        host.round()
        assert worker_.duty(host.keeper.standing()) == HOME
        site.clock.now += LEASE_TTL
        assert worker_.duty(host.keeper.standing()) == WAITING


def test_who_never_heard_of_the_cell_waits_and_then_steps_down(site: Site, laborer: tuple[Host, Worker]) -> None:
    host, worker_ = laborer
    site.cut("a")
    host.round()
    assert worker_.duty(host.keeper.standing()) == WAITING
    site.clock.now += STEP_DOWN + 0.1
    assert worker_.duty(host.keeper.standing()) == FENCED


# -- notes of positions ----------------------------------------------------------------------------------------------


def test_the_last_note_before_a_position_is_found(tmp_path: pathlib.Path) -> None:
    notes = Notes(tmp_path / "positions")
    assert notes.before(100) is None
    for at, lsn in ((1.0, 100), (2.0, 200), (3.0, 300)):
        notes.add(lsn, at)
    assert [notes.before(lsn) for lsn in (99, 100, 250, 300, 999)] == [None, 1.0, 2.0, 3.0, 3.0]


def test_a_position_that_did_not_change_is_noted_once(tmp_path: pathlib.Path) -> None:
    notes = Notes(tmp_path / "positions")
    for at, lsn in ((1.0, 100), (2.0, 100), (3.0, 0), (4.0, -5)):
        notes.add(lsn, at)
    assert (tmp_path / "positions").read_text() == "1.000 100\n"


def test_notes_outlive_the_agent(tmp_path: pathlib.Path) -> None:
    Notes(tmp_path / "positions").add(100, 1.0)
    assert Notes(tmp_path / "positions").before(100) == 1.0


def test_old_notes_are_dropped(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diverged, "NOTES", 5)
    notes = Notes(tmp_path / "positions")
    for number in range(1, 30):
        notes.add(number * 10, float(number))
    kept = (tmp_path / "positions").read_text().splitlines()
    assert 5 <= len(kept) <= 11
    assert kept[-1] == "29.000 290"
    assert notes.before(285) == 28.0


@pytest.mark.parametrize("rest", ["4.0", "4.000 ", "4.000 x", "4.000 40\x00\x00", " ", "\x00\x00\x00"])
def test_a_line_that_a_power_cut_broke_is_passed_over(tmp_path: pathlib.Path, rest: str) -> None:
    notes = Notes(tmp_path / "positions")
    notes.add(100, 1.0)
    with (tmp_path / "positions").open("a") as handle:
        handle.write(rest)
    assert Notes(tmp_path / "positions").before(900) == 1.0


def test_notes_that_can_not_be_written_stop_nothing(tmp_path: pathlib.Path) -> None:
    notes = Notes(tmp_path / "missing" / "positions")
    notes.add(100, 1.0)
    assert notes.before(100) is None
