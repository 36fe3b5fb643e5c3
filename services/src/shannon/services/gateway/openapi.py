# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the OpenAPI document says beyond the handlers' signatures."""

from __future__ import annotations

import typing as t

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from shannon.services import __version__

from .models import Error

IDEMPOTENCY_KEY = r"^[A-Za-z0-9_.:-]{1,128}$"
_TEXTS = {
    400: "Malformed.",
    401: "No credentials, or none that count.",
    404: "There is no such thing, or not for this caller.",
    405: "Another method.",
    409: "It contradicts what is there.",
    413: "The body is too large.",
    415: "The body's content type is not taken.",
    422: "A value is not what it should be.",
    429: "Too many requests.",
    500: "A fault of the service.",
    503: "Not now; see Retry-After.",
    508: "Two regions each take the other for the home; try again.",
}
#: What every route of the API may answer.
_ALWAYS = (400, 401, 405, 422, 429, 500, 503, 508)

Json = dict[str, t.Any]


def errors(*more: int) -> dict[int | str, Json]:
    """The error answers of a route: those that every one has, and more."""
    return {status: {"model": Error, "description": _TEXTS[status]} for status in sorted({*_ALWAYS, *more})}


def body(model: type[BaseModel], required: bool = True, form: Json | None = None) -> Json:
    """The request's body for C(openapi_extra): the handler reads it itself.

    :param form: schema of the form that is taken as well.
    """
    content: Json = {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
    if form:
        encoding = {"module": {"contentType": "application/wasm"}}
        content["multipart/form-data"] = {"schema": form, "encoding": encoding}
    return {"requestBody": {"required": required, "content": content}}


def header(name: str, pattern: str, text: str) -> Json:
    """A request's header for C(openapi_extra)."""
    schema = {"type": "string", "pattern": pattern}
    return {"name": name, "in": "header", "required": False, "description": text, "schema": schema}


def install(app: FastAPI, bodies: t.Sequence[type[BaseModel]]) -> None:
    """Let the application's document have the bodies' schemas and the ways to log in."""

    def document() -> Json:
        if app.openapi_schema is None:
            found = get_openapi(
                title="shannon.resilience gateway",
                version=__version__,
                routes=app.routes,
                description="Tasks, their events, sessions, memory and tools.",
            )
            components = found.setdefault("components", {})
            schemas = components.setdefault("schemas", {})
            for model in bodies:
                schemas[model.__name__] = model.model_json_schema(ref_template="#/components/schemas/{model}")
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            components["securitySchemes"] = {
                "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "Bearer": {"type": "http", "scheme": "bearer", "description": "A JWT, or an API key."},
            }
            for path, methods in found["paths"].items():
                if path.startswith("/api/"):
                    for operation in methods.values():
                        operation["security"] = [{"ApiKey": []}, {"Bearer": []}]
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
