# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The names that the inventory's routing providers keep, and what they say by region."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.routing_providers import records


def routing_records(providers: t.Any, topology: t.Mapping[str, t.Any], key_secret: str = "") -> list[dict[str, t.Any]]:
    """One entry for each name; see the library."""
    try:
        return records(providers, topology, key_secret)
    except ResilienceError as exc:
        raise AnsibleFilterError(str(exc)) from exc


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filter's name and function."""
        return {"routing_records": routing_records}
