"""Run a module in this process, as Ansible would."""

from __future__ import annotations

import contextlib
import io
import json
import types
import typing as t

from ansible.module_utils.common import warnings
from ansible.module_utils.testing import patch_module_args


def run_module(
    module: types.ModuleType, check: bool = False, diff: bool = False, **arguments: t.Any
) -> dict[str, t.Any]:
    """What Ansible gets from the module."""
    # In a process of its own a module has no other's warnings.
    warnings._global_warnings.clear()
    said = io.StringIO()
    given = {**arguments, "_ansible_check_mode": check, "_ansible_diff": diff}
    with patch_module_args(given), contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        module.main()
    return t.cast("dict[str, t.Any]", json.loads(said.getvalue()))
