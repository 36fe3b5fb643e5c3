#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cell_restore
short_description: Begin and end the restore of a cell in the registry
version_added: "0.1.0"
description:
  - Closes a cell for a restore from a backup, by compare-and-swap and with an entry in the history, and opens it again.
  - While the record's state is C(restoring) no agent makes the cell active, nobody moves it, and its status is not
    healthy.
  - A restore that was interrupted is known again by the history; the same options go on with it, others are refused.
  - The stores themselves are restored by C(playbooks/restore.yml).
options:
  endpoints:
    description: The registry's members, as C(host:port).
    type: list
    elements: str
    required: true
  cell:
    description: Name of the cell.
    type: str
    required: true
  state:
    description:
      - V(looked) says what a restore would be and what stands in its way, and changes nothing.
      - V(begun) closes the cell, unless something stands in the way.
      - V(ended) opens the cell again, when O(restore_id) is what has begun.
    type: str
    choices: [looked, begun, ended]
    default: looked
  store:
    description: What is put in place; V(all), V(postgres), V(redis) or V(qdrant).
    type: str
    default: all
  to:
    description: The target, as C(playbooks/restore.yml) takes it.
    type: str
    default: latest
  from_region:
    description: The region whose repository is read; left empty the home's.
    type: str
    default: ""
  repositories:
    description: Regions to the hosts that hold their repositories.
    type: dict
    default: {}
  running:
    description: Hosts on which services run that write to the cell.
    type: list
    elements: str
    default: []
  stop_writes:
    description: Whether these may be stopped.
    type: bool
    default: false
  anew:
    description: Whether an unfinished restore of something else may be given up.
    type: bool
    default: false
  restore_id:
    description: For O(state=ended), the restore's name.
    type: str
    default: ""
  reason:
    description: Why, for the history. Needed for O(state=begun), unless it goes on with an interrupted one.
    type: str
    default: ""
  operator:
    description: Who, for the history.
    type: str
    default: restore.yml
  timeout:
    description: Seconds that one member may take to answer.
    type: float
    default: 3
extends_documentation_fragment:
  - shannon.resilience.tls
attributes:
  check_mode:
    description: Can run in check mode; the registry is read and not changed then.
    support: full
  diff_mode:
    description: Shows the record's state before and after.
    support: full
seealso:
  - module: shannon.resilience.registry_cell
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Close the cell
  shannon.resilience.cell_restore:
    endpoints: ["192.0.2.11:12379", "192.0.2.21:12379", "192.0.2.31:12379"]
    cell: main
    state: begun
    store: postgres
    to: "2026-01-31 13:05:00+00:00"
    repositories: {a: a3, b: b3}
    reason: a table was deleted
    operator: alice
  register: begun

- name: Open it again
  shannon.resilience.cell_restore:
    endpoints: ["192.0.2.11:12379", "192.0.2.21:12379", "192.0.2.31:12379"]
    cell: main
    state: ended
    restore_id: "{{ begun.restore_id }}"
"""

RETURN = r"""
restore_id:
  description: The restore's name.
  returned: success
  type: str
  sample: 20260131T131500Z-main
resumed:
  description: Whether an interrupted restore goes on.
  returned: success
  type: bool
record:
  description: The cell's record, with C(home), C(epoch), C(state) and C(revision).
  returned: success
  type: dict
from_region:
  description: The region whose repository is read.
  returned: success
  type: str
repository_host:
  description: The host that holds it.
  returned: success
  type: str
problems:
  description: What stands in the way, a sentence each; empty when it may begin.
  returned: success
  type: list
  elements: str
"""

import typing as t
from datetime import datetime, timezone

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils.cell_restore import Outlook, Wanted, begin, end, look
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.registry import CellRecord, Registry
from ansible_collections.shannon.resilience.plugins.module_utils.tls import ARGUMENTS as TLS_ARGUMENTS
from ansible_collections.shannon.resilience.plugins.module_utils.tls import files_of


def work(params: dict[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """What the module returns."""
    tls = files_of(params)
    registry = Registry.connect(params["endpoints"], tls, params["timeout"])
    cell = params["cell"]
    found = registry.get(cell)
    if found is None:
        raise ResilienceError(f"the registry does not know the cell {cell}; run site.yml with --tags registry first")
    wanted = Wanted(
        cell=cell,
        store=params["store"],
        to=params["to"],
        source=params["from_region"],
        reason=params["reason"],
        operator=params["operator"],
        running=tuple(params["running"]),
        stop_writes=params["stop_writes"],
        anew=params["anew"],
    )
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    outlook = look(found, registry.history(cell), wanted, params["repositories"], stamp)
    record, changed = found, False
    if params["state"] == "begun":
        if check_mode and not outlook.problems:
            changed = not outlook.resumed
        else:
            record, changed = begin(registry, outlook, wanted)
    elif params["state"] == "ended":
        if check_mode:
            changed = found.state != "active"
        else:
            record, changed = end(registry, cell, params["restore_id"], params["operator"])
    return answer(outlook, found, record, changed)


def answer(outlook: Outlook, before: CellRecord, record: CellRecord, changed: bool) -> dict[str, t.Any]:
    return {
        "changed": changed,
        "restore_id": outlook.id,
        "resumed": outlook.resumed,
        "from_region": outlook.source,
        "repository_host": outlook.repository,
        "problems": outlook.problems,
        "record": {"home": record.home, "epoch": record.epoch, "state": record.state, "revision": record.revision},
        "diff": {
            "before": f"{before.cell}: {before.state}\n",
            "after": f"{record.cell}: {record.state}\n",
        },
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "endpoints": {"type": "list", "elements": "str", "required": True},
            "cell": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["looked", "begun", "ended"], "default": "looked"},
            "store": {"type": "str", "default": "all"},
            "to": {"type": "str", "default": "latest"},
            "from_region": {"type": "str", "default": ""},
            "repositories": {"type": "dict", "default": {}},
            "running": {"type": "list", "elements": "str", "default": []},
            "stop_writes": {"type": "bool", "default": False},
            "anew": {"type": "bool", "default": False},
            "restore_id": {"type": "str", "default": ""},
            "reason": {"type": "str", "default": ""},
            "operator": {"type": "str", "default": "restore.yml"},
            "timeout": {"type": "float", "default": 3},
            **TLS_ARGUMENTS,
        },
        required_if=[("state", "ended", ("restore_id",))],
        supports_check_mode=True,
    )
    try:
        found = work(module.params, module.check_mode)
    except ResilienceError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**found)


if __name__ == "__main__":
    main()
