"""A small stand-in for a cluster of etcd members, as its JSON gateway shows them."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
import typing as t
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Body = dict[str, t.Any]
NO_LEASE = {"status": 404, "error": "etcdserver: requested lease not found", "code": 5}


class FakeCluster:
    """Members that share one store.

    Each member has a mode: "" answers; "hang" does not; "refuse" closes the connection; "no leader" and "unavailable"
    are what a member without a quorum says; "full" takes no writes; "mute" does what it is asked and closes the
    connection without an answer (once); "cut" closes watches.

    :param clock: by which leases run out; without one they never do.
    :ivar changed: keys that were written or deleted, with the revision; watches read it.
    """

    def __init__(self, count: int, prefix: str = "/v3", clock: t.Callable[[], float] | None = None) -> None:
        self.prefix = prefix
        self.id = "7"
        self.lock = threading.Lock()
        self.clock = clock
        self.revision = 1
        self.keys: dict[bytes, Body] = {}
        self.leases: dict[int, int] = {}
        self.ends: dict[int, float] = {}
        self.granted = 0
        self.changed: list[tuple[int, bytes]] = []
        self.members = [FakeMember(self, number) for number in range(count)]

    @property
    def endpoints(self) -> list[str]:
        return [member.endpoint for member in self.members]

    def __enter__(self) -> FakeCluster:
        return self

    def __exit__(self, *_exc: object) -> None:
        for member in self.members:
            member.mode = "refuse"
            member.server.shutdown()
            member.server.server_close()

    def answer(self, path: str, body: Body) -> Body:
        with self.lock:
            self._expire()
            found = self._answer(path, body)
            return {"header": {"revision": str(self.revision), "cluster_id": self.id}, **found}

    def _answer(self, path: str, body: Body) -> Body:
        if path == "/kv/range":
            return self._range(body)
        if path == "/kv/put":
            if self._lacks_lease(body):
                return NO_LEASE
            self.revision += 1
            return self._put(body)
        if path == "/kv/deleterange":
            self.revision += 1
            return self._delete(body)
        if path == "/kv/txn":
            return self._txn(body)
        if path == "/cluster/member/list":
            return {"members": [{"ID": str(m.id), "name": m.name, "clientURLs": [m.url]} for m in self.members]}
        if path == "/lease/grant":
            self.granted += 1
            lease = self.granted
            self.leases[lease] = int(body["TTL"])
            self._renew(lease)
            return {"ID": str(lease), "TTL": body["TTL"]}
        if path == "/lease/keepalive":
            ttl = self.leases.get(int(body["ID"]))
            self._renew(int(body["ID"]))
            return {"result": {"ID": body["ID"], **({"TTL": str(ttl)} if ttl else {})}}
        if path == "/kv/lease/revoke":
            return {} if self._end(int(body["ID"])) else NO_LEASE
        raise AssertionError(path)

    def _renew(self, lease: int) -> None:
        if self.clock and lease in self.leases:
            self.ends[lease] = self.clock() + self.leases[lease]

    def _expire(self) -> None:
        for lease, end in list(self.ends.items()):
            if self.clock and end <= self.clock():
                self._end(lease)

    def _end(self, lease: int) -> bool:
        """Whether there was such a lease; its keys go with it."""
        self.ends.pop(lease, None)
        gone = [key for key, item in self.keys.items() if item["lease"] == str(lease)]
        if gone:
            self.revision += 1
        for key in gone:
            del self.keys[key]
            self.changed.append((self.revision, key))
        return self.leases.pop(lease, None) is not None

    def _lacks_lease(self, body: Body) -> bool:
        lease = int(body.get("lease", 0))
        return lease != 0 and lease not in self.leases

    def _delete(self, body: Body) -> Body:
        key = base64.b64decode(body["key"])
        if self.keys.pop(key, None) is None:
            return {}
        self.changed.append((self.revision, key))
        return {"deleted": "1"}

    def _range(self, body: Body) -> Body:
        start = base64.b64decode(body["key"])
        end = base64.b64decode(body["range_end"]) if "range_end" in body else start + b"\0"
        found = [self.keys[key] for key in sorted(self.keys) if start <= key < end]
        return {"kvs": found, "count": str(len(found))} if found else {}

    def _put(self, body: Body) -> Body:
        key = base64.b64decode(body["key"])
        old = self.keys.get(key, {"create_revision": str(self.revision), "version": "0"})
        self.keys[key] = {
            "key": body["key"],
            "value": body["value"],
            "lease": body.get("lease", "0"),
            "create_revision": old["create_revision"],
            "mod_revision": str(self.revision),
            "version": str(int(old["version"]) + 1),
        }
        self.changed.append((self.revision, key))
        return {}

    def _txn(self, body: Body) -> Body:
        held = all(self._compare(item) for item in body["compare"])
        operations = body["success"] if held else body["failure"]
        if any(self._lacks_lease(operation.get("request_put", {})) for operation in operations):
            return NO_LEASE
        if any("request_range" not in operation for operation in operations):
            self.revision += 1
        responses: list[Body] = []
        for operation in operations:
            if "request_put" in operation:
                self._put(operation["request_put"])
                responses.append({"response_put": {}})
            elif "request_delete_range" in operation:
                responses.append({"response_delete_range": self._delete(operation["request_delete_range"])})
            else:
                responses.append({"response_range": self._range(operation["request_range"])})
        return {**({"succeeded": True} if held else {}), "responses": responses}

    def _compare(self, item: Body) -> bool:
        found = self.keys.get(base64.b64decode(item["key"]), {"mod_revision": "0", "value": None})
        if item["target"] == "MOD":
            return found["mod_revision"] == item["mod_revision"]
        return found["value"] == item["value"]


class FakeMember:
    """One member: a server on a free port of the loopback."""

    def __init__(self, cluster: FakeCluster, number: int) -> None:
        self.cluster = cluster
        self.id = number + 100
        self.name = f"m{number}"
        self.mode = ""
        self.requests = 0
        self.connections = 0
        member = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # connections stay open, as etcd's do
            disable_nagle_algorithm = True

            def setup(self) -> None:
                member.connections += 1
                super().setup()

            def log_message(self, *_args: t.Any) -> None:
                pass

            def do_GET(self) -> None:
                self.handle_request({})

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == member.cluster.prefix + "/watch":
                    member.requests += 1
                    self.send_response(200)
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    with contextlib.suppress(OSError):  # a watcher goes when it has heard enough
                        for answer in member.watch([json.loads(line)["create_request"] for line in raw.splitlines()]):
                            line = json.dumps(answer).encode() + b"\n"
                            self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))
                        self.wfile.write(b"0\r\n\r\n")
                    self.close_connection = True
                    return
                self.handle_request(json.loads(raw))

            def handle_request(self, body: Body) -> None:
                member.requests += 1
                if member.mode == "hang":
                    time.sleep(3)
                answer = member.answer(self.path, body)
                if answer is None:
                    self.close_connection = True
                    return
                raw = json.dumps(answer).encode()
                self.send_response(answer.get("status", 200))
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.server.server_address[1]}"

    @property
    def url(self) -> str:
        return f"https://{self.endpoint}"

    def watch(self, wanted: list[Body]) -> t.Iterator[Body]:
        """What a watch of these ranges says, until the member is told to cut it."""
        ranges = [(base64.b64decode(one["key"]), base64.b64decode(one["range_end"])) for one in wanted]
        seen = len(self.cluster.changed)
        for number in range(len(ranges)):
            yield {"result": {"watch_id": str(number), "created": True}}
        while not self.mode:
            fresh = self.cluster.changed[seen:]
            seen += len(fresh)
            for revision, key in fresh:
                if any(start <= key < end for start, end in ranges):
                    event = {"kv": {"key": base64.b64encode(key).decode(), "mod_revision": str(revision)}}
                    yield {"result": {"header": {"revision": str(revision)}, "events": [event]}}
            time.sleep(0.005)

    def answer(self, path: str, body: Body) -> Body | None:
        """The body to answer with; None closes the connection."""
        if self.mode in ("refuse", "hang"):
            return None
        if path == "/health":
            return {"health": "true"} if not self.mode else {"status": 503, "health": "false"}
        if not path.startswith(self.cluster.prefix + "/"):
            return {"status": 404}
        path = path.removeprefix(self.cluster.prefix)
        if path == "/maintenance/status":
            leader = {} if self.mode == "no leader" else {"leader": str(self.cluster.members[0].id)}
            return {
                "header": {"member_id": str(self.id)},
                "version": "3.4.23",
                "dbSize": "20480",
                "raftTerm": "2",
                **leader,
            }
        if self.mode in ("no leader", "unavailable"):
            return {"status": 503, "error": "etcdserver: request timed out", "code": 14}
        if self.mode == "full":
            return {"status": 429, "error": "etcdserver: mvcc: database space exceeded", "code": 8}
        answer = self.cluster.answer(path, body)
        if self.mode == "mute" and path == "/kv/txn":
            self.mode = ""
            return None
        return answer
