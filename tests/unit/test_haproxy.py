"""HAProxy's runtime API: what is read from it, what it is told, and what happens when it does not answer."""

from __future__ import annotations

import pathlib
import socket
import time
import typing as t

import pytest
from fake_haproxy import FakeHaproxy

from ansible_collections.shannon.resilience.plugins.module_utils import haproxy
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError


@pytest.fixture
def proxy(tmp_path: pathlib.Path) -> t.Iterator[FakeHaproxy]:
    fake = FakeHaproxy(tmp_path / "admin.sock", [("cell_main", "a_a1"), ("cell_main", "b_b1")])
    yield fake
    fake.close()


def test_servers_are_read_with_what_they_were_told(proxy: FakeHaproxy) -> None:
    proxy.servers["cell_main", "a_a1"].update(admin=1, op=0, check=0x2)
    proxy.servers["cell_main", "b_b1"].update(admin=8)
    first, second = haproxy.RuntimeApi(proxy.path).servers()
    assert first == haproxy.Server("cell_main", "a_a1", "maint", operational=False, checked=False)
    assert second == haproxy.Server("cell_main", "b_b1", "drain", operational=True, checked=True)
    assert haproxy.by_backend([first, second]) == {"cell_main": [first, second]}


def test_a_server_is_told_its_state(proxy: FakeHaproxy) -> None:
    api = haproxy.RuntimeApi(proxy.path)
    for state in ("maint", "drain", "ready"):
        server = api.servers()[0]
        api.set_admin(server, state)
        assert api.servers()[0].admin == state


def test_without_its_check_a_server_counts_as_up(proxy: FakeHaproxy) -> None:
    proxy.servers["cell_main", "a_a1"].update(op=0)
    api = haproxy.RuntimeApi(proxy.path)
    api.check_health(api.servers()[0], False)
    assert api.servers()[0].operational and not api.servers()[0].checked
    api.check_health(api.servers()[0], True)
    assert api.servers()[0].checked


def test_states_are_kept_in_a_file_that_haproxy_reads(proxy: FakeHaproxy, tmp_path: pathlib.Path) -> None:
    haproxy.RuntimeApi(proxy.path).save(str(tmp_path / "servers.state"))
    lines = (tmp_path / "servers.state").read_text().splitlines()
    assert lines[0] == "1" and lines[1].startswith("# be_id")
    assert not (tmp_path / "servers.state.new").exists()


def test_a_refusal_is_an_error_with_the_command(proxy: FakeHaproxy) -> None:
    proxy.refusal = "No such server."
    api = haproxy.RuntimeApi(proxy.path)
    with pytest.raises(ResilienceError, match="refused 'set server cell_main/a_a1 state maint': No such server"):
        api.set_admin(api.servers()[0], "maint")


def test_an_unknown_state_and_a_second_command_are_refused_here(proxy: FakeHaproxy) -> None:
    api = haproxy.RuntimeApi(proxy.path)
    with pytest.raises(ValueError, match="none of ready"):
        api.set_admin(api.servers()[0], "up")
    with pytest.raises(ValueError, match="one command"):
        api.command("show info; show stat")


def test_a_cell_is_held_until_it_is_released(proxy: FakeHaproxy) -> None:
    api = haproxy.RuntimeApi(proxy.path)
    assert api.held(proxy.map_path) == set()
    api.hold(proxy.map_path, "main", 1800000000.25)
    assert proxy.map == {"main": "hold-1800000000.250"}
    assert api.held(proxy.map_path) == {"main"}
    api.hold(proxy.map_path, "main", 1800000009)
    assert proxy.map == {"main": "hold-1800000009.000"}, "the later end replaces the former"
    api.release(proxy.map_path, "main", 1800000010)
    assert api.held(proxy.map_path) == set()
    assert api.words(proxy.map_path) == {"main": "wait-1800000010.000"}
    api.release(proxy.map_path, "main")
    assert proxy.map == {}
    api.release(proxy.map_path, "main")


def test_an_edge_that_can_hold_nothing_says_so(proxy: FakeHaproxy) -> None:
    api = haproxy.RuntimeApi(proxy.path)
    for attempt in (
        lambda: api.held("/no.map"),
        lambda: api.hold("/no.map", "main", 1.0),
        lambda: api.release("/no.map", "main"),
    ):
        with pytest.raises(ResilienceError, match="Unknown map identifier"):
            attempt()
    with pytest.raises(ResilienceError, match="is no name"):
        api.hold(proxy.map_path, "main word", 1.0)


def test_what_runs_is_counted(proxy: FakeHaproxy) -> None:
    proxy.sessions["cell_main"] = 7
    proxy.streams["cell_main"] = 3
    api = haproxy.RuntimeApi(proxy.path)
    assert api.in_flight("cell_main") == 7
    assert api.tracked("streams") == {"cell_main": 3}
    with pytest.raises(ResilienceError, match="has no backend cell_other"):
        api.in_flight("cell_other")
    with pytest.raises(ResilienceError, match="the table others: No such table"):
        api.tracked("others")


def test_a_socket_that_is_not_there_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ResilienceError, match=r"nowhere\.sock .* Is it running"):
        haproxy.RuntimeApi(str(tmp_path / "nowhere.sock")).servers()


def test_one_that_does_not_answer_costs_its_timeout(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "mute.sock")
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(path)
        mute.listen()
        started = time.monotonic()
        with pytest.raises(ResilienceError, match=r"within 0\.2 s"):
            haproxy.RuntimeApi(path, timeout=0.2).process()
        assert time.monotonic() - started < 2
