"""Which hosts answer: ssh servers are asked on loopback, all at once, and only a banner counts."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import typing as t

import pytest

from ansible_collections.shannon.resilience.plugins.module_utils.reachability import probe


@contextlib.contextmanager
def listener(answer: bytes | None) -> t.Iterator[tuple[str, int]]:
    """A port that accepts and says something; None is a paused host, whose kernel accepts and nobody answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _peer = server.accept()
                    connection.sendall(answer or b"")
                    connection.close()

        if answer is not None:
            threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[:2]
        if answer is not None:
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def closed_port() -> tuple[str, int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address: tuple[str, int] = server.getsockname()[:2]
    return address


def test_hosts_that_send_a_banner_are_reachable_in_the_given_order() -> None:
    with listener(b"SSH-2.0-x\r\n") as one, listener(b"SSH-2.0-y\r\n") as two:
        assert probe({"b1": one, "a1": two}, 2) == (["b1", "a1"], {})


def test_a_paused_host_is_dead_although_its_port_is_open() -> None:
    with listener(None) as paused:
        reachable, unreachable = probe({"a1": paused}, 0.3)
    assert reachable == [] and "an ssh banner" in unreachable["a1"] and str(paused[1]) in unreachable["a1"]


def test_a_host_that_hangs_up_is_dead() -> None:
    with listener(b"") as port:
        assert "a closed connection" in probe({"a1": port}, 1)[1]["a1"]


def test_a_closed_port_is_dead_at_once(closed_port: tuple[str, int]) -> None:
    reachable, unreachable = probe({"a1": closed_port}, 2)
    assert reachable == [] and "refused" in unreachable["a1"].lower()


def test_a_dead_region_costs_one_timeout() -> None:
    with listener(None) as paused, listener(b"SSH-2.0-x\r\n") as alive:
        begin = time.monotonic()
        reachable, unreachable = probe({**{f"b{number}": paused for number in range(8)}, "a1": alive}, 0.5)
        took = time.monotonic() - begin
    assert reachable == ["a1"] and len(unreachable) == 8
    assert took < 2.5


def test_nobody_asked_is_nobody_reachable() -> None:
    assert probe({}, 1) == ([], {})
