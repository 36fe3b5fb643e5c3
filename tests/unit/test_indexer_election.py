"""Leader election: one at a time, and never beyond the lease."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("prometheus_client")

from fake_etcd import FakeCluster

from shannon.resilience.etcd import EtcdClient, NoQuorumError
from shannon.services.vectors.election import Election, LeadershipLost


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def candidate(cluster: FakeCluster, name: str, clock: Clock) -> Election:
    return Election(EtcdClient(cluster.endpoints, timeout=0.5), "main", name, 5, clock)


def expire(cluster: FakeCluster) -> None:
    """What etcd does when leases run out."""
    cluster.leases.clear()
    cluster.keys.clear()


def test_one_leads_and_the_other_takes_over() -> None:
    clock = Clock()
    with FakeCluster(1) as cluster:
        first, second = candidate(cluster, "first", clock), candidate(cluster, "second", clock)
        first.step()
        second.step()
        assert (first.leading, second.leading, second.holder) == (True, False, "first")
        clock.now += 1
        first.step()
        assert first.remaining == pytest.approx(4.0)
        clock.now += 4.1
        assert not first.leading, "without an answer it stops before etcd lets the lease go"
        with pytest.raises(LeadershipLost):
            first.budget(2)
        expire(cluster)
        second.step()
        second.step()
        assert second.leading
        first.step()
        assert not first.leading and first.holder == "second"


def test_a_request_gets_no_more_time_than_the_lease_has() -> None:
    clock = Clock()
    with FakeCluster(1) as cluster:
        one = candidate(cluster, "one", clock)
        one.step()
        assert one.budget(2) == 2
        clock.now += 3.5
        assert one.budget(2) == pytest.approx(0.5)


def test_a_lost_answer_is_not_a_lost_election() -> None:
    clock = Clock()
    with FakeCluster(2) as cluster:
        one = candidate(cluster, "one", clock)
        for member in cluster.members:
            member.mode = "mute"
        cluster.members[1].mode = ""
        one.step()
        assert one.leading


def test_a_key_that_was_taken_away_ends_it() -> None:
    clock = Clock()
    with FakeCluster(1) as cluster:
        one, other = candidate(cluster, "one", clock), candidate(cluster, "other", clock)
        one.step()
        cluster.keys.clear()
        other.step()
        one.step()
        assert (one.leading, other.leading) == (False, True)


def test_resigning_lets_another_at_it_at_once() -> None:
    clock = Clock()
    with FakeCluster(1) as cluster:
        one, other = candidate(cluster, "one", clock), candidate(cluster, "other", clock)
        one.step()
        one.resign()
        other.step()
        assert (one.leading, other.leading) == (False, True)


def test_without_etcd_it_stops_by_itself() -> None:
    clock = Clock()
    with FakeCluster(1) as cluster:
        one = candidate(cluster, "one", clock)
        one.step()
        cluster.members[0].mode = "no leader"
        clock.now += 2
        with pytest.raises(NoQuorumError):
            one.step()
        assert one.leading
        clock.now += 2.1
        assert not one.leading


def test_the_loop_resigns_at_the_end() -> None:
    async def run() -> None:
        stopping = asyncio.Event()
        with FakeCluster(1) as cluster:
            one = Election(EtcdClient(cluster.endpoints, timeout=0.5), "main", "one", 2)
            task = asyncio.create_task(one.run(stopping))
            for _turn in range(100):
                await asyncio.sleep(0.02)
                if one.leading:
                    break
            assert one.leading
            stopping.set()
            await asyncio.wait_for(task, 3)
            assert not cluster.keys

    asyncio.run(run())
