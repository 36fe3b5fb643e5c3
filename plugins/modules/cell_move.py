#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cell_move
short_description: Move cells to another region, as one and once
version_added: "0.1.0"
description:
  - Looks at the whole topology, judges the rules that a move must pass, swaps each cell's record in the registry by
    compare-and-swap, and follows what the region agents make of it until a task is taken and done through every edge.
  - A switchover first has the edges hold new requests and lets what is under way end, so that nothing is lost and no
    request fails. A failover leaves a home that is lost.
  - Safe to run again after it was killed at any point. Of two at once one wins, and the other says who moves the cell.
  - Nothing is changed when a rule stands in the way, unless the rule's override is given; an override is recorded in
    the registry's history.
  - Run it on one host of the topology, with the host's certificate; best on the witness.
options:
  topology:
    description: What M(shannon.resilience.topology) derived.
    type: dict
    required: true
  kind:
    description: V(failover) leaves a home that is lost, V(switchover) one that serves.
    type: str
    choices: [failover, switchover]
    required: true
  cells:
    description:
      - The cells to move. Left out, a failover moves every cell whose home is lost.
      - A switchover must name them.
    type: list
    elements: str
    default: []
  to:
    description: The region to move to; left out, it is the standby that has most of the cell.
    type: str
    default: ''
  reason:
    description: Why, for the history.
    type: str
    required: true
  operator:
    description: Who, for the history.
    type: str
    required: true
  plan:
    description: Only look and judge; nothing is changed. Check mode does the same.
    type: bool
    default: false
  approval:
    description:
      - Only move a cell when somebody else than O(operator) approved exactly that with
        M(shannon.resilience.move_approval). What an earlier run swapped already needs no approval.
    type: bool
    default: false
  overrides:
    description:
      - Rules that do not stand in the way.
      - V(accept_other_move), somebody else moves the cell; that one's move ends. V(accept_healthy_home), the home
        region looks healthy (failover). V(accept_unwell_home), it does not (switchover). V(accept_target), the target
        has no standby leader. V(accept_agents), most of its agents do not answer. V(accept_lag), the target is further
        behind than O(lag_seconds) or O(lag_bytes). V(accept_capacity), too little of the target runs.
        V(accept_certificates), one expires within O(certificate_days). V(accept_cooldown), the last move is younger
        than O(cooldown).
    type: list
    elements: str
    choices:
      - accept_other_move
      - accept_healthy_home
      - accept_unwell_home
      - accept_target
      - accept_agents
      - accept_lag
      - accept_capacity
      - accept_certificates
      - accept_cooldown
    default: []
  lag_seconds:
    description: How far the target of a failover may be behind, in seconds; the RPO target.
    type: float
    default: 5
  lag_bytes:
    description: How far the target of a switchover may be behind when it begins, in bytes.
    type: int
    default: 67108864
  cooldown:
    description: Seconds between two moves of a cell.
    type: float
    default: 30
  certificate_days:
    description: Days that the first certificate to expire must have left.
    type: int
    default: 1
  verify_timeout:
    description: Seconds that the synthetic task through the edges may take after the promotion.
    type: float
    default: 30
  migrations:
    description: As for M(shannon.resilience.cell_validate), which is done after the move.
    type: dict
    default: {}
  collections:
    description: As for M(shannon.resilience.cell_validate), which is done after the move.
    type: dict
    default: {}
  validate_timeout:
    description:
      - Seconds within which all checks of M(shannon.resilience.cell_validate) must have passed after the move; V(0)
        leaves them out.
      - The move is done whatever they say, and what they say is no part of the RTO.
    type: float
    default: 10
  timeout:
    description:
      - Seconds that one endpoint may take to answer while it is looked at. Before a move is refused everybody is asked
        once more and has three seconds, so that a busy host is not taken for a dead one.
    type: float
    default: 1
  redis_password:
    description: Password of the Redis user C(monitor).
    type: str
    required: true
  qdrant_api_key:
    description: A key of Qdrant that may read.
    type: str
    required: true
  api_key:
    description: An API key of the gateways, for the synthetic task.
    type: str
    required: true
extends_documentation_fragment:
  - shannon.resilience.tls
attributes:
  check_mode:
    description: Can run in check mode; that is O(plan=true).
    support: full
  diff_mode:
    description: Shows each cell's record before and after.
    support: full
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Leave a region that is lost
  shannon.resilience.cell_move:
    topology: "{{ shannon_topology }}"
    kind: failover
    to: b
    reason: region a has no power
    operator: "{{ lookup('ansible.builtin.env', 'USER') }}"
    redis_password: "{{ shannon_secrets.redis_monitor }}"
    qdrant_api_key: "{{ shannon_secrets.qdrant_read_only_api_key }}"
    api_key: "{{ shannon_secrets.gateway_api_key }}"
