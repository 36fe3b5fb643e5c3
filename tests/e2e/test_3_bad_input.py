"""Bad input stops site.yml before any change, with a message that names the variable and the file to look at."""

from __future__ import annotations

import shutil
import typing as t
from pathlib import Path

import pytest
import yaml

import lab

HOSTS = "hosts.yml"
TOPOLOGY = "group_vars/all/topology.yml"


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    """A copy of the lab's inventory, to be spoilt, beside the original, since that one reads the lab's addresses."""
    copy = lab.ROOT / "inventories" / f".e2e-{tmp_path.name}"
    shutil.copytree(lab.INVENTORY, copy)
    yield copy
    shutil.rmtree(copy)


def edit(path: Path, change: t.Callable[[dict[str, t.Any]], object]) -> None:
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))


def refused(inventory: Path, *options: str) -> str:
    """Run site.yml, which must fail without having changed any host; returns what it said."""
    done = lab.playbook("site", "-i", str(inventory), *options, check=False)
    output = done.stdout + done.stderr
    assert done.returncode != 0, output
    assert all(counts["changed"] == 0 for counts in lab.recap(output).values()), output
    return " ".join(output.split())


def test_an_unknown_region_in_a_cell(deployed: dict[str, float], inventory: Path) -> None:
    edit(inventory / TOPOLOGY, lambda content: content["cells"]["main"].update(home="c"))
    said = refused(inventory)
    assert "cells.main.home is 'c'" in said and TOPOLOGY in said


@pytest.mark.soak
def test_a_cell_without_a_home(deployed: dict[str, float], inventory: Path) -> None:
    edit(inventory / TOPOLOGY, lambda content: content["cells"]["main"].pop("home"))
    said = refused(inventory)
    assert "cells.main has no home" in said and TOPOLOGY in said


@pytest.mark.soak
def test_two_hosts_with_the_same_name(deployed: dict[str, float], inventory: Path) -> None:
    edit(inventory / HOSTS, lambda content: content["region_b"]["hosts"].update(a1=None))
    said = refused(inventory)
    assert "the host 'a1' is in region_a and region_b" in said and HOSTS in said


@pytest.mark.soak
def test_two_hosts_with_the_same_address(deployed: dict[str, float], inventory: Path) -> None:
    address = lab.Host("a2").address
    edit(inventory / HOSTS, lambda content: content["region_a"]["hosts"].update(
        a1={"shannon_address": address}))  # fmt: skip
    said = refused(inventory)
    assert f"have the same address {address}" in said


@pytest.mark.soak
def test_a_missing_group(deployed: dict[str, float], inventory: Path) -> None:
    edit(inventory / HOSTS, lambda content: content.pop("redis"))
    said = refused(inventory)
    assert "the group 'redis' is missing" in said and HOSTS in said


@pytest.mark.soak
def test_an_archive_with_a_wrong_sha256(deployed: dict[str, float], inventory: Path) -> None:
    said = refused(inventory, "-e", f"qdrant_archive_sha256={'0' * 64}")
    assert "qdrant_archive_sha256" in said and "group_vars" in said


def test_an_unsupported_distribution(deployed: dict[str, float], inventory: Path) -> None:
    """Real: the witness says for a moment that it is another system."""
    w1 = lab.Host("w1")
    w1.sh(
        "cp -L /etc/os-release /var/tmp/os-release && rm /etc/os-release && "
        "sed 's/^ID=.*/ID=fedora/; s/^VERSION_ID=.*/VERSION_ID=\"43\"/' /var/tmp/os-release > /etc/os-release"
    )
    try:
        said = refused(inventory)
        assert "w1" in said and "fedora 43" in said and "Debian 12" in said
    finally:
        w1.sh("ln -sf ../usr/lib/os-release /etc/os-release")


def test_an_unreachable_host(deployed: dict[str, float], inventory: Path) -> None:
    edit(inventory / HOSTS, lambda content: content["region_b"]["hosts"].update(
        b3={"ansible_host": "198.18.0.47"}))  # fmt: skip
    said = refused(inventory)
    assert "b3" in said and "UNREACHABLE" in said


def test_a_registry_without_quorum_is_not_guessed_around(deployed: dict[str, float], inventory: Path) -> None:
    for name in ("b1", "w1"):
        lab.Host(name).sh("systemctl stop etcd@registry")
    try:
        said = refused(inventory)
        assert "registry" in said and "docs/troubleshooting.md" in said
    finally:
        for name in ("b1", "w1"):
            lab.Host(name).sh("systemctl start --no-block etcd@registry")
