"""Backups of Qdrant: what is taken from whom, how it is brought back, and what tells a whole one from a half one."""

from __future__ import annotations

import hashlib
import json
import threading
import typing as t
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from module_runner import run_module

from ansible_collections.shannon.resilience.plugins.module_utils import qdrant_snapshot
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.qdrant import Qdrant
from ansible_collections.shannon.resilience.plugins.module_utils.qdrant_snapshot import (
    POSITIONS,
    compare,
    restore,
    take,
    verify,
)
from ansible_collections.shannon.resilience.plugins.modules import qdrant_snapshot as module

SECRET = "an-api-key-of-tests"


class Cluster:
    """What the peers of a cluster share: collections, each with its points by shard, and who holds which shard."""

    def __init__(self) -> None:
        self.collections: dict[str, dict[str, t.Any]] = {}
        self.aliases: dict[str, str] = {}
        self.calls: list[tuple[str, str, str]] = []
        self.peers: dict[str, FakePeer] = {}
        self.placing: dict[int, tuple[str, ...]] = {0: ("a1", "a2"), 1: ("a2", "a3")}
        self.broken = ""
        self.drift = 0

    def has(self, name: str, points: dict[int, list[int]], **indexes: str) -> None:
        self.collections[name] = {
            "points": points,
            "indexes": dict(indexes),
            "params": {"vectors": {"size": 2, "distance": "Cosine"}, "shard_number": 2, "replication_factor": 2},
        }

    def clients(self) -> dict[str, Qdrant]:
        return {name: Qdrant("127.0.0.1", peer.port, None, SECRET, 5.0) for name, peer in self.peers.items()}


class FakePeer:
    """One peer's REST API, as far as backups use it."""

    def __init__(self, name: str, cluster: Cluster) -> None:
        self.name, self.cluster = name, cluster
        self.kept: dict[tuple[str, int], bytes] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_args: t.Any) -> None:
                pass

            def handle_it(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                code, found = outer.answer(self.command, self.path, raw)
                if not isinstance(found, bytes):
                    found = json.dumps({"result": found} if code == 200 else {"status": {"error": found}}).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(found)))
                self.end_headers()
                self.wfile.write(found)

            do_GET = do_PUT = do_POST = do_DELETE = handle_it

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, method: str, url: str, raw: bytes) -> tuple[int, t.Any]:
        path, _mark, query = url.partition("?")
        parts = path.strip("/").split("/")
        cluster = self.cluster
        if path == "/cluster":
            return 200, {"peer_id": 1, "raft_info": {"leader": 1}, "peers": {"1": {}}}
        if path == "/collections":
            return 200, {"collections": [{"name": name} for name in cluster.collections]}
        if path == "/aliases":
            found = [{"alias_name": alias, "collection_name": name} for alias, name in cluster.aliases.items()]
            return 200, {"aliases": found}
        if path == "/collections/aliases":
            for action in json.loads(raw)["actions"]:
                if "create_alias" in action:
                    cluster.aliases[action["create_alias"]["alias_name"]] = action["create_alias"]["collection_name"]
            return 200, True
        name = parts[1]
        if method in ("PUT", "DELETE") and len(parts) == 2:
            cluster.calls.append((self.name, "create" if method == "PUT" else "drop", name))
            if method == "DELETE":
                cluster.collections.pop(name, None)
                cluster.aliases = {alias: it for alias, it in cluster.aliases.items() if it != name}
            else:
                body = json.loads(raw)
                cluster.has(name, {0: [], 1: []})
                cluster.collections[name]["params"]["replication_factor"] = body["replication_factor"]
            return 200, True
        if name not in cluster.collections:
            return 404, f"Collection `{name}` doesn't exist"
        it = cluster.collections[name]
        if len(parts) == 2:
            schema = {field: {"data_type": kind} for field, kind in it["indexes"].items()}
            return 200, {"config": {"params": it["params"], "hnsw_config": {"m": 16}}, "payload_schema": schema}
        if parts[2] == "index":
            body = json.loads(raw)
            it["indexes"][body["field_name"]] = body["field_schema"]
            return 200, True
        if parts[2] == "cluster":
            here = [{"shard_id": s, "state": "Active"} for s, hosts in cluster.placing.items() if self.name in hosts]
            return 200, {"shard_count": 2, "local_shards": here, "remote_shards": [], "shard_transfers": []}
        if parts[2] == "shards":
            return self.shard(method, name, int(parts[3]), parts[5:], query, raw)
        return self.points(it, parts[-1], raw)

    def points(self, it: dict[str, t.Any], verb: str, raw: bytes) -> tuple[int, t.Any]:
        every = sorted(point for shard in it["points"].values() for point in shard)
        if verb == "count":
            return 200, {"count": len(every)}
        if verb == "delete":
            it["points"] = {0: [], 1: []}
            return 200, True
        if verb == "scroll":
            limit = json.loads(raw)["limit"]
            return 200, {"points": [{"id": p, "vector": [p, 1.0], "payload": {"txid": p}} for p in every[:limit]]}
        if verb == "points":
            return 200, [
                {"id": p, "payload": {"txid": p + self.cluster.drift}} for p in json.loads(raw)["ids"] if p in every
            ]
        wanted = json.loads(raw)["query"][0]
        near = sorted(every, key=lambda point: abs(point - wanted))[:10]
        return 200, {"points": [{"id": p, "score": -abs(p - wanted)} for p in near]}

    def shard(self, method: str, name: str, shard: int, rest: list[str], query: str, raw: bytes) -> tuple[int, t.Any]:
        cluster = self.cluster
        if method == "POST" and rest == ["upload"]:
            content = raw.split(b"\r\n\r\n", 1)[1].rsplit(b"\r\n--", 1)[0]
            options = dict(pair.split("=") for pair in query.split("&"))
            if options["checksum"] != hashlib.sha256(content).hexdigest():
                return 400, "Checksum mismatch"
            assert options["priority"] == "snapshot" and options["wait"] == "true"
            cluster.calls.append((self.name, f"upload {shard}", name))
            cluster.collections[name]["points"][shard] = json.loads(content)
            return 200, None
        if method == "POST":
            cluster.calls.append((self.name, f"snapshot {shard}", name))
            content = json.dumps(cluster.collections[name]["points"][shard]).encode()
            self.kept[name, shard] = content
            checksum = hashlib.sha256(content).hexdigest()
            return 200, {
                "name": "s",
                "size": len(content),
                "checksum": "0" * 64 if cluster.broken == name else checksum,
            }
        if method == "DELETE":
            self.kept.pop((name, shard), None)
            return 200, True
        if rest:
            return 200, self.kept[name, shard]
        if (name, shard) not in self.kept:
            return 200, []
        return 200, [{"name": "s", "size": 1, "creation_time": "2020-01-01T00:00:00"}]


