"""The region lease: one region holds a cell at a time, the one that the record names."""

from __future__ import annotations

import json
import threading
import typing as t
from dataclasses import replace

import pytest
from fake_etcd import FakeCluster

from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.etcd import EtcdClient, NoQuorumError
from ansible_collections.shannon.resilience.plugins.module_utils.region_lease import (
    AUTHORITY,
    HELD,
    LEASE_TTL,
    LEASES,
    POSITIONS,
    SERVING,
    Position,
    RegionLease,
    RegionLeases,
    Serving,
)
from ansible_collections.shannon.resilience.plugins.module_utils.registry import CellRecord, Registry


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cluster(clock: Clock) -> t.Iterator[FakeCluster]:
    with FakeCluster(2, clock=clock) as running:
        yield running


@pytest.fixture
def leases(cluster: FakeCluster) -> RegionLeases:
    return connect(cluster)


@pytest.fixture
def record(leases: RegionLeases) -> CellRecord:
    return Registry(leases.client).create("main", "a")[0]


def connect(cluster: FakeCluster) -> RegionLeases:
    return RegionLeases(EtcdClient(cluster.endpoints, timeout=5.0, name="the registry"))


def taken(leases: RegionLeases, record: CellRecord, host: str = "a1") -> RegionLease:
    lease = leases.acquire(record, host)
    assert lease is not None
    return lease


def move(leases: RegionLeases, record: CellRecord, home: str) -> CellRecord:
    new = replace(record, home=home, epoch=record.epoch + 1)
    return Registry(leases.client).compare_and_swap(record, new, "a test", "ada")


def mute(cluster: FakeCluster, leases: RegionLeases) -> None:
    """The member that is asked next does what it is asked and does not say so."""
    leases.client.get("any")
    for member in cluster.members:
        if str(leases.client._good) == member.endpoint:
            member.mode = "mute"


def position(lsn: int, final: bool = False) -> Position:
    return Position("a", 1, lsn, 1000.0, "a1", final)


def test_a_host_may_serve_for_less_long_than_the_lease_lives() -> None:
    assert AUTHORITY < LEASE_TTL


def test_a_cell_that_nobody_knows_looks_empty(leases: RegionLeases) -> None:
    view = leases.look("main")
    assert (view.record, view.lease, view.held, view.position, view.serving) == (None,) * 5


def test_the_home_takes_a_lease_that_nobody_holds(leases: RegionLeases, record: CellRecord) -> None:
    lease = taken(leases, record)
    assert (lease.cell, lease.region, lease.epoch, lease.host) == ("main", "a", 1, "a1")
    view = leases.look("main")
    assert (view.record, view.lease) == (record, lease)


def test_a_lease_that_is_held_is_not_taken(cluster: FakeCluster, leases: RegionLeases, record: CellRecord) -> None:
    first = taken(leases, record)
    assert leases.acquire(record, "a2") is None
    assert leases.look("main").lease == first
    assert list(cluster.leases) == [first.id], "the loser's lease is given back"


def test_a_lease_is_not_taken_at_a_record_that_changed(
    cluster: FakeCluster, leases: RegionLeases, record: CellRecord
) -> None:
    move(leases, record, "b")
    assert leases.acquire(record, "a1") is None
    view = leases.look("main")
    assert (view.lease, view.held) == (None, None)
    assert not cluster.leases


def test_the_new_home_waits_until_the_old_ones_lease_has_ended(
    clock: Clock, leases: RegionLeases, record: CellRecord
) -> None:
    taken(leases, record)
    moved = move(leases, record, "b")
    assert leases.acquire(moved, "b1") is None
    clock.now += LEASE_TTL
    assert taken(leases, moved, "b1").region == "b"


