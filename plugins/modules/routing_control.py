#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: routing_control
short_description: Say whether the edges send traffic to a region
version_added: "0.1.0"
description:
  - Sets a region's routing control in the registry by compare-and-swap. The edge agent of every edge takes it
    from there within about a second and tells its HAProxy, without a reload. It outranks health checks.
  - Run it on a host of the topology, as root, since only those may talk to the registry, with the host's certificate.
options:
  endpoints:
    description: The registry's members, each as C(host:port).
    type: list
    elements: str
    required: true
  region:
    description: The region. Without it the controls of all regions are only read.
    type: str
  state:
    description:
      - V(auto) lets health checks decide; what holds for a region that was never spoken of.
      - V(on) sends traffic there whatever health checks say.
      - V(drain) sends nothing new, and lets what runs end.
      - V(off) sends nothing, and cuts off what runs.
    type: str
    choices: [auto, "on", drain, "off"]
  reason:
    description: Why, for those who find it later. Needed with O(state).
    type: str
  operator:
    description: Who says so. Needed with O(state).
    type: str
  timeout:
    description: Seconds that the registry has to answer.
    type: float
    default: 2
attributes:
  check_mode:
    description: Can run in check mode; the registry is read and not written.
    support: full
  diff_mode:
    description: Shows the control before and after.
    support: full
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Take region a out of the traffic
  shannon.resilience.routing_control:
    endpoints: ["192.0.2.11:12379", "198.51.100.11:12379", "203.0.113.11:12379"]
    region: a
    state: "off"
    reason: power works in the hall
    operator: ada
"""

RETURN = r"""
controls:
  description: What holds now, per region that was ever spoken of.
  returned: success
  type: dict
  sample: {a: {region: a, state: "off", reason: power works, operator: ada, at: "2026-11-23T12:00:00+00:00"}}
previous:
  description: The state that held before.
  returned: when O(region) is given
  type: str
"""

from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.etcd import EtcdClient
from ansible_collections.shannon.resilience.plugins.module_utils.given_up import GivenUp
from ansible_collections.shannon.resilience.plugins.module_utils.routing import STATES, Control, RoutingControls
from ansible_collections.shannon.resilience.plugins.module_utils.tls import TlsFiles, client_context


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "endpoints": {"type": "list", "elements": "str", "required": True},
            "region": {"type": "str"},
            "state": {"type": "str", "choices": list(STATES)},
            "reason": {"type": "str"},
            "operator": {"type": "str"},
            "timeout": {"type": "float", "default": 2},
        },
        required_together=[("region", "state", "reason", "operator")],
        supports_check_mode=True,
    )
    params = module.params
    try:
        client = EtcdClient(
            params["endpoints"], client_context(TlsFiles()), params["timeout"], name="the registry", given_up=GivenUp()
        )
        registry = RoutingControls(client)
        if not params["region"]:
            module.exit_json(changed=False, controls={name: asdict(it) for name, it in registry.read().items()})
        if module.check_mode:
            before = registry.read().get(params["region"], Control(params["region"]))
            after = before
            if before.state != params["state"]:
                after = Control(params["region"], params["state"], params["reason"], params["operator"])
        else:
            before, after = registry.set(params["region"], params["state"], params["reason"], params["operator"])
        controls = {**registry.read(), after.region: after}
    except ResilienceError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(
        changed=before != after,
        previous=before.state,
        controls={name: asdict(it) for name, it in controls.items()},
        diff={"before": f"{before.region}: {before.state}\n", "after": f"{after.region}: {after.state}\n"},
    )


if __name__ == "__main__":
    main()
