# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What load balancers, Prometheus and readers of the API ask; without credentials."""

from __future__ import annotations

import typing as t

from fastapi import APIRouter, Query, Request
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema
from starlette.responses import JSONResponse, Response

from shannon.services import __version__
from shannon.services.common import metrics

from . import models, openapi
from .errors import ApiError
from .state import services

router = APIRouter(tags=["operation"])
_Cell = t.Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")]
_METHOD = openapi.errors()[405]


@router.get("/health", summary="The process answers", response_model=models.Health, responses={405: _METHOD})
async def health() -> t.Any:
    """Whatever else is away."""
    return {"status": "healthy", "version": __version__, "checks": {"gateway": "ok"}}


@router.get(
    "/readiness",
    summary="Whether requests should come here",
    response_model=models.Readiness,
    responses={
        405: _METHOD,
        404: openapi.errors(404)[404],
        422: openapi.errors()[422],
        503: {"model": models.Readiness, "description": "Not ready; the reason says why."},
    },
)
async def readiness(
    request: Request,
    cell: t.Annotated[_Cell | SkipJsonSchema[None], Query()] = None,
    role: t.Annotated[t.Literal["active", "standby"] | SkipJsonSchema[None], Query()] = None,
) -> Response:
    """With C(cell) and C(role): only where this region has that role for the cell."""
    known = services(request)
    if cell and cell not in known.cells.names():
        raise ApiError(404, "not_found", f"there is no cell {cell}")
    ready, document = known.readiness.answer(cell or "", role or "")
    return JSONResponse(document, status_code=200 if ready else 503, headers={"Cache-Control": "no-store"})


@router.get("/metrics", summary="Metrics", include_in_schema=False)
async def scrape() -> Response:
    """For Prometheus."""
    return Response(await metrics.collect(), media_type=metrics.CONTENT_TYPE)
