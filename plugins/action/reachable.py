# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on the controller, which is who must reach the hosts; the documentation is the module's of this name."""

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase

from ansible_collections.shannon.resilience.plugins.module_utils.reachability import probe


class ActionModule(ActionBase):
    """Ask the given hosts' ssh ports, all at once."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        _spec, args = self.validate_argument_spec(
            argument_spec={
                "hosts": {"type": "list", "elements": "str", "required": True},
                "timeout": {"type": "float", "default": 1.5},
            }
        )
        endpoints = {}
        for name in args["hosts"]:
            variables = task_vars["hostvars"][name]
            endpoints[name] = (str(variables.get("ansible_host", name)), int(variables.get("ansible_port") or 22))
        reachable, silent = probe(endpoints, args["timeout"])
        result.update(changed=False, reachable=reachable, silent=silent)
        return result