def test_of_many_that_take_it_at_once_one_gets_it(cluster: FakeCluster, record: CellRecord) -> None:
    outcomes: list[RegionLease | None] = []
    start = threading.Barrier(6)

    def take(number: int) -> None:
        mine = connect(cluster)
        start.wait()
        outcomes.append(mine.acquire(record, f"a{number}"))

    threads = [threading.Thread(target=take, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [lease for lease in outcomes if lease]
    assert len(outcomes) == 6
    assert connect(cluster).look("main").lease == winner
    assert list(cluster.leases) == [winner.id]


def test_a_lost_answer_is_no_lost_lease(cluster: FakeCluster, leases: RegionLeases, record: CellRecord) -> None:
    mute(cluster, leases)
    lease = taken(leases, record)
    assert leases.look("main").lease == lease


def test_a_registry_that_fails_in_between_leaves_no_lease(
    cluster: FakeCluster, leases: RegionLeases, record: CellRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: t.Any) -> t.NoReturn:
        raise NoQuorumError("the registry", {})

    monkeypatch.setattr(leases.client, "txn", fail)
    with pytest.raises(NoQuorumError):
        leases.acquire(record, "a1")
    assert not cluster.leases


def test_who_had_it_last_stays_known(clock: Clock, leases: RegionLeases, record: CellRecord) -> None:
    taken(leases, record)
    clock.now += LEASE_TTL
    view = leases.look("main")
    assert view.lease is None
    assert view.held and (view.held.region, view.held.epoch, view.held.host) == ("a", 1, "a1")


def test_a_lease_lives_as_long_as_it_is_kept(clock: Clock, leases: RegionLeases, record: CellRecord) -> None:
    lease = taken(leases, record)
    for _round in range(3):
        clock.now += LEASE_TTL - 1
        assert leases.keep(lease)
    clock.now += LEASE_TTL
    assert not leases.keep(lease)
    assert leases.look("main").lease is None


def test_releasing_makes_the_end_known_in_the_same_step(
    cluster: FakeCluster, leases: RegionLeases, record: CellRecord
) -> None:
    lease = taken(leases, record)
    assert leases.release(lease, position(500, final=True))
    view = leases.look("main")
    assert (view.lease, view.position) == (None, position(500, final=True))
    changed = {key.decode(): revision for revision, key in cluster.changed}
    assert changed[f"{LEASES}main"] == changed[f"{POSITIONS}main"]
    assert not cluster.leases


def test_releasing_without_a_position_leaves_the_last_one(leases: RegionLeases, record: CellRecord) -> None:
    lease = taken(leases, record)
    leases.publish(lease, POSITIONS, position(400))
    assert leases.release(lease, None)
    assert leases.look("main").position == position(400)


def test_who_lost_the_lease_releases_nothing(clock: Clock, leases: RegionLeases, record: CellRecord) -> None:
    old = taken(leases, record)
    clock.now += LEASE_TTL
    new = taken(leases, record, "a2")
    assert not leases.release(old, position(500, final=True))
    view = leases.look("main")
    assert (view.lease, view.position) == (new, None)


def test_the_holder_publishes(leases: RegionLeases, record: CellRecord) -> None:
    lease = taken(leases, record)
    serving = Serving("a", 1, 1000.0, "a1", switch_lsn=7, old_end=8, seconds={"promote": 0.5})
    assert leases.publish(lease, POSITIONS, position(400))
    assert leases.publish(lease, SERVING, serving)
    view = leases.look("main")
    assert (view.position, view.serving) == (position(400), serving)


def test_who_lost_the_lease_publishes_nothing(clock: Clock, leases: RegionLeases, record: CellRecord) -> None:
    old = taken(leases, record)
    clock.now += LEASE_TTL
    assert not leases.publish(old, POSITIONS, position(400)), "nobody holds it"
    moved = move(leases, record, "b")
    new = taken(leases, moved, "b1")
    leases.publish(new, POSITIONS, Position("b", 2, 10, 1001.0))
    assert not leases.publish(old, POSITIONS, position(400)), "somebody else does"
    assert leases.look("main").position == Position("b", 2, 10, 1001.0)


def test_a_former_home_whose_lease_ran_out_says_where_it_ended(
    clock: Clock, leases: RegionLeases, record: CellRecord
) -> None:
    taken(leases, record)
    moved = move(leases, record, "b")
    clock.now += LEASE_TTL
    assert leases.publish_end(moved, position(500, final=True))
    assert leases.look("main").position == position(500, final=True)


def test_its_end_is_not_news_once_the_record_went_on(leases: RegionLeases, record: CellRecord) -> None:
    taken(leases, record)
    moved = move(leases, record, "b")
    Registry(leases.client).compare_and_swap(moved, replace(moved, state="draining"), "a test", "ada")
    assert not leases.publish_end(moved, position(500, final=True))
    assert leases.look("main").position is None


@pytest.mark.parametrize("prefix", [LEASES, HELD])
@pytest.mark.parametrize("value", ["", "{", "[]", "{}", '{"cell": "main", "region": "a", "epoch": "x", "host": "a1"}'])
def test_a_lease_written_by_hand_is_refused_with_its_key(leases: RegionLeases, prefix: str, value: str) -> None:
    leases.client.put(f"{prefix}main", value)
    with pytest.raises(ResilienceError, match=f"{prefix}main"):
        leases.look("main")


@pytest.mark.parametrize("prefix", [POSITIONS, SERVING])
@pytest.mark.parametrize("value", ["", "{", "[]", "{}", '{"region": "a", "epoch": 1, "colour": "red"}'])
def test_a_position_written_by_hand_is_refused_with_its_key(leases: RegionLeases, prefix: str, value: str) -> None:
    leases.client.put(f"{prefix}main", value)
    with pytest.raises(ResilienceError, match=f"{prefix}main"):
        leases.look("main")


def test_what_the_registry_numbers_is_not_stored(leases: RegionLeases, record: CellRecord) -> None:
    taken(leases, record)
    found = leases.client.get(f"{LEASES}main")
    assert found and json.loads(found.value) == {"cell": "main", "region": "a", "epoch": 1, "host": "a1"}


def test_without_a_quorum_nothing_is_seen_or_taken(
    cluster: FakeCluster, leases: RegionLeases, record: CellRecord
) -> None:
    for member in cluster.members:
        member.mode = "no leader"
    for call in (lambda: leases.look("main"), lambda: leases.acquire(record, "a1")):
        with pytest.raises(NoQuorumError):
            call()
