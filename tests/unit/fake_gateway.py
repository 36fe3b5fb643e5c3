"""A gateway with a fake orchestrator, a fake Redis and a fake registry; asked through ASGI."""

from __future__ import annotations

import asyncio
import hashlib
import json
import typing as t
import uuid

import grpc
import httpx
from grpc import aio

from shannon.resilience.circuit_breaker import CircuitBreaker
from shannon.services.common.config import Config, parse
from shannon.services.gateway import app as application
from shannon.services.gateway.auth import Authenticator
from shannon.services.gateway.forward import Forwarder
from shannon.services.gateway.limits import Limiter
from shannon.services.gateway.live import KEY, Hub
from shannon.services.gateway.readiness import Readiness
from shannon.services.gateway.state import Services
from shannon.services.gateway.streams import Streams
from shannon.services.gateway.tokens import Tokens
from shannon.services.proto import shannon_pb2 as pb

API_KEY = "a key of the tests"
OTHER_KEY = "another key of the tests"
JWT_SECRET = "a secret of the tests, of 32 bytes or more"
TENANT = "11111111-1111-1111-1111-111111111111"
OTHER_TENANT = "22222222-2222-2222-2222-222222222222"


def config(**sections: t.Any) -> Config:
    """The tests' configuration."""
    keys = [
        {"id": "k1", "sha256": _sha(API_KEY), "tenant_id": TENANT, "user_id": "ann", "tier": "pro"},
        {"id": "k2", "sha256": _sha(OTHER_KEY), "tenant_id": OTHER_TENANT, "user_id": "bob"},
    ]
    return parse({"auth": {"api_keys": keys}, **sections})


