# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What clients are told when something can't be done: always C({"error", "code", "request_id"})."""

from __future__ import annotations

import logging
import math
import typing as t

import grpc
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from grpc import aio
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from shannon.services.common import logs
from shannon.services.common.grpc_client import NoEndpointError

_log: logging.Logger = logs.get(__name__)

#: gRPC status to HTTP status and code. What is not here is the server's fault: 500.
_GRPC: dict[grpc.StatusCode, tuple[int, str]] = {
    grpc.StatusCode.INVALID_ARGUMENT: (400, "invalid_argument"),
    grpc.StatusCode.OUT_OF_RANGE: (400, "invalid_argument"),
    grpc.StatusCode.NOT_FOUND: (404, "not_found"),
    grpc.StatusCode.PERMISSION_DENIED: (404, "not_found"),  # who may not see it is not told that it exists
    grpc.StatusCode.ALREADY_EXISTS: (409, "conflict"),
    grpc.StatusCode.FAILED_PRECONDITION: (409, "conflict"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (429, "overloaded"),
    grpc.StatusCode.UNAVAILABLE: (503, "unavailable"),
    grpc.StatusCode.ABORTED: (503, "unavailable"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (503, "timeout"),
    grpc.StatusCode.CANCELLED: (503, "unavailable"),
}
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "unsupported_media_type"}


class ApiError(Exception):
    """A request that ends here.

    :param status: HTTP status.
    :param code: a word for programs.
    :param message: a sentence for people.
    :param retry_after: seconds, for the header; None: none.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        retry_after: float | None = None,
        headers: t.Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after)))

    def response(self) -> JSONResponse:
        """The answer."""
        return answer(self.status, self.code, self.message, self.headers)


def answer(status: int, code: str, message: str, headers: t.Mapping[str, str] | None = None) -> JSONResponse:
    """An error's body."""
    body = {"error": message, "code": code, "request_id": logs.request_id.get()}
    return JSONResponse(body, status_code=status, headers=dict(headers or {}))


def of_grpc(exc: Exception) -> ApiError:
    """What an orchestrator's error means to a client."""
    if isinstance(exc, NoEndpointError):
        _log.warning("no orchestrator takes the call", extra={"fields": {"error": str(exc)}})
        return ApiError(503, "unavailable", "no orchestrator can take the request now", exc.retry_after)
    if isinstance(exc, aio.AioRpcError):
        status, code = _GRPC.get(exc.code(), (500, "internal"))
        if status == 500:
            fields = {"status": exc.code().name, "details": exc.details()}
            _log.error("an orchestrator failed", extra={"fields": fields})
            return ApiError(500, code, "the request failed; the logs have its request_id")
        wait = 1.0 if status in (429, 503) else None
        return ApiError(status, code, exc.details() or code.replace("_", " "), wait)
    raise exc


def install(app: FastAPI) -> None:
    """Let all errors of an application have this form."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(NoEndpointError, _grpc_error)
    app.add_exception_handler(aio.AioRpcError, _grpc_error)


async def _api_error(_request: Request, exc: Exception) -> Response:
    return t.cast(ApiError, exc).response()


async def _grpc_error(_request: Request, exc: Exception) -> Response:
    return of_grpc(exc).response()


async def _invalid(_request: Request, exc: Exception) -> Response:
    return answer(422, "invalid_request", sentences(t.cast(RequestValidationError, exc).errors()))


async def _http(request: Request, exc: Exception) -> Response:
    found = t.cast(HTTPException, exc)
    code = _CODES.get(found.status_code, "error")
    headers = dict(found.headers or {})
    if found.status_code == 405:
        # The framework names the methods of the first route with this path; a path has one for each method.
        methods = {
            name for known, names in request.app.state.methods if known.match(request.url.path) for name in names
        }
        headers["Allow"] = ", ".join(sorted(methods)) or headers.get("Allow", "")
    return answer(found.status_code, code, str(found.detail), headers)


def sentences(findings: t.Iterable[t.Any]) -> str:
    """Pydantic's findings in words, without the values: they may be long, or secret."""
    return "; ".join(f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in findings)