"""

RETURN = r"""
moves:
  description: One entry for each cell, in the shape that M(shannon.resilience.dr_report) takes.
  returned: always
  type: list
  elements: dict
  contains:
    cell:
      description: Name of the cell.
      type: str
    kind:
      description: V(failover) or V(switchover).
      type: str
    from:
      description: The home before.
      type: str
    to:
      description: The region it was to move to.
      type: str
    outcome:
      description: V(done), V(refused), V(failed) or V(planned).
      type: str
    error:
      description: Why it was refused or failed, and what to do.
      type: str
    epoch:
      description: The cell's epoch afterwards.
      type: int
    gates:
      description:
        - Each rule's verdict, with C(name), C(title), C(passed), C(seen), C(allowed), C(override), C(overridden).
      type: list
      elements: dict
    phases:
      description: Each phase's C(name), C(begin) and C(end), in seconds since the start, and a C(note).
      type: list
      elements: dict
    rto_seconds:
      description:
        - Seconds from the start, in a switchover from the moment in which clients began to wait, to the first task.
      type: float
    rpo:
      description:
        - What was lost, C(seconds) and C(bytes) as far as they are known, with a C(text). C(stores) has for each store
          C(seconds), C(markers) and a C(note); they are not known when nobody wrote markers.
      type: dict
    approved_by:
      description: Who approved it, when O(approval=true).
      type: str
    validation:
      description:
        - What M(shannon.resilience.cell_validate) found in the new home, as C(passed) and C(checks), with the rows
          compared with what its PostgreSQL had before.
      type: dict
    lag_before:
      description: How far the target was behind, in C(bytes) and C(seconds).
      type: dict
skipped_cells:
  description: Cells that a failover without O(cells) left alone, and why.
  returned: always
  type: dict
"""

import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils.cell_probe import Probe
from ansible_collections.shannon.resilience.plugins.module_utils.cell_validation import Expected
from ansible_collections.shannon.resilience.plugins.module_utils.cell_validator import Validator
from ansible_collections.shannon.resilience.plugins.module_utils.concurrently import gather
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.etcd import EtcdClient
from ansible_collections.shannon.resilience.plugins.module_utils.given_up import GivenUp
from ansible_collections.shannon.resilience.plugins.module_utils.move_approval import Approvals
from ansible_collections.shannon.resilience.plugins.module_utils.move_gates import OVERRIDES, Limits
from ansible_collections.shannon.resilience.plugins.module_utils.move_world import Deployment, NoStandby, best_standby
from ansible_collections.shannon.resilience.plugins.module_utils.mover import FAILOVER, Mover, Request
from ansible_collections.shannon.resilience.plugins.module_utils.registry import (
    ENTERING,
    TAKING_OVER,
    CellRecord,
    Registry,
)
from ansible_collections.shannon.resilience.plugins.module_utils.tls import ARGUMENTS as TLS_ARGUMENTS
from ansible_collections.shannon.resilience.plugins.module_utils.tls import client_context, files_of


def choose(
    module: AnsibleModule, records: dict[str, CellRecord], world: Deployment, approved: dict[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Cells to move with their targets, and cells that are left alone with the reason.

    :param approved: cell to the region that a move to was approved for.
    :raises ResilienceError: a cell or region that does not exist was named.
    """
    params = module.params
    regions = params["topology"]["regions"]
    if params["to"] and params["to"] not in regions:
        raise ResilienceError(
            f"'{params['to']}' is no region of this inventory ({', '.join(regions)}); nothing was changed"
        )
    unknown = [name for name in params["cells"] if name not in records]
    if unknown:
        raise ResilienceError(
            f"the registry does not know {', '.join(unknown)}; it knows {', '.join(sorted(records)) or 'no cell'}. "
            "Nothing was changed"
        )
    if not params["cells"] and params["kind"] != FAILOVER:
        raise ResilienceError("a switchover must say which cells to move, such as -e cell=main; nothing was changed")
    info = world.info()
    chosen: dict[str, str] = {}
    left: dict[str, str] = {}
    for name in params["cells"] or sorted(records):
        home = records[name].home
        if not params["to"] and records[name].state in (ENTERING, TAKING_OVER):
            chosen[name] = home  # an earlier run swapped it: that one is seen through
            continue
        writers = [one for one in info["cells"][name]["postgres"][home]["members"] if one["role"] == "primary"]
        if not params["cells"] and writers:
            left[name] = f"its home {home} has a primary"
        else:
            chosen[name] = params["to"] or approved.get(name) or best_standby(info["cells"][name], home, regions)
    return chosen, left


