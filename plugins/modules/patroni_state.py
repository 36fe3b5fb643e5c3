#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: patroni_state
short_description: Have Patroni forget a cell in one region, all but its configuration
version_added: "0.1.0"
description:
  - When a cell's data is replaced by a restored one, what Patroni remembers in the region's etcd (who led, which system
    it was, what was synchronous) belongs to the old data. This removes it, keeps the dynamic configuration, and says in
    that whether the region is the cell's home or follows another one.
  - It refuses while a member lives. Stop C(patroni@<cell>) on all hosts of the region first; their keys end by
    themselves.
options:
  cell:
    description: The cell.
    type: str
    required: true
  endpoints:
    description: Client endpoints, address and port, of the region's etcd.
    type: list
    elements: str
    required: true
  namespace:
    description: Prefix of Patroni's keys.
    type: str
    default: /shannon/
  upstream_hosts:
    description: Addresses of the home's hosts of PostgreSQL; empty in the home itself.
    type: list
    elements: str
    default: []
  upstream_port:
    description: Port of PostgreSQL there.
    type: int
    default: 5432
  slot:
    description: The slot that the home keeps for this region.
    type: str
    default: ""
  timeout:
    description: Seconds to wait for the keys of stopped members to end.
    type: int
    default: 90
  tls:
    description: Whether etcd is reached over TLS.
    type: bool
    default: true
extends_documentation_fragment:
  - shannon.resilience.tls
attributes:
  check_mode:
    description: Can run in check mode; members that live are no error then.
    support: full
  diff_mode:
    description: Shows what is forgotten.
    support: full
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Have Patroni forget the data that was replaced
  shannon.resilience.patroni_state:
    cell: main
    endpoints: ["192.0.2.11:2379", "192.0.2.12:2379", "192.0.2.13:2379"]
"""

RETURN = r"""
done:
  description: What was done, or would be.
  returned: success
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils import patroni_state
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.etcd import EtcdClient, parse_endpoint
from ansible_collections.shannon.resilience.plugins.module_utils.tls import ARGUMENTS as TLS_ARGUMENTS
from ansible_collections.shannon.resilience.plugins.module_utils.tls import client_context, files_of


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "cell": {"type": "str", "required": True},
            "endpoints": {"type": "list", "elements": "str", "required": True},
            "namespace": {"type": "str", "default": "/shannon/"},
            "upstream_hosts": {"type": "list", "elements": "str", "default": []},
            "upstream_port": {"type": "int", "default": 5432},
            "slot": {"type": "str", "default": ""},
            "timeout": {"type": "int", "default": 90},
            "tls": {"type": "bool", "default": True},
            **TLS_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        context = None
        if params["tls"]:
            context = client_context(files_of(params))
        client = EtcdClient([parse_endpoint(place) for place in params["endpoints"]], context)
        standby = None
        if params["upstream_hosts"]:
            standby = patroni_state.following(params["upstream_hosts"], params["upstream_port"], params["slot"])
        done = patroni_state.forget(
            client, params["cell"], standby, params["namespace"], params["timeout"], module.check_mode
        )
    except ResilienceError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(changed=bool(done), done=done, diff={"before": "", "after": "".join(f"{line}\n" for line in done)})


if __name__ == "__main__":
    main()
