# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prints on the controller; the documentation is the module's of this name."""

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase

from ansible_collections.shannon.resilience.plugins.module_utils.status_table import render


class ActionModule(ActionBase):
    """Print what cell_info found."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result = super().run(tmp, task_vars)
        _spec, args = self.validate_argument_spec(argument_spec={"info": {"type": "dict", "required": True}})
        table = render(args["info"])
        self._display.display(table)
        result.update(changed=False, lines=table.splitlines())
        return result
