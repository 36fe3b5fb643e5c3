"""The orchestrator's answers: what goes wrong becomes a status that a gateway understands, and nothing is half done."""

from __future__ import annotations

import asyncio
import typing as t

import grpc
import psycopg
import pytest

from shannon.resilience.circuit_breaker import CircuitBreaker, Settings
from shannon.resilience.degradation import DegradationManager, Level
from shannon.services.common.config import Check, parse
from shannon.services.database.client import DatabaseAway, DatabaseBusy
from shannon.services.orchestrator import health
from shannon.services.orchestrator.dependencies import Dependency, Monitor
from shannon.services.orchestrator.service import Cell, OrchestratorService
from shannon.services.orchestrator.tasks import Accepted, IdempotencyConflict, NotFound, NotOwner, Submission
from shannon.services.orchestrator.tools import ToolRefused, ToolsAway
from shannon.services.proto import shannon_pb2 as pb
from shannon.services.vectors.search import Hit, SearchError, SearchRefused

TENANT = "11111111-1111-1111-1111-111111111111"
CALLER = pb.Caller(tenant_id=TENANT, user_id="ann")


class Aborted(Exception):
    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        self.code, self.text = code, text


class Context:
    async def abort(self, code: grpc.StatusCode, text: str) -> None:
        raise Aborted(code, text)


class Directory:
    def __init__(self) -> None:
        self.home = True

    def cell_of(self, _tenant: str) -> str:
        return "main"

    def is_home(self, _cell: str) -> bool:
        return self.home

    def home_of(self, _cell: str) -> str:
        return "a" if self.home else "b"


