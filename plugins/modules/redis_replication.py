#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_replication
short_description: Give a cell's Redis instances their roles over all regions
version_added: "0.1.0"
description:
  - Looks at all instances of each cell at once. The primary that the home region has is kept, whatever the order of the
    inventory; a fresh cell gets its first home instance as primary. All others follow it, those of standby regions with
    priority 0, so that Sentinel never promotes them.
  - Fails, and changes nothing, when more than one primary has data, when an instance with data would have to follow an
    empty primary (and lose it), or when Sentinel is about to decide.
  - Instances that do not answer are named in a warning and left as they are; Sentinel repoints them when they are back.
  - Run it on one host of the topology, with the host's certificate.
options:
  cells:
    description: The cells.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the cell.
        type: str
        required: true
      port:
        description: TLS port of its instances.
        type: int
        required: true
      home:
        description: Instances of its home region; the first is the primary of a fresh cell.
        type: list
        elements: dict
        required: true
        suboptions:
          name:
            description: Name of the host.
            type: str
            required: true
          address:
            description: IP address of the host.
            type: str
            required: true
      standby:
        description: Instances of all other regions.
        type: list
        elements: dict
        default: []
        suboptions:
          name:
            description: Name of the host.
            type: str
            required: true
          address:
            description: IP address of the host.
            type: str
            required: true
  username:
    description: Redis user that may do everything.
    type: str
    default: admin
  password:
    description: Its password.
    type: str
    required: true
  timeout:
    description: Seconds that one instance may take to answer.
    type: float
    default: 3
  sync_timeout:
    description: Seconds that the replicas have to copy the data and be in line.
    type: int
    default: 120
extends_documentation_fragment:
  - shannon.resilience.tls
attributes:
  check_mode:
    description: Can run in check mode; a cell none of whose instances answers counts as one to be set up.
    support: full
  diff_mode:
    description: Shows the roles of the instances that change.
    support: full
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Have region b follow region a
  shannon.resilience.redis_replication:
    cells:
      - name: main
        port: 6379
        home: [{name: a1, address: 192.0.2.1}, {name: a2, address: 192.0.2.2}]
        standby: [{name: b1, address: 198.51.100.1}]
    password: "{{ redis_admin_password }}"
  run_once: true
"""

RETURN = r"""
primaries:
  description: For each cell the name of its primary.
  returned: success
  type: dict
  sample: {main: a1}
actions:
  description: What was changed, a sentence each.
  returned: success
  type: list
  elements: str
"""

import ssl
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils.concurrently import gather, wait_until
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.redis import RedisClient, Replication
from ansible_collections.shannon.resilience.plugins.module_utils.redis_plan import Instance, Step, choose_primary, plan
from ansible_collections.shannon.resilience.plugins.module_utils.tls import ARGUMENTS as TLS_ARGUMENTS
from ansible_collections.shannon.resilience.plugins.module_utils.tls import client_context, files_of


class Cell:
    """A cell's instances, and the connections to them."""

    def __init__(self, spec: dict[str, t.Any], params: dict[str, t.Any], context: ssl.SSLContext) -> None:
        self.name = spec["name"]
        self._port = spec["port"]
        self._params = params
        self._context = context
        self._home = {one["name"]: one["address"] for one in spec["home"]}
        self._standby = {one["name"]: one["address"] for one in spec["standby"]}

    def client(self, name: str) -> RedisClient:
        address = {**self._home, **self._standby}[name]
        return RedisClient(
            address,
            self._port,
            self._params["username"],
            self._params["password"],
            self._context,
            self._params["timeout"],
        )

    def observe(self) -> list[Instance]:
        def asker(name: str) -> t.Callable[[], Replication]:
            def ask() -> Replication:
                with self.client(name) as client:
                    return client.replication()

            return ask

        members = {**self._home, **self._standby}
        answers = gather({name: asker(name) for name in members})
        return [Instance(name, members[name], name in self._home, answers[name]) for name in members]

    def apply(self, step: Step) -> None:
        with self.client(step.name) as client:
            # The priority first: Sentinel must not see a replica of another region that it may promote.
            if step.priority is not None:
                client.command(["CONFIG", "SET", "replica-priority", step.priority])
            if step.follow:
                client.command(["REPLICAOF", step.follow, self._port])
            client.command(["CONFIG", "REWRITE"])

    def settled(self) -> list[Instance]:
        """Look at all instances, once none of them is reading its data: until then it does not know what it has."""
        seen: list[Instance] = []

        def none_loads() -> tuple[bool, str]:
            seen[:] = self.observe()
            loading = [one.name for one in seen if one.seen is not None and one.seen.loading]
            return not loading, f"{', '.join(loading)} still loading"

        wait_until(none_loads, f"the instances of cell {self.name} to have their data", self._params["sync_timeout"])
        return seen

    def wait_for_links(self) -> None:
        """Wait until every replica that answers is in line with the primary."""

        def in_line() -> tuple[bool, str]:
            waiting = [
                f"{one.name}: link {one.seen.link}{', loading' if one.seen.loading else ''}"
                for one in self.observe()
                if one.seen is not None
                and not one.held
                and ((one.seen.role == "replica" and one.seen.link != "up") or one.seen.loading)
            ]
            return not waiting, "; ".join(waiting) or "all in line"

        wait_until(in_line, f"the replicas of cell {self.name} to be in line", self._params["sync_timeout"])


