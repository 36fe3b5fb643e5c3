#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_restart
short_description: Restart the Redis and Sentinel instances of a host that run with an older configuration
version_added: "0.1.0"
description:
  - An instance is stale when one of its files is newer than its process. That holds until it is restarted, so a run
    that was interrupted between the configuration and the restart is finished by the next one.
  - Waits until the instance answers, has read its data, and, as a replica, is in line with its primary again. With
    C(throttle=1), and replicas before primaries, never more than one instance of a cell is away.
  - An instance that is not running is not stale; starting it is another module's business.
options:
  instances:
    description: The instances of this host.
    type: list
    elements: dict
    required: true
    suboptions:
      unit:
        description: Name of the unit.
        type: str
        required: true
      kind:
        description: What runs in it.
        type: str
        choices: [redis, sentinel]
        default: redis
      port:
        description: TLS port.
        type: int
        required: true
      paths:
        description: Files that the process has read.
        type: list
        elements: path
        required: true
  roles:
    description:
      - Restart only instances that are this now. V(replica) includes a Redis that does not say what it is.
    type: list
    elements: str
    choices: [replica, primary, sentinel]
    default: [replica, primary, sentinel]
  username:
    description: User that may C(INFO).
    type: str
    default: monitor
  password:
    description: Its password.
    type: str
    required: true
  timeout:
    description: Seconds that each instance has to be back and in line.
    type: int
    default: 120
extends_documentation_fragment:
  - shannon.resilience.tls
attributes:
  check_mode:
    description: Says which instances are stale, and restarts none.
    support: full
  diff_mode:
    description: Has none; a restart changes no content.
    support: none
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Restart the replicas that run with an older configuration, one host after the other
  shannon.resilience.redis_restart:
    instances:
      - {unit: redis@main.service, port: 6379, paths: [/etc/shannon/redis/main.conf]}
    roles: [replica]
    password: "{{ redis_monitor_password }}"
  throttle: 1
"""

RETURN = r"""
stale:
  description: Units that run, or in check mode would still run, with an older configuration, of any role.
  returned: success
  type: list
  elements: str
  sample: [redis@main.service]
restarted:
  description: Units that were restarted.
  returned: success
  type: list
  elements: str
"""

import contextlib
import os
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils.concurrently import wait_until
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.redis import RedisClient, RedisReplyError
from ansible_collections.shannon.resilience.plugins.module_utils.tls import ARGUMENTS as TLS_ARGUMENTS
from ansible_collections.shannon.resilience.plugins.module_utils.tls import client_context, files_of


class Host:
    """The instances of this host."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self._params = module.params

    def is_stale(self, instance: dict[str, t.Any]) -> bool:
        """Whether the instance runs, and one of its files is newer than its process."""
        started = self._started(instance["unit"])
        if started is None:
            return False
        return any(os.path.exists(path) and os.path.getmtime(path) > started for path in instance["paths"])

    def role(self, instance: dict[str, t.Any]) -> str:
        """replica, primary or sentinel; a Redis that does not answer has no more to lose than a replica."""
        if instance["kind"] == "sentinel":
            return "sentinel"
        try:
            with self._client(instance) as client:
                return client.replication().role
        except ResilienceError:
            return "replica"

    def restart(self, instance: dict[str, t.Any]) -> None:
        """Restart one, and wait until it is of use again."""
        unit = instance["unit"]
        status, _out, err = self.module.run_command(["systemctl", "restart", unit])
        if status:
            _status, journal, _err = self.module.run_command(["journalctl", "--no-pager", "-n", "15", "-u", unit])
            raise ResilienceError(f"{unit} did not restart: {err.strip()}\n{journal.strip()}")
        wait_until(lambda: self._is_back(instance), f"{unit} to be back and in line", self._params["timeout"], 0.2)

    def _is_back(self, instance: dict[str, t.Any]) -> tuple[bool, str]:
        with self._client(instance) as client:
            if instance["kind"] == "sentinel":
                return _answers(client), "answers"
            seen = client.replication()
        in_line = seen.role == "primary" or seen.link == "up"
        return in_line and not seen.loading, f"{seen.role}, link {seen.link or 'none'}, loading {seen.loading}"

    def _client(self, instance: dict[str, t.Any]) -> RedisClient:
        params = self._params
        context = client_context(files_of(params))
        return RedisClient("localhost", instance["port"], params["username"], params["password"], context, 3)

    def _started(self, unit: str) -> float | None:
        """When the unit's process started, as seconds since the epoch."""
        words = ["systemctl", "show", unit, "-p", "ActiveState", "-p", "ExecMainStartTimestampMonotonic"]
        status, out, _err = self.module.run_command(words)
        found = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
        if status or found.get("ActiveState") not in ("active", "reloading"):
            return None
        booted = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)
        return booted + int(found.get("ExecMainStartTimestampMonotonic") or 0) / 1e6


def _answers(client: RedisClient) -> bool:
    """A Sentinel of Redis 6.0 knows no users and refuses the login, which is an answer too."""
    with contextlib.suppress(RedisReplyError):
        client.command(["PING"])
    return True


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "instances": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "unit": {"type": "str", "required": True},
                    "kind": {"type": "str", "choices": ["redis", "sentinel"], "default": "redis"},
                    "port": {"type": "int", "required": True},
                    "paths": {"type": "list", "elements": "path", "required": True},
                },
            },
            "roles": {
                "type": "list",
                "elements": "str",
                "choices": ["replica", "primary", "sentinel"],
                "default": ["replica", "primary", "sentinel"],
            },
            "username": {"type": "str", "default": "monitor"},
            "password": {"type": "str", "required": True, "no_log": True},
            "timeout": {"type": "int", "default": 120},
            **TLS_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    host = Host(module)
    stale = [one for one in module.params["instances"] if host.is_stale(one)]
    due = [one for one in stale if host.role(one) in module.params["roles"]]
    if not module.check_mode:
        try:
            for one in due:
                host.restart(one)
        except ResilienceError as exc:
            module.fail_json(msg=str(exc))
    module.exit_json(
        changed=bool(due),
        stale=[one["unit"] for one in stale],
        restarted=[] if module.check_mode else [one["unit"] for one in due],
    )


if __name__ == "__main__":
    main()
