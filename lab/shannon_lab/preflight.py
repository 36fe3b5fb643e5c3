# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What must hold before the first host starts: a free subnet, enough memory, enough disk."""

from __future__ import annotations

import ipaddress
import json
import os
import pathlib
import socket
import struct
import typing as t

from . import engine
from .command import LabError, attempt, say
from .definition import Definition

ROUTES = pathlib.Path("/proc/net/route")
MEMORY = pathlib.Path("/proc/meminfo")


def routes(table: str) -> list[tuple[str, ipaddress.IPv4Network]]:
    """The kernel's IPv4 routes (device, destination) from the text of /proc/net/route, without default routes."""
    found: list[tuple[str, ipaddress.IPv4Network]] = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 8:
            continue
        destination, mask = (socket.inet_ntoa(struct.pack("=L", int(fields[index], 16))) for index in (1, 7))
        network = ipaddress.IPv4Network(f"{destination}/{mask}", strict=False)
        if network.prefixlen > 0:
            found.append((fields[0], network))
    return found


def docker_networks() -> list[dict[str, t.Any]]:
    """All networks of this Docker, as `docker network inspect` describes them."""
    names = engine.docker("network", "ls", "--quiet", what="list Docker's networks").split()
    if not names:
        return []
    return json.loads(engine.docker("network", "inspect", *names, what="inspect Docker's networks"))


def check_subnet(definition: Definition, networks: list[dict[str, t.Any]], table: str) -> None:
    """Refuse when the lab's subnet belongs to somebody else; remove what a killed dockerd left of our own bridge.

    Called only when the lab's network does not exist.
    """
    wanted = definition.network
    remedy = f"Free it, or choose another subnet in {definition.file} (network, regions, hosts)"
    for network in networks:
        for pool in (network.get("IPAM") or {}).get("Config") or []:
            try:
                taken = ipaddress.ip_network(pool.get("Subnet", ""))
            except ValueError:
                continue
            if taken.version == 4 and taken.overlaps(wanted.subnet):
                raise LabError(
                    f"the lab's subnet {wanted.subnet} is taken: Docker's network {network['Name']!r} has {taken}. "
                    + remedy
                )
    for device, route in routes(table):
        if not route.overlaps(wanted.subnet):
            continue
        if device == wanted.bridge and engine.is_root():
            say(f"removing the bridge {device}, left by an earlier lab whose network is gone")
            attempt(["ip", "link", "delete", device])
            continue
        raise LabError(f"the lab's subnet {wanted.subnet} is taken: {device} has a route to {route}. {remedy}")


def available_memory_mib(text: str) -> int | None:
    """MemAvailable in MiB, from the text of /proc/meminfo."""
    for line in text.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) // 1024
    return None


def check_memory(definition: Definition, starting: int, text: str) -> None:
    """Refuse when the hosts that are to be started would not find their memory.

    :param starting: how many hosts are to be started; those that run have their memory already.
    """
    free = available_memory_mib(text)
    needed = definition.memory_mib * starting // len(definition.hosts)
    if free is not None and free < needed:
        raise LabError(
            f"too little memory: {starting} hosts need {needed} MiB, {free} MiB are available. End other programs, "
            f"or lower needs.memory_mib in {definition.file} if you know better"
        )


def check_disk(definition: Definition, starting: int, root: str) -> None:
    """Refuse when the file system that holds Docker's data is too full."""
    try:
        status = os.statvfs(root)
    except OSError:
        return  # Docker's directory is not ours to look at (a user of the group docker): Docker says when it is full.
    free = status.f_bavail * status.f_frsize // 2**20
    needed = definition.disk_mib * starting // len(definition.hosts)
    if free < needed:
        raise LabError(
            f"too little disk: {starting} hosts need {needed} MiB under {root}, {free} MiB are free. "
            f"Free some (docker system df shows what Docker holds), or lower needs.disk_mib in {definition.file}"
        )
