"""Names in DNS and the endpoints in the registry follow the cell, whoever moves it."""

from __future__ import annotations

import json
import time
import typing as t

import moves
import pytest

import lab

ZONE = "lab.shannon.internal"
NAME = f"main.{ZONE}"
SERVER = "w1"
#: Gateways of each region, as inventories/lab has them: all edges are on the witness.
GATEWAYS = {"a": ["a1", "a2"], "b": ["b1", "b2"]}
#: Seconds within which the agents bring a name about: they look every 15 s.
AGENTS = 40


@pytest.fixture
def at_home(deployed: dict[str, float]) -> t.Iterator[None]:
    """The cell at home in region a, before and after, and the DNS server running."""
    moves.bring_home()
    yield
    lab.Host(SERVER).sh("systemctl start shannon-dns")
    moves.bring_home()


def addresses(region: str) -> list[str]:
    return sorted(lab.Host(name).address for name in GATEWAYS[region])


def ask(asker: str = SERVER, *options: str, name: str = NAME) -> list[str]:
    """What the server says of a name to a host of the lab."""
    words = ["dig", f"@{lab.Host(SERVER).address}", "+short", "+time=2", "+tries=1", *options, "-t", "A", f"{name}."]
    return sorted(lab.Host(asker).sh(" ".join(words), check=False).split())


def wait_until_it_says(region: str, timeout: float = AGENTS) -> float:
    """Wait until the name says a region's gateways; the seconds that this took."""
    began = time.monotonic()
    lab.wait_for(lambda: ask() == addresses(region), f"{NAME} saying region {region}", timeout, lambda: str(ask()))
    return time.monotonic() - began


def update(*lines: str) -> None:
    """Change the zone as somebody who has the key."""
    key = f"key hmac-sha256:shannon-update {lab.secret('dns_tsig')}"
    script = "\n".join([f"server {lab.Host(SERVER).address}", f"zone {ZONE}.", key, *lines, "send", ""])
    lab.Host(SERVER).sh("nsupdate -v -t 3", stdin=script)


def flat(text: str) -> str:
    """Ansible breaks long lines wherever it likes."""
    return " ".join(text.split())


def endpoints() -> dict[str, t.Any]:
    return t.cast("dict[str, t.Any]", lab.status()["cells"]["main"]["endpoints"])


def endpoints_say(region: str) -> None:
    """See that what is published is the home's, at the record's epoch."""
    epoch = moves.record()["epoch"]
    last: dict[str, t.Any] = {}

    def right() -> bool:
        last.update(endpoints())
        return (last["home"], last["epoch"]) == (region, epoch)

    lab.wait_for(right, f"the endpoints of region {region} at epoch {epoch}", 60, lambda: json.dumps(last), 1)
    here = {lab.Host(name).address for name in moves.HOSTS[region]}
    for store, port in (("postgres", 5432), ("redis", 6379)):
        (primary,) = last[store]["primary"]
        assert primary in {f"{address}:{port}" for address in here}, last
        assert primary not in last[store]["replicas"] + last[store]["standby"]
    assert last["edges"] == [f"https://{lab.Host('w1').address}:443"]


def test_the_name_says_the_home_to_every_host(at_home: None) -> None:
    wait_until_it_says("a")
    for asker in ("a1", "b1"):
        assert ask(asker) == addresses("a"), asker
        assert ask(asker, "+tcp") == addresses("a"), asker
    endpoints_say("a")


@pytest.mark.soak
def test_dns_yml_finds_nothing_to_do(at_home: None) -> None:
    wait_until_it_says("a")
    done = lab.playbook("dns")
    said = flat(done.stdout)
    assert f"{NAME} on {lab.Host(SERVER).address}:53: A" in said and "as before" in said
    assert lab.recap(done.stdout)["w1"]["changed"] == 0


def test_the_agents_mend_what_somebody_changed(at_home: None, capsys: pytest.CaptureFixture[str]) -> None:
    wait_until_it_says("a")
    update(f"update delete {NAME}. A", f"update add {NAME}. 5 A 192.0.2.1")
    assert ask() == ["192.0.2.1"]
    took = wait_until_it_says("a")
    with capsys.disabled():
        print(f"\n  a name that somebody changed is right again after {took:.0f} s")


@pytest.mark.soak
def test_the_name_and_the_endpoints_follow_a_switchover_and_back(
    at_home: None, capsys: pytest.CaptureFixture[str]
) -> None:
    wait_until_it_says("a")
    for target in ("b", "a"):
        found = moves.move("switchover", target)
        assert found["outcome"] == "done"
        # The playbook has seen to it, or has found that the agents had.
        assert ask() == addresses(target)
        said = flat(found["stdout"].partition(f"{NAME} on")[2])[:120]
        endpoints_say(target)
        with capsys.disabled():
            print(f"\n  switchover to {target}: {NAME} on {said}")
        moves.wait_until_whole()


@pytest.mark.soak
def test_a_dead_dns_server_holds_up_no_move(at_home: None, capsys: pytest.CaptureFixture[str]) -> None:
    wait_until_it_says("a")
    lab.Host(SERVER).sh("systemctl stop shannon-dns")
    found = moves.move("switchover", "b")
    assert found["outcome"] == "done" and moves.record()["home"] == "b"
    assert f"{NAME} on {lab.Host(SERVER).address}:53: FAILED" in flat(found["stdout"])
    loud = lab.playbook("dns", check=False)
    assert loud.returncode != 0 and "do not say where the cells live" in flat(loud.stdout)
    lab.Host(SERVER).sh("systemctl start shannon-dns")
    # No playbook: the agents of the new home see to it.
    took = wait_until_it_says("b")
    with capsys.disabled():
        print(f"\n  after a move without DNS the name is right {took:.0f} s after the server's start")


def test_a_wrong_key_is_refused_and_said(at_home: None) -> None:
    provider = {"provider": "rfc2136", "zone": ZONE, "name": "wrong-{cell}.{zone}", "key_secret": "A" * 32}
    done = lab.playbook("dns", "-e", json.dumps({"routing_providers": [provider]}), check=False)
    assert done.returncode != 0
    said = flat(done.stdout + done.stderr)
    assert "BADSIG" in said and "compare key_secret" in said
    assert ask(name=f"wrong-main.{ZONE}") == []
