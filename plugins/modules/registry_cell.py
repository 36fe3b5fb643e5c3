#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: registry_cell
short_description: Create cells' records in the registry, or change one by compare-and-swap
version_added: "0.1.0"
description:
  - With V(present) each of O(cells) gets a record with its first home and epoch 1 unless the registry knows it already;
    a cell is never moved by it.
  - With V(swapped) one cell's record is changed, provided that its epoch still is O(expected_epoch) and that nobody
    changes it at the same time. The epoch grows by one when the home changes. The change and its entry in the history
    are one transaction.
options:
  endpoints:
    description: Members of the registry, each as C(host:port).
    type: list
    elements: str
    required: true
  timeout:
    description: Seconds that one member may take to answer.
    type: float
    default: 2.0
  ca_file:
    description: The CA that the members' certificates must come from.
    type: path
    default: /etc/shannon/pki/ca.crt
  cert_file:
    description: The certificate to present.
    type: path
    default: /etc/shannon/pki/host.crt
  key_file:
    description: The key of O(cert_file).
    type: path
    default: /etc/shannon/pki/host.key
  state:
    description: What to do.
    type: str
    choices: [present, swapped]
    default: present
  cells:
    description: The cells to have, for V(present).
    type: list
    elements: dict
    suboptions:
      name:
        description: Name of the cell.
        type: str
        required: true
      home:
        description: Its first home.
        type: str
        required: true
  cell:
    description: The cell to change, for V(swapped).
    type: str
  home:
    description: The home it should have, for V(swapped).
    type: str
  cell_state:
    description: The state it should have, for V(swapped).
    type: str
    choices: [active, moving, fenced]
    default: active
  expected_epoch:
    description: The epoch that the decision to change it was based on, for V(swapped).
    type: int
  reason:
    description: Why, for the history.
    type: str
    default: deployed by site.yml
  operator:
    description: Who, for the history.
    type: str
    default: ansible
  overrides:
    description: Names of the safety rules that the operator overrode, for the history.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Can run in check mode; where the registry does not answer yet, everything counts as to be created.
    support: full
  diff_mode:
    description: Shows records before and after.
    support: full
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Have a record for each cell
  shannon.resilience.registry_cell:
    endpoints: [192.0.2.1:12379, 198.51.100.1:12379, 203.0.113.1:12379]
    cells:
      - {name: main, home: a}

- name: Move the cell to region b
  shannon.resilience.registry_cell:
    endpoints: [192.0.2.1:12379, 198.51.100.1:12379, 203.0.113.1:12379]
    state: swapped
    cell: main
    home: b
    expected_epoch: 1
    reason: region a is lost
    operator: alice
"""

RETURN = r"""
records:
  description: The records of the cells that were asked for, as they are now.
  returned: success
  type: dict
  sample: {main: {home: a, epoch: 1, state: active}}
created:
  description: Names of the cells that were created.
  returned: success
  type: list
  elements: str
registry_available:
  description: Whether the registry answered; false only in check mode, before it is deployed.
  returned: success
  type: bool
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.registry import CellRecord, Registry, moved
from ansible_collections.shannon.resilience.plugins.module_utils.registry_arguments import REGISTRY_ARGUMENTS, connect


def present(module: AnsibleModule, registry: Registry | None) -> dict[str, t.Any]:
    """Create what is missing; without a registry (check mode only) everything is."""
    known = registry.all() if registry else {}
    wanted = [CellRecord(cell["name"], cell["home"], 1) for cell in module.params["cells"]]
    created, records = [], {}
    for record in wanted:
        found = known.get(record.cell)
        if found is None:
            created.append(record.cell)
            found = record
            if registry and not module.check_mode:
                # Another run may have been faster since the records were read; then its record is what counts.
                found, was_created = registry.create(record, module.params["reason"], module.params["operator"])
                if not was_created:
                    created.remove(record.cell)
        records[record.cell] = found
    before = {name: known[name] for name in records if name in known}
    return result(bool(created), before, records, created, registry is not None)


def swapped(module: AnsibleModule, registry: Registry) -> dict[str, t.Any]:
    """Change one record; done already is fine, so that a run which was killed can be run again."""
    name, home, epoch = (module.params[key] for key in ("cell", "home", "expected_epoch"))
    seen = registry.get(name)
    if seen is None:
        module.fail_json(msg=f"the registry does not know the cell {name}: run site.yml with --tags registry")
        raise SystemExit(1)  # fail_json does not return; this tells readers and type checkers so
    done = seen.record.home == home and seen.record.state == module.params["cell_state"]
    if done and seen.record.epoch in (epoch, epoch + 1):
        return result(False, {name: seen.record}, {name: seen.record}, [], True)
    if seen.record.epoch != epoch:
        module.fail_json(
            msg=f"cell {name} has epoch {seen.record.epoch} and home {seen.record.home}, but this change was decided on "
            f"epoch {epoch}: somebody else moved it. Look at status.yml and decide anew.",
            records={name: plain(seen.record)},
        )
    wanted = moved(seen.record, home, module.params["cell_state"])
    if not module.check_mode:
        registry.swap(seen, wanted, module.params["reason"], module.params["operator"], module.params["overrides"])
    return result(True, {name: seen.record}, {name: wanted}, [], True)


def plain(record: CellRecord) -> dict[str, t.Any]:
    return {"home": record.home, "epoch": record.epoch, "state": record.state}


def result(
    changed: bool,
    before: t.Mapping[str, CellRecord],
    after: t.Mapping[str, CellRecord],
    created: list[str],
    available: bool,
) -> dict[str, t.Any]:
    records = {name: plain(record) for name, record in after.items()}
    return {
        "changed": changed,
        "records": records,
        "created": created,
        "registry_available": available,
        "diff": {"before": {name: plain(record) for name, record in before.items()}, "after": records},
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **REGISTRY_ARGUMENTS,
            "state": {"type": "str", "choices": ["present", "swapped"], "default": "present"},
            "cells": {
                "type": "list",
                "elements": "dict",
                "options": {"name": {"type": "str", "required": True}, "home": {"type": "str", "required": True}},
            },
            "cell": {"type": "str"},
            "home": {"type": "str"},
            "cell_state": {"type": "str", "choices": ["active", "moving", "fenced"], "default": "active"},
            "expected_epoch": {"type": "int"},
            "reason": {"type": "str", "default": "deployed by site.yml"},
            "operator": {"type": "str", "default": "ansible"},
            "overrides": {"type": "list", "elements": "str", "default": []},
        },
        required_if=[("state", "present", ["cells"]), ("state", "swapped", ["cell", "home", "expected_epoch"])],
        supports_check_mode=True,
    )
    try:
        if module.params["state"] == "swapped":
            module.exit_json(**swapped(module, connect(module.params)))
        try:
            outcome = present(module, connect(module.params))
        except ResilienceError:
            if not module.check_mode:
                raise
            outcome = present(module, None)
        module.exit_json(**outcome)
    except ResilienceError as exc:
        module.fail_json(msg=str(exc))


if __name__ == "__main__":
    main()
