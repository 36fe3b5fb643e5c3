# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an inventory says about regions and cells, checked, and everything that follows from it.

An operator writes C(regions) and C(cells) once (architecture, 7) and puts hosts into groups; ports, members,
firewall openings and the order of cells are derived here and nowhere else.
"""

from __future__ import annotations

import ipaddress
import re
import typing as t

from .errors import ResilienceError

WITNESS = "witness"
#: Components of the data tier; each must have a host in every region.
REGIONAL_COMPONENTS = ("etcd", "postgres", "redis", "qdrant", "data_proxy")
#: Components that an inventory may have; a group of that name holds their hosts.
COMPONENTS = (
    *REGIONAL_COMPONENTS,
    "registry",
    "gateway",
    "orchestrator",
    "llm_service",
    "agent_core",
    "edge",
    "dns",
    "backup_repository",
    "monitoring",
)
REQUIRED_GROUPS = (WITNESS, *REGIONAL_COMPONENTS, "registry")

#: Ports that a host has once. Qdrant's are its own defaults; the data proxy's are the product's plus 10000.
HOST_PORTS: dict[str, int] = {
    "etcd_client": 2379,
    "etcd_peer": 2380,
    "registry_client": 12379,
    "registry_peer": 12380,
    "qdrant_http": 6333,
    "qdrant_p2p": 6335,
    "proxy_qdrant_http": 16333,
    "proxy_stats": 18404,
    "gateway": 8080,
    "orchestrator": 50052,
    "orchestrator_admin": 8081,
    "orchestrator_metrics": 2112,
    "llm_service": 8000,
    "agent_core": 50051,
    "agent_core_metrics": 2113,
    "vector_indexer_metrics": 2114,
    "edge_agent_metrics": 2115,
    "region_agent": 8443,
    "pgbackrest": 8432,
    "pgbackrest_repository": 8434,
    "restic": 8433,
    "edge_https": 443,
    "edge_stats": 18405,
    "dns": 53,
}
#: Ports of a cell with index 0; every further cell adds CELL_PORT_STEP.
CELL_PORTS: dict[str, int] = {
    "postgres": 5432,
    "patroni": 8008,
    "redis": 6379,
    "sentinel": 26379,
    "proxy_postgres_primary": 15432,
    "proxy_postgres_replicas": 15433,
    "proxy_redis": 16379,
}
CELL_PORT_STEP = 10

#: Which ports of a host the other hosts of the topology may reach, by component.
_HOST_OPENINGS: dict[str, tuple[str, ...]] = {
    "postgres": ("region_agent", "pgbackrest"),
    "redis": ("region_agent",),
    "etcd": ("etcd_client", "etcd_peer"),
    "registry": ("registry_client", "registry_peer"),
    "qdrant": ("qdrant_http", "qdrant_p2p"),
    "gateway": ("gateway",),
    "orchestrator": ("orchestrator", "orchestrator_admin", "orchestrator_metrics", "vector_indexer_metrics"),
    "llm_service": ("llm_service",),
    "agent_core": ("agent_core", "agent_core_metrics"),
    "backup_repository": ("pgbackrest_repository", "restic"),
}
#: Ports that anybody may reach, by component.
_PUBLIC_OPENINGS: dict[str, tuple[str, ...]] = {"edge": ("edge_https",), "dns": ("dns",)}
#: Of these the ones that are asked over UDP as well.
_PUBLIC_UDP: tuple[str, ...] = ("dns",)
_CELL_OPENINGS: dict[str, tuple[str, ...]] = {"postgres": ("postgres", "patroni"), "redis": ("redis", "sentinel")}

_REGION_NAME = re.compile(r"^[a-z][a-z0-9_]{0,15}$")
_CELL_NAME = re.compile(r"^[a-z][a-z0-9_]{0,30}$")


class TopologyError(ResilienceError):
    """The inventory contradicts itself or lacks something; C(problems) has one sentence for each finding."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


def check(
    regions: t.Any,
    cells: t.Any,
    groups: t.Mapping[str, t.Sequence[str]],
    addresses: t.Mapping[str, str],
    topology_file: str,
    hosts_file: str,
    ports: t.Any = None,
) -> list[str]:
    """All that is wrong with an inventory, a sentence each; an empty list when nothing is.

    :param regions: the variable C(regions): a mapping of region names.
    :param cells: the variable C(cells): a mapping of cell names to mappings with C(home).
    :param groups: group name to host names, as Ansible has them.
    :param addresses: host name to IP address, or to an empty string where none could be found.
    :param topology_file: the file that an operator should look at for regions and cells.
    :param hosts_file: the file that an operator should look at for hosts and groups.
    :param ports: the variable C(ports), overriding single ports of HOST_PORTS.
    """
    problems = _check_regions(regions, topology_file)
    names = list(regions) if isinstance(regions, t.Mapping) else []
    problems += _check_cells(cells, names, topology_file)
    problems += _check_groups(names, groups, hosts_file)
    problems += _check_hosts(names, groups, addresses, hosts_file)
    problems += _check_ports(cells, ports, topology_file)
    return problems