def run(module: AnsibleModule) -> dict[str, t.Any]:
    params = module.params
    try:
        context = client_context(files_of(params))
    except ResilienceError:
        if not module.check_mode:
            raise
        return fresh([spec["name"] for spec in params["cells"]])
    cells = [Cell(spec, params, context) for spec in params["cells"]]
    # All cells are looked at before any is changed.
    seen = {cell.name: cell.observe() if module.check_mode else cell.settled() for cell in cells}
    if module.check_mode and all(one.seen is None for instances in seen.values() for one in instances):
        return fresh(list(seen))
    primaries = {cell.name: choose_primary(cell.name, seen[cell.name]) for cell in cells}
    steps = {cell.name: plan(primaries[cell.name], seen[cell.name]) for cell in cells}
    if not module.check_mode:
        for cell in cells:
            for step in steps[cell.name]:
                cell.apply(step)
            if steps[cell.name]:
                cell.wait_for_links()
    for cell in cells:
        for one in seen[cell.name]:
            if one.seen is None:
                module.warn(f"cell {cell.name}: {one.name} does not answer and was left as it is: {one.said}")
    actions = [f"{name}: {step.text}" for name, planned in steps.items() for step in planned]
    before = "".join(f"{name}: {describe(one)}\n" for name, instances in seen.items() for one in instances)
    return {
        "changed": bool(actions),
        "primaries": {name: primary.name for name, primary in primaries.items()},
        "actions": actions,
        "diff": {"before": before, "after": before + "".join(f"{action}\n" for action in actions)},
    }


def fresh(names: list[str]) -> dict[str, t.Any]:
    """What check mode says of cells that are not deployed yet."""
    actions = [f"{name}: set up replication" for name in names]
    return {"changed": True, "primaries": {}, "actions": actions, "diff": {"before": "", "after": "\n".join(actions)}}


def describe(one: Instance) -> str:
    if one.seen is None:
        return f"{one.name} does not answer"
    follows = f" of {one.seen.primary_address}" if one.seen.primary_address else ""
    return f"{one.name} is {one.seen.role}{follows}"


def main() -> None:
    instance = {
        "name": {"type": "str", "required": True},
        "address": {"type": "str", "required": True},
    }
    module = AnsibleModule(
        argument_spec={
            "cells": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "port": {"type": "int", "required": True},
                    "home": {"type": "list", "elements": "dict", "required": True, "options": instance},
                    "standby": {"type": "list", "elements": "dict", "default": [], "options": instance},
                },
            },
            "username": {"type": "str", "default": "admin"},
            "password": {"type": "str", "required": True, "no_log": True},
            "timeout": {"type": "float", "default": 3},
            "sync_timeout": {"type": "int", "default": 120},
            **TLS_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module))
    except ResilienceError as exc:
        module.fail_json(msg=str(exc))


if __name__ == "__main__":
    main()