@pytest.fixture
def cluster() -> t.Iterator[Cluster]:
    made = Cluster()
    made.peers = {name: FakePeer(name, made) for name in ("a1", "a2", "a3")}
    made.has("cases", {0: [1, 2, 3], 1: [10, 11]}, user_id="keyword")
    made.has(POSITIONS, {0: [5], 1: []})
    made.aliases = {"cases_live": "cases"}
    yield made
    for peer in made.peers.values():
        peer.server.shutdown()
        peer.server.server_close()


def test_every_shard_is_taken_once_the_positions_first(cluster: Cluster, tmp_path: Path) -> None:
    manifest = take(cluster.clients(), str(tmp_path))
    made = [(name, verb) for _peer, verb, name in cluster.calls]
    assert made == [
        (POSITIONS, "snapshot 0"),
        (POSITIONS, "snapshot 1"),
        ("cases", "snapshot 0"),
        ("cases", "snapshot 1"),
    ]
    holders = {"0": ("a1", "a2"), "1": ("a2", "a3")}
    for it in manifest["collections"].values():
        assert all(shard["host"] in holders[number] for number, shard in it["shards"].items())
    cases = manifest["collections"]["cases"]
    assert cases["points"] == [5, 5] and cases["aliases"] == ["cases_live"] and len(cases["searches"]) == 5
    assert cases["payload_schema"] == {"user_id": "keyword"}
    assert manifest["collections"][POSITIONS]["positions"] == [{"txid": 5}]
    assert verify(str(tmp_path)) == [] and compare(manifest, cluster.clients()) == []
    assert all(not peer.kept for peer in cluster.peers.values()), "nothing stays on the peers"


def test_a_shard_that_nobody_has_in_use_is_told(cluster: Cluster, tmp_path: Path) -> None:
    cluster.placing[1] = ()
    with pytest.raises(ResilienceError, match="no copy of shard 1 in use"):
        take(cluster.clients(), str(tmp_path))
    assert not (tmp_path / "manifest.json").exists()


def test_what_comes_damaged_is_no_backup(cluster: Cluster, tmp_path: Path) -> None:
    cluster.broken = "cases"
    with pytest.raises(ResilienceError, match="came damaged"):
        take(cluster.clients(), str(tmp_path))
    assert not (tmp_path / "manifest.json").exists() and not list((tmp_path / "cases").iterdir())


def test_lost_collections_come_back_the_positions_last(cluster: Cluster, tmp_path: Path) -> None:
    manifest = take(cluster.clients(), str(tmp_path))
    cluster.collections, cluster.aliases, cluster.calls = {}, {}, []
    cluster.has(POSITIONS, {0: [9], 1: []})
    assert len(compare(manifest, cluster.clients())) >= 3
    done = restore(cluster.clients(), str(tmp_path))
    assert [line.partition(":")[0] for line in done] == ["cases", POSITIONS]
    assert cluster.calls[0][1:] == ("drop", POSITIONS), "an indexer that starts too early begins at the start"
    uploads = [name for _peer, verb, name in cluster.calls if verb.startswith("upload")]
    assert uploads == ["cases", "cases", POSITIONS, POSITIONS]
    assert cluster.aliases == {"cases_live": "cases"}
    assert compare(manifest, cluster.clients()) == [] and restore(cluster.clients(), str(tmp_path)) == []