def derive(
    regions: t.Mapping[str, t.Any],
    cells: t.Mapping[str, t.Mapping[str, t.Any]],
    groups: t.Mapping[str, t.Sequence[str]],
    addresses: t.Mapping[str, str],
    records: t.Mapping[str, t.Mapping[str, t.Any]] | None = None,
    ports: t.Mapping[str, int] | None = None,
) -> dict[str, t.Any]:
    """The derived topology of an inventory that :func:`check` found nothing wrong with.

    :param records: what the registry knows: cell name to C({home, epoch, state}); it outranks C(cells.*.home).
    :returns: C(regions) (list), C(hosts) (name to address, region, components), C(components) (component to region
        to hosts), C(cells) (list with name, index, home, standbys, epoch, state, ports), C(ports), C(firewall)
        (host to the ports that it accepts from the topology's hosts), C(public) (host to those that it accepts from
        anywhere), and C(public_udp) (likewise, over UDP).
    """
    records = records or {}
    host_ports = {**HOST_PORTS, **(ports or {})}
    sites = [*regions, WITNESS]
    region_of = {host: site for site in sites for host in groups.get(_group_of(site), ())}
    components = {
        component: {
            site: hosts
            for site in sites
            if (hosts := [host for host in groups.get(component, ()) if region_of[host] == site])
        }
        for component in COMPONENTS
        if groups.get(component)
    }
    hosts = {
        host: {
            "address": addresses[host],
            "region": site,
            "components": [name for name in components if host in groups[name]],
        }
        for host, site in region_of.items()
    }
    derived_cells = []
    for index, (name, cell) in enumerate(cells.items()):
        record = records.get(name, {})
        home = record.get("home", cell["home"])
        derived_cells.append(
            {
                "name": name,
                "index": index,
                "home": home,
                "standbys": [region for region in regions if region != home],
                "epoch": int(record.get("epoch", 0)),
                "state": record.get("state", "new"),
                "ports": {port: number + CELL_PORT_STEP * index for port, number in CELL_PORTS.items()},
            }
        )
    return {
        "regions": list(regions),
        "hosts": hosts,
        "components": components,
        "cells": derived_cells,
        "ports": host_ports,
        "firewall": {host: _openings(facts["components"], host_ports, derived_cells) for host, facts in hosts.items()},
        "public": {
            host: sorted(host_ports[port] for name in facts["components"] for port in _PUBLIC_OPENINGS.get(name, ()))
            for host, facts in hosts.items()
        },
        "public_udp": {
            host: sorted(
                host_ports[port]
                for name in facts["components"]
                for port in _PUBLIC_OPENINGS.get(name, ())
                if port in _PUBLIC_UDP
            )
            for host, facts in hosts.items()
        },
    }


def _group_of(site: str) -> str:
    return WITNESS if site == WITNESS else f"region_{site}"


def _openings(components: list[str], host_ports: t.Mapping[str, int], cells: list[dict[str, t.Any]]) -> list[int]:
    wanted = [host_ports[port] for component in components for port in _HOST_OPENINGS.get(component, ())]
    for cell in cells:
        wanted += [cell["ports"][port] for component in components for port in _CELL_OPENINGS.get(component, ())]
    return sorted(set(wanted))


def _check_regions(regions: t.Any, where: str) -> list[str]:
    if not isinstance(regions, t.Mapping) or not regions:
        return [f"the variable 'regions' is missing or not a mapping of region names: look at {where}"]
    problems = []
    for name in regions:
        if name == WITNESS:
            problems.append(f"regions.{name}: 'witness' is the witness site, not a region: look at {where}")
        elif not _REGION_NAME.match(str(name)):
            problems.append(
                f"regions.{name}: a region's name is a small letter, then small letters, digits and underscores, "
                f"16 characters at most: look at {where}"
            )
    return problems


def _check_cells(cells: t.Any, regions: list[str], where: str) -> list[str]:
    if not isinstance(cells, t.Mapping) or not cells:
        return [f"the variable 'cells' is missing or not a mapping of cell names: look at {where}"]
    problems = []
    for name, cell in cells.items():
        if not _CELL_NAME.match(str(name)):
            problems.append(
                f"cells.{name}: a cell's name is a small letter, then small letters, digits and underscores, "
                f"31 characters at most: look at {where}"
            )
        home = cell.get("home") if isinstance(cell, t.Mapping) else None
        if not home:
            problems.append(f"cells.{name} has no home; say home: <region> ({_listed(regions)}): look at {where}")
        elif home not in regions:
            problems.append(f"cells.{name}.home is '{home}', which is no region ({_listed(regions)}): look at {where}")
    return problems


