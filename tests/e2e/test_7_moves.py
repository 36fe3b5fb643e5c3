"""The cell moves between regions: planned, unplanned, by itself, and while somebody pulls at the cables.

A client goes on submitting through the edge. In the end each of its acknowledged tasks is there exactly once, or is in
the loss report of the region that lost it.
"""

from __future__ import annotations

import time
import typing as t

import moves
import pytest
import shannon_api as services
from shannon_api import Load

import lab

#: The lease's time to live, and what a takeover may take beyond it (the issue's number).
TTL, BEYOND = 8, 5


def test_plan_and_refusals_change_nothing(at_home: None, capsys: pytest.CaptureFixture[str]) -> None:
    before = moves.record()
    plan = moves.move("switchover", "b", "-e", "plan=true")
    assert "it would be done; nothing was changed" in plan["stdout"]
    assert "The target is not too far behind" in plan["stdout"]
    checked = moves.move("switchover", "b", "--check")
    assert "it would be done; nothing was changed" in checked["stdout"]
    refused = moves.move("failover", "b", check=False)
    assert refused["status"] != 0
    assert "is a primary and answers" in refused["error"]
    assert "failover_accept_healthy_home=true" in refused["error"]
    nowhere = lab.playbook("failover", "-e", "to=c", check=False)
    assert nowhere.returncode != 0 and "must be one of the regions a, b" in nowhere.stdout
    nothing = lab.playbook("failover")
    assert "no cell has to be moved" in nothing.stdout
    assert moves.record() == before
    lab.show(capsys, f"switchover.yml -e plan=true: {plan['took']:.1f} s")


@pytest.mark.soak  # two moves in a row, each of which has the lab's two cores to itself for a minute
def test_switchover_and_back(at_home: None, capsys: pytest.CaptureFixture[str]) -> None:
    for target in ("b", "a"):
        with Load(rate=2) as load:
            found = moves.move("switchover", target)
            load.wait_for(6)
            figures = load.check()
        assert found["outcome"] == "done" and moves.record()["home"] == target
        assert load.given_up == []
        assert found.get("rpo", {}).get("bytes") == 0, found
        lab.show(capsys, f"switchover to {target}: {moves.phases(found)}; {figures}")
        moves.wait_until_whole()
    # Nothing diverged in order, so nothing had to be saved.
    assert moves.saved_rows("a", moves.record()["epoch"] - 1) == []
    history = lab.status()["cells"]["main"]["moves"]
    assert [(one["previous_home"], one["home"]) for one in history[-2:]] == [("a", "b"), ("b", "a")]


def test_failover_of_a_dead_region(at_home: None, capsys: pytest.CaptureFixture[str]) -> None:
    with Load(rate=2) as load:
        moves.kill("a")
        died = time.time()
        try:
            lab.wait_for(lambda: not _lease(), "the end of region a's lease", 30)
            began = time.time()
            found = moves.move("failover", "b")
            load.wait_for(6)
            first = min(one.at for one in load.acknowledged if one.at > died + 1)
            # A region that comes back has work to do, and so have these two cores without more tasks.
            load.stop()
        finally:
            moves.start("a")
            back = time.time()
        # The region that was lost becomes a standby by itself.
        moves.wait_until_whole()
        rejoined = time.time() - back
        lost = moves.account_for(load, "a", moves.record()["epoch"])
        figures = load.check()
    assert found["outcome"] == "done" and found["from"] == "a"
    lab.show(
        capsys,
        f"failover of a dead region: first task {first - began:.1f} s after the start of failover.yml "
        f"({moves.phases(found)}), the whole playbook {found['took']:.1f} s, region a whole again "
        f"{rejoined:.0f} s after its start",
        f"{lost} acknowledged tasks lost and reported; {figures}",
    )


