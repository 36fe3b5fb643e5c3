# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory: what the caller's tasks left behind, found by similarity."""

from __future__ import annotations

import typing as t

from fastapi import APIRouter, Request

from shannon.services.proto import shannon_pb2 as pb

from . import bodies, convert, models, openapi
from .errors import ApiError
from .route import TenantRoute, policy
from .state import principal, services

router = APIRouter(prefix="/api/v1/memory", tags=["memory"], route_class=TenantRoute)


async def _local_will_do(request: Request) -> bool:
    """Whether the caller takes this region's copy; whoever answers looks at the whole body."""
    try:
        document = bodies.parse(request.headers.get("content-type", ""), await request.body())
    except ApiError:
        return True  # what is malformed need not travel
    return isinstance(document, dict) and document.get("consistency") == "local"


@router.post(
    "/search",
    summary="Search",
    response_model=models.Hits,
    responses=openapi.errors(413, 415),
    openapi_extra=openapi.body(models.Search),
)
@policy(may_stay=_local_will_do)
async def search(request: Request) -> t.Any:
    """Without memory the answer is empty and says so; it does not fail."""
    body = await bodies.read(request, models.Search)
    message = pb.SearchMemoryRequest(
        caller=principal(request).caller(),
        query=body.query,
        top_k=body.top_k or 0,
        threshold=-1 if body.threshold is None else body.threshold,
        mmr=body.mmr,
        session_id=body.session_id or "",
    )
    found = await services(request).ask("SearchMemory", message)
    results = [
        {"point_id": hit.point_id, "score": hit.score, "payload": convert.document(hit.payload_json)}
        for hit in found.hits
    ]
    return {"results": results, "count": len(results), "degraded": found.degraded, "warning": found.warning}
