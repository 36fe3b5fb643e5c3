"""A host of the data tier dies, without a word. Nobody does anything; a client goes on writing through its data proxy.

Bounds are the issue's: they hold for the lab's `fast` presets.
"""

from __future__ import annotations

import time
import typing as t

import pytest

import lab


def a_bystander(*busy: str) -> lab.Host:
    """A host of the home region that is not the one that will die."""
    return lab.Host(next(name for name in ("a1", "a2", "a3") if name not in busy))


def timelines(info: dict[str, t.Any]) -> set[int]:
    return {
        member["timeline"]
        for part in info["cells"]["main"]["postgres"].values()
        for member in part["members"]
        if member["healthy"]
    }


def test_the_host_of_the_postgres_primary_dies(healthy: dict[str, t.Any], capsys: pytest.CaptureFixture[str]) -> None:
    dead = lab.member_with(healthy, "postgres", "a", "primary")
    with lab.Writer(a_bystander(dead), "postgres", "postgres_app", first=int(time.time() * 1000)) as writer:
        died = time.time()
        lab.Host(dead).kill()
        try:
            writer.wait_for_recovery(died)
            now = lab.status()
            # A new primary in the same region, and the standby region follows its timeline: it must not wait for the
            # dead host, perhaps the first in its list, as long as the kernel would.
            assert lab.member_with(now, "postgres", "a", "primary") != dead
            assert now["cells"]["main"]["home"] == "a"

            def standby_follows() -> bool:
                found = lab.status()
                alive = [m for m in found["cells"]["main"]["postgres"]["b"]["members"] if m["role"] == "standby_leader"]
                return len(timelines(found)) == 1 and bool(alive) and alive[0]["state"] == "streaming"

            lab.wait_for(standby_follows, "region b on the new primary's timeline", 30, lambda: str(lab.status()))
            followed = time.time() - died
        finally:
            lab.Host(dead).start()
        # (4) It comes back, and joins as a replica by itself.
        lab.wait_for(
            lambda: any(
                member["name"] == dead and member["role"] == "replica" and member["state"] == "streaming"
                for member in lab.status()["cells"]["main"]["postgres"]["a"]["members"]
            ),
            f"{dead} as a streaming replica",
            90,
            lambda: str(lab.status()["cells"]["main"]["postgres"]["a"]),
        )
        gap = writer.longest_gap()
        with capsys.disabled():
            print(f"\n  PostgreSQL: {len(writer.acknowledged())} acknowledged writes; "
                  f"the standby region followed {followed:.1f} s after the host died")  # fmt: skip
        assert writer.missing() == []
    lab.within(capsys, "PostgreSQL's writer without an answer", gap, 15)


def test_the_host_of_the_redis_primary_dies(healthy: dict[str, t.Any], capsys: pytest.CaptureFixture[str]) -> None:
    dead = lab.member_with(healthy, "redis", "a", "primary")
    with lab.Writer(a_bystander(dead), "redis", "redis_app", first=int(time.time() * 1000)) as writer:
        died = time.time()
        lab.Host(dead).kill()
        try:
            writer.wait_for_recovery(died)
            now = lab.status()
            assert lab.member_with(now, "redis", "a", "primary") != dead

            # Sentinel repoints the standby region after the promotion, and cuts each member's clients as it does.
            def standby_follows() -> bool:
                return {m["role"] for m in lab.status()["cells"]["main"]["redis"]["b"]["members"]} == {"replica"}

            lab.wait_for(standby_follows, "region b's Redis as replicas", 30, lambda: str(lab.status()))
        finally:
            lab.Host(dead).start()
        lab.wait_for(
            lambda: all(
                member["healthy"] and (member["role"] == "primary" or member["state"] == "streaming")
                for part in lab.status()["cells"]["main"]["redis"].values()
                for member in part["members"]
            ),
            "every Redis member streaming from the new primary",
            90,
            lambda: str(lab.status()["cells"]["main"]["redis"]),
        )
        gap = writer.longest_gap()
        with capsys.disabled():
            print(f"\n  Redis: {len(writer.acknowledged())} acknowledged writes")
        assert writer.missing() == []
    lab.within(capsys, "Redis' writer without an answer", gap, 10)


def test_the_host_of_a_qdrant_peer_dies(healthy: dict[str, t.Any], capsys: pytest.CaptureFixture[str]) -> None:
    dead = "a2"
    with lab.Writer(a_bystander(dead), "qdrant", "qdrant_api_key", first=int(time.time() * 1000)) as writer:
        died = time.time()
        lab.Host(dead).kill()
        try:
            writer.wait_for_recovery(died)
        finally:
            lab.Host(dead).start()
        lab.wait_for(
            lambda: all(
                found["replicas"] == found["replicas_active"]
                for found in lab.status()["cells"]["main"]["qdrant"]["a"]["collections"].values()
            ),
            "every replica active again",
            120,
            lambda: str(lab.status()["cells"]["main"]["qdrant"]["a"]),
        )
        gap = writer.longest_gap()
        with capsys.disabled():
            print(f"\n  Qdrant: {len(writer.acknowledged())} acknowledged writes")
        assert writer.missing() == []
    lab.within(capsys, "Qdrant's writer without an answer", gap, 3)


@pytest.mark.soak
def test_status_answers_with_a_region_dead(healthy: dict[str, t.Any], capsys: pytest.CaptureFixture[str]) -> None:
    dead = [lab.Host(name) for name in ("b1", "b2", "b3")]
    for host in dead:
        host.kill()
    try:
        lab.status_playbook()  # the first pays for new ssh connections
        started = time.monotonic()
        info = lab.status_playbook()
        took = time.monotonic() - started
        cell = info["cells"]["main"]
        assert not cell["healthy"]
        assert all(not member["healthy"] for member in cell["postgres"]["b"]["members"])
        assert all(member["healthy"] for member in cell["postgres"]["a"]["members"])
        # Ansible's start is most of it. Dead hosts asked one by one would be a minute.
        lab.within(capsys, "status.yml with a region dead", took, 5)
    finally:
        for host in dead:
            host.start()


@pytest.mark.soak
def test_a_region_that_was_dead_follows_again_by_itself(healthy: dict[str, t.Any]) -> None:
    """The fixture waits for it: both regions healthy, no lag left behind, nobody had to do anything."""
    assert all(
        member["healthy"] for part in healthy["cells"]["main"]["postgres"].values() for member in part["members"]
    )
    assert healthy["cells"]["main"]["epoch"] == 1
