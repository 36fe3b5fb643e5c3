#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: registry_survey
short_description: Judge whether the registry may be rebuilt from one member
version_added: "0.1.0"
description:
  - Looks at every member of the registry, and at PostgreSQL and Redis of the regions that the operator says are dead or
    fenced, all at once, and judges the rules of break-glass. Changes nothing.
  - Run it on the surviving member, as root.
options:
  topology:
    description: What M(shannon.resilience.topology) derived.
    type: dict
    required: true
  survivor:
    description: The member to rebuild from; this host.
    type: str
    required: true
  fenced:
    description: The regions of which the operator says that they are dead or fenced.
    type: list
    elements: str
    default: []
  reason:
    description: Why, for the history.
    type: str
    default: ''
  overrides:
    description:
      - Rules that do not stand in the way. V(accept_reachable_member), another member of the registry still listens.
        V(accept_answering_region), PostgreSQL or Redis of a fenced region still answers.
    type: list
    elements: str
    choices: [accept_reachable_member, accept_answering_region]
    default: []
  data_dir:
    description: The member's data.
    type: path
    default: /var/lib/shannon/etcd/registry
  timeout:
    description: Seconds that one host has to answer.
    type: float
    default: 2
attributes:
  check_mode:
    description: Can run in check mode; never changes anything.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
seealso:
  - module: shannon.resilience.registry_rebuild
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: See whether the glass may be broken
  shannon.resilience.registry_survey:
    topology: "{{ shannon_topology }}"
    survivor: "{{ inventory_hostname }}"
    fenced: [a]
    reason: the data centre of region a burnt down
  register: survey
"""

RETURN = r"""
verdicts:
  description: Each rule with C(rule), C(passed), C(seen), C(remedy) and C(override) (empty when it has none).
  returned: success
  type: list
  elements: dict
refusals:
  description: What stands in the way, one line for each rule; empty when nothing does.
  returned: success
  type: list
  elements: str
used_overrides:
  description: The overrides that were needed.
  returned: success
  type: list
  elements: str
"""

import contextlib
import socket
import typing as t
from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils.concurrently import gather
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.etcd import Endpoint, EtcdClient
from ansible_collections.shannon.resilience.plugins.module_utils.etcd_data import identity
from ansible_collections.shannon.resilience.plugins.module_utils.given_up import GivenUp
from ansible_collections.shannon.resilience.plugins.module_utils.registry_rebuild import (
    MemberSeen,
    Survey,
    judge,
    standing_in_the_way,
)
from ansible_collections.shannon.resilience.plugins.module_utils.tls import TlsFiles, client_context


def listens(address: str, port: int, timeout: float) -> bool:
    """Whether anything accepts a connection there."""
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=timeout):
        return True
    return False


def look(params: dict[str, t.Any], client: EtcdClient) -> Survey:
    """Ask everybody at once."""
    topology, timeout = params["topology"], params["timeout"]
    hosts, ports, components = topology["hosts"], topology["ports"], topology["components"]
    names = [host for named in components["registry"].values() for host in named]
    wanted: dict[tuple[str, int], tuple[str, int]] = {}
    for name in names:
        for port in (ports["registry_client"], ports["registry_peer"]):
            wanted[name, port] = (hosts[name]["address"], port)
    stores = {
        region: sorted({*components["postgres"].get(region, []), *components["redis"].get(region, [])})
        for region in params["fenced"]
    }
    for named in stores.values():
        for name in named:
            for cell in topology["cells"]:
                for port in (cell["ports"]["postgres"], cell["ports"]["redis"]):
                    wanted[name, port] = (hosts[name]["address"], port)
    open_ports = gather({key: lambda it=it: listens(*it, timeout) for key, it in wanted.items()})  # type: ignore[misc]
    statuses, health = client.statuses(), client.health()
    members = {}
    for name in names:
        endpoint = Endpoint(hosts[name]["address"], ports["registry_client"])
        status, ill = statuses[endpoint], health[endpoint]
        believed = not isinstance(status, ResilienceError)
        members[name] = MemberSeen(
            name=name,
            listens=any(open_ports[name, port] is True for port in (ports["registry_client"], ports["registry_peer"])),
            quorum=believed and not ill,
            said=ill if believed else str(status),
        )
    # A member of the registry on a host of the region has ports of its own, which another rule judges.
    own = (ports["registry_client"], ports["registry_peer"])
    found = {key for key, answer in open_ports.items() if answer is True and key[1] not in own}
    answering = {
        region: {name: sorted(port for who, port in found if who == name) for name in it}
        for region, it in stores.items()
    }
    survivor = params["survivor"]
    region = hosts[survivor]["region"] if survivor in hosts else ""
    return Survey(
        survivor=survivor,
        members=members,
        has_data=identity(params["data_dir"]) is not None,
        regions=list(topology["regions"]),
        survivor_region=region if region in topology["regions"] else "",
        fenced=params["fenced"],
        answering=answering,
        reason=params["reason"],
    )


def run(params: dict[str, t.Any]) -> dict[str, t.Any]:
    """Look and judge."""
    topology = params["topology"]
    port = topology["ports"]["registry_client"]
    names = [host for named in topology["components"]["registry"].values() for host in named]
    endpoints = [{"host": topology["hosts"][name]["address"], "port": port} for name in names]
    client = EtcdClient(endpoints, client_context(TlsFiles()), params["timeout"], "the registry", GivenUp())
    verdicts = judge(look(params, client))
    lines = []
    for one in standing_in_the_way(verdicts, params["overrides"]):
        override = f" To go on nevertheless: -e break_glass_{one.override}=true" if one.override else ""
        lines.append(f"{one.rule}: {one.seen}. {one.remedy}{override}")
    used = [one.override for one in verdicts if not one.passed and one.override in params["overrides"]]
    return {"verdicts": [asdict(one) for one in verdicts], "refusals": lines, "used_overrides": used}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "topology": {"type": "dict", "required": True},
            "survivor": {"type": "str", "required": True},
            "fenced": {"type": "list", "elements": "str", "default": []},
            "reason": {"type": "str", "default": ""},
            "overrides": {
                "type": "list",
                "elements": "str",
                "choices": ["accept_reachable_member", "accept_answering_region"],
                "default": [],
            },
            "data_dir": {"type": "path", "default": "/var/lib/shannon/etcd/registry"},
            "timeout": {"type": "float", "default": 2},
        },
        supports_check_mode=True,
    )
    try:
        found = run(module.params)
    except ResilienceError as exc:
        module.fail_json(msg=f"{exc}. Nothing was changed.")
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