def choose_patiently(
    module: AnsibleModule, records: dict[str, CellRecord], world: Deployment, approved: dict[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """As C(choose), but a standby that is only busy is not overlooked."""
    try:
        return choose(module, records, world, approved)
    except NoStandby:
        world.be_patient()
        return choose(module, records, world, approved)


def run(module: AnsibleModule) -> dict[str, t.Any]:
    """Move the cells."""
    began = time.monotonic()
    params = module.params
    topology = params["topology"]
    tls = files_of(params)
    probe = Probe(topology, tls, "monitor", params["redis_password"], params["qdrant_api_key"], params["timeout"])
    ahead = [params["to"]] if params["to"] in topology["regions"] else topology["regions"]
    world = Deployment(topology, tls, probe, params["api_key"], params["timeout"], ahead)
    port = topology["ports"]["registry_client"]
    members = [host for hosts in topology["components"]["registry"].values() for host in hosts]
    endpoints = [{"host": topology["hosts"][host]["address"], "port": port} for host in members]
    client = EtcdClient(endpoints, client_context(tls), 2.0, name="the registry", given_up=GivenUp())
    both = gather({"records": Registry(client).records, "info": world.info})
    records = both["records"]
    if isinstance(records, ResilienceError):
        raise records
    approved: dict[str, str] = {}
    if params["approval"]:
        found = {cell: Approvals(client).find(cell) for cell in params["cells"]}
        approved = {cell: it.target for cell, it in found.items() if it and it.approved_by}
    chosen, left = choose_patiently(module, t.cast("dict[str, CellRecord]", records), world, approved)
    limits = Limits(params["lag_seconds"], params["lag_bytes"], params["cooldown"], params["certificate_days"])

    expected = Expected(params["migrations"], params["collections"])
    expected.versions()  # a migration that can't be read is told before anything is changed
    within = params["validate_timeout"]
    validator = Validator(topology, tls, params["qdrant_api_key"], expected, within=within) if within else None

    def mover(cell: str) -> t.Callable[[], dict[str, t.Any]]:
        request = Request(
            cell=cell,
            target=chosen[cell],
            kind=params["kind"],
            reason=params["reason"],
            operator=params["operator"],
            plan=params["plan"] or module.check_mode,
            overrides=tuple(params["overrides"]),
            limits=limits,
            verify_within=params["verify_timeout"],
            approval=params["approval"],
            began=began,
        )
        return lambda: Mover(client, world, request, validator).run()

    moves = list(gather({cell: mover(cell) for cell in chosen}).values())
    before = "".join(f"{name}: {record.describe()}\n" for name, record in sorted(records.items()))
    after = before
    for move in t.cast("list[dict[str, t.Any]]", moves):
        name = move["cell"]
        if move["outcome"] == "planned" or (move["changed"] and move["epoch"] != move["epoch_before"]):
            old = f"{name}: {records[name].describe()}\n"
            epoch = move["epoch"] + (1 if move["outcome"] == "planned" and move["from"] != move["to"] else 0)
            after = after.replace(old, f"{name}: home {move['to']}, epoch {epoch}, state active\n")
    return {"moves": moves, "skipped_cells": left, "diff": {"before": before, "after": after}}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "topology": {"type": "dict", "required": True},
            "kind": {"type": "str", "required": True, "choices": ["failover", "switchover"]},
            "cells": {"type": "list", "elements": "str", "default": []},
            "to": {"type": "str", "default": ""},
            "reason": {"type": "str", "required": True},
            "operator": {"type": "str", "required": True},
            "plan": {"type": "bool", "default": False},
            "approval": {"type": "bool", "default": False},
            "overrides": {"type": "list", "elements": "str", "default": [], "choices": list(OVERRIDES)},
            "lag_seconds": {"type": "float", "default": 5},
            "lag_bytes": {"type": "int", "default": 64 * 2**20},
            "cooldown": {"type": "float", "default": 30},
            "certificate_days": {"type": "int", "default": 1},
            "verify_timeout": {"type": "float", "default": 30},
            "migrations": {"type": "dict", "default": {}},
            "collections": {"type": "dict", "default": {}},
            "validate_timeout": {"type": "float", "default": 10},
            "timeout": {"type": "float", "default": 1},
            "redis_password": {"type": "str", "required": True, "no_log": True},
            "qdrant_api_key": {"type": "str", "required": True, "no_log": True},
            "api_key": {"type": "str", "required": True, "no_log": True},
            **TLS_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    try:
        found = run(module)
    except ResilienceError as exc:
        module.fail_json(msg=str(exc), moves=[], skipped_cells={})
    wrong = [move for move in found["moves"] if move["outcome"] not in ("done", "planned")]
    changed = any(move["changed"] for move in found["moves"])
    if wrong:
        text = "\n".join(f"cell {move['cell']}: {move['error']}" for move in wrong)
        module.fail_json(msg=text, changed=changed, **found)
    module.exit_json(changed=changed, **found)


if __name__ == "__main__":
    main()
