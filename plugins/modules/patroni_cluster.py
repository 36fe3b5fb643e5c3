#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: patroni_cluster
short_description: Give a region its role in cells, primary or standby, and keep Patroni's dynamic configuration
version_added: "0.1.0"
description:
  - Compares what Patroni keeps in etcd with the wanted dynamic configuration and role, sends only the differences
    (C(PATCH /config)), and waits until the region has reached its role.
  - V(primary) means that the region takes a cell's writes; V(standby) means that it follows the cell's home region.
  - The role is the caller's word. The module never decides on its own that a region is to be promoted; whoever calls it
    must hold the registry's word on where the cell lives.
  - Speaks to Patroni's REST API from the host it runs on, with that host's certificate. Run it on one host per region.
options:
  cells:
    description: The cells, with this region's part in each.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the cell.
        type: str
        required: true
      role:
        description: What the region is to be in this cell.
        type: str
        choices: [primary, standby]
        required: true
      members:
        description: The cell's members in this region.
        type: list
        elements: dict
        required: true
        suboptions:
          name:
            description: Name of the member.
            type: str
            required: true
          address:
            description: Its address.
            type: str
            required: true
          port:
            description: Port of its REST API.
            type: int
            default: 8008
      settings:
        description:
          - Dynamic configuration that the region is to have. Keys that it does not mention are left as they are; a key
            with an empty value (null) is removed.
          - What it says about C(standby_cluster) is not used; O(cells[].role) decides that.
        type: dict
        default: {}
      upstream_hosts:
        description: For a standby, addresses of all PostgreSQL hosts of the home region.
        type: list
        elements: str
        default: []
      upstream_port:
        description: Port of PostgreSQL there.
        type: int
        default: 5432
      slot:
        description: The physical replication slot that the home region keeps for this region.
        type: str
        default: ""
  restart_unit:
    description:
      - Name of a systemd unit on this host to restart first, and then wait until O(restart_member) works again.
      - It is for changes that Patroni cannot take in while it runs. Run it on one host at a time.
    type: str
  restart_member:
    description: Name of the member that O(restart_unit) runs.
    type: str
  username:
    description: User of the REST API.
    type: str
    default: patroni
  password:
    description: Password of the REST API.
    type: str
    required: true
  wait:
    description: Wait until the leader works and all members follow it.
    type: bool
    default: true
  timeout:
    description: Seconds to wait for each cell.
    type: int
    default: 180
  request_timeout:
    description: Seconds for one request.
    type: int
    default: 3
extends_documentation_fragment:
  - shannon.resilience.tls
attributes:
  check_mode:
    description: Can run in check mode; when no member answers yet, it reports a change and says so in RV(note).
    support: full
  diff_mode:
    description: Shows the keys of the dynamic configuration that change.
    support: full
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Let region b follow region a in the cell main
  shannon.resilience.patroni_cluster:
    password: "{{ postgres_api_password }}"
    cells:
      - name: main
        role: standby
        members:
          - {name: b1, address: 192.0.2.21}
          - {name: b2, address: 192.0.2.22}
        upstream_hosts: [192.0.2.11, 192.0.2.12, 192.0.2.13]
        slot: region_b
        settings: {ttl: 20, loop_wait: 5, retry_timeout: 7}
"""

RETURN = r"""
cells:
  description: What each cell looks like in this region now.
  returned: success
  type: dict
  sample:
    main:
      leader: a1
      members:
        - {name: a1, role: leader, state: running, timeline: 1, lag: null, pending_restart: false}
leaders:
  description: Cell to the name of its leader in this region, or an empty text when nobody leads.
  returned: success
  type: dict
  sample: {main: a1}
changes:
  description: Cell to what was, or in check mode would be, sent to Patroni; no cell that is as wanted.
  returned: success
  type: dict
  sample: {main: {ttl: 20}}
note:
  description: What could not be looked at in check mode.
  returned: in check mode, when no member answers
  type: str
