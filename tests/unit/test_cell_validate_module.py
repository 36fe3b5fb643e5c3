"""The module that validates: it asks each cell's home, and fails with what is wrong and what to do."""

from __future__ import annotations

import types
import typing as t

import pytest
from module_runner import run_module

from ansible_collections.shannon.resilience.plugins.module_utils.cell_validation import Check
from ansible_collections.shannon.resilience.plugins.module_utils.registry import CellRecord
from ansible_collections.shannon.resilience.plugins.modules import cell_validate as subject

TOPOLOGY = {
    "hosts": {"w1": {"address": "192.0.2.1"}},
    "components": {"registry": {"w": ["w1"]}},
    "ports": {"registry_client": 1},
    "cells": [{"name": "main"}, {"name": "other"}],
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Cells and regions that were asked; in the home of the cell other an index is missing."""
    seen: list[tuple[str, str]] = []

    class FakeValidator:
        def __init__(self, *_arguments: t.Any) -> None:
            pass

        def validate(self, cell: str, region: str) -> list[Check]:
            seen.append((cell, region))
            return [Check("indexes", "All indexes are there", cell == "main", "one is missing", "all", "Make it anew.")]

    records = {"main": CellRecord("main", "a", 1), "other": CellRecord("other", "b", 4)}
    registry = types.SimpleNamespace(records=lambda: records)
    monkeypatch.setattr(subject, "Validator", FakeValidator)
    monkeypatch.setattr(subject.Registry, "connect", lambda *_arguments: registry)
    return seen


def run(**arguments: t.Any) -> dict[str, t.Any]:
    return run_module(subject, topology=TOPOLOGY, qdrant_api_key="secret", **arguments)


def test_each_cell_is_asked_for_in_its_home(asked: list[tuple[str, str]]) -> None:
    found = run()
    assert sorted(asked) == [("main", "a"), ("other", "b")]
    assert found["failed"] and not found.get("changed")
    assert found["msg"] == (
        "cell other, region b: All indexes are there: no. Seen: one is missing. Expected: all. Make it anew."
    )
    assert [found["validations"][cell]["passed"] for cell in ("main", "other")] == [True, False]


def test_a_cell_that_is_well_passes(asked: list[tuple[str, str]]) -> None:
    found = run(cells=["main"], check=True)
    assert not found.get("failed") and found["validations"]["main"]["region"] == "a"


def test_a_cell_that_does_not_exist_is_refused(asked: list[tuple[str, str]]) -> None:
    assert run(cells=["mian"])["msg"] == "there is no cell mian; expected one of main, other"
    assert not asked


def test_a_migration_without_a_proper_name_is_told_before_anybody_is_asked(asked: list[tuple[str, str]]) -> None:
    assert "has no proper name" in run(migrations={"first.sql": ""})["msg"]
    assert not asked
