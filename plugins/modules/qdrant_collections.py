#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qdrant_collections
short_description: Have a region's Qdrant collections and their payload indexes
version_added: "0.1.0"
description:
  - Waits until all peers of the cluster are there, so that shards spread over all of them, then creates the collections
    and payload indexes that are missing. What exists is left as it is.
  - A collection whose vectors have another dimension is an error, since nothing could be written to it; a payload index
    of another type, or fewer copies than wanted, is reported in RV(warnings_found), since mending it moves data.
  - Run it on a host of the topology, with the host's certificate.
options:
  endpoints:
    description: REST endpoints of the cluster's peers, each as C(host:port); the first that answers is asked.
    type: list
    elements: str
    required: true
  api_key:
    description: API key that may create collections.
    type: str
    required: true
  collections:
    description: Collections, each with its payload indexes and their types.
    type: dict
    required: true
  dimension:
    description: Length of the vectors.
    type: int
    required: true
  dimensions:
    description: Length of the vectors of those collections for which it is another one.
    type: dict
    default: {}
  shards:
    description: Shards of a new collection.
    type: int
    default: 2
  replication_factor:
    description: Copies of each shard of a new collection.
    type: int
    default: 2
  peers:
    description: How many peers the cluster must have before a collection is created.
    type: int
    required: true
  wait:
    description: Seconds to wait for the peers.
    type: int
    default: 60
  timeout:
    description: Seconds that a peer may take to answer.
    type: float
    default: 5
  ca_file:
    description: The CA that the peers' certificates must come from.
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
attributes:
  check_mode:
    description: Can run in check mode; a cluster that does not answer counts as one to be set up.
    support: full
  diff_mode:
    description: Shows collections and indexes that are created.
    support: full
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Have the collections
  shannon.resilience.qdrant_collections:
    endpoints: [192.0.2.1:6333, 192.0.2.2:6333]
    api_key: "{{ qdrant_api_key }}"
    collections:
      summaries: {session_id: keyword, timestamp: integer}
    dimension: 1536
    peers: 2
"""

RETURN = r"""
actions:
  description: What was created, a sentence each.
  returned: success
  type: list
  elements: str
warnings_found:
  description: What differs from what is wanted and was left alone, a sentence each.
  returned: success
  type: list
  elements: str
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils.concurrently import gather, wait_until
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.qdrant import Qdrant
from ansible_collections.shannon.resilience.plugins.module_utils.tls import TlsFiles, client_context


class NotDeployed(ResilienceError):
    """No peer answers, or this host has no certificate yet: in check mode that is a system to be set up."""


class Bootstrap:
    """Compares a cluster with what is wanted, and creates what is missing."""

    def __init__(self, module: AnsibleModule, peers: list[Qdrant]) -> None:
        self.module = module
        self.params = module.params
        self.peers = peers
        self.actions: list[str] = []
        self.warnings: list[str] = []

    def first_that_answers(self) -> Qdrant:
        answers = gather({number: peer.peer_status for number, peer in enumerate(self.peers)})
        for number, answer in answers.items():
            if not isinstance(answer, ResilienceError):
                return self.peers[number]
        said = "; ".join(str(answer) for answer in answers.values())
        raise NotDeployed(f"no peer of the region's Qdrant answers: {said}. Look at: journalctl -u qdrant")

    def wait_for_peers(self) -> Qdrant:
        def complete() -> tuple[bool, str]:
            status = self.first_that_answers().peer_status()
            seen = f"{status.peers} peers, {'a' if status.leader else 'no'} leader"
            return status.peers >= self.params["peers"] and bool(status.leader), seen

        wait_until(complete, f"a Qdrant cluster of {self.params['peers']} peers with a leader", self.params["wait"])
        return self.first_that_answers()

    def run(self) -> dict[str, t.Any]:
        peer = self.first_that_answers() if self.module.check_mode else self.wait_for_peers()
        existing = set(peer.collections())
        for name, indexes in self.params["collections"].items():
            there = self.existing(peer, name, indexes) if name in existing else self.create(peer, name)
            for field, kind in indexes.items():
                if field not in there:
                    self.actions.append(f"{name}: payload index {field} ({kind})")
                    if not self.module.check_mode:
                        peer.create_index(name, field, kind)
        return result(self.actions, self.warnings)

    def dimension(self, name: str) -> int:
        return int(self.params["dimensions"].get(name, self.params["dimension"]))

    def create(self, peer: Qdrant, name: str) -> set[str]:
        shards, copies = self.params["shards"], self.params["replication_factor"]
        self.actions.append(f"{name}: collection of {shards} shards with {copies} copies each")
        if not self.module.check_mode:
            peer.create_collection(name, self.dimension(name), shards, copies)
        return set()

    def existing(self, peer: Qdrant, name: str, indexes: dict[str, str]) -> set[str]:
        found = peer.collection(name)
        size = found["config"]["params"]["vectors"]["size"]
        if size != self.dimension(name):
            raise ResilienceError(
                f"the collection {name} has vectors of length {size}, but qdrant_dimension is "
                f"{self.dimension(name)}. Nothing was changed in it. Set the variable to what is deployed, or "
                "rebuild the collection from vector_log."
            )
        schema = found["payload_schema"]
        for field, kind in indexes.items():
            if field in schema and schema[field]["data_type"] != kind:
                self.warnings.append(f"{name}: index {field} is of type {schema[field]['data_type']}, not {kind}")
        spread = peer.shards(name)
        wanted = spread.shards * self.params["replication_factor"]
        if spread.replicas < wanted:
            self.warnings.append(f"{name}: {spread.replicas} copies of its {spread.shards} shards, not {wanted}")
        return set(schema)


def result(actions: list[str], warnings: list[str]) -> dict[str, t.Any]:
    after = "".join(f"{action}\n" for action in actions)
    return {
        "changed": bool(actions),
        "actions": actions,
        "warnings_found": warnings,
        "diff": {"before": "", "after": after},
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "endpoints": {"type": "list", "elements": "str", "required": True},
            "api_key": {"type": "str", "required": True, "no_log": True},
            "collections": {"type": "dict", "required": True},
            "dimension": {"type": "int", "required": True},
            "dimensions": {"type": "dict", "default": {}},
            "shards": {"type": "int", "default": 2},
            "replication_factor": {"type": "int", "default": 2},
            "peers": {"type": "int", "required": True},
            "wait": {"type": "int", "default": 60},
            "timeout": {"type": "float", "default": 5},
            "ca_file": {"type": "path", "default": "/etc/shannon/pki/ca.crt"},
            "cert_file": {"type": "path", "default": "/etc/shannon/pki/host.crt"},
            "key_file": {"type": "path", "default": "/etc/shannon/pki/host.key", "no_log": False},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        try:
            context = client_context(TlsFiles(params["ca_file"], params["cert_file"], params["key_file"]))
        except ResilienceError as exc:
            raise NotDeployed(str(exc)) from exc
        pairs = [endpoint.rsplit(":", 1) for endpoint in params["endpoints"]]
        peers = [Qdrant(host, int(port), context, params["api_key"], params["timeout"]) for host, port in pairs]
        outcome = Bootstrap(module, peers).run()
    except ResilienceError as exc:
        if not module.check_mode or not isinstance(exc, NotDeployed):
            module.fail_json(msg=str(exc))
        outcome = result([f"{name}: collection" for name in params["collections"]], [str(exc)])
    for warning in outcome["warnings_found"]:
        module.warn(warning)
    module.exit_json(**outcome)


if __name__ == "__main__":
    main()
