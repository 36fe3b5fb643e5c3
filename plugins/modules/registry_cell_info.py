#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: registry_cell_info
short_description: Read the cells' records and history from the registry, and how its members are
version_added: "0.1.0"
description:
  - Reads through the quorum, so an answer is never an old one. Without a quorum it fails, and says what each member
    said.
  - Run it on a host of the topology, as root, since only those may talk to the registry, with the host's certificate.
options:
  endpoints:
    description:
      - The registry's members, each as C(host:port) or as a mapping with C(host) and C(port).
      - All are asked at once, so one that is dead costs one O(timeout), however many there are.
    type: list
    elements: raw
    required: true
  history:
    description: Whether to read the cells' histories, too.
    type: bool
    default: false
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
  - module: shannon.resilience.registry_cell
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Read the records of all cells
  shannon.resilience.registry_cell_info:
    endpoints: ["192.0.2.11:12379", "192.0.2.21:12379", "192.0.2.31:12379"]
    history: true
  register: registry

- name: Say where the cell lives
  ansible.builtin.debug:
    msg: "main lives in {{ registry.records.main.home }}, epoch {{ registry.records.main.epoch }}"
"""

RETURN = r"""
records:
  description: All cells that the registry knows, each with C(home), C(epoch), C(state) and C(revision).
  returned: success
  type: dict
  sample: {main: {home: a, epoch: 1, state: active, revision: 4}}
history:
  description:
    - Per cell its changes, the oldest first, each with C(cell), C(epoch), C(home), C(previous_home), C(state),
      C(reason), C(operator), C(at), C(overrides) and C(id).
  returned: when O(history) is true
  type: dict
members:
  description: The members, in the order of O(endpoints).
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: Its name; empty when it did not answer and the cluster does not know it.
      type: str
    endpoint:
      description: Where it was asked, as C(host:port).
      type: str
    healthy:
      description: Whether it can read through the quorum.
      type: bool
    error:
      description: Why it is not healthy; empty when it is.
      type: str
    leader:
      description: Whether it leads.
      type: bool
    version:
      description: Version of etcd.
      type: str
    db_size:
      description: Size of its store in bytes.
      type: int
    raft_term:
      description: The term of Raft that it is in; grows with each election.
      type: int
leader:
  description: Name of the member that leads; empty when none does.
  returned: always
  type: str
"""

import typing as t
from dataclasses import asdict
from urllib.parse import urlsplit

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils.concurrently import gather
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.etcd import EtcdClient, MemberStatus
from ansible_collections.shannon.resilience.plugins.module_utils.registry import Registry
from ansible_collections.shannon.resilience.plugins.module_utils.tls import ARGUMENTS as TLS_ARGUMENTS
from ansible_collections.shannon.resilience.plugins.module_utils.tls import files_of


def cluster(client: EtcdClient) -> dict[str, t.Any]:
    """How each member is, and which leads; asked all at once."""
    calls: dict[str, t.Callable[[], t.Any]] = {
        "statuses": client.statuses,
        "health": client.health,
        "members": client.members,
    }
    found = gather(calls)
    known = [] if isinstance(found["members"], ResilienceError) else found["members"]
    names = {member.id: member.name for member in known}
    names_by_place = {urlsplit(url).netloc: member.name for member in known for url in member.client_urls}
    members = []
    for endpoint in client.endpoints:
        status, error = found["statuses"][endpoint], found["health"][endpoint]
        answered = isinstance(status, MemberStatus)
        members.append(
            {
                "name": names.get(status.member_id, "") if answered else names_by_place.get(str(endpoint), ""),
                "endpoint": str(endpoint),
                "healthy": not error,
                "error": error,
                "leader": answered and status.is_leader,
                "version": status.version if answered else "",
                "db_size": status.db_size if answered else 0,
                "raft_term": status.raft_term if answered else 0,
            }
        )
    return {"members": members, "leader": next((member["name"] for member in members if member["leader"]), "")}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "endpoints": {"type": "list", "elements": "raw", "required": True},
            "history": {"type": "bool", "default": False},
            "timeout": {"type": "float", "default": 2},
            **TLS_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    params = module.params
    answer: dict[str, t.Any] = {"members": [], "leader": ""}
    try:
        tls = files_of(params)
        registry = Registry.connect(params["endpoints"], tls, params["timeout"])
        calls: dict[str, t.Callable[[], t.Any]] = {
            "cluster": lambda: cluster(registry.client),
            "records": registry.records,
        }
        found = gather(calls)
        answer = found["cluster"]
        if isinstance(found["records"], ResilienceError):
            raise found["records"]
        records = found["records"]
        answer["records"] = {
            name: {"home": record.home, "epoch": record.epoch, "state": record.state, "revision": record.revision}
            for name, record in records.items()
        }
        if params["history"]:
            answer["history"] = {name: [asdict(entry) for entry in registry.history(name)] for name in records}
    except ResilienceError as exc:
        answer.pop("records", None)
        module.fail_json(msg=str(exc), **answer)
    module.exit_json(changed=False, **answer)


if __name__ == "__main__":
    main()
