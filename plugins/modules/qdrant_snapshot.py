#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qdrant_snapshot
short_description: Back up a region's Qdrant, compare it with a backup, and restore it from one
version_added: "0.1.0"
description:
  - A backup has each shard of each collection, from a peer that holds it, and a manifest with exact counts,
    configuration, payload indexes, aliases, and sample searches with their answers.
  - Snapshots of shards are used, not of collections. One of a collection has one peer's shards only, and a peer that
    recovers one without a shard that it holds keeps that shard C(Partial) for good.
  - A restore drops and creates each collection anew, gives each shard to one peer with priority C(snapshot) and the
    file's checksum, waits until all copies are in use, and compares with the manifest. The collection of the indexer's
    positions is dropped first and restored last.
options:
  state:
    description:
      - V(present) takes a backup into O(folder).
      - V(verified) compares the cluster with the backup in O(folder), and the files with its manifest.
      - V(restored) restores collections from O(folder); without O(restore_id), those that are as in the backup are left
        alone.
      - V(emptied) deletes the points of collections and all of the indexer's positions, so that the indexer fills them
        anew from C(vector_log).
      - V(shown) lists snapshots that peers keep and the indexer's positions, V(absent) deletes such snapshots.
    type: str
    choices: [present, verified, restored, emptied, shown, absent]
    required: true
  peers:
    description: All peers of the cluster, by name, each as C(host:port).
    type: dict
    required: true
  api_key:
    description: API key that may write.
    type: str
    required: true
  folder:
    description: Folder of the backup.
    type: path
  collections:
    description: Only these collections; empty for all.
    type: list
    elements: str
    default: []
  searches:
    description: How many sample searches prove each collection.
    type: int
    default: 5
  unless_newer_than:
    description: Seconds; a finished backup in O(folder) that is younger is enough. 0 always takes one.
    type: int
    default: 0
  restore_id:
    description: Name of this restore; collections that it has restored are not restored again.
    type: str
    default: ''
  timeout:
    description: Seconds for each snapshot, and for a collection's copies to be in use.
    type: int
    default: 600
extends_documentation_fragment:
  - shannon.resilience.tls
attributes:
  check_mode:
    description: Can run in check mode.
    support: full
  diff_mode:
    description: Shows what is taken or restored.
    support: full
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Restore the region's Qdrant
  shannon.resilience.qdrant_snapshot:
    state: restored
    peers: {a1: "192.0.2.1:6333", a2: "192.0.2.2:6333"}
    api_key: "{{ qdrant_api_key }}"
    folder: /var/lib/shannon/backup/fetch/20260102T030405Z
    restore_id: 20260102T030405Z
"""

RETURN = r"""
manifest:
  description: The backup's manifest, without the sample searches.
  returned: when O(state) is V(present), V(verified) or V(restored)
  type: dict
actions:
  description: What was done, a sentence each.
  returned: success
  type: list
  elements: str
positions:
  description: The indexer's positions, per cell and collection.
  returned: when O(state) is V(shown)
  type: list
  elements: dict
snapshots:
  description: Snapshots that peers keep, each with peer, collection, shard, name, size and creation_time.
  returned: when O(state) is V(shown) or V(absent)
  type: list
  elements: dict
