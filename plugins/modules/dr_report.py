#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: dr_report
short_description: Write the report on a move of a cell's home, a restore, or a verification of backups
version_added: "0.1.0"
description:
  - Compares what a failover or a switchover measured with what was promised, and writes one HTML page, which needs no
    network and no script, and the same as JSON.
  - The files are named after the move's start, its kind and its cell, as in V(20260102T030405Z-failover-main.html), so
    that the report on the same move replaces itself.
  - A move that failed or was refused gets its report as well; what is not known of it may be left out.
  - Run it on the controller.
options:
  move:
    description:
      - What happened. C(cell) and C(kind) (V(failover), V(switchover), V(automatic) or V(restore)) must be there.
      - All else is optional; C(from), C(to), C(epoch_before), C(epoch), C(operator), C(reason), C(started_at) (ISO
        8601), C(outcome) (V(done), V(refused), V(failed) or V(planned)), C(error), C(overrides), C(phases), C(gates),
        C(lag_before), C(rto_seconds), C(rpo), C(verified) and C(versions).
      - Without C(started_at) the files are named after the present time, so that each run makes new ones.
      - Either this or O(verifications).
    type: dict
  verifications:
    description: What C(shannon-backup verify --json) said on all hosts; makes a report on a verification of backups.
    type: list
    elements: dict
  silent:
    description: With O(verifications), hosts that said nothing, and why.
    type: dict
    default: {}
  started_at:
    description: With O(verifications), when it began (ISO 8601).
    type: str
    default: ""
  objectives:
    description:
      - The content of C(config/objectives.yml); RTO and RPO in seconds for each kind of move.
      - Without it what was measured gets no verdict.
    type: dict
    default: {}
  steps_file:
    description:
      - The file of the callback plugin P(shannon.resilience.timeline#callback), whose steps the page draws.
      - Steps that ended more than a minute before the move started are left out, as those of an earlier run.
      - Without the file the page shows the phases only.
    type: path
  versions:
    description: More versions for the page, beside those that C(move.versions) has; component to version.
    type: dict
    default: {}
  dest:
    description: Folder of the reports; it is made with mode 0700 when it is missing. The files get mode 0600.
    type: path
    required: true
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
- name: Write the report
  shannon.resilience.dr_report:
    move: "{{ moved.move }}"
    objectives: "{{ lookup('ansible.builtin.file', 'config/objectives.yml') | from_yaml }}"
    steps_file: "{{ lookup('ansible.builtin.env', 'SHANNON_TIMELINE_FILE') or omit }}"
    dest: "{{ inventory_dir }}/.reports"
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
html:
  description: Path of the page.
  returned: success
  type: str
json:
  description: Path of the same as JSON; the move, and C(verdicts), C(objectives) and C(steps).
  returned: success
  type: str
lines:
  description: A sentence for each backup.
  returned: with O(verifications)
  type: list
  elements: str
passed:
  description: Whether every backup gave what its manifest says.
  returned: with O(verifications)
  type: bool
verdicts:
  description: What was measured, beside what was promised; empty with O(verifications).
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: V(RTO) or V(RPO).
      type: str
    target:
      description: The objective in seconds; null when there is none.
      type: float
    measured:
      description: What was measured, in seconds; null when it was not measured.
      type: float
    met:
      description: Whether the objective was met; null when one of both is not known.
      type: bool
"""

import json
import os
import re
import stat
import typing as t
from datetime import datetime, timezone

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils import backup_report
from ansible_collections.shannon.resilience.plugins.module_utils import files as disk
from ansible_collections.shannon.resilience.plugins.module_utils.move_report import KINDS, document, moment, render

MODE = 0o600
_CELL_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")


def read_steps(path: str) -> list[dict[str, t.Any]]:
    """The steps in a file of JSON lines; a line that a killed run left half written is passed over."""
    steps = []
    with open(path, encoding="utf-8", errors="replace") as handle:
        for line in handle:
            try:
                step = json.loads(line)
            except ValueError:
                continue
            if isinstance(step, dict):
                steps.append(step)
    return steps


def is_there(path: str, content: bytes) -> bool:
    """Whether the file is what it should be already."""
    try:
        with open(path, "rb") as handle:
            return stat.S_IMODE(os.fstat(handle.fileno()).st_mode) == MODE and handle.read() == content
    except FileNotFoundError:
        return False


def keep(
    module: AnsibleModule, start: datetime | None, name: str, found: dict[str, t.Any], page: str
) -> dict[str, t.Any]:
    """Write a report as a page and as JSON; returns where they are."""
    folder = os.path.abspath(module.params["dest"])
    stamp = (start or datetime.now(timezone.utc)).strftime("%Y%m%dT%H%M%SZ")
    base = os.path.join(folder, f"{stamp}-{name}")
    wanted = {
        f"{base}.json": json.dumps(found, indent=2).encode() + b"\n",
        f"{base}.html": page.encode("utf-8", "xmlcharrefreplace"),
    }
    try:
        stale = [path for path, content in wanted.items() if not is_there(path, content)]
        if stale and not module.check_mode:
            disk.make_folders(folder, mode=0o700)
            for path in stale:
                disk.write(path, wanted[path], MODE)
    except OSError as exc:
        module.fail_json(
            msg=f"cannot write the report into {folder}: {exc.filename or ''} {exc.strerror or exc}. Does the folder "
            "belong to you, and is there room?"
        )
    return {"changed": bool(stale), "html": f"{base}.html", "json": f"{base}.json"}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "move": {"type": "dict"},
            "verifications": {"type": "list", "elements": "dict"},
            "silent": {"type": "dict", "default": {}},
            "started_at": {"type": "str", "default": ""},
            "objectives": {"type": "dict", "default": {}},
            "steps_file": {"type": "path"},
            "versions": {"type": "dict", "default": {}},
            "dest": {"type": "path", "required": True},
        },
        required_one_of=[("move", "verifications")],
        mutually_exclusive=[("move", "verifications")],
        supports_check_mode=True,
    )
    params = module.params
    if params["verifications"] is not None:
        found = backup_report.verification(
            params["verifications"], params["silent"], params["started_at"], params["objectives"]
        )
        start = moment(params["started_at"])
        written = keep(module, start, "verification-backups", found, backup_report.render(found))
        module.exit_json(**written, verdicts=[], lines=backup_report.lines(found), passed=found["passed"])
    move = params["move"]
    # Both become part of a file's name.
    cell, kind = move.get("cell"), move.get("kind")
    if not isinstance(cell, str) or not _CELL_NAME.fullmatch(cell):
        module.fail_json(msg=f"move.cell is {cell!r}; expected the name of a cell, as the topology has it.")
    if kind not in KINDS:
        module.fail_json(msg=f"move.kind is {kind!r}; expected one of {', '.join(KINDS)}.")
    start = moment(move.get("started_at"))
    if start is None and move.get("started_at"):
        module.fail_json(
            msg=f"move.started_at is {move['started_at']!r}; expected a time such as 2026-01-02T03:04:05Z."
        )

    steps: list[dict[str, t.Any]] = []
    if params["steps_file"]:
        try:
            steps = read_steps(params["steps_file"])
        except OSError as exc:
            # A report without the steps is worth more than none.
            module.warn(f"the report goes without the playbook's steps: {params['steps_file']}: {exc.strerror or exc}")

    seen = move.get("versions")
    versions = {**(seen if isinstance(seen, dict) else {}), **params["versions"]}
    if versions:
        move = {**move, "versions": versions}
    found = document(move, params["objectives"], steps)
    written = keep(module, start, f"{kind}-{cell}", found, render(found))
    module.exit_json(**written, verdicts=found["verdicts"])


if __name__ == "__main__":
    main()