"""

import typing as t
from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils.concurrently import wait_until
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.patroni import (
    Cluster,
    NoMemberAnswers,
    Patroni,
    Region,
    config_changes,
    desired_config,
)
from ansible_collections.shannon.resilience.plugins.module_utils.tls import ARGUMENTS as TLS_ARGUMENTS
from ansible_collections.shannon.resilience.plugins.module_utils.tls import client_context, files_of


def region_of(params: dict[str, t.Any], cell: dict[str, t.Any], context: t.Any) -> Region:
    return Region(
        cell["name"],
        {
            member["name"]: Patroni(
                member["address"],
                member["port"],
                context,
                params["username"],
                params["password"],
                params["request_timeout"],
            )
            for member in cell["members"]
        },
    )


def settle(module: AnsibleModule, region: Region, cell: dict[str, t.Any]) -> tuple[dict[str, t.Any], dict[str, t.Any]]:
    """Bring one cell to what is wanted; returns the configuration before, and what was sent."""
    wanted = desired_config(cell["role"], cell["settings"], cell["upstream_hosts"], cell["upstream_port"], cell["slot"])

    def read() -> tuple[Patroni, dict[str, t.Any]]:
        return region.any_answer(Patroni.config)

    if module.params["wait"] and not module.check_mode:
        # A cell that is being born answers, but has no configuration in etcd until its leader is there.
        found: list[tuple[Patroni, dict[str, t.Any]]] = []

        def answers() -> tuple[bool, str]:
            found[:] = [read()]
            return True, "an answer"

        wait_until(answers, f"the configuration of the cell {region.cell}", module.params["timeout"])
        client, current = found[0]
    else:
        client, current = read()
    changes = config_changes(current, wanted)
    if changes and not module.check_mode:
        client.patch_config(changes)
    return current, changes


def described(cluster: Cluster) -> dict[str, t.Any]:
    members = [
        {
            key: value
            for key, value in asdict(member).items()
            if key in ("name", "role", "state", "timeline", "lag", "pending_restart")
        }
        for member in cluster.members
    ]
    return {"leader": cluster.leader.name if cluster.leader else "", "members": members}


def picked(source: dict[str, t.Any], like: dict[str, t.Any]) -> dict[str, t.Any]:
    """Those keys of source that the changes touch."""
    return {
        key: picked(source[key], value)
        if isinstance(value, dict) and isinstance(source.get(key), dict)
        else source[key]
        for key, value in like.items()
        if key in source
    }


def restart(module: AnsibleModule, regions: list[Region]) -> None:
    """Restart this host's unit, and wait until its member works in every given cell."""
    unit, name = module.params["restart_unit"], module.params["restart_member"]
    code, out, err = module.run_command(
        ["timeout", "--kill-after=5", str(module.params["timeout"]), "systemctl", "restart", unit]
    )
    if code:
        module.fail_json(
            msg=f"{unit} did not restart within {module.params['timeout']} s (exit {code}): {(err or out).strip()}. "
            f"Look at: journalctl -u {unit}"
        )
    for region in regions:

        def back(region: Region = region) -> tuple[bool, str]:
            member = region.cluster().member(name)
            if member is None:
                return False, f"{name} has not joined"
            return member.works and (member.is_leader or member.state == "streaming"), f"{name} is {member.state}"

        wait_until(back, f"{name} in the cell {region.cell} after the restart of {unit}", module.params["timeout"])


def main() -> None:
    member_spec = {
        "name": {"type": "str", "required": True},
        "address": {"type": "str", "required": True},
        "port": {"type": "int", "default": 8008},
    }
    cell_spec = {
        "name": {"type": "str", "required": True},
        "role": {"type": "str", "choices": ["primary", "standby"], "required": True},
        "members": {"type": "list", "elements": "dict", "required": True, "options": member_spec},
        "settings": {"type": "dict", "default": {}},
        "upstream_hosts": {"type": "list", "elements": "str", "default": []},
        "upstream_port": {"type": "int", "default": 5432},
        "slot": {"type": "str", "default": ""},
    }
    module = AnsibleModule(
        argument_spec={
            "cells": {"type": "list", "elements": "dict", "required": True, "options": cell_spec},
            "restart_unit": {"type": "str"},
            "restart_member": {"type": "str"},
            "username": {"type": "str", "default": "patroni"},
            "password": {"type": "str", "required": True, "no_log": True},
            "wait": {"type": "bool", "default": True},
            "timeout": {"type": "int", "default": 180},
            "request_timeout": {"type": "int", "default": 3},
            **TLS_ARGUMENTS,
        },
        required_together=[("restart_unit", "restart_member")],
        supports_check_mode=True,
    )
    params = module.params
    result: dict[str, t.Any] = {"changed": False, "cells": {}, "leaders": {}, "changes": {}}
    before: dict[str, t.Any] = {}
    after: dict[str, t.Any] = {}
    notes = []
    try:
        try:
            context = client_context(files_of(params))
        except ResilienceError as exc:
            if not module.check_mode:
                raise
            module.exit_json(**{**result, "changed": True, "note": str(exc)})
        regions = [region_of(params, cell, context) for cell in params["cells"]]
        if params["restart_unit"]:
            result["changed"] = True
            if not module.check_mode:
                restart(module, regions)
        for cell, region in zip(params["cells"], regions, strict=True):
            name = cell["name"]
            try:
                current, changes = settle(module, region, cell)
                if params["wait"] and not module.check_mode:
                    cluster = region.wait_for(cell["role"], params["timeout"])
                else:
                    cluster = region.cluster()
            except NoMemberAnswers as exc:
                if not module.check_mode:
                    raise
                notes.append(str(exc))
                result["changed"] = True
                result["leaders"][name] = ""
                continue
            if changes:
                result["changed"] = True
                result["changes"][name] = changes
                before[name], after[name] = picked(current, changes), changes
            result["cells"][name] = described(cluster)
            result["leaders"][name] = result["cells"][name]["leader"]
    except ResilienceError as exc:
        module.fail_json(msg=str(exc), **{key: value for key, value in result.items() if key != "changed"})
    if notes:
        result["note"] = " ".join(notes)
    module.exit_json(diff={"before": before, "after": after}, **result)


if __name__ == "__main__":
    main()
