"""How the region agent sees that PostgreSQL has become the primary."""

from __future__ import annotations

import threading
import time
import typing as t

import pytest

pytest.importorskip("prometheus_client")

from shannon.resilience.errors import ResilienceError
from shannon.services.region_agent.promotion import Promotion


class FakeSession:
    """Recovery ends after so many looks."""

    def __init__(self, looks: int, error: str = "") -> None:
        self.looks = looks
        self.error = error
        self.closed = 0

    def ask(self, statement: str, timeout: float = 2.0) -> list[str]:
        assert 0 < timeout <= 60.0
        if self.error:
            raise ResilienceError(self.error)
        if "history" in statement:
            return ["1\t0/3000000\tno recovery target specified", "", "2\t1/A0\tno recovery target specified"]
        self.looks -= 1
        return ["f" if self.looks < 0 else "t"]

    def close(self) -> None:
        self.closed += 1


def promotion(session: FakeSession) -> Promotion:
    return Promotion(5432, t.cast(t.Any, session))


def test_it_is_seen_when_recovery_ends_and_where_the_old_timeline_did() -> None:
    session = FakeSession(3)
    part = promotion(session)
    assert part.seen(5.0, threading.Event())
    assert part.switch_point() == (1 << 32) + 0xA0
    part.rest()
    assert session.closed == 1


def test_it_is_waited_for_no_longer_than_told() -> None:
    began = time.monotonic()
    assert not promotion(FakeSession(10**6)).seen(0.2, threading.Event())
    assert time.monotonic() - began < 2
    assert not promotion(FakeSession(0)).seen(-1.0, threading.Event()), "no authority is left"


def test_an_agent_that_stops_or_a_postgresql_that_does_not_answer_end_the_wait() -> None:
    stopping = threading.Event()
    stopping.set()
    assert not promotion(FakeSession(10**6)).seen(60.0, stopping)
    assert not promotion(FakeSession(0, "no answer in time")).seen(60.0, threading.Event())
