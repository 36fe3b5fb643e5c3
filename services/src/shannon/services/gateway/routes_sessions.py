# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sessions: conversations of a caller."""

from __future__ import annotations

import typing as t

from fastapi import APIRouter, Path, Query, Request

from shannon.services.proto import shannon_pb2 as pb

from . import convert, models, openapi
from .route import TenantRoute, policy
from .state import principal, services

router = APIRouter(prefix="/api/v1/sessions", tags=["sessions"], route_class=TenantRoute)

SessionId = t.Annotated[str, Path(pattern=models.ID)]


@router.get("", summary="List sessions", response_model=models.Sessions, responses=openapi.errors())
@policy()
async def listing(
    request: Request,
    limit: t.Annotated[int, Query(ge=1, le=100)] = 20,
    offset: t.Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> t.Any:
    """Of the caller."""
    message = pb.ListSessionsRequest(caller=principal(request).caller(), limit=limit, offset=offset)
    found = await services(request).ask("ListSessions", message)
    return {"sessions": [convert.session(item) for item in found.sessions], "total_count": found.total_count}


@router.get("/{session_id}", summary="One session", response_model=models.Session, responses=openapi.errors(404))
@policy(limited=False)
async def one(request: Request, session_id: SessionId) -> t.Any:
    """With its context."""
    message = pb.GetSessionRequest(caller=principal(request).caller(), session_id=session_id)
    return convert.session(await services(request).ask("GetSessionContext", message))


@router.get(
    "/{session_id}/history",
    summary="A session's messages",
    response_model=models.History,
    responses=openapi.errors(404),
)
@policy(limited=False)
async def history(
    request: Request, session_id: SessionId, limit: t.Annotated[int, Query(ge=1, le=1000)] = 100
) -> t.Any:
    """The newest ones, the oldest of them first."""
    message = pb.GetSessionHistoryRequest(caller=principal(request).caller(), session_id=session_id, limit=limit)
    found = await services(request).ask("GetSessionHistory", message)
    messages = [
        {
            "role": item.role,
            "content": item.content,
            "task_id": item.task_id,
            "timestamp": convert.moment(item.timestamp),
        }
        for item in found.messages
    ]
    return {"session_id": session_id, "messages": messages, "count": len(messages)}
