#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: registry_endpoints_info
short_description: Read from the registry where each cell's stores and doors are now
version_added: "0.1.0"
description:
  - Each cell's home publishes its endpoints at C(/shannon/endpoints/<cell>) when it begins to serve, when the primary
    moves to another of its hosts, and once a minute. Clients that can watch etcd can watch that key.
  - Reads through the quorum, so an answer is never an old one. Without a quorum it fails.
  - Run it on a host of the topology, as root, since only those may talk to the registry, with the host's certificate.
options:
  endpoints:
    description:
      - The registry's members, each as C(host:port) or as a mapping with C(host) and C(port).
      - All are asked at once, so one that is dead costs one O(timeout), however many there are.
    type: list
    elements: raw
    required: true
  timeout:
    description: Seconds that one member may take to answer.
    type: float
    default: 2
extends_documentation_fragment:
  - shannon.resilience.tls
attributes:
  check_mode:
    description: Can run in check mode; never changes anything.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
seealso:
  - module: shannon.resilience.registry_cell_info
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Read where the cells are
  shannon.resilience.registry_endpoints_info:
    endpoints: ["192.0.2.11:12379", "192.0.2.21:12379", "192.0.2.31:12379"]
  register: found

- name: Say where PostgreSQL takes writes
  ansible.builtin.debug:
    msg: "{{ found.cells.main.postgres.primary | first }}"
"""

RETURN = r"""
cells:
  description:
    - By cell, its C(epoch) and C(home); C(edges) (URLs for clients); C(gateways) (region to C(host:port)); C(postgres)
      and C(redis), each with C(primary), C(replicas) (of the home) and C(standby) (of the other regions) as lists of
      C(host:port); C(updated_at).
    - A cell whose home has not served since it was deployed is missing.
  returned: success
  type: dict
  sample:
    main:
      cell: main
      epoch: 3
      home: b
      edges: ["https://203.0.113.11:443"]
      gateways: {a: ["192.0.2.11:8080"], b: ["198.51.100.11:8080"]}
      postgres: {primary: ["198.51.100.11:5432"], replicas: ["198.51.100.12:5432"], standby: ["192.0.2.11:5432"]}
      redis: {primary: ["198.51.100.12:6379"], replicas: ["198.51.100.11:6379"], standby: ["192.0.2.11:6379"]}
      updated_at: "2026-11-28T12:00:00+00:00"
"""

from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils.endpoints import read_endpoints
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.registry import Registry
from ansible_collections.shannon.resilience.plugins.module_utils.tls import ARGUMENTS as TLS_ARGUMENTS
from ansible_collections.shannon.resilience.plugins.module_utils.tls import files_of


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "endpoints": {"type": "list", "elements": "raw", "required": True},
            "timeout": {"type": "float", "default": 2},
            **TLS_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        tls = files_of(params)
        client = Registry.connect(params["endpoints"], tls, params["timeout"]).client
        cells = {cell: asdict(found) for cell, found in read_endpoints(client).items()}
    except ResilienceError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(changed=False, cells=cells)


if __name__ == "__main__":
    main()
