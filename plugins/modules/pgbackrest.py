#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pgbackrest
short_description: Physical backups of a cell's PostgreSQL with pgBackRest
version_added: "0.1.0"
description:
  - Makes the stanza of a cell, takes backups, applies the retention, verifies a repository, tells what is in it, and
    restores a data folder to a time, a position, a name or the latest, without touching the cell.
  - A restore's target is checked against backups, archived ranges and timelines before anything is written.
  - A backup or a restore that was killed is gone on with by the next run.
  - Run it as the user that owns the repository, or, for V(query), V(restored) and V(recovered), as C(postgres) on a
    host of PostgreSQL.
requirements:
  - pgBackRest, configured by role backup
options:
  stanza:
    description: The cell.
    type: str
    required: true
  state:
    description:
      - V(query) only tells what the repository holds, and whether O(target) can be reached.
      - V(present) has the stanza made. Where the repository holds the backups of another system, RV(mismatch) says
        so, and nothing is changed unless O(upgrade) allows it. One that was made for another system and has no backup
        yet goes on with the present one.
      - V(checked) has PostgreSQL close a WAL segment and waits until it is in the repository.
      - V(backed_up) makes a backup, unless one is there that is younger than O(max_age).
      - V(expired) removes what the retention does not keep.
      - V(verified) reads the whole repository, and fails when something is wrong.
      - V(restored) fills the folder O(into); nothing runs there.
      - V(recovered) does that, and then runs a PostgreSQL there, closed to everybody, until it has reached O(target);
        then it is stopped cleanly, and the folder is ready to take a cell's place. A folder that is ready already for
        the same target is left as it is.
    type: str
    choices: [query, present, checked, backed_up, expired, verified, restored, recovered]
    default: query
  upgrade:
    description:
      - With O(state=present), let the repository go on with another system than the one that it has backups of, as
        after an upgrade of PostgreSQL. A cell that was built anew to be restored into must not; it fits again then.
    type: bool
    default: false
  kind:
    description: With O(state=backed_up), the kind of backup. The first one of a repository is full whatever is said.
    type: str
    choices: [full, diff, incr]
    default: diff
  max_age:
    description: With O(state=backed_up), seconds; 0 always makes one.
    type: int
    default: 0
  target:
    description:
      - Where a restore goes. V(latest); V(time:2026-01-31 12:00:00+00), also without V(time:); V(lsn:16/B374D848);
        V(name:...), a restore point; V(backup:...), the end of that backup.
    type: str
    default: latest
  timeline:
    description: V(latest), or the number of a timeline that was left, to reach what a failover or a restore cut off.
    type: str
    default: latest
  exclusive:
    description: Stop just before the target. A manifest's position wants that.
    type: bool
    default: false
  label:
    description: The backup to start from; empty takes the newest that can do it.
    type: str
    default: ""
  into:
    description: With O(state=restored) and O(state=recovered), the folder.
    type: path
  system_id:
    description: With O(state=recovered), the system identifier that the folder must have; empty accepts any.
    type: str
    default: ""
  config:
    description: pgBackRest's configuration.
    type: path
    default: /etc/pgbackrest/repository.conf
  repo:
    description: Number of the repository; V(0) is the only one in O(config).
    type: int
    default: 0
  work:
    description: Folder for short-lived configurations; empty takes the system's own.
    type: path
    default: ""
  processes:
    description: Processes of a restore.
    type: int
    default: 2
  timeout:
    description: Seconds that one command, or a recovery, may take.
    type: int
    default: 86400
attributes:
  check_mode:
    description: Can run in check mode; targets are checked all the same, since that changes nothing.
    support: full
  diff_mode:
    description: Shows the backups before and after.
    support: full
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Have a backup that is not older than a day
  shannon.resilience.pgbackrest:
    stanza: main
    state: backed_up
    kind: diff
    max_age: 86400
  become: true
  become_user: shannon-backup

