"""Routing controls: set by compare-and-swap, with a reason; the same word again changes nothing."""

from __future__ import annotations

import typing as t

import pytest
from fake_etcd import FakeCluster

from ansible_collections.shannon.resilience.plugins.module_utils.errors import ConflictError, ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.etcd import EtcdClient, NoQuorumError
from ansible_collections.shannon.resilience.plugins.module_utils.routing import ROUTING, RoutingControls


@pytest.fixture
def cluster() -> t.Iterator[FakeCluster]:
    with FakeCluster(3) as running:
        yield running


def client(cluster: FakeCluster) -> EtcdClient:
    return EtcdClient(cluster.endpoints, timeout=0.5, name="the registry")


def test_what_was_set_is_read_with_its_reason(cluster: FakeCluster) -> None:
    controls = RoutingControls(client(cluster))
    assert controls.read() == {}
    before, after = controls.set("a", "off", "power is cut", "ada")
    assert (before.state, after.state, after.reason, after.operator) == ("auto", "off", "power is cut", "ada")
    assert controls.read() == {"a": after}


def test_the_same_word_again_changes_nothing(cluster: FakeCluster) -> None:
    controls = RoutingControls(client(cluster))
    _before, first = controls.set("a", "drain", "patching", "ada")
    before, after = controls.set("a", "drain", "another reason", "bob")
    assert before == after == first


def test_somebody_else_at_the_same_moment_wins_or_loses(cluster: FakeCluster) -> None:
    controls = RoutingControls(client(cluster))
    controls.set("a", "off", "one", "ada")
    other = RoutingControls(client(cluster))
    slow = client(cluster)
    read = slow.get

    def meanwhile(key: str) -> t.Any:
        found = read(key)
        other.set("a", "on", "two", "bob")
        return found

    slow.get = meanwhile  # type: ignore[method-assign]
    with pytest.raises(ConflictError, match=r"set to on at the same moment by bob \(two\)"):
        RoutingControls(slow).set("a", "drain", "three", "eve")
    assert controls.read()["a"].state == "on"


@pytest.mark.parametrize(
    ("region", "state", "reason", "said"),
    [
        ("A-1", "off", "x", "no region's name"),
        ("a", "closed", "x", "none of auto, on, drain, off"),
        ("a", "off", " ", "needs a reason"),
    ],
)
def test_bad_words_are_refused(cluster: FakeCluster, region: str, state: str, reason: str, said: str) -> None:
    with pytest.raises(ResilienceError, match=said):
        RoutingControls(client(cluster)).set(region, state, reason, "ada")


@pytest.mark.parametrize("value", ["nonsense", "{}", '{"region": "b"}', "[1]"])
def test_a_record_that_is_none_is_named(cluster: FakeCluster, value: str) -> None:
    client(cluster).put(ROUTING + "a", value)
    with pytest.raises(ResilienceError, match="/shannon/routing/a is no routing control"):
        RoutingControls(client(cluster)).read()


def test_without_a_quorum_nothing_is_guessed(cluster: FakeCluster) -> None:
    for member in cluster.members:
        member.mode = "no leader"
    with pytest.raises(NoQuorumError):
        RoutingControls(client(cluster)).read()
