#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cell_info
short_description: Who is what in each cell, and how far behind
version_added: "0.1.0"
description:
  - Asks the registry and every member of every cell at once, Patroni for PostgreSQL, Redis, Qdrant, and looks at the
    certificate that each presents. A dead region costs one timeout.
  - Run it on any host of the topology, as root, since only those may talk to the stores, with the host's certificate.
options:
  topology:
    description: What M(shannon.resilience.topology) derived.
    type: dict
    required: true
  redis_username:
    description: Redis user to ask as; it needs C(info) and C(ping) only.
    type: str
    default: monitor
  redis_password:
    description: Password of O(redis_username).
    type: str
    required: true
  qdrant_api_key:
    description: API key of Qdrant; the read-only one is enough.
    type: str
    required: true
  backup_objectives:
    description: The part C(backups) of C(config/objectives.yml); without it no backup is overdue.
    type: dict
    default: {}
  timeout:
    description: Seconds that one endpoint may take to answer.
    type: float
    default: 1.5
extends_documentation_fragment:
  - shannon.resilience.tls
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
- name: Ask every member of every cell
  shannon.resilience.cell_info:
    topology: "{{ shannon_topology }}"
    redis_password: "{{ shannon_secrets.redis_monitor }}"
    qdrant_api_key: "{{ shannon_secrets.qdrant_read_only_api_key }}"
  register: found
  no_log: true

- name: Stop when a cell is not healthy
  ansible.builtin.assert:
    that: found.info.cells.main.healthy
    fail_msg: "{{ found.info.cells.main.problems | join('; ') }}"
"""

RETURN = r"""
info:
  description: What was found.
  returned: success
  type: dict
  contains:
    at:
      description: When it was asked, in UTC.
      type: str
    seconds:
      description: How long asking took.
      type: float
    probed_from:
      description: The host that asked.
      type: str
    cells:
      description:
        - For each cell its C(home), C(epoch) and C(state), C(in_registry) (whether those are the registry's word),
          C(healthy), C(problems) (a sentence each), C(moves) (all changes of its home, the oldest first),
          C(endpoints) (what M(shannon.resilience.registry_endpoints_info) says of it; empty until its home has
          published any), and for C(postgres), C(redis) and C(qdrant) the regions.
        - Each region has C(members), with C(name), C(role), C(state), C(healthy), C(error), C(timeline), C(lag_bytes)
          and C(lag_seconds) (null when unknown). PostgreSQL's also have C(synchronous), C(pending_restart), C(received)
          (the end of the WAL that a follower has, in bytes) and C(replayed_at) (seconds since 1970), Redis' also
          C(offset), Qdrant's also C(peer_id) and C(peers).
        - Qdrant's regions also have C(collections), with C(points), C(shards), C(replicas) and C(replicas_active), and
          C(indexer), the vector indexer that applies there, with C(host), C(lag_rows) and C(lag_seconds) (null when
          unknown), C(healthy) and C(error); null where no orchestrators are.
      type: dict
    registry:
      description: Whether it has C(quorum), its C(leader), and its C(members) with C(name), C(healthy) and C(error).
      type: dict
    versions:
      description: Component to the version that was seen, with the hosts where they differ.
      type: dict
    backups:
      description:
        - Whether there are any (C(enabled)), C(kinds), a line per kind, cell and region, and C(warnings), a sentence
          each.
        - PostgreSQL's archive of WAL has a line for each region's repository, too, with C(kind) V(wal). Its C(age) is
          that of the oldest write that the repository lacks, as its host saw it within the last quarter of an hour;
          C(id) is the last segment up to which nothing is missing.
        - A line has C(kind), C(cell), C(region), C(state) (V(good), V(failed), V(overdue), V(unverified) or
          V(missing)), C(age) and C(rpo) in seconds, C(overdue), C(ok) (the last run), C(error), C(verified_age),
          C(verified_ok), C(bytes), C(seconds), C(id) and C(behind) (of V(wal) the bytes that the repository lacks).
          What a line has no use for, and what is not known, is null.
        - A backup that is overdue or failed is a warning, and no problem of a cell, which serves as well as it did.
      type: dict
    certificate:
      description: Of all certificates that were presented the first to expire, with C(host), C(not_after) and C(days).
      type: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils.cell_probe import Probe
from ansible_collections.shannon.resilience.plugins.module_utils.cell_status import summarise
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.tls import ARGUMENTS as TLS_ARGUMENTS
from ansible_collections.shannon.resilience.plugins.module_utils.tls import files_of


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "topology": {"type": "dict", "required": True},
            "redis_username": {"type": "str", "default": "monitor"},
            "redis_password": {"type": "str", "required": True, "no_log": True},
            "qdrant_api_key": {"type": "str", "required": True, "no_log": True},
            "backup_objectives": {"type": "dict", "default": {}},
            "timeout": {"type": "float", "default": 1.5},
            **TLS_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        probe = Probe(
            topology=params["topology"],
            tls=files_of(params),
            redis_username=params["redis_username"],
            redis_password=params["redis_password"],
            qdrant_api_key=params["qdrant_api_key"],
            timeout=params["timeout"],
        )
        info = summarise(params["topology"], probe.observe(), params["backup_objectives"])
    except ResilienceError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(changed=False, info=info)


if __name__ == "__main__":
    main()
