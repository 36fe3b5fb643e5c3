#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: registry_cell_info
short_description: Read the cells' records from the registry
version_added: "0.1.0"
description:
  - Reads with a quorum, so what it returns is what every region has to go by.
  - Fails when the registry has no quorum, and says what each member said.
options:
  endpoints:
    description: Members of the registry, each as C(host:port).
    type: list
    elements: str
    required: true
  timeout:
    description: Seconds that one member may take to answer.
    type: float
    default: 2.0
  ca_file:
    description: The CA that the members' certificates must come from.
    type: path
    default: /etc/shannon/pki/ca.crt
  cert_file:
    description: The certificate to present.
    type: path
    default: /etc/shannon/pki/host.crt
  key_file:
    description: The key of O(cert_file).
    type: path
    default: /etc/shannon/pki/host.key
  history_of:
    description: A cell whose history to return as well.
    type: str
attributes:
  check_mode:
    description: Can run in check mode; never changes anything.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Read the cells' records
  shannon.resilience.registry_cell_info:
    endpoints: [192.0.2.1:12379, 198.51.100.1:12379, 203.0.113.1:12379]
    history_of: main
  register: registry
"""

RETURN = r"""
records:
  description: For each cell its C(home), C(epoch) and C(state).
  returned: success
  type: dict
  sample: {main: {home: a, epoch: 1, state: active}}
history:
  description: Every change of O(history_of), the oldest first, with C(home), C(epoch), C(state), C(previous_home),
    C(reason), C(operator), C(overrides) and C(at).
  returned: when O(history_of) is given
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.registry_arguments import REGISTRY_ARGUMENTS, connect


def main() -> None:
    module = AnsibleModule(
        argument_spec={**REGISTRY_ARGUMENTS, "history_of": {"type": "str"}}, supports_check_mode=True
    )
    try:
        registry = connect(module.params)
        records = {
            name: {"home": record.home, "epoch": record.epoch, "state": record.state}
            for name, record in registry.all().items()
        }
        found = {"history": registry.history(module.params["history_of"])} if module.params["history_of"] else {}
    except ResilienceError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(changed=False, records=records, **found)


if __name__ == "__main__":
    main()
