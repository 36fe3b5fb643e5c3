"""A second person's word: asked for once, given by somebody else, for one move, and for a while."""

from __future__ import annotations

import threading
import typing as t
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from fake_etcd import FakeCluster

from ansible_collections.shannon.resilience.plugins.module_utils.errors import (
    ConflictError,
    ResilienceError,
    WaitTimeout,
)
from ansible_collections.shannon.resilience.plugins.module_utils.etcd import EtcdClient
from ansible_collections.shannon.resilience.plugins.module_utils.move_approval import EXPIRES, Approval, Approvals
from ansible_collections.shannon.resilience.plugins.module_utils.registry_keys import APPROVALS
from ansible_collections.shannon.resilience.plugins.modules import move_approval as module

WANTED = Approval("main", "failover", "a", "b", 3, "ada", "no power", ("accept_lag",))


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 11, 28, 12, 0, tzinfo=timezone.utc)

    def __call__(self) -> datetime:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def client() -> t.Iterator[EtcdClient]:
    with FakeCluster(1) as cluster:
        yield EtcdClient(cluster.endpoints, timeout=5.0, name="the registry")


@pytest.fixture
def approvals(client: EtcdClient, clock: Clock) -> Approvals:
    return Approvals(client, clock)


def test_a_word_is_asked_for_and_given(approvals: Approvals) -> None:
    asked = approvals.request(WANTED)
    assert (asked.approved_by, asked.expires_at) == ("", "2026-11-28T12:15:00+00:00")
    with pytest.raises(ConflictError, match=r"needs somebody else's approval, and has none .*not approved"):
        approvals.given(WANTED)
    approvals.approve("main", "bob")
    assert approvals.given(WANTED).approved_by == "bob"
    assert "overriding accept_lag" in asked.describe() and asked.id in asked.describe()


def test_the_same_move_is_asked_for_once(approvals: Approvals) -> None:
    first = approvals.request(WANTED)
    approvals.approve("main", "bob")
    again = approvals.request(replace(WANTED, reason="another word for it"))
    assert (again.id, again.approved_by) == (first.id, "bob")


@pytest.mark.parametrize("operator", ["ada", " Ada ", "ADA"])
def test_nobody_approves_his_own_move(approvals: Approvals, operator: str) -> None:
    approvals.request(WANTED)
    with pytest.raises(ConflictError, match="somebody else has to approve it"):
        approvals.approve("main", operator)
    found = approvals.find("main")
    assert found and not found.approved_by


def test_an_approval_needs_a_name(approvals: Approvals) -> None:
    approvals.request(WANTED)
    with pytest.raises(ResilienceError, match="operator=NAME"):
        approvals.approve("main", " ")


@pytest.mark.parametrize(
    "change",
    [{"epoch": 4}, {"target": "c"}, {"home": "c"}, {"kind": "switchover"}, {"operator": "eve"}, {"overrides": ()}],
)
def test_a_word_is_for_exactly_one_move(approvals: Approvals, change: dict[str, t.Any]) -> None:
    approvals.request(WANTED)
    approvals.approve("main", "bob")
    with pytest.raises(ConflictError, match="approved by bob"):
        approvals.given(replace(WANTED, **change))


def test_a_word_ends(approvals: Approvals, clock: Clock) -> None:
    approvals.request(WANTED)
    approvals.approve("main", "bob")
    clock.pass_(EXPIRES - 1)
    assert approvals.given(WANTED)
    clock.pass_(1)
    with pytest.raises(ConflictError, match="nothing is asked for"):
        approvals.given(WANTED)
    with pytest.raises(ConflictError, match="nobody asks for an approval"):
        approvals.approve("main", "bob")


def test_the_registry_lets_it_end_by_itself(client: EtcdClient, approvals: Approvals) -> None:
    approvals.request(WANTED)
    lease = client.get(f"{APPROVALS}main").lease  # type: ignore[union-attr]
    approvals.approve("main", "bob")
    assert lease and client.get(f"{APPROVALS}main").lease == lease  # type: ignore[union-attr]


def test_of_two_who_ask_the_second_is_told(approvals: Approvals) -> None:
    approvals.request(WANTED)
    with pytest.raises(ConflictError, match=r"by ada.* waits for an approval already.*reject=true"):
        approvals.request(replace(WANTED, operator="bob", target="c"))


