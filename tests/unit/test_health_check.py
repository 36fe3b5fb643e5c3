# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Health probes of each kind against small servers, and the module that runs them through persistent breakers."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import threading
import time
import typing as t
from concurrent import futures
from pathlib import Path

import pytest
from module_runner import run_module

from ansible_collections.shannon.resilience.plugins.module_utils import health_check as checks
from ansible_collections.shannon.resilience.plugins.module_utils import pki
from ansible_collections.shannon.resilience.plugins.module_utils.circuit_breaker import Settings
from ansible_collections.shannon.resilience.plugins.module_utils.circuit_breaker_storage import MemoryStorage
from ansible_collections.shannon.resilience.plugins.module_utils.errors import EndpointError
from ansible_collections.shannon.resilience.plugins.module_utils.health_probes import Target, probe
from ansible_collections.shannon.resilience.plugins.module_utils.tls import TlsFiles, client_context
from ansible_collections.shannon.resilience.plugins.modules import health_check as module

PASSWORD = "a-password-that-nobody-may-see"
HELD = b"(hold the connection, say nothing)"


class Server:
    """Answers each connection as told: it reads something, sends the next part, and so on.

    :param script: a part for each time that something came in; HELD waits until the other side goes away.
    """

    def __init__(self, script: t.Sequence[bytes], context: ssl.SSLContext | None = None) -> None:
        self.script = list(script)
        self.context = context
        self.received: list[bytes] = []
        self.connections = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _peer = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.closing(connection):
            connection.settimeout(10)
            if self.context is not None:
                connection = self.context.wrap_socket(connection, server_side=True)
            for part in self.script:
                self.received.append(connection.recv(65536))
                if part == HELD:
                    connection.recv(1)
                    return
                connection.sendall(part)


Serve = t.Callable[..., Server]


@pytest.fixture
def serve() -> t.Iterator[Serve]:
    servers: list[Server] = []

    def start(*script: bytes, context: ssl.SSLContext | None = None) -> Server:
        servers.append(Server(script, context))
        return servers[-1]

    yield start
    for server in servers:
        server.listener.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    """A CA, and a certificate for 127.0.0.1."""
    now = pki.utc_now()
    folder = pki.Folder.at(str(tmp_path_factory.mktemp("pki") / "pki"))
    os.makedirs(os.path.dirname(folder.ca_cert), exist_ok=True)
    os.makedirs(os.path.dirname(folder.cert("local")), exist_ok=True)
    authority = pki.make_authority(folder, now)
    pki.issue(folder, authority, "local", "127.0.0.1", 30, now)
    return TlsFiles(folder.ca_cert, folder.cert("local"), folder.key("local"))


