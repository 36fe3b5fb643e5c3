#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: move_approval
short_description: Ask for a second person's approval of a move, give it, or wait for it
version_added: "0.1.0"
description:
  - A request lives in the registry for 15 minutes, approved or not, and is for one move of one cell at one epoch by one
    operator. M(shannon.resilience.cell_move) with O(shannon.resilience.cell_move#module:approval=true) moves a cell
    only when exactly that was approved by somebody else.
  - It keeps one person's haste from moving a cell. It is no defence against malice, since an operator says who he is.
options:
  endpoints:
    description: The registry's members, each as HOST:PORT.
    type: list
    elements: str
    required: true
  state:
    description:
      - V(requested) asks for O(moves); the same move by the same operator is asked for once.
      - V(awaited) waits until all of O(moves) are approved.
      - V(approved) approves what is asked for O(cell), V(rejected) takes it away.
      - V(listed) only tells what is asked for O(cells).
    type: str
    choices: [requested, awaited, approved, rejected, listed]
    required: true
  moves:
    description: What M(shannon.resilience.cell_move) planned. A move to where the cell is already needs no approval.
    type: list
    elements: dict
    default: []
  overrides:
    description: The overrides that the moves will be given.
    type: list
    elements: str
    default: []
  cell:
    description: The cell whose request is approved or rejected.
    type: str
  cells:
    description: The cells whose requests are told.
    type: list
    elements: str
    default: []
  id:
    description: The request that is meant; left out, whichever there is.
    type: str
    default: ''
  operator:
    description: Who approves; somebody else than who asked.
    type: str
    default: ''
  wait:
    description: Seconds to wait for an approval.
    type: float
    default: 900
  timeout:
    description: Seconds that one request to the registry may take.
    type: float
    default: 2
extends_documentation_fragment:
  - shannon.resilience.tls
attributes:
  check_mode:
    description: Can run in check mode; nothing is asked for, approved or rejected then, and nothing is waited for.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Approve what is asked for
  shannon.resilience.move_approval:
    endpoints: ["192.0.2.1:12379", "192.0.2.2:12379", "192.0.2.3:12379"]
    state: approved
    cell: main
    operator: bob
"""

RETURN = r"""
approvals:
  description:
    - What is asked for, each with C(cell), C(kind), C(home), C(target), C(epoch), C(operator), C(reason), C(overrides),
      C(id), C(at), C(expires_at), C(approved_by) (empty until somebody did), C(approved_at), and C(text), the same as
      a sentence.
  returned: success
  type: list
  elements: dict
"""

import typing as t
from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.etcd import EtcdClient
from ansible_collections.shannon.resilience.plugins.module_utils.move_approval import Approval, Approvals
from ansible_collections.shannon.resilience.plugins.module_utils.tls import ARGUMENTS as TLS_ARGUMENTS
from ansible_collections.shannon.resilience.plugins.module_utils.tls import client_context, files_of


def wanted(params: dict[str, t.Any]) -> list[Approval]:
    """What the planned moves need."""
    return [
        Approval(
            cell=str(move["cell"]),
            kind=str(move["kind"]),
            home=str(move["from"]),
            target=str(move["to"]),
            epoch=int(move["epoch"]),
            operator=str(move["operator"]),
            reason=str(move["reason"]),
            overrides=tuple(sorted(params["overrides"])),
        )
        for move in params["moves"]
        if move.get("from") and move["from"] != move["to"]
    ]


def _asked(there: Approval | None, wanted: Approval) -> Approval:
    """The request for a move; the move itself, which nobody can approve, when there is none."""
    return there if there is not None and there.is_for(wanted) else wanted


def act(params: dict[str, t.Any], approvals: Approvals, check_mode: bool) -> tuple[bool, list[Approval]]:
    """Do what is wanted; whether anything changed, and the requests."""
    state = params["state"]
    if state in ("requested", "awaited"):
        moves = wanted(params)
        before = {one.cell: approvals.find(one.cell) for one in moves}
        if check_mode:
            return False, [before[one.cell] or one for one in moves]
        if state == "awaited":
            # What was rejected since it was asked for is not asked for again.
            return False, [approvals.wait(_asked(before[one.cell], one), params["wait"]) for one in moves]
        asked = [approvals.request(one) for one in moves]
        return any(before[one.cell] != one for one in asked), asked
    if state == "listed":
        return False, [found for cell in params["cells"] if (found := approvals.find(cell))]
    there = approvals.find(params["cell"])
    if check_mode:
        return there is not None, [there] if there else []
    if state == "rejected":
        return True, [approvals.reject(params["cell"], params["id"])]
    given = approvals.approve(params["cell"], params["operator"], params["id"])
    return given != there, [given]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "endpoints": {"type": "list", "elements": "str", "required": True},
            "state": {
                "type": "str",
                "required": True,
                "choices": ["requested", "awaited", "approved", "rejected", "listed"],
            },
            "moves": {"type": "list", "elements": "dict", "default": []},
            "overrides": {"type": "list", "elements": "str", "default": []},
            "cell": {"type": "str"},
            "cells": {"type": "list", "elements": "str", "default": []},
            "id": {"type": "str", "default": ""},
            "operator": {"type": "str", "default": ""},
            "wait": {"type": "float", "default": 900},
            "timeout": {"type": "float", "default": 2},
            **TLS_ARGUMENTS,
        },
        required_if=[("state", "approved", ("cell", "operator")), ("state", "rejected", ("cell",))],
        supports_check_mode=True,
    )
    params = module.params
    tls = files_of(params)
    try:
        client = EtcdClient(params["endpoints"], client_context(tls), params["timeout"], name="the registry")
        changed, found = act(params, Approvals(client), module.check_mode)
    except ResilienceError as exc:
        module.fail_json(msg=str(exc), approvals=[])
    shown = [{**asdict(one), "text": one.describe()} for one in found]
    module.exit_json(changed=changed, approvals=shown)


if __name__ == "__main__":
    main()
