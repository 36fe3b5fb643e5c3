"""Versions are told once where all hosts have the same, and with the hosts where not."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.shannon.resilience.plugins.module_utils.component_versions import (
    of_observations,
    postgresql,
    text,
)
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError

DEAD = ResilienceError("no answer")


def test_what_was_seen_is_told_and_what_was_not_is_left_out() -> None:
    patroni: dict[tuple[str, str], t.Any] = {
        ("main", "a1"): {"server_version": 150018, "patroni": {"version": "4.0.5", "name": "a1"}},
        ("main", "b1"): {"server_version": 150020, "patroni": {"version": "4.0.5"}},
        ("main", "b2"): DEAD,
        ("main", "b3"): {"state": "stopped"},
    }
    registry = {"w1": {"leader": True, "version": "3.4.23"}, "a1": DEAD, "b1": {"leader": False}}
    found = of_observations(patroni, {("main", "a1"): {"version": "7.0.15"}, ("main", "b1"): DEAD}, registry, {})
    assert found == {
        "etcd (registry)": "3.4.23",
        "patroni": "4.0.5",
        "postgresql": "15.18 (a1); 15.20 (b1)",
        "redis": "7.0.15",
    }


@pytest.mark.parametrize(
    ("number", "expected"), [(150018, "15.18"), ("160003", "16.3"), (None, ""), ("x", ""), (90624, "")]
)
def test_postgresql_counts_its_versions(number: t.Any, expected: str) -> None:
    assert postgresql(number) == expected


def test_hosts_of_a_version_stand_together() -> None:
    assert text({"b1": "2", "a1": "1", "c1": "2"}) == "1 (a1); 2 (b1, c1)"
