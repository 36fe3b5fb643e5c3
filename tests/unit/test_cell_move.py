"""Which cells a move is for, and where they go when nobody said so."""

from __future__ import annotations

import typing as t
from types import SimpleNamespace

import pytest

from ansible_collections.shannon.resilience.plugins.module_utils.move_world import NoStandby
from ansible_collections.shannon.resilience.plugins.module_utils.registry import CellRecord
from ansible_collections.shannon.resilience.plugins.modules.cell_move import choose_patiently

RECORDS = {"main": CellRecord("main", "a", 1, "active")}


class World:
    """Region a is lost; region b's leader says who it is only to those who have patience, or never."""

    def __init__(self, answers: bool) -> None:
        self.answers = answers
        self.patient = 0

    def be_patient(self) -> None:
        self.patient += 1

    def info(self) -> dict[str, t.Any]:
        role = "standby_leader" if self.answers and self.patient else ""
        members = {"a": [{"role": ""}], "b": [{"role": role, "received": 1}]}
        return {"cells": {"main": {"postgres": {region: {"members": found} for region, found in members.items()}}}}


def chosen(world: World, **params: t.Any) -> tuple[dict[str, str], dict[str, str]]:
    given = {"to": "", "cells": [], "kind": "failover", "topology": {"regions": ["a", "b"]}, **params}
    module: t.Any = SimpleNamespace(params=given)
    return choose_patiently(module, RECORDS, t.cast(t.Any, world), {})


def test_a_busy_standby_is_found_at_the_second_look() -> None:
    world = World(answers=True)
    assert chosen(world) == ({"main": "b"}, {})
    assert world.patient == 1


def test_a_standby_that_never_answers_is_none() -> None:
    with pytest.raises(NoStandby, match="could take over"):
        chosen(World(answers=False))


def test_nobody_is_waited_for_when_the_operator_said_where_to() -> None:
    world = World(answers=True)
    assert chosen(world, to="b", cells=["main"]) == ({"main": "b"}, {})
    assert world.patient == 0
