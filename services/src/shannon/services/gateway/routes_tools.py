# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tools: what tasks may run in the sandbox."""

from __future__ import annotations

import base64
import typing as t

from fastapi import APIRouter, Request

from shannon.services.proto import shannon_pb2 as pb

from . import bodies, convert, models, multipart, openapi
from .errors import ApiError
from .route import TenantRoute, policy
from .state import principal, services

PATH = "/api/v1/tools"
router = APIRouter(prefix=PATH, tags=["tools"], route_class=TenantRoute)
_FORM = {
    "type": "object",
    "required": ["name", "module"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": models.TOOL_NAME, "minLength": 1, "maxLength": 64},
        "description": {"type": "string", "maxLength": 2000},
        "module": {"type": "string", "format": "binary", "minLength": 1},
    },
}


@router.post(
    "",
    summary="Upload a tool",
    status_code=201,
    response_model=models.Tool,
    responses=openapi.errors(409, 413, 415),
    openapi_extra=openapi.body(models.Upload, form=_FORM),
)
@policy()
async def upload(request: Request) -> t.Any:
    """As JSON with the module in base64, or as a form with it as a file."""
    raw = await request.body()
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() == "multipart/form-data":
        body, module = _of_form(multipart.fields(content_type, raw))
    else:
        body = bodies.validated(models.Upload, bodies.parse(content_type, raw))
        module = base64.b64decode(body.module)
    largest = services(request).config.agent_core.max_module
    if len(module) > largest:
        raise ApiError(413, "too_large", f"module: has {len(module)} bytes, at most {largest}")
    message = pb.UploadToolRequest(
        caller=principal(request).caller(), name=body.name, description=body.description, module=module
    )
    return convert.tool(await services(request).ask("UploadTool", message))


@router.get("", summary="List tools", response_model=models.Tools, responses=openapi.errors())
@policy()
async def listing(request: Request) -> t.Any:
    """Built-in ones, and those of the caller's tenant."""
    found = await services(request).ask("ListTools", pb.ListToolsRequest(caller=principal(request).caller()))
    return {"tools": [convert.tool(item) for item in found.tools]}


def _of_form(fields: dict[str, bytes]) -> tuple[models.Upload, bytes]:
    module = fields.pop("module", b"")
    try:
        document: dict[str, t.Any] = {name: value.decode() for name, value in fields.items()}
    except UnicodeDecodeError as exc:
        raise ApiError(422, "invalid_request", "name, description: expected UTF-8") from exc
    # The model has the module in base64; of a form only how it begins is given, so that one rule holds for both.
    begin = base64.b64encode(module[:8]).decode()
    return bodies.validated(models.Upload, {**document, "module": begin}), module
