# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's definition: which hosts there are, where they are, and what they need."""

from __future__ import annotations

import ipaddress
import json
import os
import pathlib
import re
import typing as t
from dataclasses import dataclass

from .command import LabError

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
DEFAULT_FILE = REPOSITORY / "lab" / "definition.json"


@dataclass(frozen=True)
class Network:
    """The one network of the lab; a region is a sub-range of it."""

    name: str
    bridge: str
    subnet: ipaddress.IPv4Network
    gateway: ipaddress.IPv4Address


@dataclass(frozen=True)
class Host:
    """A host of the lab."""

    name: str
    region: str
    address: str
    container: str


@dataclass(frozen=True)
class ImageSource:
    """Where the host image comes from."""

    name: str
    base: str
    fallback_release: str


@dataclass(frozen=True)
class Qdrant:
    """The archive that carries the Qdrant server in the lab."""

    npm_package: str
    archive: pathlib.Path
    archive_sha256: str
    member: str
    member_sha256: str


@dataclass(frozen=True)
class Definition:
    """Everything that definition.json says."""

    file: pathlib.Path
    name: str
    user: str
    network: Network
    hosts: dict[str, Host]
    image: ImageSource
    memory_mib: int
    disk_mib: int
    state: pathlib.Path
    secrets: pathlib.Path
    qdrant: Qdrant

    @property
    def private_key(self) -> pathlib.Path:
        return self.state / "id_ed25519"

    @property
    def known_hosts(self) -> pathlib.Path:
        return self.state / "known_hosts"

    def host(self, name: str) -> Host:
        """One host by its name; an unknown one is an error that lists the known."""
        if name not in self.hosts:
            raise LabError(f"there is no host {name!r} in {self.file}; the hosts are {', '.join(self.hosts)}")
        return self.hosts[name]


def _inside_repository(value: str, key: str, file: pathlib.Path) -> pathlib.Path:
    """A path of the definition. `down` removes what is there, so it must be a place inside the repository."""
    path = (REPOSITORY / value).resolve()
    if path == REPOSITORY or REPOSITORY not in path.parents:
        raise LabError(f"{file}: {key} is {value!r}, which is not a place inside {REPOSITORY}")
    return path


def load(file: pathlib.Path | None = None) -> Definition:
    """Read and check the definition; SHANNON_LAB_DEFINITION names another file than lab/definition.json."""
    file = file or pathlib.Path(os.environ.get("SHANNON_LAB_DEFINITION") or DEFAULT_FILE)
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        return _parse(raw, file)
    except OSError as exc:
        raise LabError(f"cannot read the lab's definition {file}: {exc.strerror}") from exc
    except KeyError as exc:
        raise LabError(f"{file}: the key {exc} is missing") from exc
    except (ValueError, TypeError, AttributeError) as exc:
        raise LabError(f"{file}: {exc}") from exc


def _parse(raw: dict[str, t.Any], file: pathlib.Path) -> Definition:
    name = raw["name"]
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise LabError(f"{file}: name is {name!r}; use lower-case letters, digits and hyphens")
    network = Network(
        name=raw["network"]["name"],
        bridge=raw["network"]["bridge"],
        subnet=ipaddress.IPv4Network(raw["network"]["subnet"]),
        gateway=ipaddress.IPv4Address(raw["network"]["gateway"]),
    )
    if len(network.bridge) > 15:
        raise LabError(f"{file}: network.bridge is {network.bridge!r}; the kernel takes 15 characters at most")
    regions = {region: ipaddress.IPv4Network(text) for region, text in raw["regions"].items()}
    for region, text in regions.items():
        if not text.subnet_of(network.subnet):
            raise LabError(f"{file}: regions.{region} is {text}, which is not inside network.subnet {network.subnet}")
    hosts: dict[str, Host] = {}
    owners: dict[str, str] = {str(network.gateway): "the network's gateway"}
    for host, entry in raw["hosts"].items():
        address, region = entry["address"], entry["region"]
        if region not in regions:
            raise LabError(f"{file}: hosts.{host}.region is {region!r}; the regions are {', '.join(regions)}")
        if ipaddress.IPv4Address(address) not in regions[region]:
            raise LabError(f"{file}: hosts.{host}.address is {address}, outside region {region} ({regions[region]})")
        if address in owners:
            raise LabError(f"{file}: hosts.{host}.address is {address}, which is {owners[address]}'s already")
        owners[address] = host
        hosts[host] = Host(name=host, region=region, address=address, container=f"{name}-{host}")
    return Definition(
        file=file,
        name=name,
        user=raw["user"],
        network=network,
        hosts=hosts,
        image=ImageSource(**raw["image"]),
        memory_mib=int(raw["needs"]["memory_mib"]),
        disk_mib=int(raw["needs"]["disk_mib"]),
        state=_inside_repository(raw["state_directory"], "state_directory", file),
        secrets=_inside_repository(raw["secrets_directory"], "secrets_directory", file),
        qdrant=Qdrant(
            **{
                **raw["qdrant"],
                "archive": _inside_repository(raw["qdrant"]["archive"], "qdrant.archive", file),
            }
        ),
    )
