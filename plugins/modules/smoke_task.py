#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: smoke_task
short_description: Run one real task through an edge, and find it again
version_added: "0.1.0"
description:
  - Submits a task as a client would, waits for its answer, fetches it, and searches for it by similarity until the
    vector indexer has brought it into Qdrant. So it touches every part of the stack once.
  - The task and its vector stay, like those of any client.
options:
  url:
    description: The edge, such as V(https://203.0.113.11:443).
    type: str
    required: true
  ca_file:
    description: The CA that the edge's certificate is checked against.
    type: path
    required: true
  api_key:
    description: An API key of the gateways.
    type: str
    required: true
  query:
    description: What to ask. A unique word is added, so that what is found is this very task.
    type: str
    required: true
  timeout:
    description: Seconds that all of it may take together.
    type: float
    default: 30
  search:
    description: Whether to search for the task afterwards.
    type: bool
    default: true
attributes:
  check_mode:
    description: Can run in check mode; then it only asks whether the edge answers.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Run a task through the edge
  shannon.resilience.smoke_task:
    url: https://203.0.113.11
    ca_file: .secrets/pki/ca.crt
    api_key: "{{ shannon_secrets.gateway_api_key }}"
    query: Are you well?
  delegate_to: localhost
"""

RETURN = r"""
task_id:
  description: The task's id.
  returned: not in check mode
  type: str
status:
  description: What became of it; V(completed).
  returned: not in check mode
  type: str
mode:
  description: The mode that it ran in.
  returned: not in check mode
  type: str
query:
  description: What was asked, with the word that was added.
  returned: not in check mode
  type: str
result:
  description: The answer.
  returned: not in check mode
  type: str
submit_ms:
  description: Milliseconds until the task was accepted, that is durable.
  returned: not in check mode
  type: int
task_ms:
  description: Milliseconds from the submit until the answer was there.
  returned: not in check mode
  type: int
found_ms:
  description: Milliseconds from the answer until the task was found by similarity; -1 when it was not searched for.
  returned: not in check mode
  type: int
score:
  description: How near the task that was found is to the question, at most 1.
  returned: not in check mode
  type: float
"""

import ssl
import time
import typing as t
import uuid

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.smoke import Client, run


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "ca_file": {"type": "path", "required": True},
            "api_key": {"type": "str", "required": True, "no_log": True},
            "query": {"type": "str", "required": True},
            "timeout": {"type": "float", "default": 30},
            "search": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        context = ssl.create_default_context(cafile=params["ca_file"])
    except (OSError, ssl.SSLError) as exc:
        module.fail_json(msg=f"ca_file {params['ca_file']} can't be used: {exc}. Run site.yml with --tags pki first.")
    client = Client(params["url"], params["api_key"], context, time.monotonic() + params["timeout"])
    try:
        if module.check_mode:
            client.ask("GET", "/health")
            module.exit_json(changed=False)
        found: dict[str, t.Any] = run(client, f"{params['query']} ({uuid.uuid4().hex[:12]})", params["search"])
    except ResilienceError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(changed=True, **found)


if __name__ == "__main__":
    main()
