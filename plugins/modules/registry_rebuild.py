#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: registry_rebuild
short_description: Make a member's data anew, as one of a new registry
version_added: "0.1.0"
description:
  - Stops the member on this host and gives it data of a new cluster, made from its own data (break-glass) or from a
    snapshot. The cluster has a new id, so no member of the old one can join it, and keeps all keys.
  - What the member had is kept, below C(/var/lib/shannon/registry-rebuild/TOKEN). The unit is left stopped; start those
    of all O(members) together.
  - Each O(token) is done once; run again with it, it goes on where it was, and then changes nothing.
  - It judges nothing. M(shannon.resilience.registry_survey) does, before.
options:
  members:
    description: The members of the new registry. The same on each of them.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: The host's name in the inventory.
        type: str
        required: true
      address:
        description: IP address that the other members reach it at.
        type: str
        required: true
  token:
    description: Sets this registry apart from all before it; new for each rebuilding, the same on each member.
    type: str
    required: true
  snapshot:
    description: A snapshot on this host to take the data from, the same on each. Left out, the member's own data.
    type: path
  instance:
    description: The instance of etcd.
    type: str
    default: registry
  user:
    description: Who owns the data.
    type: str
    default: etcd
attributes:
  check_mode:
    description: Can run in check mode; nothing is stopped then.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
seealso:
  - module: shannon.resilience.registry_survey
  - module: shannon.resilience.registry_epochs
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Rebuild the registry from this member
  shannon.resilience.registry_rebuild:
    members: [{name: b1, address: 192.0.2.21}]
    token: shannon-registry-20270301T101500Z
"""

RETURN = r"""
given_up:
  description: Cluster id of the data that the member had; empty when it had none.
  returned: success
  type: str
cluster_id:
  description: Cluster id of the new registry; empty in check mode.
  returned: success
  type: str
kept:
  description: Where the data is that the member had.
  returned: success
  type: str
"""

import json
import os
import pathlib
import re
import shutil
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.etcd_data import (
    WORK,
    MemberConfig,
    Tools,
    identity,
    keep,
    put_in,
)


def peer_url(template: str, address: str) -> str:
    """The peer URL of a member: like this host's own, with its address."""
    scheme, _slashes, rest = template.partition("://")
    port = rest.rpartition(":")[2]
    return f"{scheme}://[{address}]:{port}" if ":" in address else f"{scheme}://{address}:{port}"


def stop(module: AnsibleModule, unit: str) -> None:
    """Stop the unit; bounded.

    :raises ResilienceError: it does not stop.
    """
    code, _out, said = module.run_command(["timeout", "60", "systemctl", "stop", unit])
    if code:
        raise ResilienceError(f"{unit} does not stop (exit {code}): {said.strip()}. Look at its journal.")


def run(module: AnsibleModule) -> dict[str, t.Any]:
    """Make the data, unless this token was done."""
    params = module.params
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", params["token"]):
        raise ResilienceError(f"token {params['token']!r}: expected letters, digits, '.', '_' and '-'")
    config = MemberConfig.read(f"/etc/shannon/etcd/{params['instance']}.yml")
    data_dir, name, url = (config.value(key) for key in ("data-dir", "name", "initial-advertise-peer-urls"))
    members = {one["name"]: peer_url(url, one["address"]) for one in params["members"]}
    if members.get(name) != url:
        raise ResilienceError(
            f"this host is {name} at {url}, which the members do not have: {members}. Nothing was changed."
        )
    folder = pathlib.Path(WORK, params["token"])
    note, kept = folder / "done.json", folder / "kept"
    if note.exists():
        return {"changed": False, **json.loads(note.read_text())}
    source = kept if (kept / "member").exists() else pathlib.Path(data_dir)
    old = identity(source)
    if not params["snapshot"] and old is None:
        raise ResilienceError(f"{data_dir} has no data to rebuild from; nothing was changed")
    if params["snapshot"] and not os.path.isfile(params["snapshot"]):
        raise ResilienceError(f"there is no snapshot {params['snapshot']}; nothing was changed")
    answer = {"given_up": old.cluster if old else "", "kept": str(kept) if old else "", "cluster_id": ""}
    if module.check_mode:
        return {"changed": True, **answer}
    unit = f"etcd@{params['instance']}.service"
    tools = Tools(params["user"])
    os.makedirs(WORK, mode=0o711, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    shutil.chown(folder, params["user"], params["user"])
    stop(module, unit)
    snapshot = str(folder / "snapshot.db")
    if params["snapshot"]:
        # The owner of the data need not be able to read where it came from.
        shutil.copyfile(params["snapshot"], snapshot)
        shutil.chown(snapshot, params["user"], params["user"])
    else:
        tools.rescue(str(source), str(folder), snapshot)
    restored = str(folder / "restored")
    pairs = ",".join(f"{member}={it}" for member, it in members.items())
    tools.restore(snapshot, restored, name, url, pairs, params["token"])
    new = identity(restored)
    if new is None or answer["given_up"] == new.cluster:
        raise ResilienceError(f"the restored data in {restored} has no cluster id of its own; nothing was replaced")
    answer["cluster_id"] = new.cluster
    if source != kept:
        if keep(data_dir, str(kept)):
            shutil.chown(kept, params["user"], params["user"])  # so that a run after a crash can read it
    elif (pathlib.Path(data_dir) / "member").exists():
        keep(data_dir, str(folder / "half-done"))  # from a run that was killed after it had put the data in
    put_in(restored, data_dir)
    fresh = note.with_suffix(".new")
    fresh.write_text(json.dumps(answer))
    os.replace(fresh, note)
    return {"changed": True, **answer}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "members": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {"name": {"type": "str", "required": True}, "address": {"type": "str", "required": True}},
            },
            "token": {"type": "str", "required": True, "no_log": False},
            "snapshot": {"type": "path"},
            "instance": {"type": "str", "default": "registry"},
            "user": {"type": "str", "default": "etcd"},
        },
        supports_check_mode=True,
    )
    try:
        answer = run(module)
    except (ResilienceError, OSError) as exc:
        module.fail_json(msg=f"{os.uname().nodename}: {exc}")
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
