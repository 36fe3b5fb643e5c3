"""The registry loses its members: one, which is added again, and two for good, whose registry is given up."""

from __future__ import annotations

import contextlib
import json
import time
import typing as t

import moves
import pytest
import shannon_api as services
from shannon_api import Load

import lab

pytestmark = pytest.mark.soak
DATA = moves.REGISTRY_DATA
GIVEN_UP = "/var/lib/shannon/registry-given-up"
MEMBERS = moves.REGISTRY_MEMBERS


def members(host: str) -> dict[str, bool]:
    """The registry's members by name, as one of them lists them, and whether each only learns."""
    address = lab.Host(host).address
    tls = "--cacert /etc/shannon/pki/ca.crt --cert /etc/shannon/pki/host.crt --key /etc/shannon/pki/host.key"
    said = lab.Host(host).sh(
        f"ETCDCTL_API=3 etcdctl --endpoints https://{address}:{moves.REGISTRY_PORT} {tls} --command-timeout 5s "
        "member list --write-out json"
    )
    return {one.get("name", ""): bool(one.get("isLearner")) for one in json.loads(said)["members"]}


def agents_word(host: str) -> dict[str, t.Any]:
    """What the region agent of a host last left for the gates."""
    return t.cast("dict[str, t.Any]", json.loads(lab.Host(host).sh("cat /run/shannon-region-agent/main.json")))


def words(done: t.Any) -> str:
    """What a playbook printed, without the breaks that Ansible puts into long lines."""
    return " ".join(done.stdout.split())


def lose_disk(host: str) -> None:
    lab.Host(host).sh(f"systemctl stop etcd@registry && rm -rf {DATA}")


