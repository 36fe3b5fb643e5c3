# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The text of a file on the controller, which in check mode may not be there yet."""

from __future__ import annotations

import os
import typing as t

from ansible.errors import AnsibleFilterError


def text_of(path: str, missing_is_fine: bool = False) -> str:
    """The file's text; empty for a missing one when that is fine, and an error that names it otherwise."""
    if missing_is_fine and not os.path.exists(path):
        return ""
    try:
        with open(path, encoding="utf-8") as handle:
            return handle.read()
    except OSError as exc:
        raise AnsibleFilterError(f"cannot read {path} on the controller: {exc.strerror}") from exc


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, t.Callable[..., str]]:
        """The filter's name and function."""
        return {"text_of": text_of}
