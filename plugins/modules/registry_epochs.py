#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: registry_epochs
short_description: Raise the cells' epochs in a rebuilt registry above all that anybody has seen
version_added: "0.1.0"
description:
  - Asks the region agents which record of each cell they saw last and which region serves, and writes each cell's
    record with an epoch above all of these, its home being the region that serves; where none serves, the home of the
    newest record. So a region agent that has seen the rebuilt registry believes no older one.
  - What the home has in the registry (its lease, its last position) goes on with the new epoch, so a home that serves
    does not notice.
  - Writes a history entry with O(override), and which registries were given up, for agents that were away.
  - Each O(token) is done once for each cell.
options:
  topology:
    description: What M(shannon.resilience.topology) derived.
    type: dict
    required: true
  members:
    description: Names of the rebuilt registry's members.
    type: list
    elements: str
    required: true
  token:
    description: The rebuilding's token.
    type: str
    required: true
  override:
    description: How the registry was rebuilt, for the history.
    type: str
    choices: [break_glass, registry_restore]
    required: true
  also_overridden:
    description: Names of the refusals that were overridden, for the history's reason.
    type: list
    elements: str
    default: []
  reason:
    description: Why, for the history.
    type: str
    required: true
  operator:
    description: Who, for the history.
    type: str
    required: true
  given_up:
    description: Cluster ids that were given up.
    type: list
    elements: str
    default: []
  known:
    description:
      - Records of the registry that was replaced, by name of the cell, each with C(home) and C(epoch), as far as it
        still answered. Agents that do not answer may have seen these.
    type: dict
    default: {}
  wait:
    description: Seconds to wait for the rebuilt registry's quorum.
    type: float
    default: 60
  timeout:
    description: Seconds that one host has to answer.
    type: float
    default: 2
attributes:
  check_mode:
    description: Can run in check mode.
    support: full
  diff_mode:
    description: Shows the records.
    support: full
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Raise the epochs
  shannon.resilience.registry_epochs:
    topology: "{{ shannon_topology }}"
    members: [b1]
    token: shannon-registry-20270301T101500Z
    override: break_glass
    reason: the data centre of region a burnt down
    operator: alice
    given_up: ["17050020162257132153"]
"""

RETURN = r"""
records:
  description: The records of the cells, by name, each with C(home), C(epoch) and C(state).
  returned: success
  type: dict
silent_agents:
  description: Hosts whose agent did not answer, each with its error; what they saw could not be taken into account.
  returned: success
  type: dict
"""

import json
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils.concurrently import gather, wait_until
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.etcd import Body, EtcdClient, delete_op, put_op
from ansible_collections.shannon.resilience.plugins.module_utils.given_up import KEYS, GivenUp
from ansible_collections.shannon.resilience.plugins.module_utils.http_client import JsonEndpoint
from ansible_collections.shannon.resilience.plugins.module_utils.region_lease import LEASES, POSITIONS, SERVING
from ansible_collections.shannon.resilience.plugins.module_utils.registry import CellRecord, Registry
from ansible_collections.shannon.resilience.plugins.module_utils.registry_rebuild import (
    REBUILT,
    AgentWord,
    agent_word,
    next_record,
)
from ansible_collections.shannon.resilience.plugins.module_utils.tls import TlsFiles, client_context

Words = dict[str, t.Any]


def ask_agents(params: dict[str, t.Any], context: t.Any) -> tuple[Words, dict[str, str]]:
    """What each agent says, and why those said nothing that did not."""
    topology = params["topology"]
    hosts, port, components = topology["hosts"], topology["ports"]["region_agent"], topology["components"]
    named = {host for part in ("postgres", "redis") for it in components[part].values() for host in it}
    asked = {host: JsonEndpoint(hosts[host]["address"], port, context, params["timeout"]) for host in sorted(named)}
    answers = gather({host: lambda it=it: it.expect("GET", "/status") for host, it in asked.items()})  # type: ignore[misc]
    said = {host: it for host, it in answers.items() if isinstance(it, dict)}
    return said, {host: str(it) for host, it in answers.items() if host not in said}


def carried(client: EtcdClient, found: CellRecord | None, new: CellRecord) -> list[Body]:
    """What of the home's goes on with the new epoch; a lease of another region ends."""
    changes: list[Body] = []
    for prefix in (LEASES, POSITIONS, SERVING):
        key = prefix + new.cell
        item = client.get(key)
        if item is None:
            continue
        value = json.loads(item.value)
        if value.get("region") == new.home and found is not None and value.get("epoch") == found.epoch:
            changes.append(put_op(key, json.dumps({**value, "epoch": new.epoch}, sort_keys=True), item.lease))
        elif prefix == LEASES:
            changes.append(delete_op(key))
    return changes


