# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client of Qdrant's REST API, for peers, collections and payload indexes."""

from __future__ import annotations

import ssl
import typing as t
from dataclasses import dataclass

from .errors import EndpointError
from .http_client import JsonEndpoint

#: HNSW and optimizer settings of every collection (seed facts, 6).
HNSW = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000}
OPTIMIZERS = {"indexing_threshold": 20000, "memmap_threshold": 50000}


@dataclass(frozen=True)
class PeerStatus:
    """What a peer says of its cluster.

    :ivar peer_id: its own id.
    :ivar leader: id of the Raft leader; None while there is none.
    :ivar peers: how many peers the cluster has, dead ones included.
    """

    peer_id: int
    leader: int | None
    peers: int


@dataclass(frozen=True)
class Shards:
    """How a collection is spread: its shards, and all copies of them with those that are in use."""

    shards: int
    replicas: int
    replicas_active: int


class Qdrant:
    """The REST API of one peer.

    Every method raises EndpointError when the peer does not answer in time or refuses.

    :param host: name or address; it must be in the peer's certificate.
    :param port: port of the REST API.
    :param context: TLS client context with a certificate; None for plain HTTP, which only tests use.
    :param api_key: a key that may do what is asked for.
    :param timeout: seconds for each request.
    """

    def __init__(
        self, host: str, port: int, context: ssl.SSLContext | None, api_key: str, timeout: float = 2.0
    ) -> None:
        self.host = host
        self.port = port
        self._endpoint = JsonEndpoint(host, port, context, timeout, {"api-key": api_key})

    def peer_status(self) -> PeerStatus:
        """C(GET /cluster)."""
        found = self._result("GET", "/cluster")
        leader = found.get("raft_info", {}).get("leader")
        return PeerStatus(
            int(found.get("peer_id", 0)), None if leader is None else int(leader), len(found.get("peers", {}))
        )

    def version(self) -> str:
        """C(GET /): the server's version."""
        found = self._endpoint.expect("GET", "/")
        return str(found.get("version", "")) if isinstance(found, dict) else ""

    def collections(self) -> list[str]:
        """Names of the collections."""
        return [str(entry["name"]) for entry in self._result("GET", "/collections")["collections"]]

    def collection(self, name: str) -> dict[str, t.Any]:
        """C(GET /collections/NAME): configuration and payload indexes."""
        return t.cast(dict[str, t.Any], self._result("GET", f"/collections/{name}"))

    def shards(self, name: str) -> Shards:
        """C(GET /collections/NAME/cluster)."""
        found = self._result("GET", f"/collections/{name}/cluster")
        replicas = [*found["local_shards"], *found["remote_shards"]]
        active = sum(replica["state"] == "Active" for replica in replicas)
        return Shards(int(found["shard_count"]), len(replicas), active)

    def count(self, name: str) -> int:
        """The exact number of points."""
        return int(self._result("POST", f"/collections/{name}/points/count", {"exact": True})["count"])

    def payloads(self, name: str, field: str, value: str, limit: int = 1000) -> list[dict[str, t.Any]]:
        """Payloads of the points whose field has a value."""
        condition = {"must": [{"key": field, "match": {"value": value}}]}
        body = {"limit": limit, "with_payload": True, "with_vector": False, "filter": condition}
        return [
            dict(point["payload"])
            for point in self._result("POST", f"/collections/{name}/points/scroll", body)["points"]
        ]

    def create_collection(self, name: str, dimension: int, shards: int, replication_factor: int) -> None:
        """Create a collection for cosine similarity, with the settings of every collection here."""
        self._result(
            "PUT",
            f"/collections/{name}?timeout=60",
            {
                "vectors": {"size": dimension, "distance": "Cosine"},
                "hnsw_config": HNSW,
                "optimizers_config": OPTIMIZERS,
                "shard_number": shards,
                "replication_factor": replication_factor,
                # One copy that has it is enough to acknowledge: with one of two peers gone, writes go on.
                "write_consistency_factor": 1,
                "on_disk_payload": True,
            },
            timeout=60,
        )

    def create_index(self, collection: str, field: str, kind: str) -> None:
        """Create a payload index, and wait until it is built."""
        self._result(
            "PUT", f"/collections/{collection}/index?wait=true", {"field_name": field, "field_schema": kind}, timeout=60
        )

    def create_like(self, name: str, config: t.Mapping[str, t.Any], replication_factor: int) -> None:
        """Create a collection with the configuration that another had, as C(GET /collections/NAME) told it."""
        params = {key: value for key, value in config["params"].items() if value is not None}
        body = {
            **params,
            "replication_factor": replication_factor,
            "hnsw_config": _given(config.get("hnsw_config")),
            "optimizers_config": _given(config.get("optimizer_config")),
            "wal_config": _given(config.get("wal_config")),
            "quantization_config": _given(config.get("quantization_config")),
        }
        self._result("PUT", f"/collections/{name}?timeout=60", {key: it for key, it in body.items() if it}, timeout=60)

    def delete_collection(self, name: str) -> None:
        """Drop a collection and its aliases; one that is not there is no error."""
        self._result("DELETE", f"/collections/{name}?timeout=60", timeout=60)

    def delete_points(self, name: str, timeout: float = 600.0) -> None:
        """Delete all points of a collection; its configuration, indexes and aliases stay."""
        self._result("POST", f"/collections/{name}/points/delete?wait=true", {"filter": {}}, timeout=timeout)

    def aliases(self) -> dict[str, str]:
        """All aliases, each with its collection."""
        found = self._result("GET", "/aliases")["aliases"]
        return {str(one["alias_name"]): str(one["collection_name"]) for one in found}

    def set_aliases(self, wanted: t.Mapping[str, str]) -> None:
        """Have each alias point at its collection, all in one step; others are left alone."""
        there = self.aliases()
        actions: list[dict[str, t.Any]] = []
        for alias, collection in wanted.items():
            if there.get(alias) == collection:
                continue
            if alias in there:
                actions.append({"delete_alias": {"alias_name": alias}})
            actions.append({"create_alias": {"alias_name": alias, "collection_name": collection}})
        if actions:
            self._result("POST", "/collections/aliases?timeout=60", {"actions": actions}, timeout=60)

    def local_shards(self, name: str) -> dict[int, str]:
        """The shards of a collection that this peer holds, each with its state."""
        found = self._result("GET", f"/collections/{name}/cluster")
        return {int(shard["shard_id"]): str(shard["state"]) for shard in found["local_shards"]}

    def transfers(self, name: str) -> int:
        """How many copies of shards are being made."""
        return len(self._result("GET", f"/collections/{name}/cluster").get("shard_transfers") or [])

    def scroll(self, name: str, limit: int, vectors: bool = True) -> list[dict[str, t.Any]]:
        """The first points by id, with payload."""
        body = {"limit": limit, "with_payload": True, "with_vector": vectors}
        return list(self._result("POST", f"/collections/{name}/points/scroll", body, timeout=30)["points"])

    def payloads_of(self, name: str, ids: t.Sequence[t.Any]) -> dict[str, t.Any]:
        """Payloads of points, by id; those that are not there are left out."""
        found = self._result(
            "POST", f"/collections/{name}/points", {"ids": list(ids), "with_payload": True}, timeout=30
        )
        return {str(point["id"]): point.get("payload") for point in found}

    def nearest(self, name: str, vector: t.Any, limit: int, using: str = "") -> list[tuple[str, float]]:
        """Ids and scores of the points that are nearest, found by comparing with all of them."""
        body = {"query": vector, "limit": limit, "params": {"exact": True}, **({"using": using} if using else {})}
        found = self._result("POST", f"/collections/{name}/points/query", body, timeout=60)["points"]
        return [(str(point["id"]), float(point["score"])) for point in found]

    def _result(self, method: str, path: str, body: t.Any = None, timeout: float | None = None) -> t.Any:
        answer = self._endpoint.expect(method, path, body, timeout=timeout)
        if not isinstance(answer, dict) or "result" not in answer:
            raise EndpointError(
                self.host, self.port, f"a result from {method} {path}", repr(answer)[:100], "Is it Qdrant?"
            )
        return answer["result"]


def _given(settings: t.Mapping[str, t.Any] | None) -> dict[str, t.Any]:
    return {key: value for key, value in (settings or {}).items() if value is not None}
