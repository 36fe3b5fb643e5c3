"""Collections and payload indexes: what is missing is created, what is there is left alone, what differs is told."""

from __future__ import annotations

import json
import threading
import typing as t
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from module_runner import run_module

from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.modules import qdrant_collections

SECRET = "an-api-key-of-tests"
WANTED = {"cases": {"reward": "float", "user_id": "keyword"}, "summaries": {"timestamp": "integer"}}


class FakePeer:
    """A peer's REST API, as far as the module uses it."""

    def __init__(self) -> None:
        self.collections: dict[str, dict[str, t.Any]] = {}
        self.peers = 3
        self.leader: int | None = 1
        self.writes: list[str] = []
        self.keys: set[str] = set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_args: t.Any) -> None:
                pass

            def do_GET(self) -> None:
                self.reply()

            def do_PUT(self) -> None:
                self.reply()

            def reply(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
                outer.keys.add(self.headers["api-key"])
                code, found = outer.answer(self.command, self.path.partition("?")[0], body)
                raw = json.dumps({"result": found}).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.server.server_address[1]}"

    def has(self, name: str, size: int = 8, copies: int = 4, **indexes: str) -> None:
        self.collections[name] = {"size": size, "shards": 2, "copies": copies, "indexes": dict(indexes)}

    def answer(self, method: str, path: str, body: dict[str, t.Any]) -> tuple[int, t.Any]:
        parts = path.strip("/").split("/")
        if path == "/cluster":
            return 200, {
                "peer_id": 1,
                "raft_info": {"leader": self.leader},
                "peers": {str(n): {} for n in range(self.peers)},
            }
        if path == "/collections":
            return 200, {"collections": [{"name": name} for name in self.collections]}
        name = parts[1]
        if method == "PUT" and len(parts) == 2:
            self.writes.append(name)
            self.has(name, body["vectors"]["size"], body["shard_number"] * body["replication_factor"])
            return 200, True
        if method == "PUT":
            self.writes.append(f"{name}.{body['field_name']}")
            self.collections[name]["indexes"][body["field_name"]] = body["field_schema"]
            return 200, {}
        found = self.collections[name]
        if parts[-1] == "cluster":
            replicas = [{"state": "Active"}] * found["copies"]
            return 200, {"shard_count": found["shards"], "local_shards": replicas[:1], "remote_shards": replicas[1:]}
        schema = {field: {"data_type": kind} for field, kind in found["indexes"].items()}
        return 200, {"config": {"params": {"vectors": {"size": found["size"]}}}, "payload_schema": schema}

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> t.Iterator[FakePeer]:
    monkeypatch.setattr(qdrant_collections, "client_context", lambda _files: None)
    fake = FakePeer()
    yield fake
    fake.close()


def run(*peers: str, check: bool = False, **changes: t.Any) -> dict[str, t.Any]:
    wanted = {
        "collections": WANTED,
        "dimension": 8,
        "peers": 3,
        "wait": 1,
        "timeout": 0.5,
        "api_key": SECRET,
        **changes,
    }
    return run_module(qdrant_collections, check=check, endpoints=list(peers), **wanted)


def test_an_empty_cluster_gets_everything_and_the_second_run_changes_nothing(peer: FakePeer) -> None:
    first = run(peer.endpoint)
    assert first["changed"] and set(peer.collections) == set(WANTED)
    assert {name: found["indexes"] for name, found in peer.collections.items()} == WANTED
    second = run(peer.endpoint)
    assert not second["changed"] and second["actions"] == [] and second["warnings_found"] == []
    assert peer.keys == {SECRET}


def test_an_index_that_an_existing_collection_lacks_is_added(peer: FakePeer) -> None:
    # Facts in full, 6: the original leaves missing indexes missing.
    peer.has("cases", reward="float")
    peer.has("summaries", timestamp="integer")
    assert run(peer.endpoint)["actions"] == ["cases: payload index user_id (keyword)"]
    assert peer.writes == ["cases.user_id"]


def test_what_differs_is_told_and_left_alone(peer: FakePeer) -> None:
    peer.has("cases", copies=2, reward="integer", user_id="keyword")
    peer.has("summaries", timestamp="integer", extra="keyword")
    found = run(peer.endpoint)
    assert not found["changed"] and peer.writes == []
    assert found["warnings_found"] == [
        "cases: index reward is of type integer, not float",
        "cases: 2 copies of its 2 shards, not 4",
    ]


def test_another_dimension_is_refused_before_anything_is_changed_in_that_collection(peer: FakePeer) -> None:
    peer.has("cases", size=1536)
    found = run(peer.endpoint)
    assert found["failed"] and "vectors of length 1536, but qdrant_dimension is 8" in found["msg"]
    assert peer.writes == []


def test_check_mode_says_what_is_missing_and_writes_nothing(peer: FakePeer) -> None:
    peer.has("cases", reward="float", user_id="keyword")
    found = run(peer.endpoint, check=True)
    assert found["changed"] and peer.writes == []
    assert found["actions"] == [
        "summaries: collection of 2 shards with 2 copies each",
        "summaries: payload index timestamp (integer)",
    ]


def test_check_mode_before_the_first_deployment_would_create_all(peer: FakePeer) -> None:
    peer.close()
    found = run(peer.endpoint, check=True)
    assert found["changed"] and found["actions"] == ["cases: collection", "summaries: collection"]
    assert "no peer of the region's Qdrant answers" in found["warnings_found"][0]


def test_a_host_without_a_certificate_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_files: t.Any) -> t.NoReturn:
        raise ResilienceError("cannot use the TLS files")

    monkeypatch.setattr(qdrant_collections, "client_context", none)
    assert "TLS files" in run("127.0.0.1:1")["msg"]
    assert run("127.0.0.1:1", check=True)["changed"]


def test_one_peer_that_answers_is_enough_to_ask(peer: FakePeer) -> None:
    assert run("127.0.0.1:1", peer.endpoint)["changed"]
    assert set(peer.collections) == set(WANTED)


@pytest.mark.parametrize(("peers", "leader", "said"), [(2, 1, "2 peers, a leader"), (3, None, "3 peers, no leader")])
def test_an_incomplete_cluster_is_waited_for_and_then_named(
    peer: FakePeer, peers: int, leader: int | None, said: str
) -> None:
    peer.peers, peer.leader = peers, leader
    found = run(peer.endpoint)
    assert found["failed"] and "a Qdrant cluster of 3 peers with a leader" in found["msg"] and said in found["msg"]
    assert peer.writes == []


def test_no_peer_at_all_is_an_error_with_where_to_look() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qdrant_collections, "client_context", lambda _files: None)
        found = run("127.0.0.1:1")
    assert found["failed"] and "127.0.0.1" in found["msg"] and "journalctl -u qdrant" in found["msg"]


def test_a_collection_may_have_a_dimension_of_its_own(peer: FakePeer) -> None:
    assert run(peer.endpoint, dimensions={"summaries": 1})["changed"]
    assert {name: found["size"] for name, found in peer.collections.items()} == {"cases": 8, "summaries": 1}
    assert not run(peer.endpoint, dimensions={"summaries": 1})["changed"]
    assert "vectors of length 1" in run(peer.endpoint)["msg"]
