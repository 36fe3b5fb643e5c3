# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on the controller, where the whole inventory can be seen; the documentation is the module's of this name."""

from __future__ import annotations

import ipaddress
import os
import socket
import typing as t

from ansible.plugins.action import ActionBase

from ansible_collections.shannon.resilience.plugins.module_utils.concurrently import gather
from ansible_collections.shannon.resilience.plugins.module_utils.topology import check, derive


class ActionModule(ActionBase):
    """Check the inventory and return the topology that follows from it."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        _spec, args = self.validate_argument_spec(argument_spec={"records": {"type": "dict", "default": {}}})
        groups = {name: list(hosts) for name, hosts in task_vars["groups"].items()}
        where = str(task_vars.get("inventory_dir") or "the inventory")
        placed = {host for name, hosts in groups.items() if _places(name) for host in hosts}
        wanted = {host: _wanted_address(host, task_vars["hostvars"][host]) for host in placed}
        # Names are resolved all at once: a name server that does not answer costs its timeout once.
        addresses = gather({host: lambda name=name: _address_of(name) for host, name in wanted.items()})
        given = {
            name: self._templar.template(task_vars[name]) if name in task_vars else None
            for name in ("regions", "cells", "ports")
        }
        problems = check(
            given["regions"],
            given["cells"],
            groups,
            addresses,
            os.path.join(where, "group_vars", "all", "topology.yml"),
            _hosts_file(str(task_vars.get("inventory_file") or ""), where),
            given["ports"],
        )
        result["changed"] = False
        result["problems"] = problems
        if problems:
            result["failed"] = True
            result["msg"] = "The inventory can't be deployed; nothing was changed.\n- " + "\n- ".join(problems)
            return result
        result["topology"] = derive(
            given["regions"], given["cells"], groups, addresses, args["records"], given["ports"]
        )
        return result


def _hosts_file(last: str, where: str) -> str:
    """The file to look at for hosts and groups; of an inventory of several, Ansible names the one it read last."""
    for name in ("hosts.yml", "hosts.yaml", "hosts.ini", "hosts"):
        if os.path.isfile(os.path.join(where, name)):
            return os.path.join(where, name)
    return last or where


def _places(group: str) -> bool:
    return group == "witness" or group.startswith("region_")


def _wanted_address(host: str, variables: t.Mapping[str, t.Any]) -> str:
    return str(variables.get("shannon_address") or variables.get("ansible_host") or host)


def _address_of(wanted: str) -> str:
    """A host's IP address; a name is resolved here, once, so that firewalls and certificates agree on it."""
    try:
        return str(ipaddress.ip_address(wanted))
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(wanted, None, family=socket.AF_INET, type=socket.SOCK_STREAM)
    except OSError:
        return ""
    return str(found[0][4][0])