def raise_one(registry: Registry, cell: str, new: CellRecord, found: CellRecord | None, params: Words) -> CellRecord:
    """Write a record; once more when its lease ran out in between."""
    marker = put_op(REBUILT + cell, params["token"])
    reason = params["reason"]
    if params["also_overridden"]:
        reason += f" (overridden: {', '.join(params['also_overridden'])})"
    for last in (False, True):
        also = [*carried(registry.client, found, new), marker]
        try:
            return registry.put_rebuilt(found, new, reason, params["operator"], params["override"], also)
        except ResilienceError as exc:
            if last or "lease not found" not in str(exc):
                raise
    raise AssertionError("unreachable")


def run(module: AnsibleModule, client: EtcdClient, context: t.Any) -> dict[str, t.Any]:
    """Raise what this token has not raised yet."""
    params = module.params
    registry = Registry(client)

    def answers() -> tuple[bool, str]:
        registry.records()
        return True, ""

    wait_until(answers, "the rebuilt registry to have a quorum", 0 if module.check_mode else params["wait"])
    said, silent = ask_agents(params, context)
    records = registry.records()
    names = sorted({*records, *(cell["name"] for cell in params["topology"]["cells"])})
    written: dict[str, CellRecord] = {}
    changed = []
    for cell in names:
        found = records.get(cell)
        marker = client.get(REBUILT + cell)
        if found is not None and marker is not None and marker.value == params["token"]:
            written[cell] = found
            continue
        words = [agent_word(host, it.get("cells", {}).get(cell, {})) for host, it in said.items()]
        if before := params["known"].get(cell):
            words.append(AgentWord("the registry before", "", str(before["home"]), int(before["epoch"]), False))
        new = next_record(cell, found, [word for word in words if word], list(params["topology"]["regions"]))
        changed.append(cell)
        written[cell] = new if module.check_mode else raise_one(registry, cell, new, found, params)
    # What earlier rebuildings gave up, too: the snapshot may be older than they are.
    for cluster in sorted({*filter(None, params["given_up"]), *GivenUp().ids()}):
        if client.get(KEYS + cluster) is None:
            changed.append(cluster)
            if not module.check_mode:
                why = {"reason": params["reason"], "operator": params["operator"], "token": params["token"]}
                client.put(KEYS + cluster, json.dumps(why, sort_keys=True))
    return {
        "changed": bool(changed),
        "records": {cell: {"home": it.home, "epoch": it.epoch, "state": it.state} for cell, it in written.items()},
        "silent_agents": silent,
        "diff": {
            "before": "".join(f"{cell}: {it.describe()}\n" for cell, it in sorted(records.items()) if cell in changed),
            "after": "".join(f"{cell}: {it.describe()}\n" for cell, it in sorted(written.items()) if cell in changed),
        },
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "topology": {"type": "dict", "required": True},
            "members": {"type": "list", "elements": "str", "required": True},
            "token": {"type": "str", "required": True, "no_log": False},
            "override": {"type": "str", "choices": ["break_glass", "registry_restore"], "required": True},
            "also_overridden": {"type": "list", "elements": "str", "default": []},
            "reason": {"type": "str", "required": True},
            "operator": {"type": "str", "required": True},
            "given_up": {"type": "list", "elements": "str", "default": []},
            "known": {"type": "dict", "default": {}},
            "wait": {"type": "float", "default": 60},
            "timeout": {"type": "float", "default": 2},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        topology = params["topology"]
        context = client_context(TlsFiles())
        port = topology["ports"]["registry_client"]
        endpoints = [{"host": topology["hosts"][name]["address"], "port": port} for name in params["members"]]
        client = EtcdClient(endpoints, context, params["timeout"], "the registry", GivenUp())
        answer = run(module, client, context)
    except ResilienceError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
