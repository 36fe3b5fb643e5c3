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
  - The registry says per cell which region is its home, its epoch and its state. This creates records that are not
    there (O(state=present)) and never moves a cell that is, or changes one record if it still has the epoch that the
    caller decided on (O(state=swapped)).
  - Each change and its history entry are one transaction, made through the quorum. Without a quorum nothing changes.
  - Run it on a host of the topology, as root, since only those may talk to the registry, with the host's certificate.
options:
  endpoints:
    description:
      - The registry's members, each as C(host:port) or as a mapping with C(host) and C(port).
      - One that is dead costs one O(timeout), however many there are.
    type: list
    elements: raw
    required: true
  state:
    description:
      - V(present) creates the records of O(cells) that the registry does not have.
      - V(swapped) changes the record of O(name) from O(expected_epoch) on. When the record already is what is wanted,
        and the history says that O(operator) did it for this O(reason), nothing is changed, so a run that was
        interrupted can be repeated. Everything else is a conflict, and fails.
    type: str
    choices: [present, swapped]
    default: present
  cells:
    description: For O(state=present), the cells and their first homes.
    type: list
    elements: dict
    suboptions:
      name:
        description: Name of the cell.
        type: str
        required: true
      home:
        description: Region that takes the cell's writes when the registry does not know the cell.
        type: str
        required: true
  name:
    description: For O(state=swapped), the cell.
    type: str
  home:
    description: For O(state=swapped), the region that shall be its home. The present one when left out.
    type: str
  record_state:
    description: For O(state=swapped), the state that the record shall have.
    type: str
    default: active
  expected_epoch:
    description:
      - For O(state=swapped), the epoch that the caller read and decided on. When the home changes the new epoch is one
        more, else it stays.
    type: int
  expected_revision:
    description:
      - For O(state=swapped), the revision of the record that the caller read. Tells apart changes of state within one
        epoch, too.
    type: int
  reason:
    description: Why, for the history. Required for O(state=swapped).
    type: str
    default: first deployment
  operator:
    description: Who, for the history. Give it for O(state=swapped).
    type: str
    default: site.yml
  overrides:
    description: Names of the refusals that were overridden, for the history.
    type: list
    elements: str
    default: []
  timeout:
    description: Seconds that one member may take to answer; a call ends within twice of it.
    type: float
    default: 3
extends_documentation_fragment:
  - shannon.resilience.tls
attributes:
  check_mode:
    description:
      - Can run in check mode. With O(state=present) a registry that does not answer counts as one that is not deployed
        yet, and RV(registry_available) is false.
    support: full
  diff_mode:
    description: Shows the records that are created or changed.
    support: full
seealso:
  - module: shannon.resilience.registry_cell_info
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Create the records of the cells
  shannon.resilience.registry_cell:
    endpoints: ["192.0.2.11:12379", "192.0.2.21:12379", "192.0.2.31:12379"]
    cells:
      - {name: main, home: a}

- name: Move a cell, if nobody else did since it was read
  shannon.resilience.registry_cell:
    endpoints: ["192.0.2.11:12379", "192.0.2.21:12379", "192.0.2.31:12379"]
    state: swapped
    name: main
    home: b
    expected_epoch: 1
    reason: region a lost power
    operator: alice
"""

RETURN = r"""
records:
  description: The records of these cells, by name, each with C(home), C(epoch), C(state) and C(revision).
  returned: success
  type: dict
  sample: {main: {home: a, epoch: 1, state: active, revision: 4}}
changed_cells:
  description: Names of the cells whose records were created or changed.
  returned: success
  type: list
  elements: str
registry_available:
  description: Whether the registry answered; false only in check mode.
  returned: success
  type: bool
conflict:
  description: Whether the failure is a lost compare-and-swap, rather than a registry that can't answer.
  returned: failure
  type: bool