def test_who_asks_for_something_else_drops_the_first(approvals: Approvals) -> None:
    first = approvals.request(WANTED)
    approvals.approve("main", "bob")
    second = approvals.request(replace(WANTED, target="c"))
    assert second.id != first.id and not second.approved_by


def test_the_request_that_is_meant_can_be_named(approvals: Approvals) -> None:
    asked = approvals.request(WANTED)
    with pytest.raises(ConflictError, match=f"is not 0000: it is .*{asked.id}"):
        approvals.approve("main", "bob", "0000")
    assert approvals.approve("main", "bob", asked.id).approved_by == "bob"


def test_a_waiting_run_goes_on_when_it_is_approved(client: EtcdClient, approvals: Approvals) -> None:
    asked = approvals.request(WANTED)
    threading.Timer(0.1, lambda: approvals.approve("main", "bob")).start()
    assert approvals.wait(asked, 10, interval=0.02).approved_by == "bob"


def test_a_waiting_run_ends_when_it_is_rejected(approvals: Approvals) -> None:
    asked = approvals.request(WANTED)
    threading.Timer(0.1, lambda: approvals.reject("main")).start()
    with pytest.raises(ConflictError, match="was rejected, or its time was up"):
        approvals.wait(asked, 10, interval=0.02)


def test_a_waiting_run_is_bounded(approvals: Approvals) -> None:
    asked = approvals.request(WANTED)
    with pytest.raises(
        WaitTimeout, match=r"somebody else's approval of the failover of cell main.*Nothing was changed"
    ):
        approvals.wait(asked, 0.05, interval=0.02)


@pytest.mark.parametrize("text", ["no JSON", "[]", "{}", '{"cell": "main"}'])
def test_a_key_that_was_written_by_hand_is_said(client: EtcdClient, approvals: Approvals, text: str) -> None:
    client.put(f"{APPROVALS}main", text)
    with pytest.raises(ResilienceError, match="somebody wrote it by hand"):
        approvals.find("main")


def test_a_used_word_is_gone(approvals: Approvals) -> None:
    approvals.request(WANTED)
    approvals.remove(approvals.approve("main", "bob"))
    assert approvals.find("main") is None


# -- the module ------------------------------------------------------------------------------------------------------

MOVE = {"cell": "main", "kind": "failover", "from": "a", "to": "b", "epoch": 3, "operator": "ada", "reason": "no power"}


def params(state: str, **more: t.Any) -> dict[str, t.Any]:
    given = {"state": state, "moves": [MOVE], "overrides": ["accept_lag"], "cell": "main", "cells": ["main"], "id": "",
             "operator": "bob", "wait": 0.05}  # fmt: skip
    return {**given, **more}


def test_the_module_asks_once_approves_and_waits(approvals: Approvals) -> None:
    assert module.act(params("requested"), approvals, False)[0] is True
    assert module.act(params("requested"), approvals, False)[0] is False
    assert module.act(params("approved"), approvals, False)[0] is True
    changed, (found,) = module.act(params("approved"), approvals, False)
    assert (changed, found.approved_by) == (False, "bob")
    assert module.act(params("awaited"), approvals, False) == (False, [found])
    assert module.act(params("listed"), approvals, False) == (False, [found])
    assert module.act(params("rejected"), approvals, False)[0] is True
    assert module.act(params("listed"), approvals, False) == (False, [])


def test_what_was_rejected_is_not_asked_for_again(approvals: Approvals) -> None:
    module.act(params("requested"), approvals, False)
    module.act(params("rejected"), approvals, False)
    with pytest.raises(ConflictError, match="was rejected"):
        module.act(params("awaited"), approvals, False)
    assert approvals.find("main") is None


def test_another_request_is_not_waited_for(approvals: Approvals) -> None:
    approvals.request(replace(WANTED, target="c"))
    with pytest.raises(ConflictError, match="was rejected, or its time was up"):
        module.act(params("awaited"), approvals, False)


@pytest.mark.parametrize("state", ["requested", "awaited", "approved", "rejected"])
def test_the_module_changes_nothing_in_check_mode(approvals: Approvals, state: str) -> None:
    approvals.request(WANTED)
    before = approvals.find("main")
    module.act(params(state), approvals, True)
    assert approvals.find("main") == before


def test_a_cell_that_is_there_already_needs_no_word(approvals: Approvals) -> None:
    assert module.act(params("requested", moves=[{**MOVE, "from": "b"}]), approvals, False) == (False, [])
