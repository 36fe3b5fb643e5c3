"""A restore closes the cell, is known again after it was killed, refuses while others write, and opens it once."""

from __future__ import annotations

import typing as t
from dataclasses import replace

import pytest
from fake_etcd import FakeCluster

from ansible_collections.shannon.resilience.plugins.module_utils.cell_restore import Outlook, Wanted, begin, end, look
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ConflictError, ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.etcd import EtcdClient
from ansible_collections.shannon.resilience.plugins.module_utils.registry import DRAINING, RESTORING, Registry

REPOSITORIES = {"a": "a3", "b": "b3"}
WANTED = Wanted("main", "postgres", "2026-11-28 12:00:00+00", reason="a table was deleted", operator="alice")


@pytest.fixture
def registry() -> t.Iterator[Registry]:
    with FakeCluster(3) as cluster:
        found = Registry(EtcdClient(cluster.endpoints, timeout=0.5))
        found.create("main", "a")
        yield found


def outlook(registry: Registry, wanted: Wanted = WANTED, stamp: str = "20261128T120000Z") -> Outlook:
    record = registry.get("main")
    assert record is not None
    return look(record, registry.history("main"), wanted, REPOSITORIES, stamp)


def test_it_closes_the_cell_and_opens_it_again(registry: Registry) -> None:
    found = outlook(registry)
    assert (found.problems, found.source, found.repository, found.resumed) == ([], "a", "a3", False)
    record, changed = begin(registry, found, WANTED)
    assert changed and record.state == RESTORING and record.epoch == 1
    opened, changed = end(registry, "main", found.id, "alice")
    assert changed and opened.state == "active"
    assert end(registry, "main", found.id, "alice")[1] is False
    states = [entry.state for entry in registry.history("main")]
    assert states == ["active", "restoring", "active"]


def test_a_killed_one_goes_on_under_its_name(registry: Registry) -> None:
    first = outlook(registry)
    begin(registry, first, WANTED)
    again = outlook(registry, replace(WANTED, reason="", running=("a1",)), "20261128T130000Z")
    assert (again.id, again.resumed, again.problems) == (first.id, True, [])
    assert begin(registry, again, WANTED)[1] is False


def test_another_one_is_refused_until_told(registry: Registry) -> None:
    first = outlook(registry)
    begin(registry, first, WANTED)
    other = replace(WANTED, to="latest")
    refused = outlook(registry, other, "20261128T130000Z")
    assert first.id in refused.problems[0] and "restore_anew" in refused.problems[0]
    with pytest.raises(ResilienceError, match="nothing was changed"):
        begin(registry, refused, other)
    anew = replace(other, anew=True)
    allowed = outlook(registry, anew, "20261128T130000Z")
    assert allowed.problems == [] and allowed.id == "20261128T130000Z-main"
    assert begin(registry, allowed, anew)[1] is True
    with pytest.raises(ConflictError, match=allowed.id):
        end(registry, "main", first.id, "alice")
    assert end(registry, "main", allowed.id, "alice")[0].state == "active"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"running": ("a1", "b1")}, ["writes flow", "a1, b1", "restore_stop_writes"]),
        ({"source": "c"}, ["region c has no repository", "a, b"]),
        ({"reason": " "}, ["why", "-e reason"]),
    ],
)
def test_it_refuses(registry: Registry, changes: dict[str, t.Any], words: list[str]) -> None:
    (problem,) = outlook(registry, replace(WANTED, **changes)).problems
    assert all(word in problem for word in words)


def test_it_refuses_while_the_cell_moves(registry: Registry) -> None:
    record = registry.get("main")
    assert record is not None
    registry.compare_and_swap(record, replace(record, state=DRAINING), "switchover", "bob")
    assert "a move is under way" in outlook(registry).problems[0]


def test_a_record_that_changed_meanwhile_stops_it(registry: Registry) -> None:
    found = outlook(registry)
    registry.compare_and_swap(found.record, replace(found.record, home="b", epoch=2), "failover", "bob")
    with pytest.raises(ConflictError, match="bob"):
        begin(registry, found, WANTED)