def test_a_file_that_was_changed_changes_nothing(cluster: Cluster, tmp_path: Path) -> None:
    manifest = take(cluster.clients(), str(tmp_path))
    (tmp_path / manifest["collections"]["cases"]["shards"]["1"]["file"]).write_bytes(b"[99]")
    cluster.collections.pop("cases")
    cluster.calls.clear()
    with pytest.raises(ResilienceError, match="nothing was changed, the backup is damaged: cases, shard 1"):
        restore(cluster.clients(), str(tmp_path))
    assert cluster.calls == []


def test_a_restore_that_was_killed_goes_on(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take(cluster.clients(), str(tmp_path))
    one = qdrant_snapshot._restore_collection

    def killed(first: Qdrant, peers: t.Any, name: str, *rest: t.Any) -> None:
        if name == POSITIONS:
            raise KeyboardInterrupt
        one(first, peers, name, *rest)

    monkeypatch.setattr(qdrant_snapshot, "_restore_collection", killed)
    with pytest.raises(KeyboardInterrupt):
        restore(cluster.clients(), str(tmp_path), restore_id="x")
    assert POSITIONS not in cluster.collections
    monkeypatch.setattr(qdrant_snapshot, "_restore_collection", one)
    done = restore(cluster.clients(), str(tmp_path), restore_id="x")
    assert [line.partition(":")[0] for line in done] == [POSITIONS]
    assert restore(cluster.clients(), str(tmp_path), restore_id="x") == []
    assert len(restore(cluster.clients(), str(tmp_path), restore_id="another", dry_run=True)) == 2


def test_what_differs_is_named(cluster: Cluster, tmp_path: Path) -> None:
    manifest = take(cluster.clients(), str(tmp_path))
    cluster.collections["cases"]["points"][0] = [1, 2]
    cluster.collections["cases"]["indexes"] = {}
    said = " / ".join(compare(manifest, cluster.clients()))
    assert "cases: 4 points, not 5" in said and "payload index user_id is missing" in said
    assert "sample searches answer otherwise" in said


def test_a_payload_that_differs_is_told_and_no_users_words_are_kept(cluster: Cluster, tmp_path: Path) -> None:
    manifest = take(cluster.clients(), str(tmp_path))
    assert '"payload": {' not in json.dumps(manifest)
    cluster.drift = 1
    assert "5 of 5 sample searches answer otherwise" in " / ".join(compare(manifest, cluster.clients(), ["cases"]))


@pytest.mark.parametrize(
    ("wanted", "answer", "same"),
    [
        ([["a", 0.9], ["b", 0.5]], [["a", 0.90001], ["b", 0.5]], True),
        ([["a", 0.9], ["b", 0.5]], [["c", 0.9], ["b", 0.5]], False),
        ([["a", 0.9], ["b", 0.5]], [["a", 0.9], ["c", 0.5]], True),
        ([["a", 0.9], ["b", 0.5]], [["a", 0.9]], False),
        ([["a", 0.9], ["b", 0.5]], [["a", 0.9], ["b", 0.4]], False),
    ],
    ids=["rounding", "another point", "a tie at the end", "fewer", "another score"],
)
def test_answers_are_the_same_but_for_ties(wanted: list[t.Any], answer: list[t.Any], same: bool) -> None:
    assert qdrant_snapshot._same_answer({"answer": wanted}, answer) is same


def test_emptied_collections_keep_everything_but_points(cluster: Cluster) -> None:
    done = qdrant_snapshot.empty(cluster.clients())
    assert [line.partition(":")[0] for line in done] == ["cases", POSITIONS]
    assert cluster.collections["cases"]["indexes"] == {"user_id": "keyword"} and cluster.aliases
    assert qdrant_snapshot.empty(cluster.clients()) == []


def test_the_module_in_check_mode_and_for_real(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "client_context", lambda _files: None)
    common = {
        "peers": {name: f"127.0.0.1:{peer.port}" for name, peer in cluster.peers.items()},
        "api_key": SECRET,
        "folder": str(tmp_path / "backup"),
    }
    planned = run_module(module, check=True, state="present", **common)
    assert planned["changed"] and not (tmp_path / "backup").exists()
    made = run_module(module, state="present", **common)
    assert made["changed"] and "searches" not in made["manifest"]["collections"]["cases"]
    assert not run_module(module, state="present", unless_newer_than=60, **common)["changed"]
    assert not run_module(module, state="restored", **common)["changed"]
    assert not run_module(module, state="verified", **common)["changed"]
    cluster.collections.pop("cases")
    assert "not there" in run_module(module, state="verified", **common)["msg"]
    assert run_module(module, check=True, state="restored", **common)["changed"] and "cases" not in cluster.collections
    assert run_module(module, state="restored", **common)["changed"]
    assert run_module(module, state="shown", **common)["positions"] == [{"txid": 5}]
    # A collection that was lost is nobody's failure.
    assert run_module(module, state="shown", collections=["gone"], **common)["snapshots"] == []
    cluster.peers["a1"].kept["cases", 0] = b"[]"
    left = run_module(module, state="absent", **common)
    assert left["changed"] and not cluster.peers["a1"].kept
