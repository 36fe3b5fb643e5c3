"""The services as a client and an operator see them: the API through the edge, metrics and health pages on the hosts.

What a client does goes over HTTPS to the edge; what an operator looks at is asked on the host itself, over ssh, with
the host's own certificate. Secrets travel over standard input, never in a command line.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
import queue
import random
import shlex
import ssl
import string
import subprocess
import threading
import time
import typing as t
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
from prometheus_client.parser import text_string_to_metric_families

import lab

EDGE = "w1"
EDGE_PORT = 443
#: Hosts of the services, by region.
SERVICE_HOSTS = {"a": ("a1", "a2"), "b": ("b1", "b2")}
DATA_HOSTS = {"a": ("a1", "a2", "a3"), "b": ("b1", "b2", "b3")}
#: Where a service's metrics are.
METRICS = {
    "gateway": 8080,
    "orchestrator": 2112,
    "llm-service": 8000,
    "agent-core": 2113,
    "vector-indexer": 2114,
}
ADMIN_PORT = 8081
INDEXER_PORT = METRICS["vector-indexer"]
UNITS = tuple(f"shannon-{name}.service" for name in METRICS)
TENANT = "00000000-0000-4000-8000-000000000001"
#: What a client may repeat, with the same idempotency key.
REPEATABLE = (429, 502, 503, 504, 508)
ENDED = ("completed", "failed", "cancelled", "timeout")
PKI = "/etc/shannon/pki"
_CURL = f"curl -sS -m 10 --cacert {PKI}/ca.crt --cert {PKI}/host.crt --key {PKI}/host.key"


def word() -> str:
    """A word that nobody has used: letters only, since the tool sum adds up every digit that it finds."""
    return "".join(random.choices(string.ascii_lowercase, k=14))


def status_of(task: dict[str, t.Any]) -> str:
    """A task's status without the prefix of the enumeration."""
    return str(task["status"]).removeprefix("TASK_STATUS_").lower()