@pytest.mark.parametrize("direction", ["both", pytest.param("in", marks=pytest.mark.soak)])
def test_a_region_that_is_cut_off_stops_before_the_other_starts(
    direction: str, at_home: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """A client inside region a goes on writing to its PostgreSQL the whole time.

    :param direction: C(in): region a's packets still reach everybody, but it hears nothing.
    """
    first = int(time.time() * 1000)
    with lab.Writer(lab.Host("a3"), "postgres", "postgres_app", first=first) as inside:
        with moves.cut(moves.HOSTS["a"], [*moves.HOSTS["b"], "w1"], direction) as began:
            lab.wait_for(lambda: not _lease(), "the end of region a's lease", 30)
            found = moves.move("failover", "b")
            with lab.Writer(lab.Host("b3"), "postgres", "postgres_app", first=first + 10**9) as other:
                other.wait_for_acknowledgements(5)
                begun = min(entry["at"] for entry in other.acknowledged())
                last = max(entry["at"] for entry in inside.acknowledged() if entry["at"] < time.time())
                assert last < begun, f"region a acknowledged a write {last - begun:.2f} s after region b's first"
        inside.host.sh(f"systemctl stop {inside.unit}", check=False)
        acknowledged = {entry["id"] for entry in inside.acknowledged() if entry["at"] < begun}
        # After healing there is one history, and what region a had alone is in its loss report.
        moves.wait_until_whole()
        missing = set(inside.missing())
    rows = moves.saved_rows("a", moves.record()["epoch"])
    reported = {row["row"].get("id") for row in rows if row["table"].endswith("e2e_writes")}
    assert missing & acknowledged <= reported, (
        f"lost and not reported: {sorted((missing & acknowledged) - reported)[:5]}"
    )
    lab.show(
        capsys,
        f"partition ({direction}): region a's last acknowledged write {last - began:.1f} s after the cut, region b's "
        f"first {begun - began:.1f} s after it ({moves.phases(found)}); "
        f"{len(missing & acknowledged)} of {len(acknowledged)} writes lost and reported in {len(rows)} rows",
    )


@pytest.mark.soak
def test_a_registry_without_quorum(at_home: None, capsys: pytest.CaptureFixture[str]) -> None:
    """The home serves on, by the other region's promises; nobody becomes a primary."""
    with Load(rate=2) as load:
        services.everywhere(["b1", "w1"], "systemctl stop etcd@registry")
        try:
            lost = time.time()
            time.sleep(25)  # three times the lease's time to live
            load.wait_for(6)
            gap = load.longest_gap(lost)
            refused = lab.playbook("failover", "-e", "cell=main", "-e", "to=b", check=False)
            assert refused.returncode != 0 and "has no quorum" in refused.stdout
        finally:
            services.everywhere(["b1", "w1"], "systemctl start etcd@registry")
        moves.wait_until_whole()
        figures = load.check()
    assert gap < 5
    lab.show(capsys, f"25 s without the registry's quorum: longest gap {gap:.1f} s; {figures}")


@pytest.mark.soak
def test_the_controller_dies_and_two_come_at_once(at_home: None, capsys: pytest.CaptureFixture[str]) -> None:
    with Load(rate=2) as load:
        # Killed after a second, after two, and so on, it is started again until it gets through.
        for seconds in (2.0, 3.0, 4.0):
            moves.started_and_killed("switchover", "b", seconds)
        # A killed ansible-playbook may leave its module on the witness to finish; until then it says who moves it.
        found: dict[str, t.Any] = {}

        def through() -> bool:
            found.update(moves.move("switchover", "b", check=False))
            return found["status"] == 0

        lab.wait_for(through, "a switchover that gets through", 120, lambda: str(found.get("stdout"))[-2000:], 2)
        assert moves.record()["home"] == "b" and found["outcome"] == "done"
        # Of two at once one wins, and the other says who does it.
        both = [moves.started("switchover", "a") for _each in range(2)]
        said = [process.communicate(timeout=240)[0] for process in both]
        won = [process.returncode == 0 for process in both]
        assert any(won), said
        assert moves.record()["home"] == "a"
        for process, text in zip(both, said, strict=True):
            if process.returncode:
                assert "move" in text and "switchover to a" in text, text[-2000:]
        load.wait_for(6)
        figures = load.check()
    lab.show(capsys, f"controller killed three times, then two at once: {figures}")


@pytest.mark.soak
def test_the_home_is_restarted_cold(at_home: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody moved it meanwhile, so it is the home again by itself."""
    moves.kill("a")
    time.sleep(TTL + 2)
    began = time.time()
    moves.start("a")
    moves.wait_for_home("a")
    moves.wait_until_whole()
    lab.show(capsys, f"home region restarted cold: whole again after {time.time() - began:.0f} s")


@pytest.mark.soak
def test_automatic_failover(at_home: None, capsys: pytest.CaptureFixture[str]) -> None:
    def say(word: str) -> None:
        lab.playbook("site", "--tags", "region_agent", "-e", f"region_failover={word}")
        time.sleep(3)  # the agents notice their new settings within a second, and start anew
        moves.wait_until_whole()

    say("automatic")
    try:
        with Load(rate=2) as load:
            moves.kill("a")
            died = time.time()
            try:
                moves.wait_for_home("b", 60)
                took = time.time() - died
                load.wait_for(6)
            finally:
                moves.start("a")
            moves.wait_until_whole()
            lost = moves.account_for(load, "a", moves.record()["epoch"])
            figures = load.check()
    finally:
        say("manual")
    entry = lab.status()["cells"]["main"]["moves"][-1]
    assert entry["operator"].startswith("region agent of b")
    lab.show(capsys, f"automatic failover: region b serves {took:.1f} s after region a died; {lost} lost; {figures}")
    # The lab's seven hosts share two cores, so a clean bound is the benchmark's; this one only catches a takeover that
    # waits for something it should not.
    assert took <= 2 * (TTL + BEYOND)


def _lease() -> str:
    return moves.registry("w1", "get", "/shannon/leases/main")
