#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_backup
short_description: Back up a Redis group, prove a backup, and restore the group from it
version_added: "0.1.0"
description:
  - A backup is an RDB file that an instance sends as to a replica, checked with redis-check-rdb and loaded into a
    scratch instance; its manifest has keys, databases and Redis' own digest of the data.
  - A running primary is restored by replication from a scratch instance that has loaded the file. What arrived is read
    back and compared before the primary is let go; it writes its append-only file anew, and its replicas follow.
  - An instance that is down is restored through its append-only file; an RDB file beside one would be ignored by Redis.
  - A damaged backup, or an empty one without O(allow_empty), never becomes a source.
options:
  state:
    description:
      - V(present) takes a backup into O(folder).
      - V(verified) loads the backup in O(folder) and compares it with its manifest.
      - V(restored) restores the instance of this host from O(folder).
      - V(shown) says whether this host's instance is the group's primary, and if a restore named O(restore_id) is done.
    type: str
    choices: [present, verified, restored, shown]
    required: true
  folder:
    description: Folder of the backup.
    type: path
  sources:
    description: Instances to take a backup from, each as C(host:port); a replica in line is preferred.
    type: list
    elements: str
    default: []
  unless_newer_than:
    description: Seconds; a finished backup in O(folder) that is younger is enough. 0 always takes one.
    type: int
    default: 0
  username:
    description: User that may take a backup.
    type: str
    default: backup
  password:
    description: Its password.
    type: str
  admin_username:
    description: User that may do everything; a restore needs it.
    type: str
    default: admin
  admin_password:
    description: Its password.
    type: str
  method:
    description: Restore a running primary (V(live)), or the files of an instance that is down (V(offline)).
    type: str
    choices: [live, offline]
    default: live
  address:
    description: Address of this host's instance.
    type: str
    default: 127.0.0.1
  port:
    description: Its TLS port.
    type: int
  data:
    description: Its data folder; the mark of a restore that ended well is kept there.
    type: path
  acl_file:
    description: The group's ACL, which the scratch instance takes, too.
    type: path
  scratch_folder:
    description: Folder for the scratch instance; it is emptied.
    type: path
    default: /var/lib/shannon/redis-restore
  scratch_port:
    description: Port on loopback at which it serves the primary.
    type: int
    default: 36379
  user:
    description: System user of Redis.
    type: str
    default: redis
  groups:
    description: Further groups of the scratch instance, so that it can read the host's key.
    type: list
    elements: str
    default: [shannon-tls]
  replicas:
    description: How many replicas must have the restored data before it is done.
    type: int
    default: 0
  restore_id:
    description: Name of this restore; one that ended well is not done again. Empty always restores.
    type: str
    default: ''
  allow_empty:
    description: Restore a backup that holds no key.
    type: bool
    default: false
  timeout:
    description: Seconds for each step.
    type: int
    default: 1800
extends_documentation_fragment:
  - shannon.resilience.tls
attributes:
  check_mode:
    description: Can run in check mode; the backup is verified, nothing is changed.
    support: full
  diff_mode:
    description: Shows what is taken or restored.
    support: full
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Take a backup
  shannon.resilience.redis_backup:
    state: present
    folder: /var/lib/shannon/backup/scratch/redis
    sources: [192.0.2.1:6379, 192.0.2.2:6379]
    password: "{{ redis_backup_password }}"

- name: Restore the primary
  shannon.resilience.redis_backup:
    state: restored
    folder: /var/lib/shannon/redis-restore-files
    address: 192.0.2.1
    port: 6379
    data: /var/lib/shannon/redis/main
    acl_file: /etc/shannon/redis/main.acl
    password: "{{ redis_backup_password }}"
    admin_password: "{{ redis_admin_password }}"
    restore_id: 20260102T030405Z-main
"""

RETURN = r"""
manifest:
  description: The backup's manifest.
  returned: when O(state) is V(present), V(verified) or V(restored)
  type: dict
actions:
  description: What was done, a sentence each.
  returned: success
  type: list
  elements: str
differences:
  description: What is not as the manifest says.
  returned: when O(state) is V(verified)
  type: list
  elements: str
primary:
  description: Whether this host's instance is the group's primary, or was until a restore that did not end.
  returned: when O(state) is V(shown)
  type: bool
done:
  description: Whether the restore named O(restore_id) ended well.
  returned: when O(state) is V(shown)
  type: bool
