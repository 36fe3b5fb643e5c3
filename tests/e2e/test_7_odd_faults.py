"""Moves and homes under faults of the odder kind: half-open networks, skewed clocks, agents that hang, an old Sentinel.

As in test_7_moves.py a client goes on writing, and nothing that was acknowledged may be missing in the end.
"""

from __future__ import annotations

import json
import time
import typing as t

import moves
import pytest
import shannon_api as services
from shannon_api import Load

import lab

pytestmark = pytest.mark.soak
AGENT = "shannon-region-agent"
#: Where Debian and Ubuntu keep it.
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
_DROP_IN = f"/run/systemd/system/{AGENT}.service.d/e2e-clock.conf"


def test_a_partition_heals_before_anybody_moved_the_cell(at_home: None, capsys: pytest.CaptureFixture[str]) -> None:
    """The home steps down, and when it reaches the registry again it is the home as before, with all its stores."""
    before = moves.record()

    def duties() -> set[str]:
        said = (lab.Host(name).sh("cat /run/shannon-region-agent/main.json") for name in moves.HOSTS["a"])
        return {str(json.loads(one)["duty"]) for one in said}

    with moves.cut(moves.HOSTS["a"], [*moves.HOSTS["b"], "w1"]) as cut:
        lab.wait_for(lambda: duties() == {"fenced"}, "region a to step down", 60, lambda: str(duties()))
    healed = time.time()
    moves.wait_until_whole()
    after = moves.record()
    assert (after["home"], after["epoch"]) == ("a", before["epoch"])
    lab.show(
        capsys,
        f"a partition of {healed - cut:.0f} s that nobody acted on: all is well {time.time() - healed:.0f} s later",
    )