@pytest.mark.parametrize("way", ["registry_member.yml", "site.yml"])
def test_a_member_that_lost_its_disk_is_added_again(
    at_home: None, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    before = moves.record()
    with Load(rate=2) as load:
        lose_disk("w1")
        began = time.time()
        if way == "site.yml":
            lab.playbook("site", "--tags", "registry")
        else:
            checked = lab.playbook("registry_member", "-e", "member=w1", "--check")
            assert lab.recap(checked.stdout)["w1"]["changed"] > 0
            assert lab.Host("w1").sh(f"ls {DATA} 2>/dev/null || true") == ""
            lab.playbook("registry_member", "-e", "member=w1")
        took = time.time() - began
        assert members("w1") == dict.fromkeys(MEMBERS, False)
        assert json.loads(moves.registry("w1", "get", "/shannon/cells/main")) == before
        again = lab.recap(lab.playbook("registry_member", "-e", "member=w1").stdout)
        assert {host: counts["changed"] for host, counts in again.items() if counts["changed"]} == {}
        load.wait_for(6)
        gap = load.longest_gap(began)
        figures = load.check()
    moves.wait_until_whole()
    assert gap < 5
    lab.show(capsys, f"a lost member of the registry is whole again by {way} after {took:.0f} s; {figures}")


def test_two_members_are_lost_for_good(at_home: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Region a is dead and the witness's member gone: nobody takes over before an operator breaks the glass."""
    before = moves.record()
    said = ("-e", "survivor=b1", "-e", "i_have_fenced_region=a", "-e", "reason='site a burns'")
    with_quorum = lab.playbook("break_glass", *said, check=False)
    assert with_quorum.returncode != 0 and "can read through a quorum" in words(with_quorum)
    with Load(rate=2, patience=300) as load:
        moves.kill("a")
        died = time.time()
        try:
            lab.Host("w1").sh("systemctl stop etcd@registry")
            refused = lab.playbook("failover", "-e", "cell=main", "-e", "to=b", check=False)
            assert refused.returncode != 0 and "has no quorum" in words(refused)
            unsaid = lab.playbook("break_glass", "-e", "survivor=b1", "-e", "reason='site a burns'", check=False)
            assert unsaid.returncode != 0 and "nobody said that region a is dead or fenced" in words(unsaid)
            plan = lab.playbook("break_glass", *said, "-e", "plan=true")
            assert "REFUSED" not in words(plan)
            assert lab.Host("b1").sh(f"cat {GIVEN_UP} 2>/dev/null || true") == ""

            began = time.time()
            lab.playbook("break_glass", *said)
            broke = time.time() - began
            assert members("b1") == {"b1": False}
            now = json.loads(moves.registry("b1", "get", "/shannon/cells/main"))
            assert (now["home"], now["epoch"]) == ("a", before["epoch"] + 1)
            history = moves.registry("b1", "get", "--prefix", "/shannon/history/main/").splitlines()
            entry = json.loads(history[-1])
            assert entry["overrides"] == ["break_glass"] and entry["reason"].startswith("site a burns")
            (given_up,) = lab.Host("w1").sh(f"cat {GIVEN_UP}").split()

            found = moves.move("failover", "b")
            assert found["outcome"] == "done" and found["from"] == "a"
            served = time.time() - died
            load.wait_for(6)
            epoch = json.loads(moves.registry("b1", "get", "/shannon/cells/main"))["epoch"]
        finally:
            # What must not happen happens: both lost members come back at once, with the old registry's quorum.
            with contextlib.suppress(lab.LabError):
                lab.Host("w1").sh("systemctl start --no-block etcd@registry")
            moves.start("a")

        def old_quorum() -> bool:
            return json.loads(moves.registry("w1", "get", "/shannon/cells/main"))["home"] == "a"

        lab.wait_for(old_quorum, "the old registry's quorum", 90)

        def learned() -> bool:
            files = f"{GIVEN_UP} /var/lib/shannon/region-agent/registry-given-up"
            texts = [lab.Host(name).sh(f"cat {files} 2>/dev/null || true") for name in moves.HOSTS["a"]]
            return all(given_up in text for text in texts)

        lab.wait_for(learned, "region a's agents to know that the old registry was given up", 60)

        def follows() -> bool:
            return all((agents_word(name)["record"] or {}).get("home") == "b" for name in moves.HOSTS["a"])

        lab.wait_for(follows, "region a's agents to believe the new registry", 60)
        load.wait_for(6)
        lab.playbook("registry_member", "-e", "member=w1,a1")
        assert members("w1") == dict.fromkeys(MEMBERS, False)
        moves.wait_until_whole()
        assert moves.record()["home"] == "b" and moves.record()["epoch"] == epoch
        lost = moves.account_for(load, "a", epoch)
        figures = load.check()
    lab.show(
        capsys,
        f"two of three members lost: glass broken in {broke:.1f} s, region b serves {served:.0f} s after a died",
        f"{lost} acknowledged tasks lost and reported; {figures}",
    )


def test_a_registry_that_is_lost_is_restored(at_home: None, capsys: pytest.CaptureFixture[str]) -> None:
    """All members' data is gone while the home serves; the snapshot is older than the last two moves."""
    lab.Host("b1").sh("systemctl start etcd-snapshot@registry")
    for target in ("b", "a"):
        moves.move("switchover", target)
        moves.wait_until_whole()
    before = moves.record()
    with Load(rate=2) as load:
        lost = time.time()
        services.everywhere(MEMBERS, f"systemctl stop etcd@registry && rm -rf {DATA}")
        refused = lab.playbook("parts/restore_registry", "-e", "reason=lost", check=False)
        assert refused.returncode != 0 and "i_know_registry_data_is_lost" in words(refused)
        began = time.time()
        lab.playbook("parts/restore_registry", "-e", "reason=lost", "-e", "i_know_registry_data_is_lost=true")
        took = time.time() - began
        moves.wait_until_whole()
        load.wait_for(6)
        gap = load.longest_gap(lost)
        figures = load.check()
    after = moves.record()
    assert (after["home"], after["state"]) == ("a", "active") and after["epoch"] == before["epoch"] + 1
    lab.show(
        capsys,
        f"a lost registry is restored from a snapshot in {took:.0f} s, longest gap {gap:.1f} s; {figures}",
    )
