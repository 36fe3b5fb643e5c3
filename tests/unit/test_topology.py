"""Regions, cells and groups: what is wrong is said with the variable and the file, and what follows is derived once."""

from __future__ import annotations

import copy
import typing as t

import pytest

from ansible_collections.shannon.resilience.plugins.module_utils.topology import WITNESS, check, derive

REGIONS = {"a": {}, "b": {}}
CELLS = {"main": {"home": "a"}}
DATA = ["a1", "a2", "b1", "b2"]
GROUPS = {
    "region_a": ["a1", "a2"],
    "region_b": ["b1", "b2"],
    "witness": ["w1"],
    "etcd": DATA,
    "registry": ["a1", "b1", "w1"],
    "postgres": DATA,
    "redis": DATA,
    "qdrant": DATA,
    "data_proxy": DATA,
}
ADDRESSES = {host: f"192.0.2.{number}" for number, host in enumerate([*DATA, "w1"], start=1)}


def problems(**changes: t.Any) -> list[str]:
    given = {"regions": REGIONS, "cells": CELLS, "groups": GROUPS, "addresses": ADDRESSES, **changes}
    return check(**given, topology_file="topology.yml", hosts_file="hosts.yml")


def groups_with(**changes: list[str]) -> dict[str, list[str]]:
    return {**copy.deepcopy(GROUPS), **changes}


def test_a_good_inventory_has_no_problem() -> None:
    assert problems() == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"regions": None}, ["'regions'", "topology.yml"]),
        ({"regions": {**REGIONS, "c-3": {}}}, ["regions.c-3", "topology.yml"]),
        ({"regions": {**REGIONS, WITNESS: {}}}, ["regions.witness", "not a region"]),
        ({"cells": None}, ["'cells'", "topology.yml"]),
        ({"cells": {"main": {"home": "c"}}}, ["cells.main.home is 'c'", "a, b", "topology.yml"]),
        ({"cells": {"main": {}}}, ["cells.main has no home", "topology.yml"]),
        ({"cells": {"main": None}}, ["cells.main has no home"]),
        ({"cells": {"Main Cell": {"home": "a"}}}, ["cells.Main Cell"]),
        ({"groups": {k: v for k, v in GROUPS.items() if k != "redis"}}, ["group 'redis' is missing", "hosts.yml"]),
        ({"groups": groups_with(qdrant=[])}, ["group 'qdrant' has no host"]),
        ({"groups": groups_with(redis=["a1", "a2"])}, ["'redis' has no host in region 'b'"]),
        ({"groups": groups_with(region_b=["b1", "b2", "a1"])}, ["'a1' is in region_a and region_b", "share a name"]),
        ({"groups": groups_with(region_c=["b2"])}, ["group 'region_c'", "'regions'"]),
        ({"groups": groups_with(postgres=[*DATA, "x1"])}, ["'x1'", "in no region"]),
        ({"groups": groups_with(backup_repository=["a1"])}, ["'backup_repository'", "region 'b'", "has none"]),
        ({"groups": groups_with(backup_repository=["a1", "a2", "b1"])}, ["exactly one", "region 'a'", "a1, a2"]),
        ({"groups": groups_with(backup_repository=["a1", "b1", "w1"])}, ["'w1'", "witness"]),
        ({"addresses": {**ADDRESSES, "a2": ADDRESSES["a1"]}}, ["'a1' and 'a2'", "same address 192.0.2.1"]),
        ({"addresses": {**ADDRESSES, "a2": ""}}, ["'a2' has no address", "ansible_host"]),
        ({"addresses": {**ADDRESSES, "a2": "127.0.0.1"}}, ["'a2'", "no other host can reach"]),
        ({"ports": {"etcd": 1}}, ["ports.etcd is unknown"]),
        ({"ports": {"etcd_client": 0}}, ["ports.etcd_client is 0"]),
        ({"ports": {"etcd_client": 5432}}, ["both port 5432"]),
    ],
)
def test_each_problem_is_named(changes: dict[str, t.Any], words: list[str]) -> None:
    found = "\n".join(problems(**changes))
    for word in words:
        assert word in found


def test_names_that_differ_only_in_case_are_the_same_name() -> None:
    groups = groups_with(region_b=["b1", "b2", "A1"])
    assert "same name but for case" in "\n".join(problems(groups=groups, addresses={**ADDRESSES, "A1": "192.0.2.9"}))


def test_all_problems_are_said_at_once() -> None:
    assert len(problems(cells={"main": {"home": "c"}, "other": {}})) == 2


def test_ports_of_a_cell_are_offset_by_its_position() -> None:
    cells = derive(REGIONS, {"main": {"home": "a"}, "second": {"home": "b"}}, GROUPS, ADDRESSES)["cells"]
    assert [cell["ports"]["postgres"] for cell in cells] == [5432, 5442]
    assert [(cell["home"], cell["standbys"]) for cell in cells] == [("a", ["b"]), ("b", ["a"])]


def test_ports_of_many_cells_do_not_collide() -> None:
    assert problems(cells={f"c{number}": {"home": "a"} for number in range(20)}) == []


def test_the_registry_outranks_the_first_home() -> None:
    derived = derive(REGIONS, CELLS, GROUPS, ADDRESSES, {"main": {"home": "b", "epoch": 7, "state": "active"}})
    assert derived["cells"][0]["home"] == "b"
    assert derived["cells"][0]["epoch"] == 7
    assert derived["cells"][0]["standbys"] == ["a"]


def test_components_are_listed_by_site() -> None:
    derived = derive(REGIONS, CELLS, GROUPS, ADDRESSES)
    assert derived["components"]["registry"] == {"a": ["a1"], "b": ["b1"], "witness": ["w1"]}
    assert derived["hosts"]["w1"] == {"address": "192.0.2.5", "region": "witness", "components": ["registry"]}


def test_a_host_opens_only_the_ports_of_its_components() -> None:
    firewall = derive(REGIONS, CELLS, GROUPS, ADDRESSES)["firewall"]
    assert firewall["w1"] == [12379, 12380]
    assert firewall["a2"] == [2379, 2380, 5432, 6333, 6335, 6379, 8008, 8432, 8443, 26379]


def test_backups_are_optional_and_have_one_host_in_each_region() -> None:
    assert problems(groups=groups_with(backup_repository=[])) == []
    with_repositories = groups_with(backup_repository=["a2", "b2"])
    assert problems(groups=with_repositories) == []
    derived = derive(REGIONS, CELLS, with_repositories, ADDRESSES)
    assert derived["components"]["backup_repository"] == {"a": ["a2"], "b": ["b2"]}
    assert {8433, 8434} <= set(derived["firewall"]["a2"])
    assert not {8433, 8434} & set(derived["firewall"]["a1"])


def test_a_dns_server_is_open_to_everybody_over_both_protocols() -> None:
    derived = derive(REGIONS, CELLS, groups_with(dns=["w1"], edge=["a1"]), ADDRESSES)
    assert derived["components"]["dns"] == {WITNESS: ["w1"]}
    assert (derived["public"]["w1"], derived["public_udp"]["w1"]) == ([53], [53])
    assert (derived["public"]["a1"], derived["public_udp"]["a1"]) == ([443], [])
    assert derived["public_udp"]["b1"] == []
