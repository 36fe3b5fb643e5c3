# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gRPC service Orchestrator. Every call may be repeated: a second one finds what the first has done."""

from __future__ import annotations

import functools
import json
import typing as t
import uuid
from dataclasses import dataclass

import grpc
import psycopg
from grpc import aio

from shannon.resilience.errors import ResilienceError
from shannon.services.common import logs, metrics
from shannon.services.common.cells import CellDirectory
from shannon.services.common.config import Config
from shannon.services.database.client import DatabaseAway, DatabaseBusy
from shannon.services.proto import shannon_pb2 as pb
from shannon.services.proto import shannon_pb2_grpc as stubs
from shannon.services.vectors.search import SearchRefused

from . import convert, ids
from .events import Events
from .memory import Memory
from .sessions import Sessions
from .tasks import IdempotencyConflict, NotFound, NotOwner, Submission, TaskStore
from .tools import Toolbox, ToolRefused, ToolsAway
from .worker import END, Worker

_log = logs.get(__name__)
NAME = "shannon.v1.Orchestrator"
_MODES = ("", "simple", "standard", "complex")


@dataclass
class Cell:
    """What belongs to a cell."""

    name: str
    store: TaskStore
    sessions: Sessions
    toolbox: Toolbox
    events: Events
    worker: Worker


