#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cell_rejoin
short_description: Show what returning regions saved or wait for, and say that their rows may be lost
version_added: "0.1.0"
description:
  - A region that comes back becomes a standby by itself. Before it is rewound, its region agent saves the rows that the
    new home does not have. When these can't be saved, the region waits for a human.
  - Without O(discard) this only looks. With it, the named region may rejoin although its rows were not saved; that is
    written to the registry, and the agent takes it up within seconds.
  - Run it on one host of the topology, with the host's certificate.
options:
  topology:
    description: What M(shannon.resilience.topology) derived.
    type: dict
    required: true
  cell:
    description: The cell; left out, all of them are shown.
    type: str
    default: ''
  region:
    description: The region that may lose its rows. Required with O(discard).
    type: str
    default: ''
  discard:
    description: Whether the region may rejoin although its rows can't be saved.
    type: bool
    default: false
  reason:
    description: Why. Required with O(discard).
    type: str
    default: ''
  operator:
    description: Who. Required with O(discard).
    type: str
    default: ''
  timeout:
    description: Seconds that one agent may take to answer.
    type: float
    default: 1.5
extends_documentation_fragment:
  - shannon.resilience.tls
attributes:
  check_mode:
    description: Can run in check mode; nothing is written then.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Let region a rejoin without its last rows
  shannon.resilience.cell_rejoin:
    topology: "{{ shannon_topology }}"
    cell: main
    region: a
    discard: true
    reason: the disk is gone
    operator: jo
"""

RETURN = r"""
saved:
  description:
    - What was saved at each rejoin, with C(cell), C(region), C(epoch), C(host), C(path) (on that host), C(rows),
      C(bytes) of WAL that were discarded, and C(at) in seconds since 1970. C(lost_seconds) and C(lost_markers) are what
      PostgreSQL lost by its own last marker, where that is known.
  returned: success
  type: list
  elements: dict
redis:
  description:
    - What each host's Redis had and the new home perhaps not, at each rejoin, with C(cell), C(region), C(epoch),
      C(host), C(path) of the copy (on that host; empty when none was kept, with C(not_kept) saying why), C(bytes),
      C(keys), and C(text), all of it in a sentence. C(stream_bytes) is by how much its replication stream went beyond
      what the new home has; C(lost_seconds) and C(lost_markers) are by the markers. They are least figures unless
      C(exact).
  returned: success
  type: list
  elements: dict
waiting:
  description: What agents can't do by themselves, with C(host), C(cell), C(duty) and C(trouble).
  returned: success
  type: list
  elements: dict
silent:
  description: Hosts whose agent does not answer, each with its error.
  returned: success
  type: dict
"""

import json
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils.concurrently import gather
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.etcd import EtcdClient
from ansible_collections.shannon.resilience.plugins.module_utils.given_up import GivenUp
from ansible_collections.shannon.resilience.plugins.module_utils.http_client import JsonEndpoint
from ansible_collections.shannon.resilience.plugins.module_utils.redis_kept import kept_text
from ansible_collections.shannon.resilience.plugins.module_utils.region_lease import DIVERGED, DIVERGED_REDIS, REJOIN
from ansible_collections.shannon.resilience.plugins.module_utils.registry import Registry
from ansible_collections.shannon.resilience.plugins.module_utils.tls import ARGUMENTS as TLS_ARGUMENTS
from ansible_collections.shannon.resilience.plugins.module_utils.tls import client_context, files_of


def saved(client: EtcdClient) -> list[dict[str, t.Any]]:
    """What agents said that they saved."""
    found = []
    for item in client.range(DIVERGED):
        cell, _epoch, region = item.key.removeprefix(DIVERGED).split("/")
        try:
            facts = json.loads(item.value)
        except ValueError as exc:
            raise ResilienceError(f"the registry's key {item.key} can't be read: {item.value[:200]!r}") from exc
        found.append({"cell": cell, "region": region, **facts})
    return found


def kept(client: EtcdClient) -> list[dict[str, t.Any]]:
    """What agents said of their Redis, with C(text)."""
    found = []
    for item in client.range(DIVERGED_REDIS):
        cell, _epoch, region, _host = item.key.removeprefix(DIVERGED_REDIS).split("/")
        try:
            facts = json.loads(item.value)
        except ValueError as exc:
            raise ResilienceError(f"the registry's key {item.key} can't be read: {item.value[:200]!r}") from exc
        found.append({"cell": cell, "region": region, **facts, "text": kept_text(facts)})
    return found


def run(module: AnsibleModule) -> dict[str, t.Any]:
    """Look, and write when it is wanted."""
    params = module.params
    topology = params["topology"]
    context = client_context(files_of(params))
    components, hosts, ports = topology["components"], topology["hosts"], topology["ports"]
    members = [host for named in components["registry"].values() for host in named]
    endpoints = [{"host": hosts[host]["address"], "port": ports["registry_client"]} for host in members]
    client = EtcdClient(endpoints, context, 2.0, name="the registry", given_up=GivenUp())
    names = {host for named in (components["postgres"], components["redis"]) for it in named.values() for host in it}
    asked = {
        host: JsonEndpoint(hosts[host]["address"], ports["region_agent"], context, params["timeout"])
        for host in sorted(names)
    }
    answers = gather({host: lambda it=it: it.expect("GET", "/status") for host, it in asked.items()})
    waiting = [
        {"host": host, "cell": cell, "duty": word.get("duty", ""), "trouble": word["trouble"]}
        for host, answer in answers.items()
        if isinstance(answer, dict)
        for cell, word in answer["cells"].items()
        if word.get("trouble") and params["cell"] in ("", cell)
    ]
    changed = False
    if params["discard"]:
        changed = discard(module, client)
    return {
        "changed": changed,
        "saved": [one for one in saved(client) if params["cell"] in ("", one["cell"])],
        "redis": [one for one in kept(client) if params["cell"] in ("", one["cell"])],
        "waiting": waiting,
        "silent": {host: str(answer) for host, answer in answers.items() if not isinstance(answer, dict)},
    }


def discard(module: AnsibleModule, client: EtcdClient) -> bool:
    """Write that a region may lose its rows.

    :raises ResilienceError: the cell or the region does not exist, or the region is the home.
    """
    params = module.params
    record = Registry(client).get(params["cell"])
    regions = params["topology"]["regions"]
    if record is None:
        raise ResilienceError(f"the registry does not know the cell {params['cell']}; nothing was changed")
    if params["region"] not in regions or params["region"] == record.home:
        raise ResilienceError(
            f"'{params['region']}' is no standby region of the cell {params['cell']} ({record.describe()}; regions: "
            f"{', '.join(regions)}); nothing was changed"
        )
    key = f"{REJOIN}{params['cell']}/{params['region']}"
    found = client.get(key)
    if found is not None and found.value == "discard":
        return False
    if not module.check_mode:
        why = {"operator": params["operator"], "reason": params["reason"], "epoch": record.epoch}
        client.put(f"{key}.why", json.dumps(why, sort_keys=True))
        client.put(key, "discard")
    return True


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "topology": {"type": "dict", "required": True},
            "cell": {"type": "str", "default": ""},
            "region": {"type": "str", "default": ""},
            "discard": {"type": "bool", "default": False},
            "reason": {"type": "str", "default": ""},
            "operator": {"type": "str", "default": ""},
            "timeout": {"type": "float", "default": 1.5},
            **TLS_ARGUMENTS,
        },
        required_if=[("discard", True, ("cell", "region", "reason", "operator"))],
        supports_check_mode=True,
    )
    try:
        found = run(module)
    except ResilienceError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**found)


if __name__ == "__main__":
    main()