def token(user: str, *, tier: str = "admin", lifetime: float = 3600, tenant: str = TENANT) -> str:
    """A bearer token as somebody who knows the lab's secret issues it (HS256)."""
    claims = {"sub": user, "tenant_id": tenant, "tier": tier, "exp": int(time.time() + lifetime)}
    parts = [base64url(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims)]
    signed = ".".join(parts)
    signature = hmac.new(lab.secret("gateway_jwt").encode(), signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{base64url(signature)}"


def base64url(raw: bytes) -> str:
    """As tokens have it."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def base_url() -> str:
    """The edge."""
    port = "" if EDGE_PORT == 443 else f":{EDGE_PORT}"
    return f"https://{lab.Host(EDGE).address}{port}"


def tls_context() -> ssl.SSLContext:
    """Checks the edge against the lab's authority."""
    return ssl.create_default_context(cafile=str(lab.INVENTORY / ".secrets" / "pki" / "ca.crt"))


@dataclass(frozen=True)
class Event:
    """A server-sent event.

    :ivar data: the document; a text when it was none, such as C([DONE]).
    """

    id: str
    name: str
    data: t.Any


class Api:
    """A client of the gateways through the edge.

    :param bearer: a token to log in with; left out: the lab's API key.
    """

    def __init__(self, bearer: str = "", timeout: float = 20) -> None:
        login = {"Authorization": f"Bearer {bearer}"} if bearer else {"X-API-Key": lab.secret("gateway_api_key")}
        self.http = httpx.Client(
            base_url=base_url(),
            verify=tls_context(),
            headers=login,
            timeout=httpx.Timeout(timeout, connect=5),
            limits=httpx.Limits(max_connections=100, max_keepalive_connections=50),
            trust_env=False,
        )

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.http.close()

    def post(self, path: str, body: t.Any = None, **headers: str) -> httpx.Response:
        """Whatever comes back."""
        return self.http.post(path, json=body, headers={name.replace("_", "-"): it for name, it in headers.items()})

    def try_submit(
        self, query: str, mode: str | None = None, session_id: str | None = None, idempotency_key: str | None = None
    ) -> httpx.Response:
        """Submit once; whatever comes back."""
        body = {"query": query, "mode": mode, "session_id": session_id}
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        sent = {name: value for name, value in body.items() if value is not None}
        return self.http.post("/api/v1/tasks", json=sent, headers=headers)

    def submit(
        self,
        query: str,
        mode: str | None = None,
        session_id: str | None = None,
        idempotency_key: str | None = None,
        patience: float = 30,
    ) -> dict[str, t.Any]:
        """Submit as a careful client does: what may be repeated is repeated with the same key."""
        key = idempotency_key or f"e2e-{uuid.uuid4().hex}"
        answer = self.repeatedly(lambda: self.try_submit(query, mode, session_id, key), patience)
        return t.cast("dict[str, t.Any]", answer.json())

    def get(self, path: str, patience: float = 30, **query: t.Any) -> t.Any:
        """A document."""
        return self.repeatedly(lambda: self.http.get(path, params=query), patience).json()

    def task(self, task_id: str) -> dict[str, t.Any]:
        """One task."""
        return t.cast("dict[str, t.Any]", self.get(f"/api/v1/tasks/{task_id}"))

    def wait(self, task_id: str, timeout: float = 60, status: str = "completed") -> dict[str, t.Any]:
        """A task, once it has ended; it must have ended like this."""
        last: dict[str, t.Any] = {}

        def ended() -> bool:
            last.update(self.get(f"/api/v1/tasks/{task_id}", patience=max(timeout, 30)))
            return status_of(last) in ENDED

        lab.wait_for(ended, f"the end of task {task_id}", timeout, lambda: str(last.get("status")), interval=0.1)
        if status and status_of(last) != status:
            raise AssertionError(f"the task {task_id} ended as {status_of(last)}, expected {status}: {last}")
        return last

    def run(self, query: str, mode: str | None = None, session_id: str | None = None, timeout: float = 60) -> t.Any:
        """Submit, and wait for the end."""
        return self.wait(self.submit(query, mode, session_id)["task_id"], timeout)

    def events(self, task_id: str) -> list[dict[str, t.Any]]:
        """A task's stored events."""
        found: list[dict[str, t.Any]] = []
        while True:
            after = found[-1]["seq"] if found else 0
            page = self.get(f"/api/v1/tasks/{task_id}/events", limit=200, after=after)["events"]
            found += page
            if len(page) < 200:
                return found

    def stream(self, task_id: str, after: str = "", timeout: float = 60) -> t.Iterator[Event]:
        """A task's events as they come, until the server ends the stream."""
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": after} if after else {})}
        deadline = time.monotonic() + timeout
        limit = httpx.Timeout(15, connect=5)
        with self.http.stream("GET", f"/api/v1/tasks/{task_id}/stream", headers=headers, timeout=limit) as answer:
            if answer.status_code != 200:
                raise AssertionError(f"the stream of {task_id}: HTTP {answer.status_code} {answer.read()!r}")
            fields: dict[str, str] = {}
            for line in answer.iter_lines():
                if time.monotonic() > deadline:
                    raise AssertionError(f"the stream of {task_id} did not end within {timeout:.0f} s")
                if line.startswith(":"):
                    continue
                if line:
                    name, _colon, value = line.partition(":")
                    fields[name] = value.removeprefix(" ")
                elif "data" in fields:
                    yield Event(fields.get("id", ""), fields.get("event", "message"), _document(fields["data"]))
                    fields = {}
                else:
                    fields = {}

    def search(self, query: str, patience: float = 30, **more: t.Any) -> dict[str, t.Any]:
        """Search the memory."""
        body = {"query": query, **more}
        answer = self.repeatedly(lambda: self.http.post("/api/v1/memory/search", json=body), patience)
        return t.cast("dict[str, t.Any]", answer.json())

    def sessions(self, limit: int = 20) -> list[dict[str, t.Any]]:
        """The caller's sessions."""
        return list(self.get("/api/v1/sessions", limit=limit)["sessions"])

    def session(self, session_id: str) -> dict[str, t.Any]:
        """One session."""
        return t.cast("dict[str, t.Any]", self.get(f"/api/v1/sessions/{session_id}"))

    def history(self, session_id: str) -> list[dict[str, t.Any]]:
        """A session's messages."""
        return list(self.get(f"/api/v1/sessions/{session_id}/history", limit=1000)["messages"])

    def upload(self, name: str, module: bytes, description: str = "of a test") -> httpx.Response:
        """Upload a tool; whatever comes back."""
        encoded = base64.b64encode(module).decode()
        return self.http.post("/api/v1/tools", json={"name": name, "description": description, "module": encoded})

    @staticmethod
    def repeatedly(ask: t.Callable[[], httpx.Response], patience: float) -> httpx.Response:
        """A success; what may be repeated is, for a bounded time."""
        deadline = time.monotonic() + patience
        while True:
            try:
                answer = ask()
                if answer.is_success:
                    return answer
                said = f"HTTP {answer.status_code}: {answer.text[:500]}"
                final = answer.status_code not in REPEATABLE
            except httpx.TransportError as exc:
                said, final = f"{type(exc).__name__}: {exc}", False
            if final or time.monotonic() > deadline:
                raise AssertionError(f"expected a success within {patience:.0f} s, got {said}")
            time.sleep(0.3)


def _document(text: str) -> t.Any:
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, dict) else text