class Refused(Exception):
    """A call that can't be done, and why."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        self.code = code
        super().__init__(text)


_CODES: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (NotOwner, grpc.StatusCode.PERMISSION_DENIED),
    (IdempotencyConflict, grpc.StatusCode.ALREADY_EXISTS),
    (ToolRefused, grpc.StatusCode.INVALID_ARGUMENT),
    (SearchRefused, grpc.StatusCode.INVALID_ARGUMENT),
    (ToolsAway, grpc.StatusCode.UNAVAILABLE),
    (DatabaseBusy, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (DatabaseAway, grpc.StatusCode.UNAVAILABLE),
    (psycopg.DataError, grpc.StatusCode.INVALID_ARGUMENT),
    (psycopg.errors.SerializationFailure, grpc.StatusCode.ABORTED),
)

M = t.TypeVar("M", bound=t.Callable[..., t.Awaitable[t.Any]])


def answering(method: M) -> M:
    """Turn what goes wrong into a gRPC status."""

    @functools.wraps(method)
    async def wrapped(self: t.Any, request: t.Any, context: aio.ServicerContext) -> t.Any:
        try:
            return await method(self, request, context)
        except Refused as exc:
            await context.abort(exc.code, str(exc))
        except Exception as exc:
            code = next((code for kind, code in _CODES if isinstance(exc, kind)), None)
            if code is None:
                raise
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
                _log.warning("%s is refused: %s", method.__name__, exc)
            await context.abort(code, str(exc))

    return t.cast(M, wrapped)


class OrchestratorService(stubs.OrchestratorServicer):
    """Takes tasks, and answers what became of them."""

    def __init__(self, config: Config, directory: CellDirectory, cells: t.Mapping[str, Cell], memory: Memory) -> None:
        self._config = config
        self._directory = directory
        self._cells = dict(cells)
        self._memory = memory
        self._submitted = metrics.counter("shannon_tasks_submitted_total", "Tasks that were accepted.", ("mode",))

    # The names of the methods are those of the interface.
    @answering
    async def SubmitTask(self, request: pb.SubmitTaskRequest, context: aio.ServicerContext) -> pb.SubmitTaskResponse:
        """Accept a task: once this answers it is in PostgreSQL, on two hosts."""
        del context
        cell = self._cell(request.caller, request.cell)
        self._must_be_home(cell.name)
        wanted = self._submission(request, cell.name)
        done = await cell.store.submit(wanted, self._config.session.ttl)
        if not done.replayed:
            self._submitted.labels(wanted.mode or "chosen").inc()
            cell.worker.wake()
        return pb.SubmitTaskResponse(
            task_id=done.id,
            workflow_id=done.workflow_id,
            session_id=done.session,
            status="queued",
            mode=done.mode,
            created_at=done.created_at,
            replayed=done.replayed,
        )

    @answering
    async def GetTaskStatus(self, request: pb.GetTaskStatusRequest, context: aio.ServicerContext) -> pb.Task:
        """One task."""
        del context
        return convert.task(await self._task(request.caller, request.task_id), request.caller.user_id)

    @answering
    async def CancelTask(self, request: pb.CancelTaskRequest, context: aio.ServicerContext) -> pb.CancelTaskResponse:
        """End a task that waits or runs."""
        del context
        cell = self._cell(request.caller)
        row = await self._task(request.caller, request.task_id)
        cancelled, status = await cell.store.cancel(row["id"])
        cell.worker.cancel(row["id"])
        if cancelled and row["status"] not in ("cancelled", status):
            # It had not begun, so nobody else will say so.
            teller = cell.events.of(row["id"], row["workflow_id"], 0)
            await teller.tell("WORKFLOW_CANCELLED", request.reason, status=status)
            await teller.tell(END, "", status=status)
        if cancelled:
            teller = cell.events.of(row["id"], row["workflow_id"], 0)
            await teller.keep(
                "audit_log",
                "cancel",
                user_id=ids.user_key(request.caller.tenant_id, request.caller.user_id),
                action="task.cancel",
                resource_type="task",
                resource_id=row["id"],
                changes={"reason": request.reason, "request_id": request.caller.request_id},
            )
        return pb.CancelTaskResponse(cancelled=cancelled, status=status)

    @answering
    async def ListTasks(self, request: pb.ListTasksRequest, context: aio.ServicerContext) -> pb.ListTasksResponse:
        """The caller's tasks, the newest first."""
        del context
        cell = self._cell(request.caller)
        rows, count = await cell.store.listing(
            request.caller.tenant_id,
            request.caller.user_id,
            limit=_within(request.limit, 1, 100),
            offset=max(request.offset, 0),
            status=request.status,
            session=request.session_id,
        )
        return pb.ListTasksResponse(
            tasks=[convert.task(row, request.caller.user_id) for row in rows], total_count=count
        )

    @answering
    async def ListEvents(self, request: pb.ListEventsRequest, context: aio.ServicerContext) -> pb.ListEventsResponse:
        """Stored events of a task, in order."""
        del context
        cell = self._cell(request.caller)
        row = await self._task(request.caller, request.task_id)
        rows, status = await cell.store.events(
            row["id"], row["workflow_id"], request.after_seq, _within(request.limit, 1, 200)
        )
        return pb.ListEventsResponse(events=[convert.event(item) for item in rows], status=status)

    @answering
    async def ListSessions(
        self, request: pb.ListSessionsRequest, context: aio.ServicerContext
    ) -> pb.ListSessionsResponse:
        """The caller's sessions, those used last first."""
        del context
        caller = request.caller
        rows, count = await self._cell(caller).sessions.listing(
            caller.tenant_id, caller.user_id, _within(request.limit, 1, 100), max(request.offset, 0)
        )
        return pb.ListSessionsResponse(
            sessions=[convert.session(row, caller, "postgresql") for row in rows], total_count=count
        )

    @answering
    async def GetSessionContext(self, request: pb.GetSessionRequest, context: aio.ServicerContext) -> pb.Session:
        """One session."""
        del context
        caller = request.caller
        found = await self._cell(caller).sessions.get(caller.tenant_id, caller.user_id, request.session_id, 0)
        return convert.session(found.session, caller, found.source)

    @answering
    async def GetSessionHistory(
        self, request: pb.GetSessionHistoryRequest, context: aio.ServicerContext
    ) -> pb.GetSessionHistoryResponse:
        """A session's newest messages, the oldest of them first."""
        del context
        caller = request.caller
        limit = _within(request.limit or 100, 1, self._config.session.max_history)
        found = await self._cell(caller).sessions.get(caller.tenant_id, caller.user_id, request.session_id, limit)
        messages = [
            pb.Message(role=row["role"], content=row["content"], task_id=row["task_id"], timestamp=row["at"])
            for row in found.messages
        ]
        return pb.GetSessionHistoryResponse(messages=messages, source=found.source)

    @answering
    async def SearchMemory(
        self, request: pb.SearchMemoryRequest, context: aio.ServicerContext
    ) -> pb.SearchMemoryResponse:
        """What is near, in this region's Qdrant; empty, and saying so, while memory is away."""
        del context
        self._cell(request.caller)
        if not request.query and not request.vector:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "give a query or a vector")
        dimension = self._config.embeddings.dimension
        if request.vector and len(request.vector) != dimension:
            text = f"the vector has {len(request.vector)} dimensions, expected {dimension}"
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, text)
        try:
            hits = await self._memory.search(
                request.query,
                request.vector,
                tenant=request.caller.tenant_id,
                user=request.caller.user_id,
                session=request.session_id,
                collection=request.collection,
                top_k=min(request.top_k, 1000),
                threshold=None if request.threshold < 0 else request.threshold,
                mmr=request.mmr,
            )
        except SearchRefused:
            raise
        except ResilienceError as exc:
            _log.warning("a search is answered without memory: %s", exc)
            return pb.SearchMemoryResponse(degraded=True, warning="memory is away; what is known can't be searched now")
        found = [
            pb.Hit(point_id=hit.point_id, score=hit.score, payload_json=json.dumps(hit.payload, ensure_ascii=False))
            for hit in hits
        ]
        return pb.SearchMemoryResponse(hits=found)

    @answering
    async def UploadTool(self, request: pb.UploadToolRequest, context: aio.ServicerContext) -> pb.Tool:
        """Keep a tenant's tool."""
        del context
        caller = request.caller
        cell = self._cell(caller)
        self._must_be_home(cell.name)
        if not request.name or not request.module:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "give a name and a module")
        if len(request.module) > self._config.agent_core.max_module:
            text = f"the module has {len(request.module)} bytes, at most {self._config.agent_core.max_module}"
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, text)
        tool = await cell.toolbox.upload(caller.tenant_id, request.name, request.description, request.module)
        return pb.Tool(name=tool.name, description=tool.description, sha256=tool.sha256, size=tool.size)

    @answering
    async def ListTools(self, request: pb.ListToolsRequest, context: aio.ServicerContext) -> pb.ListToolsResponse:
        """Built-in tools, and the tenant's own."""
        del context
        tools = await self._cell(request.caller).toolbox.listing(request.caller.tenant_id)
        return pb.ListToolsResponse(
            tools=[
                pb.Tool(
                    name=tool.name,
                    description=tool.description,
                    sha256=tool.sha256,
                    size=tool.size,
                    builtin=not tool.sha256,
                )
                for tool in tools
            ]
        )

    async def _task(self, caller: pb.Caller, task: str) -> t.Any:
        return await self._cell(caller).store.get(caller.tenant_id, caller.user_id, task)

    def _cell(self, caller: pb.Caller, named: str = "") -> Cell:
        if not ids.is_uuid(caller.tenant_id) or not caller.user_id:
            text = f"the caller is incomplete: tenant_id is {caller.tenant_id!r}, user_id is {caller.user_id!r}"
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, text)
        name = named or self._directory.cell_of(caller.tenant_id)
        try:
            return self._cells[name]
        except KeyError:
            text = f"there is no cell {name!r}; known: {', '.join(sorted(self._cells))}"
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, text) from None

    def _must_be_home(self, cell: str) -> None:
        if not self._directory.is_home(cell):
            home = self._directory.home_of(cell) or "not known"
            text = f"the home of cell {cell} is {home}; this is {self._config.deployment.region}"
            raise Refused(grpc.StatusCode.UNAVAILABLE, text)

    def _submission(self, request: pb.SubmitTaskRequest, cell: str) -> Submission:
        settings = self._config.orchestrator
        mode = request.mode.strip().lower()
        problem = ""
        if not request.query.strip():
            problem = "query: is empty"
        elif len(request.query) > settings.max_query:
            problem = f"query: has {len(request.query)} characters, at most {settings.max_query}"
        elif "\0" in request.query + request.session_id + request.idempotency_key:
            problem = "a text holds the character NUL, which can't be stored"
        elif mode not in _MODES:
            problem = f"mode: is {request.mode!r}; allowed: simple, standard, complex"
        elif len(request.idempotency_key) > 256 or len(request.session_id) > 128:
            problem = "idempotency_key or session_id: is too long (256 and 128 characters)"
        if problem:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, problem)
        return Submission(
            tenant=request.caller.tenant_id.lower(),
            user=request.caller.user_id,
            query=request.query,
            session=request.session_id or str(uuid.uuid4()),
            mode=mode,
            context=_object(request.context_json, settings.max_context),
            key=request.idempotency_key,
            cell=cell,
        )


def _object(text: str, most: int) -> str:
    if not text:
        return "{}"
    if len(text.encode()) > most:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"context_json: has more than {most} bytes")
    try:
        found = json.loads(text)
    except ValueError as exc:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"context_json: is no JSON: {exc}") from exc
    if not isinstance(found, dict):
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "context_json: expected an object")
    return text


def _within(value: int, least: int, most: int) -> int:
    return max(least, min(value, most))