@pytest.fixture
def secure(files: TlsFiles) -> ssl.SSLContext:
    """What a server with that certificate uses; it wants one of its clients, too."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    context.load_verify_locations(files.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def ask(kind: str, port: int, **more: t.Any) -> None:
    probe(Target(kind, "127.0.0.1", port, **{"timeout": 2.0, **more}))


def refused(kind: str, port: int, **more: t.Any) -> str:
    with pytest.raises(EndpointError) as caught:
        ask(kind, port, **more)
    assert str(caught.value).startswith(f"127.0.0.1:{port}: expected ") and PASSWORD not in str(caught.value)
    return str(caught.value)


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def http(status: int, body: str = "") -> bytes:
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()


def pg_error(state: str, message: str) -> bytes:
    body = b"".join(key + value.encode() + b"\0" for key, value in ((b"S", "FATAL"), (b"C", state), (b"M", message)))
    return b"E" + (len(body) + 5).to_bytes(4, "big") + body + b"\0"


# ---- probes


@pytest.mark.parametrize("kind", ["postgres", "patroni", "redis", "sentinel", "qdrant", "etcd", "http", "grpc", "tcp"])
def test_nothing_listens(kind: str) -> None:
    assert "connection refused" in refused(kind, unused_port())


@pytest.mark.parametrize("kind", ["postgres", "patroni", "redis", "sentinel", "qdrant", "etcd", "http", "grpc"])
def test_silence_ends_with_the_timeout(serve: Serve, kind: str) -> None:
    begun = time.monotonic()
    assert "no answer in time" in refused(kind, serve(HELD).port, timeout=0.2)
    assert time.monotonic() - begun < 1.5


@pytest.mark.parametrize("kind", ["postgres", "redis", "grpc", "http", "etcd"])
@pytest.mark.parametrize("noise", [b"\0" * 200, b"220 mail.example.com ESMTP\r\n", b"", b"\xff" * 20000])
def test_another_protocol_is_not_healthy(serve: Serve, kind: str, noise: bytes) -> None:
    refused(kind, serve(noise, noise).port, timeout=0.5)


@pytest.mark.parametrize(
    "answer",
    [
        b"R\0\0\0\x0c\0\0\0\x05abcd",
        pg_error("28P01", "password authentication failed"),
        pg_error("3D000", "no database"),
    ],
)
def test_a_postgres_that_answers_a_startup_packet_is_well(serve: Serve, answer: bytes) -> None:
    server = serve(answer)
    ask("postgres", server.port, username="monitor", database="shannon")
    assert server.received[0][4:] == (b"\0\3\0\0user\0monitor\0database\0shannon\0application_name\0health_check\0\0")
    assert int.from_bytes(server.received[0][:4], "big") == len(server.received[0])


@pytest.mark.parametrize(
    ("state", "message"), [("57P03", "the database system is starting up"), ("53300", "too many clients already")]
)
def test_a_postgres_that_takes_no_connections_is_not(serve: Serve, state: str, message: str) -> None:
    assert f"{state} {message}" in refused("postgres", serve(pg_error(state, message)).port)


def test_a_postgres_without_tls_is_told(serve: Serve, files: TlsFiles) -> None:
    assert "without TLS" in refused("postgres", serve(b"N").port, context=client_context(files))


def test_postgres_goes_on_in_tls(secure: ssl.SSLContext, files: TlsFiles) -> None:
    said: list[bytes] = []

    def answer(listener: socket.socket) -> None:
        connection, _peer = listener.accept()
        said.append(connection.recv(100))
        connection.sendall(b"S")
        with secure.wrap_socket(connection, server_side=True) as wrapped:
            said.append(wrapped.recv(1000))
            wrapped.sendall(b"R\0\0\0\x08\0\0\0\0")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,), daemon=True)
        thread.start()
        ask("postgres", listener.getsockname()[1], context=client_context(files))
        thread.join(5)
    assert said[0] == b"\0\0\0\x08\x04\xd2\x16\x2f" and b"user\0postgres" in said[1]


def test_redis_and_sentinel_answer_ping(serve: Serve) -> None:
    server = serve(b"+OK\r\n", b"+PONG\r\n")
    ask("redis", server.port, username="monitor", password=PASSWORD)
    assert server.received[0] == f"*3\r\n$4\r\nAUTH\r\n$7\r\nmonitor\r\n${len(PASSWORD)}\r\n{PASSWORD}\r\n".encode()
    ask("sentinel", serve(b"+PONG\r\n").port)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ([b"-WRONGPASS invalid username-password pair\r\n"], "got WRONGPASS. Is the password"),
        ([b"+OK\r\n", b"-LOADING Redis is loading the dataset in memory\r\n"], "LOADING"),
        ([b"+OK\r\n", b"-MASTERDOWN Link with MASTER is down\r\n"], "MASTERDOWN"),
    ],
)
def test_a_redis_that_does_not_work(serve: Serve, script: list[bytes], said: str) -> None:
    assert said in refused("redis", serve(*script).port, username="monitor", password=PASSWORD)


def test_a_redis_that_wants_a_login_says_so(serve: Serve) -> None:
    assert "Give username and password" in refused("redis", serve(b"-NOAUTH Authentication required.\r\n").port)


@pytest.mark.parametrize(("kind", "path"), [("patroni", "/health"), ("qdrant", "/readyz"), ("http", "/")])
def test_http_answers(serve: Serve, kind: str, path: str) -> None:
    server = serve(http(200, "fine"))
    ask(kind, server.port, api_key="key")
    assert server.received[0].startswith(f"GET {path} HTTP/1.1\r\n".encode()) and b"api-key: key" in server.received[0]
    assert f"expected HTTP 200 to GET {path}, got HTTP 503: not yet" in refused(kind, serve(http(503, "not yet")).port)


def test_other_statuses_and_paths_may_be_expected(serve: Serve) -> None:
    server = serve(http(401))
    ask("http", server.port, path="/v1/x?y=1", statuses=(200, 401))
    assert server.received[0].startswith(b"GET /v1/x?y=1 ")


@pytest.mark.parametrize("body", ['{"health":"true"}', '{"health": true, "reason": ""}'])
def test_a_healthy_etcd(serve: Serve, body: str) -> None:
    ask("etcd", serve(http(200, body)).port)


@pytest.mark.parametrize("body", ['{"health":"false","reason":"RAFT NO LEADER"}', "ok", "[]"])
def test_an_etcd_that_is_not(serve: Serve, body: str) -> None:
    assert body in refused("etcd", serve(http(503, body)).port)


def test_tls_is_verified(serve: Serve, secure: ssl.SSLContext, files: TlsFiles) -> None:
    context = client_context(files)
    ask("http", serve(http(200), context=secure).port, context=context)
    ask("tcp", serve(context=secure).port, context=context)
    server = serve(http(200), context=secure)
    assert "a certificate that does not verify" in refused("http", server.port, context=context, server_name="other")
    assert "TLS" in refused("http", serve(http(200)).port, context=context)


@pytest.mark.parametrize("tls", [False, True])
def test_grpc_asks_the_health_service(files: TlsFiles, tls: bool) -> None:
    grpc = pytest.importorskip("grpc")
    health = pytest.importorskip("grpc_health.v1.health")
    health_pb2 = pytest.importorskip("grpc_health.v1.health_pb2")
    health_pb2_grpc = pytest.importorskip("grpc_health.v1.health_pb2_grpc")
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    servicer.set("sick", health_pb2.HealthCheckResponse.NOT_SERVING)
    more: dict[str, t.Any] = {}
    server, bare = (grpc.server(futures.ThreadPoolExecutor(2)) for _server in range(2))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    if tls:
        key, cert, ca = (Path(name).read_bytes() for name in (files.key, files.cert, files.ca))
        credentials = grpc.ssl_server_credentials([(key, cert)], ca, require_client_auth=True)
        port, bare_port = (one.add_secure_port("127.0.0.1:0", credentials) for one in (server, bare))
        more["context"] = client_context(files)
        more["context"].set_alpn_protocols(["h2"])
    else:
        port, bare_port = (one.add_insecure_port("127.0.0.1:0") for one in (server, bare))
    server.start()
    bare.start()
    try:
        ask("grpc", port, **more)
        assert "SERVING from /grpc.health.v1.Health/Check of sick, got NOT_SERVING" in refused(
            "grpc", port, service="sick", **more
        )
        assert "Check of unknown, got UNKNOWN" in refused("grpc", port, service="unknown", **more)
        ask("grpc", bare_port, **more)
        assert "Does it have the health service?" in refused("grpc", bare_port, service="x", **more)
    finally:
        server.stop(None)
        bare.stop(None)


def test_grpc_needs_http2(serve: Serve, secure: ssl.SSLContext, files: TlsFiles) -> None:
    context = client_context(files)
    context.set_alpn_protocols(["h2"])
    assert "HTTP/2 (ALPN h2)" in refused("grpc", serve(HELD, context=secure).port, context=context)


# ---- many at once


def endpoint(name: str, critical: bool = True, timeout: float = 0.3) -> checks.Endpoint:
    return checks.Endpoint(name, Target("tcp", name, 1, timeout=timeout), critical)


def test_a_probe_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is not resolved can't be bounded by a socket's timeout."""
    monkeypatch.setattr(checks, "GRACE", 0.1)
    never = threading.Event()

    def asker(target: Target) -> None:
        if target.host == "stuck":
            never.wait(30)

    begun = time.monotonic()
    found = checks.HealthCheck([endpoint("stuck"), endpoint("fine")], MemoryStorage(), asker=asker).run()
    assert time.monotonic() - begun < 2
    assert [one.healthy for one in found] == [False, True] and "an answer within 0.3 s" in found[0].error
    never.set()