# ---- on the hosts


def everywhere(names: t.Iterable[str], command: str, check: bool = True, timeout: float = 120) -> dict[str, str]:
    """Run a command on several hosts at once; what each printed."""
    hosts = list(names)
    with ThreadPoolExecutor(max_workers=max(len(hosts), 1)) as pool:
        outs = pool.map(lambda name: lab.Host(name).sh(command, check=check, timeout=timeout), hosts)
        return dict(zip(hosts, outs, strict=True))


def page(host: str, port: int, path: str) -> tuple[int, t.Any]:
    """What a service on a host answers to a GET: status and document (or text)."""
    url = shlex.quote(f"https://{lab.Host(host).address}:{port}{path}")
    out = lab.Host(host).sh(f"{_CURL} -w '\\n%{{http_code}}' {url}")
    body, _newline, code = out.rpartition("\n")
    try:
        return int(code), json.loads(body)
    except ValueError:
        return int(code), body


class Metrics:
    """What a service's metrics said at one moment."""

    def __init__(self, text: str) -> None:
        self.samples = [
            (sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]

    def each(self, metric: str, **labels: str) -> list[tuple[dict[str, str], float]]:
        """The series of this name that have these labels."""
        return [
            (found, value)
            for sample, found, value in self.samples
            if sample == metric and all(found.get(label) == wanted for label, wanted in labels.items())
        ]

    def value(self, metric: str, **labels: str) -> float:
        """The sum of the series of this name that have these labels; 0 when there is none."""
        return sum(value for _labels, value in self.each(metric, **labels))

    def breakers(self, like: str = "") -> dict[str, float]:
        """State by breaker: 0 closed, 1 half-open, 2 open; those whose names begin so."""
        series = self.each("shannon_circuit_breaker_state")
        return {found["name"]: value for found, value in series if found["name"].startswith(like)}

    def opened(self, like: str) -> float:
        """How often breakers whose names begin so have opened."""
        series = self.each("shannon_circuit_breaker_state_changes_total", to_state="open")
        return sum(value for found, value in series if found["name"].startswith(like))


def metrics(host: str, port: int) -> Metrics:
    """A service's metrics."""
    code, text = page(host, port, "/metrics")
    if code != 200 or not isinstance(text, str):
        raise lab.LabError(f"https://{host}:{port}/metrics answers HTTP {code}")
    return Metrics(text)


def orchestrators(*hosts: str) -> dict[str, Metrics]:
    """The metrics of the home region's orchestrators."""
    names = hosts or SERVICE_HOSTS["a"]
    with ThreadPoolExecutor(max_workers=len(names)) as pool:
        found = pool.map(lambda name: metrics(name, METRICS["orchestrator"]), names)
        return dict(zip(names, found, strict=True))


def levels(*hosts: str) -> dict[str, int]:
    """The level of degradation that each orchestrator of the home region is on."""
    return {name: int(found.value("shannon_degradation_level")) for name, found in orchestrators(*hosts).items()}


def grown(before: t.Mapping[str, Metrics], after: t.Mapping[str, Metrics], metric: str, **labels: str) -> float:
    """By how much a counter has grown, on all hosts of both together; a process that was started anew began at 0."""
    total = 0.0
    for host in before.keys() & after.keys():
        old, new = before[host].value(metric, **labels), after[host].value(metric, **labels)
        total += new - old if new >= old else new
    return total


def opened(before: t.Mapping[str, Metrics], after: t.Mapping[str, Metrics], like: str) -> dict[str, bool]:
    """On which hosts breakers whose names begin so have opened."""
    return {host: after[host].opened(like) != before[host].opened(like) for host in before.keys() & after.keys()}


def wait_for_level(level: int, *hosts: str, timeout: float = 120) -> float:
    """Wait until the orchestrators are on a level of degradation; seconds that it took."""
    names = hosts or SERVICE_HOSTS["a"]
    began = time.monotonic()
    lab.wait_for(
        lambda: set(levels(*names).values()) == {level},
        f"level {level} on {', '.join(names)}",
        timeout,
        lambda: str({name: detailed(name) for name in names}),
    )
    return time.monotonic() - began


def wait_until_well(*hosts: str, timeout: float = 180) -> float:
    """Wait until the orchestrators are on level none and all their breakers closed; seconds that it took."""
    names = hosts or SERVICE_HOSTS["a"]
    began = time.monotonic()
    last: dict[str, t.Any] = {}

    def well() -> bool:
        for name, found in orchestrators(*names).items():
            notable = {breaker: state for breaker, state in found.breakers().items() if state}
            last[name] = (found.value("shannon_degradation_level"), notable)
        return all(level == 0 and not notable for level, notable in last.values())

    lab.wait_for(well, f"level none and closed breakers on {', '.join(names)}", timeout, lambda: str(last), interval=1)
    return time.monotonic() - began


def detailed(host: str) -> dict[str, t.Any]:
    """The orchestrator's own word on how it is."""
    code, document = page(host, ADMIN_PORT, "/health/detailed")
    if code != 200 or not isinstance(document, dict):
        raise lab.LabError(f"/health/detailed of {host} answers HTTP {code}: {document}")
    return document


def readiness(host: str, query: str = "") -> tuple[int, t.Any]:
    """The gateway's word on whether requests should come to it."""
    return page(host, METRICS["gateway"], "/readiness" + query)


def indexer(host: str) -> dict[str, t.Any]:
    """The status of the indexer of the cell main on a host."""
    code, document = page(host, INDEXER_PORT, "/status")
    if code != 200 or not isinstance(document, dict):
        raise lab.LabError(f"/status of the indexer on {host} answers HTTP {code}: {document}")
    return next(cell for cell in document["cells"] if cell["cell"] == "main")


def units(*hosts: str) -> dict[str, tuple[str, int]]:
    """Of each service on each host: its state, and how often it was started again."""
    names = hosts or tuple(itertools.chain(*SERVICE_HOSTS.values()))
    outs = everywhere(names, "systemctl show -p Id -p ActiveState -p NRestarts " + " ".join(UNITS))
    found = {}
    for host, out in outs.items():
        for block in out.strip().split("\n\n"):
            facts = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
            found[f"{host}/{facts['Id']}"] = (facts["ActiveState"], int(facts["NRestarts"]))
    return found


_DIRECT = """
import json, ssl, sys, urllib.error, urllib.request
given = json.loads({given!r})
context = ssl.create_default_context(cafile="{pki}/ca.crt")
context.load_cert_chain("{pki}/host.crt", "{pki}/host.key")
body = None if given["body"] is None else json.dumps(given["body"]).encode()
request = urllib.request.Request(given["url"], body, given["headers"], method=given["method"])
try:
    with urllib.request.urlopen(request, timeout=20, context=context) as answer:
        code, text = answer.status, answer.read().decode()
except urllib.error.HTTPError as exc:
    code, text = exc.code, exc.read().decode()
print(json.dumps([code, text]))
"""


def direct(host: str, url: str, method: str = "GET", body: t.Any = None, **headers: str) -> tuple[int, t.Any]:
    """A request that is made on a host, with secrets in its headers if need be; status and document (or text)."""
    named = {"Content-Type": "application/json", **{name.replace("_", "-"): it for name, it in headers.items()}}
    given = json.dumps({"url": url, "method": method, "body": body, "headers": named})
    code, text = json.loads(lab.Host(host).python(_DIRECT.format(given=given, pki=PKI)))
    try:
        return int(code), json.loads(text)
    except ValueError:
        return int(code), text


def qdrant(host: str, method: str, path: str, body: t.Any = None) -> tuple[int, t.Any]:
    """Ask the Qdrant of a host's region, through the host's data proxy."""
    return direct(host, f"https://localhost:16333{path}", method, body, api_key=lab.secret("qdrant_api_key"))


def points_in(region: str, ids: t.Sequence[str], collection: str = "task_embeddings") -> set[str]:
    """Those of these points that a region's Qdrant has."""
    found: set[str] = set()
    for begin in range(0, len(ids), 500):
        body = {"ids": list(ids[begin : begin + 500]), "with_payload": False, "with_vector": False}
        code, answer = qdrant(f"{region}3", "POST", f"/collections/{collection}/points", body)
        if code != 200:
            raise lab.LabError(f"Qdrant of region {region} answers HTTP {code}: {answer}")
        found |= {str(point["id"]) for point in answer["result"]}
    return found


_SQL = """
import json, psycopg2
given = json.loads({given!r})
connection = psycopg2.connect(
    host="localhost", port=15432, dbname="shannon", user="shannon", password=given["password"], sslmode="verify-full",
    sslrootcert="{pki}/ca.crt", sslcert="{pki}/host.crt", sslkey="{pki}/host.key", connect_timeout=5,
    options="-c statement_timeout=30s -c default_transaction_read_only={read_only}", application_name="e2e",
)
connection.autocommit = True
with connection.cursor() as cursor:
    cursor.execute(given["query"], given["parameters"] or None)
    print(json.dumps(cursor.fetchall(), default=str))
"""


def sql(query: str, *parameters: t.Any, read_only: str = "on") -> list[list[t.Any]]:
    """The rows of a query on the cell's PostgreSQL primary, asked through the data proxy of a host that lives."""
    given = {"query": query, "parameters": list(parameters), "password": lab.secret("postgres_app")}
    source = _SQL.format(given=json.dumps(given), pki=PKI, read_only=read_only)
    for name in (*reversed(DATA_HOSTS["a"]), *reversed(DATA_HOSTS["b"])):
        try:
            return t.cast("list[list[t.Any]]", json.loads(lab.Host(name).python(source)))
        except (lab.LabError, subprocess.TimeoutExpired) as exc:
            failure = exc
    raise failure


def stored() -> dict[str, int]:
    """How many rows there are of what clients can cause."""
    tables = ("task_executions", "sessions", "session_messages", "users", "tool_modules", "vector_log")
    # The region agents' markers come all the time, whatever clients do.
    theirs = {"vector_log": " WHERE collection <> 'dr_markers'"}
    (row,) = sql("SELECT " + ", ".join(f"(SELECT count(*) FROM {name}{theirs.get(name, '')})" for name in tables))
    return dict(zip(tables, map(int, row), strict=True))


_STREAMS = """
import json, redis
given = json.loads({given!r})
client = redis.Redis(
    host="localhost", port=16379, username="app", password=given["password"], decode_responses=True, socket_timeout=10,
    ssl=True, ssl_ca_certs="{pki}/ca.crt", ssl_certfile="{pki}/host.crt", ssl_keyfile="{pki}/host.key",
)
found = dict()
for workflow in given["workflows"]:
    entries = client.xrange("shannon:workflow:events:" + workflow)
    found[workflow] = [[int(fields["seq"]), fields["type"]] for _id, fields in entries]
print(json.dumps(found))
"""


def live_events(workflows: t.Sequence[str], host: str = "a1") -> dict[str, list[tuple[int, str]]]:
    """The events that were sent to listeners through Redis: number and type, by workflow.

    :param host: one with services, of which the Redis client is used.
    """
    given = json.dumps({"workflows": list(workflows), "password": lab.secret("redis_app")})
    found = json.loads(service_python(host, _STREAMS.format(given=given, pki=PKI)))
    return {workflow: [tuple(event) for event in events] for workflow, events in found.items()}


def service_python(host: str, source: str, timeout: float = 60) -> str:
    """Run a program with the services' own libraries on a host."""
    return lab.Host(host).sh("/opt/shannon/services/current/bin/python -", stdin=source, timeout=timeout)


# ---- load


@dataclass
class Acknowledged:
    """A submit that was answered.

    :ivar at: when, on the clock of seconds since 1970.
    :ivar tries: how often it was sent.
    :ivar waited: seconds from the first time that it was sent.
    """

    key: str
    task_id: str
    query: str
    at: float
    tries: int
    waited: float = 0.0


@dataclass
class Load:
    """A client that submits tasks at a steady rate, and remembers what was acknowledged.

    What got a transport error or an answer that may be repeated is sent again with the same idempotency key, as a real
    client does. Use it as a context manager; :meth:`check` in the end.

    :param rate: tasks a second.
    :param queries: what to ask, in turn by chance; left out: a new word each time.
    :param patience: seconds after which a submit is given up; it then counts as not acknowledged.
    """

    rate: float = 3.0
    mode: str | None = "simple"
    queries: t.Sequence[str] = ()
    patience: float = 90.0
    acknowledged: list[Acknowledged] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    repeated: int = 0

    def __post_init__(self) -> None:
        self._name = f"load-{uuid.uuid4().hex[:12]}"
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._numbers: queue.Queue[int | None] = queue.Queue()
        # A user of its own: other calls of a test don't count for the same rate limit.
        self._api = Api(token(self._name), timeout=12)
        self._threads = [threading.Thread(target=self._tick, daemon=True)]
        # As many submits as may be tried at once during an outage, few enough to stay below the rate limit.
        self._threads += [threading.Thread(target=self._work, daemon=True) for _worker in range(16)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        try:
            self.wait_for(max(3, int(self.rate * 2)))
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Submit nothing more; what is under way is still waited for."""
        self._stopping.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(self.patience + 30)

    @property
    def ids(self) -> list[str]:
        """The acknowledged tasks."""
        with self._lock:
            return [one.task_id for one in self.acknowledged]

    def wait_for(self, count: int, timeout: float = 60) -> None:
        """Wait until so many more submits were acknowledged."""
        before = len(self.ids)
        lab.wait_for(
            lambda: len(self.ids) >= before + count,
            f"{count} more acknowledged submits through the edge",
            timeout,
            lambda: f"{len(self.ids) - before} acknowledged, refused {self.refused[-3:]}, repeated {self.repeated}",
            interval=0.1,
        )

    def longest_gap(self, since: float = 0.0) -> float:
        """The longest time between two acknowledgements that followed each other; seconds."""
        with self._lock:
            times = sorted(one.at for one in self.acknowledged if one.at >= since)
        return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)

    def longest_wait(self) -> float:
        """The longest time that a submit took from the first time that it was sent; seconds."""
        with self._lock:
            return max((one.waited for one in self.acknowledged), default=0.0)

    def completed_since(self, since: float) -> int:
        """How many of its tasks were completed after a moment (seconds since 1970)."""
        query = (
            "SELECT count(*) FROM task_executions WHERE id = ANY(%s::uuid[]) AND status = 'completed'"
            " AND completed_at > to_timestamp(%s)"
        )
        return int(sql(query, self.ids, since)[0][0])

    def wait_for_completed(self, count: int, since: float, timeout: float = 60) -> None:
        """Wait until so many of its tasks were completed after a moment."""
        lab.wait_for(
            lambda: self.completed_since(since) >= count,
            f"{count} tasks completed since the fault",
            timeout,
            lambda: f"{self.completed_since(since)} of {len(self.ids)}",
            interval=1,
        )

    def check(self, timeout: float = 180) -> str:
        """Stop, and see that each acknowledged task was completed exactly once; a line of figures.

        The API says that it is completed, and PostgreSQL that it was answered once (one message of the assistant) and
        remembered once (one row of vector_log).
        """
        self.stop()
        wanted = {one.task_id: one for one in self.acknowledged}
        assert wanted, "no submit was acknowledged"
        assert len(wanted) == len(self.acknowledged), "two submits with different keys were given the same task"
        assert self.refused == [], f"submits were refused for good: {self.refused[:5]}"
        last: dict[str, t.Any] = {}

        def settled() -> bool:
            last.clear()
            last.update(self.facts(list(wanted)))
            return not _unsettled(last)

        lab.wait_for(settled, "the end of all acknowledged tasks", timeout, lambda: str(_unsettled(last)[:5]), 1)
        assert set(last) == set(wanted), f"acknowledged, and not stored: {sorted(set(wanted) - set(last))[:5]}"
        wrong = {task: facts for task, facts in last.items() if facts["status"] != "completed"}
        assert not wrong, f"{len(wrong)} of {len(wanted)} tasks were not completed: {list(wrong.items())[:3]}"
        twice = {task: facts for task, facts in last.items() if (facts["answers"], facts["points"]) != (1, 1)}
        assert not twice, f"{len(twice)} tasks were not run exactly once: {list(twice.items())[:3]}"
        keys = {task: (facts["key"], wanted[task].key) for task, facts in last.items()}
        assert all(stored == sent for stored, sent in keys.values()), "a task has another submit's key"
        with ThreadPoolExecutor(max_workers=8) as pool:
            for task in pool.map(self._api.task, wanted):
                assert status_of(task) == "completed", task
                assert task["query"] == wanted[task["task_id"]].query
                assert task["result"], task
        taken_over = sum(facts["attempt"] > 1 for facts in last.values())
        return (
            f"{len(wanted)} acknowledged tasks, each completed once; {self.repeated} submits repeated, "
            f"{len(self.given_up)} given up, {taken_over} tasks taken over, longest wait {self.longest_wait():.1f} s, "
            f"longest gap {self.longest_gap():.1f} s"
        )

    @staticmethod
    def facts(ids: t.Sequence[str]) -> dict[str, dict[str, t.Any]]:
        """What PostgreSQL knows of tasks."""
        rows = sql(
            "SELECT task.id::text, task.status, task.embedding_state, task.attempt, task.idempotency_key,"
            " coalesce(said.n, 0), coalesce(points.n, 0), coalesce(task.error_message, '') FROM task_executions AS task"
            " LEFT JOIN (SELECT task_id, count(*) AS n FROM session_messages WHERE role = 'assistant'"
            "  AND task_id = ANY(%s::uuid[]) GROUP BY 1) AS said ON said.task_id = task.id"
            " LEFT JOIN (SELECT point_id, count(*) AS n FROM vector_log WHERE collection = 'task_embeddings'"
            "  AND point_id = ANY(%s::uuid[]) GROUP BY 1) AS points ON points.point_id = task.id"
            " WHERE task.id = ANY(%s::uuid[])",
            list(ids), list(ids), list(ids),
        )  # fmt: skip
        names = ("status", "embedding", "attempt", "key", "answers", "points", "error")
        return {row[0]: dict(zip(names, row[1:], strict=True)) for row in rows}

    def _tick(self) -> None:
        begin = time.monotonic()
        for number in itertools.count():
            if self._stopping.wait(max(begin + number / self.rate - time.monotonic(), 0)):
                break
            self._numbers.put(number)
        for _worker in self._threads[1:]:
            self._numbers.put(None)

    def _work(self) -> None:
        while True:
            number = self._numbers.get()
            if number is None:
                return
            query = random.choice(self.queries) if self.queries else f"Tell me of {word()} {word()}"
            self._submit(f"{self._name}-{number}", query)

    def _submit(self, key: str, query: str) -> None:
        began = time.monotonic()
        deadline = began + self.patience
        pause = 0.2
        for tries in itertools.count(1):
            wait = 0.0
            try:
                answer = self._api.try_submit(query, self.mode, None, key)
            except httpx.TransportError:
                pass
            else:
                if answer.is_success:
                    waited = time.monotonic() - began
                    done = Acknowledged(key, answer.json()["task_id"], query, time.time(), tries, waited)
                    with self._lock:
                        self.acknowledged.append(done)
                    return
                if answer.status_code not in REPEATABLE:
                    with self._lock:
                        self.refused.append(f"HTTP {answer.status_code}: {answer.text[:300]}")
                    return
                if answer.status_code == 429:
                    wait = float(answer.headers.get("Retry-After", "1"))
            if time.monotonic() > deadline:
                with self._lock:
                    self.given_up.append(key)
                return
            with self._lock:
                self.repeated += 1
            time.sleep(max(wait, pause * random.uniform(0.7, 1.3)))
            pause = min(2 * pause, 1.5)


def _unsettled(facts: t.Mapping[str, t.Mapping[str, t.Any]]) -> list[tuple[str, t.Any]]:
    return [
        (task, found)
        for task, found in facts.items()
        if found["status"] not in ENDED or found["embedding"] == "pending"
    ] or ([] if facts else [("nothing", "is stored")])
