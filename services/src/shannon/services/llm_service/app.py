# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""llm-service over HTTP."""

from __future__ import annotations

import json
import math
import time
import typing as t
import uuid

from fastapi import FastAPI, Request
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from shannon.services.common import logs, metrics
from shannon.services.common.config import LlmService

from . import models
from .llm import Llm
from .provider import Message, ProviderError, Question, RefusedError

_log = logs.get(__name__)
M = t.TypeVar("M", bound=BaseModel)


class Refusal(Exception):
    """A request that can't be answered."""

    def __init__(self, status: int, text: str, retry_after: float | None = None) -> None:
        self.status = status
        self.text = text
        self.retry_after = retry_after
        super().__init__(text)


class Quota:
    """So many requests in a window, for each key (seed facts 5: 100 in 60 s). 0 switches it off."""

    #: Keys that are counted; who asks is a host of the topology, so there are few.
    KEYS = 10000

    def __init__(self, limit: int, window: float, clock: t.Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._window = window
        self._clock = clock
        self._counts: dict[str, tuple[int, int]] = {}

    def take(self, key: str) -> None:
        """Count a request.

        :raises Refusal: 429, it is one too many.
        """
        if not self._limit:
            return
        now = self._clock()
        window = int(now // self._window)
        if len(self._counts) > self.KEYS:
            self._counts = {name: found for name, found in self._counts.items() if found[0] == window}
        at, count = self._counts.get(key, (window, 0))
        count = count + 1 if at == window else 1
        self._counts[key] = (window, count)
        if count > self._limit:
            text = f"more than {self._limit} requests in {self._window:g} s"
            raise Refusal(429, text, (window + 1) * self._window - now)


def build(llm: Llm, settings: LlmService) -> FastAPI:
    """The application."""
    app = FastAPI(title="llm-service", openapi_url=None, docs_url=None, redoc_url=None)
    quota = Quota(settings.rate_limit, settings.rate_window)

    async def completions(request: Request) -> Response:
        body = await read(request, models.Completions, settings)
        check_texts([message.content for message in body.messages], settings)
        quota.take(body.tenant_id or client_of(request))
        question = Question(
            messages=tuple(Message(message.role, message.content) for message in body.messages),
            model=body.specific_model or settings.model,
            temperature=body.temperature,
            max_tokens=min(body.max_tokens or settings.max_tokens, settings.max_tokens),
            purpose="plan" if body.purpose == "plan" else "",
            tools=tuple(body.tools),
        )
        answer = await llm.complete(body.tenant_id, question, body.model_tier or "")
        done = answer.completion
        return JSONResponse(
            {
                "provider": done.provider,
                "model": done.model,
                "output_text": done.text,
                "usage": {
                    "input_tokens": done.input_tokens,
                    "output_tokens": done.output_tokens,
                    "total_tokens": done.input_tokens + done.output_tokens,
                    "cost_usd": done.cost_usd,
                },
                "cache_hit": answer.cache_hit,
                "degraded": answer.degraded,
                "finish_reason": done.finish_reason,
            }
        )

    async def embeddings(request: Request) -> Response:
        body = await read(request, models.Embeddings, settings)
        check_texts(body.texts, settings)
        quota.take(client_of(request))
        found = await llm.embed(body.texts, body.model or settings.embedding_model)
        return JSONResponse(
            {
                "embeddings": found.vectors,
                "dimensions": len(found.vectors[0]),
                "model_used": found.model,
                "usage": {"total_tokens": found.tokens},
            }
        )

    async def chat(request: Request) -> Response:
        body = await read(request, models.ChatCompletions, settings)
        check_texts([message.content for message in body.messages], settings)
        quota.take(body.user or client_of(request))
        question = Question(
            messages=tuple(Message(message.role, message.content) for message in body.messages),
            model=body.model,
            temperature=body.temperature,
            max_tokens=min(body.max_tokens or settings.max_tokens, settings.max_tokens),
        )
        done = (await llm.complete(body.user, question)).completion
        message = {"role": "assistant", "content": done.text}
        return JSONResponse(
            {
                "id": f"chatcmpl-{uuid.uuid4().hex}",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": done.model,
                "choices": [{"index": 0, "message": message, "finish_reason": done.finish_reason}],
                "usage": {
                    "prompt_tokens": done.input_tokens,
                    "completion_tokens": done.output_tokens,
                    "total_tokens": done.input_tokens + done.output_tokens,
                },
            }
        )

    async def openai_embeddings(request: Request) -> Response:
        body = await read(request, models.OpenAiEmbeddings, settings)
        texts = [body.input] if isinstance(body.input, str) else body.input
        check_texts(texts, settings)
        quota.take(body.user or client_of(request))
        found = await llm.embed(texts, body.model)
        data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(found.vectors)]
        usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
        return JSONResponse({"object": "list", "data": data, "model": found.model, "usage": usage})

    async def known_models() -> Response:
        return JSONResponse(
            {"provider": llm.provider.name, "completions": [settings.model], "embeddings": [settings.embedding_model]}
        )

    async def live() -> Response:
        return JSONResponse({"status": "alive", "live": True})

    async def ready() -> Response:
        document = {"status": "ready", "ready": True, "provider": llm.provider.name, "reason": llm.trouble}
        if llm.trouble:
            document |= {"status": "unavailable", "ready": False}
        return JSONResponse(document, status_code=503 if llm.trouble else 200)

    async def scrape() -> Response:
        return Response(await metrics.collect(), media_type=metrics.CONTENT_TYPE)

    for path, handler in (
        ("/completions/", completions),
        ("/embeddings/", embeddings),
        ("/v1/chat/completions", chat),
        ("/v1/embeddings", openai_embeddings),
    ):
        app.add_api_route(path, handler, methods=["POST"])
    for path, page in (
        ("/providers/models", known_models),
        ("/health/", live),
        ("/health/live", live),
        ("/health/ready", ready),
        ("/metrics", scrape),
    ):
        app.add_api_route(path, page, methods=["GET"])
    _add_errors(app)
    return app


def _add_errors(app: FastAPI) -> None:
    async def refused(request: Request, exc: Exception) -> Response:
        if isinstance(exc, Refusal):
            return _error(request, exc.status, exc.text, exc.retry_after)
        if isinstance(exc, ProviderError):
            return _error(request, 503, str(exc), exc.retry_after)
        if isinstance(exc, RefusedError):
            return _error(request, 422, str(exc))
        if isinstance(exc, HTTPException):
            return _error(request, exc.status_code, str(exc.detail))
        _log.error("a request crashed", exc_info=exc)
        return _error(request, 500, "the request failed; the log says why")

    for kind in (Refusal, ProviderError, RefusedError, HTTPException, Exception):
        app.add_exception_handler(kind, refused)


def _error(request: Request, status: int, text: str, retry_after: float | None = None) -> Response:
    headers = {} if retry_after is None else {"Retry-After": str(max(1, math.ceil(retry_after)))}
    return JSONResponse({"error": text, "request_id": request_id(request)}, status_code=status, headers=headers)


def request_id(request: Request) -> str:
    """The id that came with a request, or a new one."""
    return request.headers.get("x-request-id", "")[:128] or uuid.uuid4().hex


def client_of(request: Request) -> str:
    """Whose quota a request without a tenant counts for."""
    return request.client.host if request.client else "unknown"


async def read(request: Request, model: type[M], settings: LlmService) -> M:
    """A request's body.

    :raises Refusal: 413, 415, 400 or 422, with the reason.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, f"expected application/json, got {kind or 'no content type'}")
    raw = bytearray()
    async for part in request.stream():
        raw += part
        if len(raw) > settings.max_body:
            raise Refusal(413, f"the body has more than {settings.max_body} bytes")
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise Refusal(400, f"the body is no JSON: {str(exc)[:200]}") from exc
    try:
        return model.model_validate(document)
    except ValidationError as exc:
        found = exc.errors(include_input=False, include_url=False)
        told = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'body'}: {item['msg']}" for item in found[:5])
        raise Refusal(422, told) from exc


def check_texts(texts: t.Sequence[str], settings: LlmService) -> None:
    """Refuse what is too much.

    :raises Refusal: 422, with the number.
    """
    if len(texts) > max(settings.max_texts, 1):
        raise Refusal(422, f"{len(texts)} texts in one request, at most {settings.max_texts}")
    longest = max(map(len, texts))
    if longest > settings.max_text:
        raise Refusal(422, f"a text has {longest} characters, at most {settings.max_text}")