def test_the_witness_is_cut_off_and_an_agent_hangs(at_home: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the witness two of the registry's three members are left: the home serves on, and nothing moves.

    An agent that hangs gives no sign, so its host is closed by the kernel; systemd's watchdog starts it anew.
    """
    before = moves.record()
    first = int(time.time() * 1000)
    leader = lab.member_with(lab.status(), "postgres", "a", "primary")
    writer = next(name for name in moves.HOSTS["a"] if name != leader)
    with lab.Writer(lab.Host(writer), "postgres", "postgres_app", first=first) as inside:
        with moves.cut(["w1"], [*moves.HOSTS["a"], *moves.HOSTS["b"]]):
            cut = time.time()
            time.sleep(12)  # longer than the lease lives
            inside.wait_for_acknowledgements(20)
        gap = inside.longest_gap()
        assert gap < 5, f"cutting the witness off cost the writer {gap:.1f} s"
        lab.Host(leader).sh(f"systemctl kill --signal=STOP {AGENT}")
        hung = time.time()
        lab.wait_for(
            lambda: time.time() - max(entry["at"] for entry in inside.acknowledged()) > 3,
            "the kernel to close the host whose agent hangs", 20,
        )  # fmt: skip
        last = max(entry["at"] for entry in inside.acknowledged())
        assert last - hung < 8.5, f"the host whose agent hung took writes for another {last - hung:.1f} s"
        lab.wait_for(
            lambda: max(entry["at"] for entry in inside.acknowledged()) > last + 1,
            "writes again, once the watchdog has started the agent anew or another host leads", 60,
        )  # fmt: skip
        back = min(entry["at"] for entry in inside.acknowledged() if entry["at"] > last)
        assert inside.missing() == []
    assert (moves.record()["home"], moves.record()["epoch"]) == (before["home"], before["epoch"])
    lab.show(
        capsys,
        f"witness cut off for {hung - cut:.0f} s: longest gap {gap:.1f} s; agent hung: closed after "
        f"{last - hung:.1f} s, writes again after {back - hung:.1f} s",
    )


def test_clocks_that_differ_by_two_minutes(at_home: None, capsys: pytest.CaptureFixture[str]) -> None:
    """The agents of region a live a minute ahead, those of region b a minute behind: leases are judged by no clock."""
    everybody = [*moves.HOSTS["a"], *moves.HOSTS["b"]]
    services.everywhere(everybody, f"test -e {FAKETIME} || apt-get install -y -qq faketime > /dev/null")
    try:
        for region, offset in (("a", "+60s"), ("b", "-60s")):
            text = f"[Service]\\nEnvironment=LD_PRELOAD={FAKETIME} FAKETIME={offset} DONT_FAKE_MONOTONIC=1\\n"
            services.everywhere(
                moves.HOSTS[region],
                f"mkdir -p $(dirname {_DROP_IN}) && printf '{text}' > {_DROP_IN} && systemctl daemon-reload"
                f" && systemctl restart {AGENT}",
            )
        seen = lab.Host("a1").sh(f"tr '\\0' '\\n' < /proc/$(systemctl show -p MainPID --value {AGENT})/environ")
        assert "FAKETIME=+60s" in seen
        moves.wait_until_whole()
        with Load(rate=2) as load:
            there = moves.move("switchover", "b")
            moves.wait_until_whole()
            back = moves.move("switchover", "a")
            load.wait_for(6)
            figures = load.check()
    finally:
        services.everywhere(everybody, f"rm -f {_DROP_IN}; systemctl daemon-reload; systemctl restart {AGENT}")
    assert [there["outcome"], back["outcome"]] == ["done", "done"]
    assert (there["rpo"]["bytes"], back["rpo"]["bytes"]) == (0, 0)
    lab.show(capsys, f"clocks two minutes apart, there and back: {moves.phases(there)}; {figures}")


def test_an_old_sentinel_wakes_up(at_home: None, capsys: pytest.CaptureFixture[str]) -> None:
    """The Sentinels of the former home run again with what they knew: nobody listens to them."""
    conf, old = "/var/lib/shannon/sentinel/main/sentinel.conf", "/var/lib/shannon/sentinel/main/e2e-old.conf"
    services.everywhere(moves.HOSTS["a"], f"install -m 0600 -o redis -g redis {conf} {old}")
    with Load(rate=2) as load:
        moves.move("switchover", "b")
        services.everywhere(
            moves.HOSTS["a"],
            f"systemd-run --quiet --collect --unit=e2e-old-sentinel -p User=redis -p SupplementaryGroups=shannon-tls"
            f" -- /usr/bin/redis-sentinel {old}",
        )
        try:
            time.sleep(25)  # Sentinel's own patience: down-after and two rounds of INFO
            active = services.everywhere(moves.HOSTS["a"], "systemctl is-active e2e-old-sentinel")
            status = lab.status()["cells"]["main"]
            load.wait_for(6)
        finally:
            services.everywhere(moves.HOSTS["a"], "systemctl stop e2e-old-sentinel; rm -f " + old)
        moves.wait_until_whole()
        figures = load.check()
    primaries = [
        (region, one["name"])
        for region, found_there in status["redis"].items()
        for one in found_there["members"]
        if one["role"] == "primary"
    ]
    assert [region for region, _member in primaries] == ["b"], (primaries, active)
    lab.show(capsys, f"three old Sentinels ran for 25 s: the primary stays {primaries}; {figures}")


def test_a_lost_region_and_a_lost_host_of_the_target(at_home: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Region a dies while a host of region b is down, and the controller dies again and again."""
    with Load(rate=2) as load:
        lab.Host("b2").kill()
        moves.kill("a")
        died = time.time()
        try:
            lab.wait_for(lambda: not moves.registry("w1", "get", "/shannon/leases/main"), "the lease's end", 30)
            for seconds in (1.5, 2.5, 3.5):
                moves.started_and_killed("failover", "b", seconds)
            found: dict[str, t.Any] = {}

            def through() -> bool:
                found.update(moves.move("failover", "b", check=False))
                return found["status"] == 0

            lab.wait_for(through, "a failover that gets through", 120, lambda: str(found.get("stdout"))[-2000:], 1)
            load.wait_for(6)
            took = min(one.at for one in load.acknowledged if one.at > died + 1) - died
        finally:
            moves.start("a")
            lab.Host("b2").start()
        moves.wait_until_whole()
        lost = moves.account_for(load, "a", moves.record()["epoch"])
        figures = load.check()
    assert moves.record()["home"] == "b"
    lab.show(
        capsys,
        f"region a and a host of b dead, the controller killed three times: tasks again {took:.1f} s after the death; "
        f"{lost} lost and reported; {figures}",
    )


def test_both_regions_are_restarted_cold(at_home: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody served meanwhile, and the registry's record outlived it: the home is the home again, with everything."""
    before = moves.record()
    with Load(rate=2) as load:
        load.wait_for(4)
        load.stop()
        for region in ("a", "b"):
            moves.kill(region)
        time.sleep(10)  # longer than the lease lives
        began = time.time()
        for region in ("a", "b"):
            moves.start(region)
        moves.wait_for_home("a", 180)
        moves.wait_until_whole(300)
        took = time.time() - began
        figures = load.check()
    assert (moves.record()["home"], moves.record()["epoch"]) == ("a", before["epoch"])
    lab.show(capsys, f"both regions restarted cold: whole again after {took:.0f} s; {figures}")
