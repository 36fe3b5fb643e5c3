#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: postgres_folder
short_description: Put a restored data folder of PostgreSQL in place, or empty one so that it is cloned
version_added: "0.1.0"
description:
  - Looks at a member's data folder, lets a restored one take its place, or removes it. Nothing is done while a
    PostgreSQL runs there.
  - The restored folder carries the restore's name, and so does every member that is cloned from it; a member that
    carries it is left alone. So a run that was killed can be repeated.
  - Run it as C(postgres).
options:
  data:
    description: The member's data folder.
    type: path
    required: true
  restore:
    description: Name of the restore.
    type: str
    required: true
  staged:
    description: The restored folder, in the same file system.
    type: path
    default: ""
  state:
    description:
      - V(query) only looks.
      - V(swapped) has O(staged) in place; what was there is kept beside it, as C(data.before-restore-NAME).
      - V(empty) has nothing there, unless it came from this restore.
    type: str
    choices: [query, swapped, empty]
    default: query
attributes:
  check_mode:
    description: Can run in check mode.
    support: full
  diff_mode:
    description: Shows the restore that the data came from.
    support: full
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Put the restored data in place
  shannon.resilience.postgres_folder:
    data: /var/lib/shannon/postgres/main/data
    staged: /var/lib/shannon/postgres/main/restore-20260131T120000Z/data
    restore: 20260131T120000Z
    state: swapped
  become: true
  become_user: postgres
"""

RETURN = r"""
folder:
  description: What there is now.
  returned: success
  type: dict
  contains:
    there:
      description: Whether there is a data folder.
      type: bool
    mark:
      description: The restore that it came from; empty for none.
      type: str
    running:
      description: Process of a PostgreSQL that runs there; 0 for none.
      type: int
    primary:
      description: Whether it is, or was last, a primary.
      type: bool
    staged:
      description: Whether the restored folder is there.
      type: bool
    kept:
      description: Where the data went that was there before; empty for nowhere.
      type: str
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils import postgres_folder
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "data": {"type": "path", "required": True},
            "restore": {"type": "str", "required": True},
            "staged": {"type": "path", "default": ""},
            "state": {"type": "str", "choices": ["query", "swapped", "empty"], "default": "query"},
        },
        required_if=[("state", "swapped", ["staged"])],
        supports_check_mode=True,
    )
    data, staged, name = module.params["data"], module.params["staged"], module.params["restore"]
    state, changed = module.params["state"], False
    try:
        before = postgres_folder.look(data, staged, name)
        if module.check_mode:
            wanted = {"swapped": before.mark != name, "empty": before.there and before.mark != name}
            changed = wanted.get(state, False)
        elif state == "swapped":
            changed = postgres_folder.swap(data, staged, name)
        elif state == "empty":
            changed = postgres_folder.empty(data, name)
        after = postgres_folder.look(data, staged, name)
    except (ResilienceError, OSError) as exc:
        module.fail_json(msg=f"{data}: {exc}")
    module.exit_json(
        changed=changed,
        folder=postgres_folder.facts_of(after),
        diff={"before": f"{before.mark or 'its own'}\n", "after": f"{after.mark or 'its own'}\n"},
    )


if __name__ == "__main__":
    main()