def _check_groups(regions: list[str], groups: t.Mapping[str, t.Sequence[str]], where: str) -> list[str]:
    problems = []
    for group in (*(_group_of(region) for region in regions), *REQUIRED_GROUPS):
        if group not in groups:
            problems.append(f"the group '{group}' is missing: add it to {where}")
        elif not groups[group]:
            problems.append(f"the group '{group}' has no host: look at {where}")
    for group in groups:
        if group.startswith("region_") and group.removeprefix("region_") not in regions:
            problems.append(
                f"the group '{group}' stands for a region that the variable 'regions' ({_listed(regions)}) "
                f"does not have: look at {where}"
            )
    for component in REGIONAL_COMPONENTS:
        for region in regions:
            here = set(groups.get(_group_of(region), ()))
            if here and groups.get(component) and not here.intersection(groups[component]):
                problems.append(f"the group '{component}' has no host in region '{region}': look at {where}")
    return problems + _check_repositories(regions, groups, where)


def _check_repositories(regions: list[str], groups: t.Mapping[str, t.Sequence[str]], where: str) -> list[str]:
    """No group: no backups. Else one host per region, since that host is the one that takes its region's backups."""
    wanted = groups.get("backup_repository")
    if not wanted:
        return []
    problems = []
    for region in regions:
        here = [host for host in groups.get(_group_of(region), ()) if host in wanted]
        if len(here) != 1:
            found = ", ".join(here) or "none"
            problems.append(
                f"the group 'backup_repository' must have exactly one host in region '{region}' and has {found}: "
                f"look at {where}"
            )
    for host in groups.get(WITNESS, ()):
        if host in wanted:
            problems.append(
                f"the host '{host}' of the group 'backup_repository' is the witness, which holds no user data: "
                f"look at {where}"
            )
    return problems


def _check_hosts(
    regions: list[str], groups: t.Mapping[str, t.Sequence[str]], addresses: t.Mapping[str, str], where: str
) -> list[str]:
    problems = []
    sites: dict[str, list[str]] = {}
    for site in (*regions, WITNESS):
        for host in groups.get(_group_of(site), ()):
            sites.setdefault(host, []).append(_group_of(site))
    for host, its in sites.items():
        if len(its) > 1:
            problems.append(
                f"the host '{host}' is in {' and '.join(its)}: two hosts must not share a name, "
                f"and a host is in one region: look at {where}"
            )
    spelled: dict[str, str] = {}
    for host in sites:
        other = spelled.setdefault(host.lower(), host)
        if other != host:
            problems.append(f"the hosts '{other}' and '{host}' have the same name but for case: look at {where}")
    for component in COMPONENTS:
        for host in groups.get(component, ()):
            if host not in sites:
                problems.append(
                    f"the host '{host}' of the group '{component}' is in no region and not the witness: look at {where}"
                )
    used: dict[str, str] = {}
    for host in sites:
        address = addresses.get(host, "")
        if not address:
            problems.append(
                f"the host '{host}' has no address: 'ansible_host' (or 'shannon_address') must be an IP address "
                f"or a name that this controller can resolve: look at {where}"
            )
            continue
        if ipaddress.ip_address(address).is_loopback:
            problems.append(
                f"the host '{host}' has the address {address}, which no other host can reach: look at {where}"
            )
        other = used.setdefault(address, host)
        if other != host:
            problems.append(f"the hosts '{other}' and '{host}' have the same address {address}: look at {where}")
    return problems


def _check_ports(cells: t.Any, ports: t.Any, where: str) -> list[str]:
    if ports is None:
        ports = {}
    if not isinstance(ports, t.Mapping):
        return [f"the variable 'ports' is not a mapping of port names to numbers: look at {where}"]
    problems = []
    for name, number in ports.items():
        if name not in HOST_PORTS:
            problems.append(f"ports.{name} is unknown; known are {_listed(HOST_PORTS)}: look at {where}")
        elif not isinstance(number, int) or not 0 < number < 65536:
            problems.append(f"ports.{name} is {number!r}, not a port number from 1 to 65535: look at {where}")
    count = len(cells) if isinstance(cells, t.Mapping) else 0
    taken: dict[int, str] = {}
    every = {**HOST_PORTS, **{name: number for name, number in ports.items() if isinstance(number, int)}}
    numbered = [(f"ports.{name}", number) for name, number in every.items()]
    for index in range(count):
        numbered += [
            (f"{name} of cell {index}", number + CELL_PORT_STEP * index) for name, number in CELL_PORTS.items()
        ]
    for name, number in numbered:
        other = taken.setdefault(number, name)
        if other != name:
            problems.append(f"{name} and {other} are both port {number}: look at {where}")
    return problems


def _listed(names: t.Iterable[t.Any]) -> str:
    return ", ".join(str(name) for name in names) or "none given"