def test_a_probe_that_breaks_is_an_error_of_its_endpoint_only() -> None:
    def asker(target: Target) -> None:
        if target.host == "odd":
            raise RuntimeError("bug")

    found = checks.HealthCheck([endpoint("odd"), endpoint("fine")], MemoryStorage(), asker=asker).run()
    assert [one.healthy for one in found] == [False, True] and "RuntimeError('bug')" in found[0].error


def test_it_is_tried_again_less_and_less_often_and_closes_when_it_is_back() -> None:
    clock = [0.0]
    alive = False
    asked: list[float] = []

    def asker(target: Target) -> None:
        asked.append(clock[0])
        if not alive:
            raise EndpointError(target.host, target.port, "life", "none")

    storage = MemoryStorage()

    def run() -> checks.Finding:
        check = checks.HealthCheck(
            [endpoint("a")], storage, asker=asker, clock=lambda: clock[0], wall=lambda: clock[0] + 1e6
        )
        return check.run()[0]

    while clock[0] < 1500:
        run()
        clock[0] += 10
    assert asked == [0, 30, 90, 210, 450, 750, 1050, 1350]
    alive = True
    clock[0] = 1650.0
    assert run().healthy and run().breaker.state.label == "closed"


# ---- the module


def run(path: Path, *endpoints: dict[str, t.Any], check: bool = False, **more: t.Any) -> dict[str, t.Any]:
    given = [{"type": "tcp", "host": "127.0.0.1", "tls": False, **one} for one in endpoints]
    return run_module(module, check=check, endpoints=given, path=str(path), timeout=0.4, **more)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "breakers.json"