- name: Bring a data folder to the second before a mishap, beside the cell's own
  shannon.resilience.pgbackrest:
    stanza: main
    state: recovered
    config: /etc/pgbackrest/pgbackrest.conf
    repo: 2
    target: "2026-01-31 12:00:00+00"
    into: /var/lib/shannon/postgres/main/restore-1/data
  become: true
  become_user: postgres
"""

RETURN = r"""
backups:
  description: The backups in the repository, the oldest first.
  returned: success
  type: list
  elements: dict
archive:
  description: Ranges of WAL without a gap.
  returned: success
  type: list
  elements: dict
mismatch:
  description: That the repository belongs to another system than the cell runs now; empty when it fits.
  returned: when state is present
  type: str
problem:
  description: Why O(target) can't be reached; empty when it can.
  returned: when state is query
  type: str
backup:
  description: The backup that was made, or restored from.
  returned: when one was
  type: dict
problems:
  description: What is wrong with the repository.
  returned: when state is verified
  type: list
  elements: str
recovered:
  description: Position, timeline, system identifier and seconds of the recovered folder.
  returned: when state is recovered
  type: dict
"""

import json
import pathlib
import time
import typing as t
from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.files import write
from ansible_collections.shannon.resilience.plugins.module_utils.pgbackrest import PgBackRest
from ansible_collections.shannon.resilience.plugins.module_utils.postgres_engine import (
    RepositoryInfo,
    RestoreTarget,
    choose_backup,
    target_problem,
)
from ansible_collections.shannon.resilience.plugins.module_utils.postgres_scratch import (
    ScratchPostgres,
    staged_matches,
)

#: Beside a staged data folder: which target it was recovered to. Whoever finds it need not do it again.
NOTE = ".recovered.json"


def told(info: RepositoryInfo) -> dict[str, t.Any]:
    return {
        "backups": [asdict(backup) for backup in info.backups],
        "archive": [asdict(part) for part in info.ranges],
    }


def labels(info: RepositoryInfo) -> str:
    return "".join(f"{backup.label}\n" for backup in info.backups)


def recover(
    params: dict[str, t.Any], engine: PgBackRest, info: RepositoryInfo, target: RestoreTarget
) -> dict[str, t.Any]:
    """Restore and recover into a folder, once; what it became."""
    into = params["into"]
    began = time.monotonic()
    scratch = ScratchPostgres(into, f"{into}.run", fsync=True)
    scratch.stop_left_behind()
    backup = engine.restore(target, into, info)
    copied = time.monotonic()
    with scratch:
        scratch.recover(target, info.archive_ended_at, params["timeout"])
        lsn = scratch.query("SELECT pg_current_wal_insert_lsn()")[0][0]
        scratch.stop()
        problem = staged_matches(scratch.control(), params["system_id"])
        if problem:
            raise ResilienceError(f"{into} must not take the cell's place: {problem}")
        scratch.finish()
    facts = {
        "target": params["target"],
        "timeline_wanted": params["timeline"],
        "backup": asdict(backup),
        "lsn": lsn,
        "timeline": int(scratch.control()["Latest checkpoint's TimeLineID"]),
        "system_id": scratch.control()["Database system identifier"],
        "copy_seconds": round(copied - began, 1),
        "recovery_seconds": round(time.monotonic() - copied, 1),
    }
    write(into + NOTE, json.dumps(facts).encode(), 0o600)
    return facts


def recovered_already(params: dict[str, t.Any]) -> dict[str, t.Any] | None:
    try:
        facts = json.loads(pathlib.Path(params["into"] + NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = facts.get("target") == params["target"] and facts.get("timeline_wanted") == params["timeline"]
    return facts if same and (pathlib.Path(params["into"]) / "PG_VERSION").exists() else None


def main() -> None:
    states = ["query", "present", "checked", "backed_up", "expired", "verified", "restored", "recovered"]
    module = AnsibleModule(
        argument_spec={
            "stanza": {"type": "str", "required": True},
            "state": {"type": "str", "choices": states, "default": "query"},
            "upgrade": {"type": "bool", "default": False},
            "kind": {"type": "str", "choices": ["full", "diff", "incr"], "default": "diff"},
            "max_age": {"type": "int", "default": 0},
            "target": {"type": "str", "default": "latest"},
            "timeline": {"type": "str", "default": "latest"},
            "exclusive": {"type": "bool", "default": False},
            "label": {"type": "str", "default": ""},
            "into": {"type": "path"},
            "system_id": {"type": "str", "default": ""},
            "config": {"type": "path", "default": "/etc/pgbackrest/repository.conf"},
            "repo": {"type": "int", "default": 0},
            "work": {"type": "path", "default": ""},
            "processes": {"type": "int", "default": 2},
            "timeout": {"type": "int", "default": 86400},
        },
        required_if=[("state", "restored", ["into"]), ("state", "recovered", ["into"])],
        supports_check_mode=True,
    )
    params, state = module.params, module.params["state"]
    result: dict[str, t.Any] = {"changed": False}
    try:
        if state == "present" and module.check_mode and not pathlib.Path(params["config"]).exists():
            module.exit_json(changed=True)
        engine = PgBackRest(
            params["stanza"], params["config"], params["repo"], params["timeout"], params["work"], params["processes"]
        )
        if state == "present":
            result["changed"], result["mismatch"] = present(engine, params["upgrade"], module.check_mode)
            if result["mismatch"]:
                module.warn(result["mismatch"])
            module.exit_json(**result)
        target = RestoreTarget.parse(params["target"], params["timeline"], params["label"])
        if params["exclusive"]:
            target = RestoreTarget(target.kind, target.value, target.timeline, True, target.label)
        if state == "recovered" and (facts := recovered_already(params)):
            module.exit_json(changed=False, recovered=facts, backup=facts["backup"])
        info = engine.info()
        result.update(told(info))
        if state == "query":
            result["problem"] = target_problem(info, target)
        elif state == "checked":
            if not module.check_mode:
                engine.check()
        elif state == "verified":
            result["problems"] = [] if module.check_mode else engine.verify()
            if result["problems"]:
                module.fail_json(msg=f"the repository is damaged: {'; '.join(result['problems'])}", **result)
        elif state == "backed_up":
            newest = info.newest
            if not params["max_age"] or newest is None or time.time() - newest.ended_at > params["max_age"]:
                result["changed"] = True
                if not module.check_mode:
                    result["backup"] = asdict(engine.backup(params["kind"]))
        elif state == "expired":
            if not module.check_mode:
                engine.expire()
        else:
            problem = target_problem(info, target)
            if problem:
                module.fail_json(msg=problem, **result)
            result.update(changed=True, backup=asdict(choose_backup(info, target)))
            if not module.check_mode and state == "restored":
                engine.restore(target, params["into"], info)
            elif not module.check_mode:
                result["recovered"] = recover(params, engine, info, target)
        if state in ("backed_up", "expired") and not module.check_mode:
            after = engine.info()
            result["diff"] = {"before": labels(info), "after": labels(after)}
            result["changed"] = result["changed"] or info.backups != after.backups
            result.update(told(after))
    except ResilienceError as exc:
        result.pop("changed", None)
        module.fail_json(msg=str(exc), **result)
    module.exit_json(**result)


def present(engine: PgBackRest, upgrade: bool, dry_run: bool) -> tuple[bool, str]:
    """Have the stanza made; whether it was not there or was another system's, and what does not fit."""
    try:
        engine.info()
        there = True
    except ResilienceError:
        there = False
    if dry_run:
        return not there, ""
    # Also where it is there: pgBackRest then compares it with the cluster.
    problem = engine.create(upgrade)
    return not there or engine.upgraded, problem


if __name__ == "__main__":
    main()