"""

import json
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils.errors import ConflictError, ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.etcd import NoQuorumError
from ansible_collections.shannon.resilience.plugins.module_utils.registry import (
    ACTIVE,
    FIRST_EPOCH,
    CellRecord,
    Registry,
)
from ansible_collections.shannon.resilience.plugins.module_utils.tls import ARGUMENTS as TLS_ARGUMENTS
from ansible_collections.shannon.resilience.plugins.module_utils.tls import files_of

Records = dict[str, "CellRecord | None"]


def connect(params: dict[str, t.Any]) -> Registry:
    tls = files_of(params)
    return Registry.connect(params["endpoints"], tls, params["timeout"])


def present(params: dict[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """Create what is absent; in check mode say what would be."""
    wanted = {cell["name"]: cell["home"] for cell in params["cells"]}
    available = True
    before: dict[str, CellRecord] = {}
    try:
        registry = connect(params)
        before = registry.records()
    except NoQuorumError:
        if not check_mode:
            raise
        available = False
    except ResilienceError as exc:
        # On an empty host even the certificates are yet to come.
        if not check_mode or not isinstance(exc.__cause__, FileNotFoundError):
            raise
        available = False
    after = {name: before[name] for name in wanted if name in before}
    created = []
    for name, home in wanted.items():
        if name in after:
            continue
        record, made = CellRecord(name, home, FIRST_EPOCH), True
        if not check_mode:
            record, made = registry.create(name, home, params["reason"], params["operator"])
        after[name] = record
        if made:
            created.append(name)
    return result({name: before.get(name) for name in created}, after, created, available)


def swapped(params: dict[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """Change one record if it still is what the caller decided on; in check mode only find out whether it is."""
    name, epoch, revision = params["name"], params["expected_epoch"], params["expected_revision"]
    registry = connect(params)
    found = registry.get(name)
    if found is None:
        raise ConflictError(
            f"cell {name}: expected epoch {epoch}, but the registry does not know the cell. "
            "Run site.yml with --tags registry to create its record."
        )
    home = params["home"] or found.home
    if found.epoch == epoch and revision in (None, found.revision):
        new = CellRecord(name, home, epoch + (1 if home != found.home else 0), params["record_state"])
        if (new.home, new.state) == (found.home, found.state):
            return result({}, {name: found}, [], True)
        done = (
            new
            if check_mode
            else registry.compare_and_swap(found, new, params["reason"], params["operator"], params["overrides"])
        )
        return result({name: found}, {name: done}, [name], True)
    last = registry.history(name)[-1:]
    ours = last and (last[0].operator, last[0].reason) == (params["operator"], params["reason"])
    same_epoch = found.epoch == epoch and last and last[0].previous_home == found.home
    moved = found.epoch == epoch + 1 and last and last[0].previous_home != found.home
    if ours and (moved or same_epoch) and (found.home, found.state) == (home, params["record_state"]):
        return result({}, {name: found}, [], True)
    wanted = f"epoch {epoch}" + (f" at revision {revision}" if revision is not None else "")
    by = f", written by {last[0].operator} at {last[0].at} (reason: {last[0].reason})" if last else ""
    raise ConflictError(
        f"cell {name}: expected {wanted}, but the registry has {found.describe()} (revision {found.revision}){by}. "
        "Nothing was changed. Read the record again and decide anew."
    )


def result(before: Records, after: dict[str, CellRecord], changed: list[str], available: bool) -> dict[str, t.Any]:
    shown = {name: _shown(record) for name, record in after.items()}
    return {
        "changed": bool(changed),
        "changed_cells": changed,
        "records": shown,
        "registry_available": available,
        "diff": {
            "before_header": "registry",
            "after_header": "registry",
            "before": _text({name: _shown(record) for name, record in before.items() if record}),
            "after": _text({name: shown[name] for name in changed}),
        },
    }


def _shown(record: CellRecord) -> dict[str, t.Any]:
    return {"home": record.home, "epoch": record.epoch, "state": record.state, "revision": record.revision}


def _text(records: dict[str, t.Any]) -> str:
    # The revision is the registry's business and differs each time.
    lean = {name: {k: v for k, v in record.items() if k != "revision"} for name, record in records.items()}
    return "".join(f"{name}: {json.dumps(record)}\n" for name, record in sorted(lean.items()))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "endpoints": {"type": "list", "elements": "raw", "required": True},
            "state": {"type": "str", "choices": ["present", "swapped"], "default": "present"},
            "cells": {
                "type": "list",
                "elements": "dict",
                "options": {"name": {"type": "str", "required": True}, "home": {"type": "str", "required": True}},
            },
            "name": {"type": "str"},
            "home": {"type": "str"},
            "record_state": {"type": "str", "default": ACTIVE},
            "expected_epoch": {"type": "int"},
            "expected_revision": {"type": "int"},
            "reason": {"type": "str", "default": "first deployment"},
            "operator": {"type": "str", "default": "site.yml"},
            "overrides": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "float", "default": 3},
            **TLS_ARGUMENTS,
        },
        required_if=[
            ("state", "present", ("cells",)),
            ("state", "swapped", ("name", "expected_epoch")),
        ],
        supports_check_mode=True,
    )
    act = present if module.params["state"] == "present" else swapped
    try:
        answer = act(module.params, module.check_mode)
    except ResilienceError as exc:
        module.fail_json(msg=str(exc), conflict=isinstance(exc, ConflictError))
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
