#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: restic_snapshot
short_description: Have a restic repository, back up into it, look at it, check it and restore from it
version_added: "0.1.0"
description:
  - A thin module over restic, through an append-only server or on a path.
  - Passwords reach restic by its environment only, the client's certificate by a descriptor.
  - A repository that O(password) does not open is an error, never made anew.
options:
  state:
    description:
      - V(initialized) makes the repository if there is none.
      - V(present) backs up O(paths) as a new snapshot; with O(unless_newer_than), only if there is none that young.
      - V(restored) restores the newest snapshot with O(tags), or O(snapshot), below O(into). What a run that ended well
        has restored from the same snapshot is not restored again.
      - V(checked) checks the repository, and reads O(read_data_subset) of its data.
      - V(shown) only lists snapshots.
    type: str
    choices: [initialized, present, restored, checked, shown]
    default: shown
  name:
    description: What the repository is called in messages; the region's name.
    type: str
    required: true
  url:
    description: C(rest:https://HOST:PORT/), or a folder.
    type: str
    required: true
  password:
    description: What the repository is encrypted with.
    type: str
    required: true
  username:
    description: User of the server.
    type: str
    default: ''
  http_password:
    description: The server's password of O(username).
    type: str
    default: ''
  paths:
    description: What to back up.
    type: list
    elements: path
    default: []
  tags:
    description: Tags of a new snapshot, or that a snapshot must have.
    type: list
    elements: str
    default: []
  host:
    description: Host name of a new snapshot; empty for this host's.
    type: str
    default: ''
  unless_newer_than:
    description: Seconds; a snapshot with O(tags) that is younger is enough. 0 always makes a new one.
    type: int
    default: 0
  snapshot:
    description: Id of the snapshot to restore; empty for the newest with O(tags).
    type: str
    default: ''
  into:
    description: Folder to restore into; files keep their paths below it.
    type: path
  read_data_subset:
    description: Part of the data to read at a check, as restic takes it; empty for none.
    type: str
    default: ''
  timeout:
    description: Seconds for each of restic's runs.
    type: int
    default: 3600
extends_documentation_fragment:
  - shannon.resilience.tls
attributes:
  check_mode:
    description: Can run in check mode; a repository that can't be reached counts as one to be made.
    support: full
  diff_mode:
    description: Shows what is made.
    support: full
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Have the repository
  shannon.resilience.restic_snapshot:
    state: initialized
    name: a
    url: rest:https://192.0.2.3:8433/
    username: backup
    http_password: "{{ restic_http_a }}"
    password: "{{ restic_a }}"
"""

RETURN = r"""
snapshots:
  description: Snapshots with the tags, the oldest first, each with id, time, host, tags and paths.
  returned: when O(state) is V(shown), V(present) or V(restored)
  type: list
  elements: dict
snapshot:
  description: Id of the snapshot that was made or restored.
  returned: when O(state) is V(present) or V(restored)
  type: str
bytes_added:
  description: Bytes that the repository had not yet.
  returned: when a snapshot was made
  type: int
"""

import os
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils import files
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.restic import (
    AppendOnly,
    CorruptRepository,
    Repository,
    RepositoryFull,
    RepositoryLocked,
    RepositoryMissing,
    Restic,
    ResticError,
    Snapshot,
    WrongPassword,
)
from ansible_collections.shannon.resilience.plugins.module_utils.tls import ARGUMENTS as TLS_ARGUMENTS

#: Says of a folder which snapshot was restored into it; written last.
MARK = ".shannon-restored"


def described(one: Snapshot) -> dict[str, t.Any]:
    return {
        "id": one.id,
        "time": one.time.isoformat(),
        "host": one.host,
        "tags": list(one.tags),
        "paths": list(one.paths),
    }


def answer(changed: bool, text: str = "", **more: t.Any) -> dict[str, t.Any]:
    after = f"{text}\n" if changed and text else ""
    return {"changed": changed, "diff": {"before": "", "after": after}, **more}


class Runner:
    """One repository and what is wanted of it."""

    def __init__(self, module: AnsibleModule) -> None:
        self.params = module.params
        self.check = module.check_mode
        params = module.params
        remote = params["url"].startswith("rest:")
        self.restic = Restic(
            Repository(
                params["name"],
                params["url"],
                params["password"],
                params["username"],
                params["http_password"],
                params["ca_file"] if remote else "",
                params["cert_file"] if remote else "",
                params["key_file"] if remote else "",
            ),
            timeout=params["timeout"],
        )

    def initialized(self) -> dict[str, t.Any]:
        text = f"repository {self.params['name']}: made"
        if not self.check:
            return answer(self.restic.init(), text)
        try:
            return answer(not self.restic.opens(), text)
        except (AppendOnly, CorruptRepository, RepositoryFull, RepositoryLocked, RepositoryMissing, WrongPassword):
            raise
        except ResticError:
            # In check mode neither the server, nor restic, nor a certificate may be there yet.
            return answer(True, text)

    def present(self) -> dict[str, t.Any]:
        found = self.restic.snapshots(self.params["tags"])
        limit = self.params["unless_newer_than"]
        if limit and found and time.time() - found[-1].time.timestamp() < limit:
            return answer(False, snapshots=[described(one) for one in found], snapshot=found[-1].id)
        text = f"repository {self.params['name']}: snapshot of {', '.join(self.params['paths'])}"
        if self.check:
            return answer(True, text, snapshots=[described(one) for one in found], snapshot="")
        made = self.restic.backup(self.params["paths"], self.params["tags"], self.params["host"])
        found = self.restic.snapshots(self.params["tags"])
        listed = [described(one) for one in found]
        return answer(True, text, snapshots=listed, snapshot=made.id, bytes_added=made.added)

    def restored(self) -> dict[str, t.Any]:
        found = self.restic.snapshots(self.params["tags"])
        wanted = self.params["snapshot"]
        able = [one for one in found if one.id.startswith(wanted)] if wanted else found[-1:]
        if len(able) != 1:
            raise ResilienceError(
                f"the repository {self.params['name']} has {len(able)} snapshots {wanted} with the tags "
                f"{', '.join(self.params['tags']) or '(none)'}; expected one. It has "
                f"{', '.join(one.id[:8] for one in found[-10:]) or 'none at all'}"
            )
        into, one = self.params["into"], able[0]
        mark = os.path.join(into, MARK)
        more = {"snapshots": [described(it) for it in found], "snapshot": one.id}
        if os.path.exists(mark):
            with open(mark, encoding="utf-8") as handle:
                if handle.read().strip() == one.id:
                    return answer(False, **more)
        if not self.check:
            files.make_folders(into, 0o700)
            if os.path.exists(mark):
                os.unlink(mark)
            self.restic.restore(one.id, into)
            files.write(mark, f"{one.id}\n".encode(), 0o600)
        return answer(True, f"{into}: restored from snapshot {one.id[:8]} of {one.time.isoformat()}", **more)

    def checked(self) -> dict[str, t.Any]:
        if not self.check:
            self.restic.check(self.params["read_data_subset"])
        return answer(False)

    def shown(self) -> dict[str, t.Any]:
        return answer(False, snapshots=[described(one) for one in self.restic.snapshots(self.params["tags"])])


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {
                "type": "str",
                "choices": ["initialized", "present", "restored", "checked", "shown"],
                "default": "shown",
            },
            "name": {"type": "str", "required": True},
            "url": {"type": "str", "required": True},
            "password": {"type": "str", "required": True, "no_log": True},
            "username": {"type": "str", "default": ""},
            "http_password": {"type": "str", "default": "", "no_log": True},
            "paths": {"type": "list", "elements": "path", "default": []},
            "tags": {"type": "list", "elements": "str", "default": []},
            "host": {"type": "str", "default": ""},
            "unless_newer_than": {"type": "int", "default": 0},
            "snapshot": {"type": "str", "default": ""},
            "into": {"type": "path"},
            "read_data_subset": {"type": "str", "default": ""},
            "timeout": {"type": "int", "default": 3600},
            **TLS_ARGUMENTS,
        },
        required_if=[("state", "present", ["paths"]), ("state", "restored", ["into"])],
        supports_check_mode=True,
    )
    try:
        runner = Runner(module)
        module.exit_json(**getattr(runner, module.params["state"])())
    except ResilienceError as exc:
        module.fail_json(msg=str(exc))


if __name__ == "__main__":
    main()
