# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Completions, through llm-service; when no llm-service answers, an answer that was given before."""

from __future__ import annotations

import asyncio
import collections
import hashlib
import json
import typing as t
from dataclasses import asdict, dataclass, replace

import httpx
import redis.asyncio
import redis.exceptions

from shannon.resilience.circuit_breaker import BreakerError, CircuitBreaker
from shannon.resilience.errors import ResilienceError
from shannon.services.common import logs, metrics
from shannon.services.common.logs import request_id
from shannon.services.common.turns import Turns

_log = logs.get(__name__)
_KEY = "shannon:answer:"
_AWAY = (redis.exceptions.RedisError, OSError, asyncio.TimeoutError, BreakerError)
#: Answers that are kept in the process.
_KEPT = 512


class LlmError(ResilienceError):
    """There is no answer to be had, not even an old one."""


@dataclass(frozen=True)
class Answer:
    """A completion.

    :ivar cached: whether it is not fresh, be it that llm-service had it or that it was kept here.
    :ivar degraded: whether it is an old one because a fresh one could not be had.
    """

    text: str
    model: str = ""
    provider: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    cached: bool = False
    degraded: bool = False


Message = dict[str, str]


class LlmClient:
    """Asks the region's llm-services in turn.

    :param clients: one HTTP client for each, with its base URL.
    :param breakers: one of kind http for each.
    :param cache: where answers are kept for all orchestrators.
    :param ttl: seconds that an answer is kept.
    """

    def __init__(
        self,
        clients: t.Sequence[httpx.AsyncClient],
        breakers: t.Sequence[CircuitBreaker],
        cache: redis.asyncio.Redis,
        cache_breaker: CircuitBreaker,
        ttl: float,
    ) -> None:
        self._services = list(zip(clients, breakers, strict=True))
        self._cache = cache
        self._cache_breaker = cache_breaker
        self._ttl = ttl
        self._turns = Turns()
        self._kept: collections.OrderedDict[str, Answer] = collections.OrderedDict()
        self._calls = metrics.counter("shannon_llm_calls_total", "Completions by what came of them.", ("result",))

    async def complete(
        self,
        messages: t.Sequence[Message],
        *,
        tenant: str,
        timeout: float,
        purpose: str = "answer",
        tools: t.Sequence[str] = (),
        may_be_old: bool = True,
    ) -> Answer:
        """The answer to a conversation.

        :param messages: role and content each; the last one is what is asked.
        :param timeout: seconds for each llm-service that is asked.
        :param may_be_old: whether an answer to the same question of this tenant does when no fresh one can be had.
        :raises LlmError: none can be had.
        """
        # What was said before does not count here: an answer from another conversation is better than none.
        key = self._key(tenant, purpose, tools, messages[-1]["content"])
        body = {"messages": list(messages), "purpose": purpose, "tools": list(tools), "tenant_id": tenant}
        problems: list[str] = []
        for client, breaker in self._turns.order(self._services):
            try:
                answer = await breaker.call_async(self._ask, client, body, timeout)
            except httpx.HTTPStatusError as exc:
                status = exc.response.status_code
                if status < 500 and status != 429:
                    raise LlmError(
                        f"llm-service refuses the request (HTTP {status}): {exc.response.text[:300]}"
                    ) from exc
                problems.append(f"{client.base_url}: HTTP {status}")
            except (httpx.HTTPError, ValueError, KeyError, TypeError, BreakerError) as exc:
                problems.append(f"{client.base_url}: {type(exc).__name__} {exc}".rstrip())
            else:
                self._calls.labels("cached" if answer.cached else "fresh").inc()
                if not answer.degraded:
                    await self._keep(key, answer)
                return answer
        old = await self._old(key) if may_be_old else None
        if old is not None:
            self._calls.labels("old").inc()
            return replace(old, cached=True, degraded=True, prompt_tokens=0, completion_tokens=0, cost=0.0)
        self._calls.labels("failed").inc()
        raise LlmError("no llm-service answers: " + ("; ".join(problems) or "none is configured"))

    async def probe(self, timeout: float) -> None:
        """Ask each llm-service whether it is ready, through its breaker.

        :raises LlmError: none is.
        """

        async def one(client: httpx.AsyncClient, breaker: CircuitBreaker) -> str:
            try:
                await breaker.call_async(self._ready, client, timeout)
            except (httpx.HTTPError, BreakerError) as exc:
                return f"{client.base_url}: {type(exc).__name__} {exc}".rstrip()
            return ""

        problems = await asyncio.gather(*(one(client, breaker) for client, breaker in self._services))
        if all(problems):
            raise LlmError("; ".join(problems) or "no llm-service is configured")

    @property
    def breakers(self) -> list[CircuitBreaker]:
        """Those of the llm-services."""
        return [breaker for _client, breaker in self._services]

    async def close(self) -> None:
        """Close connections."""
        await asyncio.gather(*(client.aclose() for client, _breaker in self._services))

    @staticmethod
    async def _ask(client: httpx.AsyncClient, body: dict[str, t.Any], timeout: float) -> Answer:
        headers = {"X-Request-ID": request_id.get()} if request_id.get() else {}
        response = await client.post("/completions/", json=body, timeout=timeout, headers=headers)
        response.raise_for_status()
        found = response.json()
        usage = found["usage"]
        return Answer(
            text=str(found["output_text"]),
            model=str(found["model"]),
            provider=str(found["provider"]),
            prompt_tokens=int(usage["input_tokens"]),
            completion_tokens=int(usage["output_tokens"]),
            cost=float(usage["cost_usd"]),
            cached=bool(found["cache_hit"]),
            degraded=bool(found["degraded"]),
        )

    @staticmethod
    async def _ready(client: httpx.AsyncClient, timeout: float) -> None:
        (await client.get("/health/ready", timeout=timeout)).raise_for_status()

    @staticmethod
    def _key(tenant: str, purpose: str, tools: t.Sequence[str], prompt: str) -> str:
        given = json.dumps([tenant, purpose, sorted(tools), " ".join(prompt.split())], ensure_ascii=False)
        return _KEY + hashlib.sha256(given.encode(errors="replace")).hexdigest()

    async def _keep(self, key: str, answer: Answer) -> None:
        self._kept[key] = answer
        self._kept.move_to_end(key)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        if answer.cached or not self._ttl:
            return
        text = json.dumps(asdict(answer), ensure_ascii=False)
        try:
            await self._cache_breaker.call_async(self._cache.set, key, text, px=int(self._ttl * 1000))
        except _AWAY:
            return  # the process has it

    async def _old(self, key: str) -> Answer | None:
        if key in self._kept:
            return self._kept[key]
        try:
            raw = await self._cache_breaker.call_async(self._cache.get, key)
            return Answer(**json.loads(raw)) if raw else None
        except (*_AWAY, ValueError, TypeError):
            return None