def test_ten_dead_endpoints_cost_one_timeout_and_then_nothing(serve: Serve, path: Path) -> None:
    silent = serve(*[HELD])
    dead = [{"name": f"dead{n}", "type": "redis", "port": silent.port} for n in range(10)]
    first = run(path, *dead)
    assert 0.35 < first["seconds"] < 1.5 and not any(one["healthy"] for one in first["endpoints"])
    connections = silent.connections
    second = run(path, *dead)
    assert second["seconds"] < 0.3 and silent.connections == connections == 10
    for one in second["endpoints"]:
        assert not one["probed"] and one["breaker"]["state"] == "open" and 0 < one["breaker"]["retry_after"] <= 30
        assert "circuit breaker is open" in one["error"]
    assert second["aggregate"]["failed"] == [f"dead{n}" for n in range(10)]
    assert (second["aggregate"]["level_name"], second["aggregate"]["status"]) == ("severe", "unhealthy")


def test_what_is_returned(serve: Serve, path: Path) -> None:
    found = run(
        path,
        {"name": "cache", "type": "redis", "port": serve(b"+PONG\r\n").port},
        {"type": "http", "port": serve(http(500)).port, "critical": False},
    )
    well, sick = found["endpoints"]
    assert well["healthy"] and well["error"] == "" and 0 < well["latency_ms"] < 400
    assert well["breaker"] == {
        "state": "closed",
        "control": "none",
        "counts": {
            "requests": 1,
            "total_successes": 1,
            "total_failures": 0,
            "consecutive_successes": 1,
            "consecutive_failures": 0,
        },
        "retry_after": 0.0,
    }
    assert (
        sick["name"] == f"http@127.0.0.1:{sick['port']}" and sick["latency_ms"] is None and "HTTP 500" in sick["error"]
    )
    assert found["aggregate"] == {
        "level": 1,
        "level_name": "minor",
        "failed": [sick["name"]],
        "status": "degraded",
        "reason": "minor: circuit_breakers_open is 1 (limit 1), non_critical_dependencies_down is 1 (limit 1)",
        "open_breakers": [sick["name"]],
    }
    assert not found["changed"] and found["storage"] == {"path": str(path), "kept": True, "error": ""}
    assert sorted(json.loads(path.read_text())["breakers"]) == ["cache", sick["name"]]


