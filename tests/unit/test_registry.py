"""The registry's records change by compare-and-swap only, with their history; a conflict says who holds the cell."""

from __future__ import annotations

import threading
import typing as t
from dataclasses import replace
from datetime import datetime, timezone

import pytest
from fake_etcd import FakeCluster

from ansible_collections.shannon.resilience.plugins.module_utils.errors import ConflictError, ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.etcd import EtcdClient, NoQuorumError
from ansible_collections.shannon.resilience.plugins.module_utils.registry import CellRecord, Registry

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=timezone.utc)


@pytest.fixture
def cluster() -> t.Iterator[FakeCluster]:
    with FakeCluster(3) as running:
        yield running


@pytest.fixture
def registry(cluster: FakeCluster) -> Registry:
    return connect(cluster)


def connect(cluster: FakeCluster) -> Registry:
    return Registry(EtcdClient(cluster.endpoints, timeout=0.5, name="the registry"), clock=lambda: NOW)


def moved(record: CellRecord, home: str) -> CellRecord:
    return replace(record, home=home, epoch=record.epoch + 1)


def test_a_new_cell_has_epoch_1_and_a_history(registry: Registry) -> None:
    record, created = registry.create("main", "a")
    assert created
    assert (record.home, record.epoch, record.state) == ("a", 1, "active")
    assert registry.get("main") == record
    assert registry.records() == {"main": record}
    (entry,) = registry.history("main")
    assert (entry.epoch, entry.home, entry.previous_home, entry.reason) == (1, "a", None, "first deployment")
    assert entry.at == "2026-11-23T12:00:00.000000+00:00"


def test_a_cell_that_is_known_is_never_created_anew(registry: Registry) -> None:
    registry.create("main", "a")
    record, created = registry.create("main", "b")
    assert not created
    assert record.home == "a"
    assert len(registry.history("main")) == 1


def test_an_unknown_cell_has_no_record(registry: Registry) -> None:
    assert registry.get("main") is None
    assert registry.history("main") == []


def test_a_record_that_was_deleted_by_hand_is_not_made_again(cluster: FakeCluster, registry: Registry) -> None:
    registry.create("main", "a")
    registry.client.delete("/shannon/cells/main")
    with pytest.raises(ResilienceError, match="somebody deleted the record"):
        registry.create("main", "a")


def test_a_move_makes_the_epoch_grow_and_is_recorded(registry: Registry) -> None:
    first, _created = registry.create("main", "a")
    second = registry.compare_and_swap(first, moved(first, "b"), "region a burns", "alice", ["rpo_target"])
    assert second == registry.get("main")
    assert (second.home, second.epoch) == ("b", 2)
    entry = registry.history("main")[-1]
    assert (entry.previous_home, entry.home, entry.operator, entry.overrides) == ("a", "b", "alice", ("rpo_target",))


def test_a_change_of_state_keeps_the_epoch_and_the_entries_stay_in_order(registry: Registry) -> None:
    record, _created = registry.create("main", "a")
    for state in ("draining", "active", "draining"):
        record = registry.compare_and_swap(record, replace(record, state=state), "maintenance", "alice")
    registry.compare_and_swap(record, replace(moved(record, "b"), state="active"), "maintenance", "alice")
    seen = [(entry.epoch, entry.state) for entry in registry.history("main")]
    assert seen == [(1, "active"), (1, "draining"), (1, "active"), (1, "draining"), (2, "active")]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"home": "b", "epoch": 1}, "grows by exactly one when the home changes"),
        ({"home": "b", "epoch": 3}, "grows by exactly one when the home changes"),
        ({"epoch": 2}, "stays when the home stays"),
        ({"home": "B!", "epoch": 2}, "home 'B!'"),
        ({"state": ""}, "state ''"),
        ({"cell": "other"}, "another cell"),
    ],
)
def test_a_record_that_breaks_the_rules_is_refused(registry: Registry, change: dict[str, t.Any], said: str) -> None:
    record, _created = registry.create("main", "a")
    with pytest.raises(ResilienceError, match=said):
        registry.compare_and_swap(record, replace(record, **change), "why", "alice")
    assert registry.get("main") == record