def _sha(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def rpc_error(code: grpc.StatusCode, details: str = "") -> aio.AioRpcError:
    """What an orchestrator answers."""
    return aio.AioRpcError(code, aio.Metadata(), aio.Metadata(), details=details)


class Cells:
    """A registry's word."""

    def __init__(self, region: str = "a") -> None:
        self.region = region
        self.homes: dict[str, str | None] = {"main": "a"}

    def cell_of(self, tenant: str) -> str:
        return "main"

    def home_of(self, cell: str) -> str | None:
        return self.homes.get(cell)

    def is_home(self, cell: str) -> bool:
        return self.home_of(cell) == self.region

    def epoch(self, cell: str) -> int:
        return 1

    def names(self) -> list[str]:
        return sorted(self.homes)

    def age(self) -> float:
        return 0.5


class Orchestrator:
    """Tasks in memory."""

    def __init__(self) -> None:
        self.tasks: dict[str, pb.Task] = {}
        self.events: dict[str, list[pb.Event]] = {}
        self.keys: dict[str, tuple[str, pb.SubmitTaskResponse]] = {}
        self.calls: list[tuple[str, t.Any]] = []
        self.error: Exception | None = None

    async def call(self, method: str, request: t.Any, *, timeout: float, retry_safe: bool = False) -> t.Any:
        assert timeout > 0
        assert retry_safe
        request.SerializeToString()
        self.calls.append((method, request))
        if self.error:
            raise self.error
        return getattr(self, "_" + method)(request)

    def _SubmitTask(self, request: pb.SubmitTaskRequest) -> pb.SubmitTaskResponse:
        body = f"{request.query}{request.session_id}{request.mode}{request.context_json}"
        if request.idempotency_key in self.keys:
            known, answer = self.keys[request.idempotency_key]
            if known != body:
                raise rpc_error(grpc.StatusCode.ALREADY_EXISTS, "another body")
            again = pb.SubmitTaskResponse()
            again.CopyFrom(answer)
            again.replayed = True
            return again
        task = self.add(request.query, request.caller, request.session_id)
        answer = pb.SubmitTaskResponse(
            task_id=task.task_id,
            workflow_id=task.workflow_id,
            session_id=task.session_id,
            status="queued",
            mode=request.mode,
            created_at=task.created_at,
        )
        self.keys[request.idempotency_key] = (body, answer)
        return answer

    def add(self, query: str, caller: pb.Caller, session: str = "") -> pb.Task:
        task_id = str(uuid.uuid4())
        task = self.tasks[task_id] = pb.Task(
            task_id=task_id,
            workflow_id=f"task-{task_id}",
            session_id=session or str(uuid.uuid4()),
            user_id=caller.user_id,
            tenant_id=caller.tenant_id,
            query=query,
            status="queued",
            created_at=1_700_000_000.25,
        )
        return task

    def _GetTaskStatus(self, request: pb.GetTaskStatusRequest) -> pb.Task:
        for task in self.tasks.values():
            if request.task_id in (task.task_id, task.workflow_id) and task.tenant_id == request.caller.tenant_id:
                return task
        raise rpc_error(grpc.StatusCode.NOT_FOUND, "no such task")

    def _ListTasks(self, request: pb.ListTasksRequest) -> pb.ListTasksResponse:
        mine = [task for task in self.tasks.values() if task.tenant_id == request.caller.tenant_id]
        mine = [task for task in mine if request.status in ("", task.status)]
        page = mine[request.offset : request.offset + request.limit]
        return pb.ListTasksResponse(tasks=page, total_count=len(mine))

    def _ListEvents(self, request: pb.ListEventsRequest) -> pb.ListEventsResponse:
        task = self._GetTaskStatus(pb.GetTaskStatusRequest(caller=request.caller, task_id=request.task_id))
        found = [event for event in self.events.get(task.task_id, []) if event.seq > request.after_seq]
        found.sort(key=lambda event: event.seq)
        return pb.ListEventsResponse(events=found[: request.limit], status=task.status)

    def _CancelTask(self, request: pb.CancelTaskRequest) -> pb.CancelTaskResponse:
        task = self._GetTaskStatus(pb.GetTaskStatusRequest(caller=request.caller, task_id=request.task_id))
        had_ended = task.status in ("completed", "cancelled")
        if not had_ended:
            task.status = "cancelled"
        return pb.CancelTaskResponse(cancelled=not had_ended, status=task.status)

    def _ListSessions(self, request: pb.ListSessionsRequest) -> pb.ListSessionsResponse:
        return pb.ListSessionsResponse(sessions=[pb.Session(session_id="s1", context_json='{"n": 1}')], total_count=1)

    def _GetSessionContext(self, request: pb.GetSessionRequest) -> pb.Session:
        if request.session_id != "s1":
            raise rpc_error(grpc.StatusCode.NOT_FOUND, "no such session")
        return pb.Session(session_id="s1", user_id="ann", context_json="{}", created_at=1.0)

    def _GetSessionHistory(self, request: pb.GetSessionHistoryRequest) -> pb.GetSessionHistoryResponse:
        self._GetSessionContext(pb.GetSessionRequest(session_id=request.session_id))
        return pb.GetSessionHistoryResponse(messages=[pb.Message(role="user", content="hi", timestamp=2.0)])

    def _SearchMemory(self, request: pb.SearchMemoryRequest) -> pb.SearchMemoryResponse:
        return pb.SearchMemoryResponse(hits=[pb.Hit(point_id="p", score=0.5, payload_json='{"n": 1}')])

    def _UploadTool(self, request: pb.UploadToolRequest) -> pb.Tool:
        return pb.Tool(name=request.name, sha256=hashlib.sha256(request.module).hexdigest(), size=len(request.module))

    def _ListTools(self, request: pb.ListToolsRequest) -> pb.ListToolsResponse:
        return pb.ListToolsResponse(tools=[pb.Tool(name="calculator", builtin=True)])

    def store(self, task: pb.Task, seq: int, kind: str = "AGENT_STARTED", message: str = "") -> None:
        """Store an event."""
        event = pb.Event(workflow_id=task.workflow_id, type=kind, seq=seq, message=message, payload_json="{}")
        self.events.setdefault(task.task_id, []).append(event)


class Redis:
    """Counters and streams; C(down) fails everything, and lost entries were never added."""

    def __init__(self) -> None:
        self.down = False
        self.counters: dict[str, int] = {}
        self.expiry: dict[str, int] = {}
        self.streams: dict[str, list[tuple[str, dict[str, str]]]] = {}
        self.reads = 0
        self._number = 0

    def register_script(self, _text: str) -> t.Any:
        async def run(keys: list[str], args: list[int]) -> list[int]:
            self.check()
            for key, expiry in zip(keys, args, strict=True):
                self.counters[key] = self.counters.get(key, 0) + 1
                self.expiry.setdefault(key, expiry)
            return [self.counters[key] for key in keys]

        return run

    def check(self) -> None:
        if self.down:
            raise ConnectionError("Redis is away")

    async def xread(self, streams: dict[str, str], count: int, block: int) -> t.Any:
        self.check()
        self.reads += 1
        found = []
        for key, after in streams.items():
            entries = [entry for entry in self.streams.get(key, []) if _place(entry[0]) > _place(after)]
            if entries:
                found.append(
                    [key.encode(), [(i.encode(), {k: v.encode() for k, v in f.items()}) for i, f in entries[:count]]]
                )
        if not found:
            await asyncio.sleep(0.002)
        return found

    def add(self, task: pb.Task, seq: int, kind: str = "AGENT_STARTED", message: str = "") -> None:
        """A live event."""
        self._number += 1
        fields = {"type": kind, "seq": str(seq), "message": message, "payload": json.dumps({}), "agent_id": ""}
        self.streams.setdefault(KEY + task.workflow_id, []).append((f"{self._number}-0", fields))


def _place(entry: str) -> tuple[int, ...]:
    return tuple(int(part) for part in entry.split("-"))


class Rig:
    """A gateway in a region."""

    def __init__(self, region: str = "a", peers: t.Mapping[str, t.Any] | None = None, **sections: t.Any) -> None:
        sections = {"gateway": {"stream_poll": 0.01, "stream_ping": 0.2}, **sections}
        self.config = config(**sections)
        self.orchestrator, self.redis, self.cells = Orchestrator(), Redis(), Cells(region)
        self.now = 1_700_000_000.0
        breaker = CircuitBreaker("redis", "test")
        redis = t.cast(t.Any, self.redis)
        self.hub = Hub(redis, breaker)
        self.limiter = Limiter(redis, breaker, self.config.rate_limits, 2, lambda: self.now)
        self.streams = Streams(self.config.gateway)
        self.probe_error: Exception | None = None
        self.readiness = Readiness(region, self.cells, self._probe, 1.0)
        clients = {name: [(client, CircuitBreaker(name, "test"))] for name, client in (peers or {}).items()}
        self.services = Services(
            self.config,
            Authenticator(self.config.auth.api_keys, Tokens(self.config.auth.jwt, JWT_SECRET)),
            self.cells,
            self.orchestrator,
            {"main": self.limiter},
            {"main": self.hub},
            self.streams,
            Forwarder(region, clients, 5, 5),
            self.readiness,
        )
        self.app = application.build(self.services)

    async def _probe(self) -> None:
        if self.probe_error:
            raise self.probe_error

    def client(self, key: str | None = API_KEY) -> httpx.AsyncClient:
        """A client of this gateway."""
        headers = {"X-API-Key": key} if key else {}
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers, timeout=10)

    def ask(self, method: str, path: str, key: str | None = API_KEY, **more: t.Any) -> httpx.Response:
        """One request, in a loop of its own."""

        async def run() -> httpx.Response:
            async with self.client(key) as client:
                return await client.request(method, path, **more)

        return asyncio.run(run())

    def task(self, query: str = "q") -> pb.Task:
        """A task of the first key's owner."""
        return self.orchestrator.add(query, pb.Caller(tenant_id=TENANT, user_id="ann"))
