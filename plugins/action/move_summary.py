# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prints on the controller; the documentation is the module's of this name."""

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase

from ansible_collections.shannon.resilience.plugins.module_utils.cell_validation import failures
from ansible_collections.shannon.resilience.plugins.module_utils.move_summary import render


class ActionModule(ActionBase):
    """Print what became of moves, and fail when one of them was refused or failed."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result = super().run(tmp, task_vars)
        _spec, args = self.validate_argument_spec(
            argument_spec={
                "moves": {"type": "list", "elements": "dict", "required": True},
                "skipped_cells": {"type": "dict", "default": {}},
                "reports": {"type": "list", "elements": "str", "default": []},
                "error": {"type": "str", "default": ""},
            }
        )
        lines = [line for move in args["moves"] for line in render(move)]
        lines += [f"cell {cell} stays where it is: {why}" for cell, why in args["skipped_cells"].items()]
        lines += [f"report: {path}" for path in args["reports"]]
        if not args["moves"] and not args["error"]:
            lines.append("no cell has to be moved")
        if args["error"]:
            lines.append(args["error"])
        self._display.display("\n".join(lines))
        wrong = [move["cell"] for move in args["moves"] if move["outcome"] in ("refused", "failed")]
        result.update(changed=any(move.get("changed") for move in args["moves"]), lines=lines)
        if wrong or args["error"]:
            result.update(failed=True, msg=args["error"] or f"not moved: {', '.join(wrong)}; see above")
        elif invalid := [move["cell"] for move in args["moves"] if failures(move.get("validation") or {})]:
            result.update(failed=True, msg=f"moved, and the validation failed: {', '.join(invalid)}; see above")
        return result