class Store:
    """Accepts, unless it is to raise; C(row) is the only task."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.submitted: list[Submission] = []
        self.replayed = False
        self.status = "running"
        self.cancelled = True

    async def submit(self, wanted: Submission, _ttl: float) -> Accepted:
        if self.error:
            raise self.error
        self.submitted.append(wanted)
        return Accepted("id", "task-id", wanted.session, wanted.mode, 1.5, self.replayed)

    async def get(self, _tenant: str, _user: str, task: str) -> dict[str, t.Any]:
        if self.error:
            raise self.error
        if task != "id":
            raise NotFound(f"there is no task {task}")
        texts = ("session_id", "tenant_id", "query", "mode", "requested_mode", "result", "error_message")
        numbers = ("prompt_tokens", "completion_tokens", "total_tokens", "duration_ms", "agents_used", "tools_invoked")
        return {
            **dict.fromkeys((*texts, "model_used", "provider"), "x"),
            **dict.fromkeys((*numbers, "cache_hits"), 1),
            **dict.fromkeys(("created_at", "updated_at", "started_at"), 1.0),
            "id": "id",
            "workflow_id": "task-id",
            "status": self.status,
            "cost_usd": 0.0,
            "metadata": "{}",
            "response": None,
            "completed_at": None,
        }

    async def cancel(self, _task: str) -> tuple[bool, str]:
        return self.cancelled, "cancelled" if self.status == "queued" else self.status


class Toolbox:
    def __init__(self) -> None:
        self.error: Exception | None = None

    async def upload(self, *_args: t.Any) -> t.NoReturn:
        assert self.error is not None
        raise self.error


class Events:
    def __init__(self) -> None:
        self.told: list[str] = []

    def of(self, *_args: t.Any) -> Events:
        return self

    async def tell(self, kind: str, *_args: t.Any, **_more: t.Any) -> None:
        self.told.append(kind)

    async def keep(self, kind: str, *_args: t.Any, **values: t.Any) -> None:
        self.told.append(f"{kind}:{values['action']}")


class Worker:
    def __init__(self) -> None:
        self.woken = 0
        self.stopped: list[str] = []

    def wake(self) -> None:
        self.woken += 1

    def cancel(self, task: str) -> None:
        self.stopped.append(task)


class Memory:
    def __init__(self) -> None:
        self.error: Exception | None = None

    async def search(self, *_args: t.Any, **_more: t.Any) -> list[Hit]:
        if self.error:
            raise self.error
        return [Hit("p", 0.5, {"query": "x"})]


class Rig:
    """The service between fakes."""

    def __init__(self) -> None:
        self.directory, self.store, self.toolbox = Directory(), Store(), Toolbox()
        self.events, self.worker, self.memory = Events(), Worker(), Memory()
        fakes = [t.cast(t.Any, one) for one in (self.store, None, self.toolbox, self.events, self.worker)]
        cells = {"main": Cell("main", *fakes)}
        config = parse({"embeddings": {"dimension": 3}})
        self.service = OrchestratorService(config, t.cast(t.Any, self.directory), cells, t.cast(t.Any, self.memory))

    def ask(self, method: str, request: t.Any) -> t.Any:
        return asyncio.run(getattr(self.service, method)(request, Context()))

    def refused(self, method: str, request: t.Any) -> Aborted:
        with pytest.raises(Aborted) as found:
            self.ask(method, request)
        return found.value


def submit(**more: t.Any) -> pb.SubmitTaskRequest:
    return pb.SubmitTaskRequest(**{"caller": CALLER, "query": "q", **more})


def test_a_task_is_answered_for_when_it_is_durable_and_a_worker_is_told() -> None:
    rig = Rig()
    done = rig.ask("SubmitTask", submit(mode="Simple", session_id="s", idempotency_key="k", context_json='{"a": 1}'))
    assert (done.task_id, done.status, done.session_id, done.mode) == ("id", "queued", "s", "simple")
    assert rig.worker.woken == 1
    assert rig.ask("SubmitTask", submit()).session_id == rig.store.submitted[-1].session != ""
    rig.store.replayed = True
    assert rig.ask("SubmitTask", submit()).replayed and rig.worker.woken == 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"query": "  "}, "query: is empty"),
        ({"query": "x" * 40000}, "at most 32000"),
        ({"query": "a\0b"}, "NUL"),
        ({"mode": "turbo"}, "allowed: simple, standard, complex"),
        ({"context_json": "[1]"}, "expected an object"),
        ({"context_json": "{"}, "is no JSON"),
        ({"context_json": '{"a": "' + "x" * 70000 + '"}'}, "more than 65536 bytes"),
        ({"session_id": "s" * 200}, "too long"),
        ({"cell": "nowhere"}, "there is no cell 'nowhere'; known: main"),
        ({"caller": pb.Caller(tenant_id="t", user_id="ann")}, "the caller is incomplete"),
        ({"caller": pb.Caller(tenant_id=TENANT)}, "the caller is incomplete"),
    ],
)
def test_a_bad_submission_is_refused_and_nothing_is_stored(more: dict[str, t.Any], said: str) -> None:
    rig = Rig()
    found = rig.refused("SubmitTask", submit(**more))
    assert found.code is grpc.StatusCode.INVALID_ARGUMENT
    assert said in found.text
    assert rig.store.submitted == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (IdempotencyConflict("used"), grpc.StatusCode.ALREADY_EXISTS),
        (NotOwner("not yours"), grpc.StatusCode.PERMISSION_DENIED),
        (DatabaseAway("away"), grpc.StatusCode.UNAVAILABLE),
        (DatabaseBusy("busy"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (psycopg.errors.InvalidTextRepresentation("wrong"), grpc.StatusCode.INVALID_ARGUMENT),
        (psycopg.errors.SerializationFailure("again"), grpc.StatusCode.ABORTED),
    ],
)
def test_errors_have_their_status(error: Exception, code: grpc.StatusCode) -> None:
    # An open database breaker is a status like any other (facts in full, 10.1, item 1).
    rig = Rig()
    rig.store.error = error
    assert rig.refused("SubmitTask", submit()).code is code


def test_away_from_home_nothing_is_accepted() -> None:
    rig = Rig()
    rig.directory.home = False
    found = rig.refused("SubmitTask", submit())
    assert found.code is grpc.StatusCode.UNAVAILABLE and "the home of cell main is b" in found.text
    upload = pb.UploadToolRequest(caller=CALLER, name="t", module=b"x")
    assert rig.refused("UploadTool", upload).code is grpc.StatusCode.UNAVAILABLE


def test_a_task_is_found_by_its_owner() -> None:
    rig = Rig()
    found = rig.ask("GetTaskStatus", pb.GetTaskStatusRequest(caller=CALLER, task_id="id"))
    assert (found.task_id, found.user_id, found.completed_at) == ("id", "ann", 0)
    missing = rig.refused("GetTaskStatus", pb.GetTaskStatusRequest(caller=CALLER, task_id="other"))
    assert missing.code is grpc.StatusCode.NOT_FOUND


def test_cancelling_is_told_once_and_written_down() -> None:
    request = pb.CancelTaskRequest(caller=CALLER, task_id="id", reason="enough")
    rig = Rig()
    done = rig.ask("CancelTask", request)
    # It runs: its worker will say that it ended.
    assert (done.cancelled, done.status, rig.worker.stopped) == (True, "running", ["id"])
    assert rig.events.told == ["audit_log:task.cancel"]
    rig = Rig()
    rig.store.status = "queued"
    assert rig.ask("CancelTask", request).status == "cancelled"
    assert rig.events.told == ["WORKFLOW_CANCELLED", "STREAM_END", "audit_log:task.cancel"]
    rig = Rig()
    rig.store.status, rig.store.cancelled = "completed", False
    done = rig.ask("CancelTask", request)
    assert (done.cancelled, done.status, rig.events.told) == (False, "completed", [])


def test_searches_answer_without_memory_and_refuse_what_is_wrong() -> None:
    rig = Rig()
    request = pb.SearchMemoryRequest(caller=CALLER, query="x", threshold=-1)
    assert [hit.point_id for hit in rig.ask("SearchMemory", request).hits] == ["p"]
    rig.memory.error = SearchError("Qdrant is away")
    answer = rig.ask("SearchMemory", request)
    assert answer.degraded and answer.warning and not answer.hits
    rig.memory.error = SearchRefused("no such collection")
    assert rig.refused("SearchMemory", request).code is grpc.StatusCode.INVALID_ARGUMENT
    wrong = rig.refused("SearchMemory", pb.SearchMemoryRequest(caller=CALLER, vector=[1.0, 2.0]))
    assert wrong.code is grpc.StatusCode.INVALID_ARGUMENT and "2 dimensions, expected 3" in wrong.text
    assert rig.refused("SearchMemory", pb.SearchMemoryRequest(caller=CALLER)).code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ToolRefused("no module"), grpc.StatusCode.INVALID_ARGUMENT),
        (ToolsAway("no agent-core answers"), grpc.StatusCode.UNAVAILABLE),
    ],
)
def test_tools_are_refused_with_a_status(error: Exception, code: grpc.StatusCode) -> None:
    rig = Rig()
    rig.toolbox.error = error
    assert rig.refused("UploadTool", pb.UploadToolRequest(caller=CALLER, name="t", module=b"x")).code is code
    empty = rig.refused("UploadTool", pb.UploadToolRequest(caller=CALLER, name="t"))
    assert empty.code is grpc.StatusCode.INVALID_ARGUMENT


# ---- dependencies and the health pages


def monitored(broken: set[str]) -> tuple[DegradationManager, Monitor, CircuitBreaker]:
    manager = DegradationManager()
    guard = CircuitBreaker("database", "test", Settings(failure_threshold=2, timeout=0.05))

    def one(name: str, critical: bool) -> Dependency:
        async def ask() -> None:
            if name in broken:
                raise ConnectionError(f"{name} is away")

        async def probe(_timeout: float) -> None:
            await guard.call_async(ask) if name == "database" else await ask()

        check = Check(critical=critical, timeout=1, interval=3600)
        return Dependency(name, check, probe, lambda: [guard] if name == "database" else [])

    monitor = Monitor(manager, [one("database", True), one("qdrant", False)], retry=0.02, slow=0.5)
    return manager, monitor, guard


def page(manager: DegradationManager, path: str) -> tuple[int, t.Any]:
    return asyncio.run(t.cast(t.Any, health.pages(manager, lambda: {"running": 0})[path]()))


def test_health_pages_tell_what_is_critical_from_what_is_not() -> None:
    broken: set[str] = set()
    manager, monitor, _guard = monitored(broken)
    asyncio.run(monitor.look())
    assert [page(manager, path)[0] for path in ("/health", "/health/ready", "/health/live")] == [200, 200, 200]
    broken.add("qdrant")
    asyncio.run(monitor.look())
    assert page(manager, "/health") == (200, {"status": "degraded"})
    assert page(manager, "/health/ready")[0] == 200
    broken.add("database")
    asyncio.run(monitor.look())
    assert page(manager, "/health/ready")[0] == 503 and page(manager, "/health/live")[0] == 200
    detailed = page(manager, "/health/detailed")[1]
    assert (detailed["level"], detailed["failed"]) == ("moderate", ["database", "qdrant"])
    assert "database is away" in detailed["dependencies"]["database"]["error"]
    assert detailed["dependencies"]["qdrant"]["critical"] is False


def test_a_breaker_that_opens_is_noticed_at_once_and_closed_again_by_probes_alone() -> None:
    broken: set[str] = set()
    manager, monitor, guard = monitored(broken)

    async def until(condition: t.Callable[[], bool]) -> None:
        async def poll() -> None:
            while not condition():
                await asyncio.sleep(0.01)

        await asyncio.wait_for(poll(), 10)

    async def go() -> None:
        stopping = asyncio.Event()
        running = asyncio.ensure_future(monitor.run(stopping))
        await until(lambda: manager.dependency("database") is not None)
        broken.add("database")
        # Its own interval is an hour; calls of others open the breaker.
        for _turn in range(2):
            with pytest.raises(ConnectionError):
                await guard.call_async(fails)
        await until(lambda: manager.level is Level.MODERATE)
        broken.clear()
        await until(lambda: manager.level is Level.NONE)
        stopping.set()
        await running

    async def fails() -> None:
        raise ConnectionError("away")

    asyncio.run(go())
