"""The modules registry_cell and registry_cell_info, against a stand-in for the registry."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from fake_etcd import FakeCluster

from ansible_collections.shannon.resilience.plugins.module_utils.etcd import EtcdClient
from ansible_collections.shannon.resilience.plugins.module_utils.registry import Registry
from ansible_collections.shannon.resilience.plugins.modules import registry_cell, registry_cell_info

CELLS = [{"name": "main", "home": "a"}, {"name": "second", "home": "b"}]
Answer = dict[str, t.Any]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> t.Iterator[FakeCluster]:
    """A registry without TLS, which the modules have no way to speak."""

    def connect(endpoints: list[str], tls: object, timeout: float) -> Registry:
        return Registry(EtcdClient(endpoints, timeout=timeout, name="the registry"))

    monkeypatch.setattr(Registry, "connect", staticmethod(connect))
    with FakeCluster(3) as running:
        yield running


@pytest.fixture
def call(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> t.Callable[..., Answer]:
    def run(module: t.Any, check_mode: bool = False, **params: t.Any) -> Answer:
        arguments = {"endpoints": cluster.endpoints, "timeout": 0.5, "_ansible_check_mode": check_mode, **params}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            module.main()
        return json.loads(capsys.readouterr().out)

    return run


def swap(call: t.Callable[..., Answer], **params: t.Any) -> Answer:
    wanted = {"name": "main", "home": "b", "expected_epoch": 1, "reason": "a burns", "operator": "alice", **params}
    return call(registry_cell, state="swapped", **wanted)


def test_cells_are_created_once(call: t.Callable[..., Answer]) -> None:
    first = call(registry_cell, cells=CELLS)
    assert first["changed"]
    assert first["changed_cells"] == ["main", "second"]
    assert {name: record["home"] for name, record in first["records"].items()} == {"main": "a", "second": "b"}
    assert first["diff"]["before"] == ""
    assert 'main: {"home": "a", "epoch": 1' in first["diff"]["after"]
    second = call(registry_cell, cells=CELLS)
    assert not second["changed"]
    assert second["records"] == first["records"]


def test_a_cell_that_moved_stays_where_it_is(call: t.Callable[..., Answer]) -> None:
    call(registry_cell, cells=CELLS)
    swap(call)
    again = call(registry_cell, cells=CELLS)
    assert not again["changed"]
    assert again["records"]["main"]["home"] == "b"


def test_check_mode_says_what_it_would_create(cluster: FakeCluster, call: t.Callable[..., Answer]) -> None:
    said = call(registry_cell, check_mode=True, cells=CELLS)
    assert said["changed"]
    assert said["registry_available"]
    assert cluster.keys == {}


def test_check_mode_copes_with_a_registry_that_is_not_there_yet(
    cluster: FakeCluster, call: t.Callable[..., Answer]
) -> None:
    for member in cluster.members:
        member.mode = "refuse"
    said = call(registry_cell, check_mode=True, cells=CELLS)
    assert said["changed_cells"] == ["main", "second"]
    assert not said["registry_available"]
    assert "has no quorum" in call(registry_cell, cells=CELLS)["msg"]


def test_check_mode_copes_with_a_host_without_certificates(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    files = {f"{name}_file": str(tmp_path / name) for name in ("ca", "cert", "key")}
    for check_mode in (True, False):
        arguments = {"endpoints": ["127.0.0.1:1"], "cells": CELLS, "_ansible_check_mode": check_mode, **files}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            registry_cell.main()
        said = json.loads(capsys.readouterr().out)
        assert said.get("registry_available", "failed") == (False if check_mode else "failed")


def test_a_cell_is_moved_and_the_diff_shows_it(call: t.Callable[..., Answer]) -> None:
    call(registry_cell, cells=CELLS)
    said = swap(call)
    assert said["changed"]
    assert (said["records"]["main"]["home"], said["records"]["main"]["epoch"]) == ("b", 2)
    assert '"home": "a"' in said["diff"]["before"]
    assert '"home": "b"' in said["diff"]["after"]


def test_a_run_that_was_interrupted_can_be_repeated(call: t.Callable[..., Answer]) -> None:
    call(registry_cell, cells=CELLS)
    swap(call)
    assert not swap(call)["changed"]


def test_a_change_of_state_can_be_repeated_too(call: t.Callable[..., Answer]) -> None:
    revision = call(registry_cell, cells=CELLS)["records"]["main"]["revision"]
    change = {"home": "a", "record_state": "draining", "expected_revision": revision}
    assert swap(call, **change)["changed"]
    assert not swap(call, **change)["changed"]


@pytest.mark.parametrize("change", [{"operator": "bob"}, {"reason": "drill"}, {"home": "c"}, {"expected_epoch": 7}])
def test_somebody_elses_change_is_a_conflict(call: t.Callable[..., Answer], change: Answer) -> None:
    call(registry_cell, cells=CELLS)
    swap(call)
    said = swap(call, **change)
    assert said["failed"]
    assert said["conflict"]
    assert "written by alice" in said["msg"]


def test_a_stale_revision_is_a_conflict(call: t.Callable[..., Answer]) -> None:
    call(registry_cell, cells=CELLS)
    assert swap(call, expected_revision=1)["conflict"]


def test_check_mode_does_not_move_and_still_finds_the_conflict(call: t.Callable[..., Answer]) -> None:
    call(registry_cell, cells=CELLS)
    planned = swap(call, check_mode=True)
    assert planned["changed"]
    assert planned["records"]["main"]["epoch"] == 2
    assert swap(call, check_mode=True, expected_epoch=4)["conflict"]
    assert call(registry_cell_info)["records"]["main"]["home"] == "a"


def test_an_unknown_cell_is_a_conflict(call: t.Callable[..., Answer]) -> None:
    assert "does not know the cell" in swap(call)["msg"]


def test_the_records_the_history_and_the_members_are_told(cluster: FakeCluster, call: t.Callable[..., Answer]) -> None:
    call(registry_cell, cells=CELLS)
    swap(call)
    cluster.members[2].mode = "refuse"
    said = call(registry_cell_info, history=True)
    assert not said["changed"]
    assert said["records"]["main"]["home"] == "b"
    assert [entry["home"] for entry in said["history"]["main"]] == ["a", "b"]
    assert said["leader"] == "m0"
    assert [(member["name"], member["healthy"]) for member in said["members"]] == [
        ("m0", True),
        ("m1", True),
        ("m2", False),
    ]


def test_without_a_quorum_it_fails_and_tells_of_each_member(
    cluster: FakeCluster, call: t.Callable[..., Answer]
) -> None:
    for member in cluster.members:
        member.mode = "no leader"
    said = call(registry_cell_info)
    assert said["failed"]
    assert "records" not in said
    assert "has no quorum" in said["msg"]
    assert [member["healthy"] for member in said["members"]] == [False, False, False]