def test_check_mode_probes_but_keeps_nothing(serve: Serve, path: Path) -> None:
    server = serve(b"+PONG\r\n")
    found = run(path, {"type": "redis", "port": server.port}, {"port": unused_port()}, check=True)
    assert [one["healthy"] for one in found["endpoints"]] == [True, False] and server.connections == 1
    assert not found["storage"]["kept"] and list(path.parent.iterdir()) == []


def test_without_a_place_for_the_file_it_probes_and_says_why(tmp_path: Path) -> None:
    found = run(tmp_path / "missing" / "breakers.json", {"port": unused_port()})
    assert not found.get("failed") and found["endpoints"][0]["breaker"]["state"] == "open"
    assert "It needs a folder" in found["storage"]["error"] and not found["storage"]["kept"]
    assert "name another path" in str(found["warnings"])


def test_a_damaged_file_is_a_warning(path: Path) -> None:
    path.write_text("{")
    found = run(path, {"port": unused_port()})
    assert "set aside" in str(found["warnings"]) and found["storage"]["kept"]


def test_more_failures_can_be_asked_for(path: Path) -> None:
    dead = {"port": unused_port()}
    states = [run(path, dead, failure_threshold=3)["endpoints"][0]["breaker"]["state"] for _run in range(3)]
    assert states == ["closed", "closed", "open"]


def test_secrets_are_in_no_answer(serve: Serve, path: Path) -> None:
    server = serve(b"-WRONGPASS no\r\n")
    said = json.dumps(
        run(path, {"type": "redis", "port": server.port, "username": "x", "password": PASSWORD})["endpoints"]
    )
    assert PASSWORD not in said and PASSWORD not in path.read_text()


def test_tls_files_are_used_when_an_endpoint_needs_them(
    serve: Serve, secure: ssl.SSLContext, files: TlsFiles, path: Path
) -> None:
    server = serve(http(200), context=secure)
    given = {"type": "http", "port": server.port, "tls": True}
    found = run(path, given, ca_file=files.ca, cert_file=files.cert, key_file=files.key)
    assert found["endpoints"][0]["healthy"]
    assert "cannot use the TLS files" in run(path, given, ca_file="/nowhere")["msg"]


@pytest.mark.parametrize(
    ("endpoints", "more", "said"),
    [
        ([{"type": "http"}], {}, "a port is needed, since http has no usual one"),
        ([{"port": 70000}], {}, "port is 70000; allowed: 1 to 65535"),
        ([{"port": 1}, {"port": 1}], {}, "endpoint tcp@127.0.0.1:1 is given twice"),
        ([{"port": 1, "timeout": 0}], {}, "timeout is 0 s; allowed: above 0 to 300"),
        ([{"port": 1}], {"open_time": 0}, "timeout is 0"),
        ([{"port": 1}], {"failure_threshold": 0}, "failure_threshold is 0; allowed"),
        ([{"port": 1}], {"open_time_max": 1}, "timeout_max is 1"),
    ],
)
def test_what_makes_no_sense_is_refused(
    path: Path, endpoints: list[dict[str, t.Any]], more: dict[str, t.Any], said: str
) -> None:
    assert said in run(path, *endpoints, **more)["msg"]


def test_no_endpoints_are_no_work(path: Path) -> None:
    found = run(path)
    assert found["endpoints"] == [] and found["aggregate"]["status"] == "healthy"


def test_two_runs_at_once_see_each_others_breakers() -> None:
    """One probes in half-open, the other is told so and waits for nothing."""
    clock = [0.0]
    storage, settings = MemoryStorage(), Settings(max_requests=1, failure_threshold=1, success_threshold=1, timeout=5.0)
    inside: list[str] = []

    def other(_target: Target) -> None:
        inside.append(make(lambda _t: pytest.fail("probed twice")).run()[0].error)

    def make(asker: t.Callable[[Target], None]) -> checks.HealthCheck:
        return checks.HealthCheck(
            [endpoint("a")], storage, settings, asker=asker, clock=lambda: clock[0], wall=lambda: clock[0]
        )

    def dead(_target: Target) -> None:
        raise EndpointError("a", 1, "life", "none")

    make(dead).run()
    clock[0] = 5.0
    assert make(other).run()[0].healthy
    assert "too many requests in half-open state" in inside[0]