"""

import time
import typing as t
from datetime import datetime

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils import qdrant_snapshot as snapshots
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.qdrant import Qdrant
from ansible_collections.shannon.resilience.plugins.module_utils.qdrant_transfer import ShardSnapshots
from ansible_collections.shannon.resilience.plugins.module_utils.tls import ARGUMENTS as TLS_ARGUMENTS
from ansible_collections.shannon.resilience.plugins.module_utils.tls import client_context, files_of


def answer(changed: bool, actions: list[str], **more: t.Any) -> dict[str, t.Any]:
    after = "".join(f"{action}\n" for action in actions) if changed else ""
    return {"changed": changed, "actions": actions, "diff": {"before": "", "after": after}, **more}


def short(manifest: dict[str, t.Any]) -> dict[str, t.Any]:
    """The manifest without the samples, whose vectors are long."""
    found = manifest.get("collections", {})
    return {
        **manifest,
        "collections": {
            name: {key: value for key, value in it.items() if key != "searches"} for name, it in found.items()
        },
    }


class Runner:
    """One region's cluster and what is wanted of it."""

    def __init__(self, module: AnsibleModule) -> None:
        params = self.params = module.params
        self.check = module.check_mode
        self.only: list[str] | None = params["collections"] or None
        context = client_context(files_of(params))
        self.peers = {}
        for name, endpoint in params["peers"].items():
            host, port = str(endpoint).rsplit(":", 1)
            self.peers[name] = Qdrant(host, int(port), context, params["api_key"], 10.0)

    def present(self) -> dict[str, t.Any]:
        folder, limit = self.params["folder"], self.params["unless_newer_than"]
        if limit:
            try:
                manifest = snapshots.read_manifest(folder)
                if time.time() - datetime.fromisoformat(manifest["taken_at"]).timestamp() < limit:
                    return answer(False, [], manifest=short(manifest))
            except ResilienceError:
                pass  # there is none that counts
        if self.check:
            names = self.only or snapshots.first_that_answers(self.peers).collections()
            return answer(True, [f"{name}: a snapshot of each shard" for name in sorted(names)], manifest={})
        actions: list[str] = []
        searches, timeout = self.params["searches"], self.params["timeout"]
        manifest = snapshots.take(self.peers, folder, self.only, searches, timeout, actions.append)
        return answer(True, actions, manifest=short(manifest))

    def verified(self) -> dict[str, t.Any]:
        folder = self.params["folder"]
        manifest = snapshots.read_manifest(folder)
        problems = snapshots.verify(folder) or snapshots.compare(manifest, self.peers, self.only)
        if problems:
            raise ResilienceError(f"Qdrant is not as in the backup in {folder}: {'; '.join(problems)}")
        return answer(False, [], manifest=short(manifest))

    def restored(self) -> dict[str, t.Any]:
        folder = self.params["folder"]
        actions = snapshots.restore(
            self.peers,
            folder,
            self.only,
            self.params["restore_id"],
            self.params["timeout"],
            dry_run=self.check,
        )
        return answer(bool(actions), actions, manifest=short(snapshots.read_manifest(folder)))

    def shown(self) -> dict[str, t.Any]:
        return answer(False, [], snapshots=self.kept(), positions=snapshots.positions(self.peers))

    def emptied(self) -> dict[str, t.Any]:
        actions = snapshots.empty(self.peers, self.only, self.check)
        return answer(bool(actions), actions)

    def absent(self) -> dict[str, t.Any]:
        kept = self.kept()
        if not self.check:
            for one in kept:
                ShardSnapshots(self.peers[one["peer"]]).delete(one["collection"], one["shard"], one["name"])
        actions = [f"{one['peer']}: deleted the snapshot {one['name']}" for one in kept]
        return answer(bool(kept), actions, snapshots=kept)

    def kept(self) -> list[dict[str, t.Any]]:
        found = []
        for name, peer in self.peers.items():
            # A collection that is gone has none; others' are still worth knowing.
            for collection in sorted(one for one in peer.collections() if not self.only or one in self.only):
                for shard in sorted(peer.local_shards(collection)):
                    for one in ShardSnapshots(peer).list(collection, shard):
                        wanted = {key: one.get(key) for key in ("name", "size", "creation_time")}
                        found.append({"peer": name, "collection": collection, "shard": shard, **wanted})
        return found


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {
                "type": "str",
                "choices": ["present", "verified", "restored", "emptied", "shown", "absent"],
                "required": True,
            },
            "peers": {"type": "dict", "required": True},
            "api_key": {"type": "str", "required": True, "no_log": True},
            "folder": {"type": "path"},
            "collections": {"type": "list", "elements": "str", "default": []},
            "searches": {"type": "int", "default": 5},
            "unless_newer_than": {"type": "int", "default": 0},
            "restore_id": {"type": "str", "default": ""},
            "timeout": {"type": "int", "default": 600},
            **TLS_ARGUMENTS,
        },
        required_if=[("state", state, ["folder"]) for state in ("present", "verified", "restored")],
        supports_check_mode=True,
    )
    try:
        module.exit_json(**getattr(Runner(module), module.params["state"])())
    except ResilienceError as exc:
        module.fail_json(msg=str(exc))


if __name__ == "__main__":
    main()
