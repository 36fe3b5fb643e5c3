# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks: submit, list, look at, follow, cancel."""

from __future__ import annotations

import json
import re
import typing as t
import uuid

import grpc
from fastapi import APIRouter, Path, Query, Request
from grpc import aio
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema
from starlette.responses import JSONResponse, Response, StreamingResponse

from shannon.services.proto import shannon_pb2 as pb

from . import bodies, convert, models, openapi
from .errors import ApiError
from .route import TenantRoute, policy
from .state import cell, principal, services

router = APIRouter(prefix="/api/v1/tasks", tags=["tasks"], route_class=TenantRoute)

TaskId = t.Annotated[str, Path(pattern=models.ID, description="The task's id or its workflow id.")]
Limit = t.Annotated[int, Query(ge=1, le=100)]
Offset = t.Annotated[int, Query(ge=0, le=1_000_000)]
#: The largest number that the log of events can hold.
_SEQ = r"^[0-9]{1,18}$"
#: With or without the prefix.
_STATUS = "^(" + "|".join([*convert.STATUSES, *map(convert.status_name, convert.STATUSES)]) + ")$"
_Status = t.Annotated[str, Field(pattern=_STATUS)]
_KEY = re.compile(openapi.IDEMPOTENCY_KEY)
_KEY_HEADER = openapi.header(
    "Idempotency-Key", openapi.IDEMPOTENCY_KEY, "Sent again with the same key, a request is done once."
)
_EVENT_STREAM = {
    "description": "Events, until the last one.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}


@router.post(
    "",
    summary="Submit a task",
    response_model=models.Submitted,
    responses=openapi.errors(413, 415),
    openapi_extra={**openapi.body(models.Submit), "parameters": [_KEY_HEADER]},
)
@policy()
async def submit(request: Request) -> Response:
    """Answers once the task is durable."""
    key = idempotency_key(request)
    body = await bodies.read(request, models.Submit)
    settings = services(request).config.orchestrator
    if len(body.query) > settings.max_query:
        raise ApiError(422, "invalid_request", f"query: has {len(body.query)} characters, at most {settings.max_query}")
    context = json.dumps(body.context, ensure_ascii=False) if body.context else ""
    if len(context.encode()) > settings.max_context:
        raise ApiError(422, "invalid_request", f"context: has more than {settings.max_context} bytes as JSON")
    message = pb.SubmitTaskRequest(
        caller=principal(request).caller(),
        query=body.query,
        session_id=body.session_id or "",
        mode=body.mode or "",
        context_json=context,
        # One of our own makes it safe to ask another orchestrator when the answer of the first is lost.
        idempotency_key=key or f"auto:{uuid.uuid4().hex}",
        cell=cell(request),
    )
    try:
        done = await services(request).ask("SubmitTask", message)
    except aio.AioRpcError as exc:
        if exc.code() in (grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.FAILED_PRECONDITION) and key:
            text = "the Idempotency-Key was used with another body"
            raise ApiError(422, "idempotency_key_reused", text) from exc
        raise
    headers = {"X-Workflow-ID": done.workflow_id, "X-Session-ID": done.session_id}
    if done.replayed:
        headers["X-Idempotency-Cached"] = "true"
    document = models.Submitted(
        task_id=done.task_id,
        workflow_id=done.workflow_id,
        session_id=done.session_id,
        status="STATUS_CODE_OK",
        mode=done.mode,
        message="the task was accepted before" if done.replayed else "the task is accepted",
        created_at=convert.moment(done.created_at),
    )
    return JSONResponse(document.model_dump(), headers=headers)


@router.get("", summary="List tasks, the newest first", response_model=models.Tasks, responses=openapi.errors())
@policy()
async def listing(
    request: Request,
    limit: Limit = 20,
    offset: Offset = 0,
    status: t.Annotated[_Status | SkipJsonSchema[None], Query()] = None,
    session_id: t.Annotated[models.Id | SkipJsonSchema[None], Query()] = None,
) -> t.Any:
    """Of the caller."""
    found = await services(request).ask(
        "ListTasks",
        pb.ListTasksRequest(
            caller=principal(request).caller(),
            limit=limit,
            offset=offset,
            status=convert.status_of(status or ""),
            session_id=session_id or "",
        ),
    )
    return {"tasks": [convert.task(item) for item in found.tasks], "total_count": found.total_count}


@router.get("/{task_id}", summary="One task", response_model=models.Task, responses=openapi.errors(404))
@policy(limited=False)
async def one(request: Request, task_id: TaskId) -> t.Any:
    """With its result, once it has one."""
    return convert.task(await _task(request, task_id))


@router.get(
    "/{task_id}/events", summary="A task's stored events", response_model=models.Events, responses=openapi.errors(404)
)
@policy(limited=False)
async def events(
    request: Request,
    task_id: TaskId,
    limit: t.Annotated[int, Query(ge=1, le=200)] = 50,
    after: t.Annotated[int, Query(ge=0, le=10**18 - 1, description="Only events with a greater seq.")] = 0,
) -> t.Any:
    """In their order."""
    message = pb.ListEventsRequest(caller=principal(request).caller(), task_id=task_id, after_seq=after, limit=limit)
    found = await services(request).ask("ListEvents", message)
    listed = [convert.event(item) for item in found.events]
    return {"events": listed, "count": len(listed), "status": convert.status_name(found.status)}


@router.get(
    "/{task_id}/stream",
    summary="A task's events as they happen",
    response_class=StreamingResponse,
    responses={**openapi.errors(404), 200: _EVENT_STREAM},
    openapi_extra={
        "parameters": [
            openapi.header("Last-Event-ID", _SEQ, "Go on after this event."),
            {
                "name": "api_key",
                "in": "query",
                "required": False,
                "description": "For browsers, which can't send headers here.",
                "schema": {"type": "string"},
            },
        ]
    },
)
@policy(limited=False, key_in_query=True)
async def stream(request: Request, task_id: TaskId) -> Response:
    """Server-sent events; ends with C(done), of which the data is C([DONE])."""
    after = request.headers.get("last-event-id", "0")
    if not re.fullmatch(_SEQ, after):
        raise ApiError(422, "invalid_request", "Last-Event-ID: expected the id of an event, a number")
    known = services(request)
    task = await _task(request, task_id)
    caller = principal(request).caller()

    async def stored(after_seq: int, limit: int) -> tuple[list[dict[str, t.Any]], str]:
        message = pb.ListEventsRequest(caller=caller, task_id=task.task_id, after_seq=after_seq, limit=limit)
        found = await known.ask("ListEvents", message)
        return [convert.event(item) for item in found.events], found.status

    known.streams.take()
    content = known.streams.events(task.workflow_id, int(after), stored, known.hubs[cell(request)])
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Workflow-ID": task.workflow_id}
    return StreamingResponse(content, media_type="text/event-stream", headers=headers)


@router.post(
    "/{task_id}/cancel",
    summary="Cancel a task",
    status_code=202,
    response_model=models.Cancelled,
    responses=openapi.errors(404, 413, 415),
    openapi_extra={**openapi.body(models.Cancel, required=False), "parameters": [_KEY_HEADER]},
)
@policy()
async def cancel(request: Request, task_id: TaskId) -> t.Any:
    """Done once, however often it is asked for."""
    idempotency_key(request)
    body = await bodies.read(request, models.Cancel, required=False)
    message = pb.CancelTaskRequest(caller=principal(request).caller(), task_id=task_id, reason=body.reason)
    done = await services(request).ask("CancelTask", message)
    text = "the task is being cancelled" if done.cancelled else f"the task had ended before: {done.status}"
    return {"success": done.cancelled, "message": text}


def idempotency_key(request: Request) -> str:
    """The request's key; empty when it has none.

    :raises ApiError: 400, it is malformed.
    """
    key = request.headers.get("idempotency-key")
    if key is None:
        return ""
    if not _KEY.fullmatch(key):
        text = "Idempotency-Key: expected 1 to 128 of A-Z a-z 0-9 _ . : -"
        raise ApiError(400, "malformed_idempotency_key", text)
    return key


async def _task(request: Request, task_id: str) -> pb.Task:
    message = pb.GetTaskStatusRequest(caller=principal(request).caller(), task_id=task_id)
    return t.cast(pb.Task, await services(request).ask("GetTaskStatus", message))