"""

import grp
import os
import pwd
import time
import typing as t
from datetime import datetime

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils import redis_backup as backups
from ansible_collections.shannon.resilience.plugins.module_utils import redis_restore as restores
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.redis import RedisClient
from ansible_collections.shannon.resilience.plugins.module_utils.redis_scratch import Listener
from ansible_collections.shannon.resilience.plugins.module_utils.tls import ARGUMENTS as TLS_ARGUMENTS
from ansible_collections.shannon.resilience.plugins.module_utils.tls import client_context, files_of


def answer(changed: bool, actions: list[str], **more: t.Any) -> dict[str, t.Any]:
    after = "".join(f"{action}\n" for action in actions) if changed else ""
    return {"changed": changed, "actions": actions, "diff": {"before": "", "after": after}, **more}


class Runner:
    """One group and what is wanted of it."""

    def __init__(self, module: AnsibleModule) -> None:
        self.params = module.params
        self.check = module.check_mode
        self.tls = files_of(module.params)

    def present(self) -> dict[str, t.Any]:
        folder = self.params["folder"]
        limit = self.params["unless_newer_than"]
        if limit:
            try:
                manifest = backups.read_manifest(folder)
                if time.time() - datetime.fromisoformat(manifest["taken_at"]).timestamp() < limit:
                    return answer(False, [], manifest=manifest)
            except ResilienceError:
                pass  # there is none that counts
        sources = [self.source(*endpoint.rsplit(":", 1)) for endpoint in self.params["sources"]]
        source = backups.newest_replica(sources)
        actions = [f"{folder}: a backup from {source.host}:{source.port}"]
        if self.check:
            return answer(True, actions, manifest={})
        return answer(True, actions, manifest=backups.take(source, folder, timeout=self.params["timeout"]))

    def verified(self) -> dict[str, t.Any]:
        folder = self.params["folder"]
        problems = backups.verify(folder, timeout=self.params["timeout"])
        if problems:
            raise ResilienceError(f"the backup in {folder} is not what was taken: {'; '.join(problems)}")
        return answer(False, [], manifest=backups.read_manifest(folder), differences=problems)

    def shown(self) -> dict[str, t.Any]:
        with self.client() as client:
            seen = client.replication()
        scratch = (seen.primary_address, seen.primary_port) == ("127.0.0.1", self.params["scratch_port"])
        done = restores.already_restored(self.mark(), self.params["restore_id"])
        return answer(False, [], primary=seen.role == "primary" or scratch, done=done)

    def restored(self) -> dict[str, t.Any]:
        folder = self.params["folder"]
        restore_id = self.params["restore_id"]
        if restores.already_restored(self.mark(), restore_id):
            return answer(False, [], manifest={})
        manifest = restores.verified(folder, self.params["allow_empty"])
        live = self.params["method"] == "live"
        planned = (
            f"{self.params['address']}:{self.params['port']} takes {manifest['keys']} keys of {manifest['taken_at']}"
        )
        if not live:
            if not self.check:
                actions = restores.restore_files(folder, self.params["data"], manifest, self.owner())
                restores.note_restored(self.mark(), restore_id, manifest)
                return answer(True, actions, manifest=manifest)
            return answer(True, [planned], manifest=manifest)
        restore = restores.LiveRestore(
            self.client,
            self.source(self.params["address"], self.params["port"]),
            Listener(self.params["scratch_port"], self.tls, self.params["acl_file"] or ""),
            os.path.join(self.params["scratch_folder"], "instance"),
            (self.params["admin_username"], self.params["admin_password"]),
            self.owner(),
            [grp.getgrnam(name).gr_gid for name in self.params["groups"]] if self.owner() else [],
            timeout=self.params["timeout"],
        )
        if problem := restore.problem():
            raise ResilienceError(f"nothing was changed: {problem}")
        if self.check:
            return answer(True, [planned], manifest=manifest)
        restores.let_pass(self.params["scratch_folder"])
        actions = restore.run(folder, manifest)
        if self.params["replicas"]:
            restores.wait_replicas(self.client, self.params["replicas"], min(self.params["timeout"], 600))
            actions.append(f"{self.params['replicas']} replicas have it, too")
        restores.note_restored(self.mark(), restore_id, manifest)
        return answer(True, actions, manifest=manifest)

    def mark(self) -> str:
        return os.path.join(self.params["data"], restores.MARK)

    def source(self, host: str, port: str | int) -> backups.Source:
        return backups.Source(host, int(port), self.params["username"], self.params["password"] or "", self.tls)

    def client(self) -> RedisClient:
        name, password = self.params["admin_username"], self.params["admin_password"] or ""
        return RedisClient(self.params["address"], self.params["port"], name, password, client_context(self.tls), 10.0)

    def owner(self) -> tuple[int, int] | None:
        """Redis' user; a process that is not root can't be another."""
        if os.geteuid() != 0:
            return None
        try:
            found = pwd.getpwnam(self.params["user"])
        except KeyError as exc:
            raise ResilienceError(f"this host has no user {self.params['user']}: is Redis deployed here?") from exc
        return found.pw_uid, found.pw_gid


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "verified", "restored", "shown"], "required": True},
            "folder": {"type": "path"},
            "sources": {"type": "list", "elements": "str", "default": []},
            "unless_newer_than": {"type": "int", "default": 0},
            "username": {"type": "str", "default": "backup"},
            "password": {"type": "str", "no_log": True},
            "admin_username": {"type": "str", "default": "admin"},
            "admin_password": {"type": "str", "no_log": True},
            "method": {"type": "str", "choices": ["live", "offline"], "default": "live"},
            "address": {"type": "str", "default": "127.0.0.1"},
            "port": {"type": "int"},
            "data": {"type": "path"},
            "acl_file": {"type": "path"},
            "scratch_folder": {"type": "path", "default": "/var/lib/shannon/redis-restore"},
            "scratch_port": {"type": "int", "default": 36379},
            "user": {"type": "str", "default": "redis"},
            "groups": {"type": "list", "elements": "str", "default": ["shannon-tls"]},
            "replicas": {"type": "int", "default": 0},
            "restore_id": {"type": "str", "default": ""},
            "allow_empty": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 1800},
            **TLS_ARGUMENTS,
        },
        required_if=[
            ("state", "present", ["folder", "sources", "password"]),
            ("state", "verified", ["folder"]),
            ("state", "restored", ["folder", "data"]),
            ("state", "shown", ["data", "port", "admin_password"]),
        ],
        supports_check_mode=True,
    )
    try:
        module.exit_json(**getattr(Runner(module), module.params["state"])())
    except ResilienceError as exc:
        module.fail_json(msg=str(exc))


if __name__ == "__main__":
    main()