def test_a_change_needs_a_reason_an_operator_and_a_revision(registry: Registry) -> None:
    record, _created = registry.create("main", "a")
    for reason, operator in (("", "alice"), ("why", " ")):
        with pytest.raises(ResilienceError, match="needs a reason and an operator"):
            registry.compare_and_swap(record, moved(record, "b"), reason, operator)
    with pytest.raises(ResilienceError, match="needs its revision"):
        registry.compare_and_swap(replace(record, revision=0), moved(record, "b"), "why", "alice")


def test_a_conflict_says_who_holds_the_cell(registry: Registry) -> None:
    record, _created = registry.create("main", "a")
    registry.compare_and_swap(record, moved(record, "b"), "region a burns", "alice")
    with pytest.raises(ConflictError, match=r"home b, epoch 2, .*written by alice .*region a burns"):
        registry.compare_and_swap(record, moved(record, "c"), "me too", "bob")


def test_a_cell_that_is_not_known_cannot_be_moved(registry: Registry) -> None:
    record = CellRecord("main", "a", 1, revision=5)
    with pytest.raises(ConflictError, match="does not know the cell"):
        registry.compare_and_swap(record, moved(record, "b"), "why", "alice")


def test_of_many_writers_at_once_exactly_one_wins(cluster: FakeCluster, registry: Registry) -> None:
    record, _created = registry.create("main", "a")
    outcomes: list[CellRecord | ResilienceError] = []
    start = threading.Barrier(6)

    def write(number: int) -> None:
        mine = connect(cluster)
        start.wait()
        try:
            outcomes.append(mine.compare_and_swap(record, moved(record, "b"), "race", f"writer{number}"))
        except ResilienceError as exc:
            outcomes.append(exc)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len([outcome for outcome in outcomes if isinstance(outcome, CellRecord)]) == 1
    assert len([outcome for outcome in outcomes if isinstance(outcome, ConflictError)]) == 5
    assert len(registry.history("main")) == 2


def test_an_answer_that_was_lost_is_no_conflict_with_oneself(cluster: FakeCluster, registry: Registry) -> None:
    record, _created = registry.create("main", "a")
    for member in cluster.members:
        if str(registry.client._good) == member.endpoint:
            member.mode = "mute"
    swapped = registry.compare_and_swap(record, moved(record, "b"), "region a burns", "alice")
    assert swapped == registry.get("main")
    assert len(registry.history("main")) == 2


def test_a_creation_whose_answer_was_lost_counts_as_ones_own(cluster: FakeCluster, registry: Registry) -> None:
    registry.records()
    for member in cluster.members:
        if str(registry.client._good) == member.endpoint:
            member.mode = "mute"
    record, created = registry.create("main", "a")
    assert created
    assert record == registry.get("main")


@pytest.mark.parametrize("value", ["", "{", "[]", '{"home": "a"}', '{"home": "a", "epoch": "x", "state": "s"}'])
def test_a_record_written_by_hand_is_refused_with_its_key(registry: Registry, value: str) -> None:
    registry.client.put("/shannon/cells/main", value)
    with pytest.raises(ResilienceError, match="/shannon/cells/main"):
        registry.get("main")


def test_without_a_quorum_nothing_is_read(cluster: FakeCluster, registry: Registry) -> None:
    registry.create("main", "a")
    for member in cluster.members:
        member.mode = "no leader"
    with pytest.raises(NoQuorumError):
        registry.get("main")


def test_a_name_that_could_reach_other_keys_is_no_cell(registry: Registry) -> None:
    with pytest.raises(ResilienceError, match="no name of a cell"):
        registry.get("../history/main")
