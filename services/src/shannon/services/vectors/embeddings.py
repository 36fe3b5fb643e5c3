# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Texts to vectors, through llm-service, with a cache in the process and one in Redis."""

from __future__ import annotations

import array
import collections
import hashlib
import sys
import time
import typing as t

import httpx
import redis.asyncio
import redis.exceptions

from shannon.resilience.circuit_breaker import BreakerError, CircuitBreaker
from shannon.resilience.errors import ResilienceError
from shannon.services.common import metrics
from shannon.services.common.config import Embeddings as Settings
from shannon.services.common.turns import Turns

Vector = list[float]
_REDIS_ERRORS = (redis.exceptions.RedisError, OSError, TimeoutError, BreakerError)


class EmbeddingError(ResilienceError):
    """No embedding can be had now: llm-service is away or answers an error."""


class DimensionError(EmbeddingError):
    """An embedding does not have the dimension of the collections."""


class EmbeddingClient:
    """Asks C(POST /embeddings/) of llm-service for what no cache has.

    Order: the process's cache (least recently used out first), Redis (C(emb:{sha256 of model and text}), little-endian
    float32), llm-service. Redis is only ever a cache: its errors are no errors here.

    :param clients: one HTTP client for each llm-service, with its base URL; the next one is asked when one fails.
    :param breakers: one of kind http for each of them.
    :param cache: the cell's Redis; None: without.
    :param cache_breaker: of kind redis.
    :param model: the model's name; it is part of the cache's key.
    :param clock: monotonic seconds, for the age of cached vectors.
    """

    def __init__(
        self,
        clients: t.Sequence[httpx.AsyncClient],
        breakers: t.Sequence[CircuitBreaker],
        settings: Settings,
        model: str,
        cache: redis.asyncio.Redis | None = None,
        cache_breaker: CircuitBreaker | None = None,
        clock: t.Callable[[], float] = time.monotonic,
    ) -> None:
        self._services = list(zip(clients, breakers, strict=True))
        self._settings = settings
        self._model = model
        self._cache = cache
        self._cache_breaker = cache_breaker
        self._clock = clock
        self._turns = Turns()
        self._local: collections.OrderedDict[str, tuple[float, Vector]] = collections.OrderedDict()
        self._requests = metrics.counter(
            "shannon_embedding_requests_total", "Embeddings by where they came from.", ("model", "status")
        )
        self._seconds = metrics.histogram("shannon_embedding_latency_seconds", "Seconds that llm-service took.")

    async def embed(self, text: str) -> Vector:
        """The vector of one text.

        :raises EmbeddingError: it can't be had, or (DimensionError) has the wrong dimension.
        """
        return (await self.embed_all([text]))[0]

    async def embed_all(self, texts: t.Sequence[str]) -> list[Vector]:
        """The vectors of some texts, in their order; what is asked twice is computed once.

        :raises EmbeddingError: as :meth:`embed`.
        """
        keys = [self._key(text) for text in texts]
        found = {key: vector for key in keys if (vector := self._remembered(key)) is not None}
        self._count("lru_hit", len(found))
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        if missing:
            cached = await self._from_redis(list(missing))
            self._count("cache_hit", len(cached))
            found |= cached
            missing = {key: text for key, text in missing.items() if key not in cached}
        if missing:
            fresh = dict(zip(missing, await self._from_service(list(missing.values())), strict=True))
            found |= fresh
            await self._to_redis(fresh)
        for key in found:
            self._remember(key, found[key])
        return [list(found[key]) for key in keys]

    def _key(self, text: str) -> str:
        return "emb:" + hashlib.sha256(f"{self._model}\0{text}".encode()).hexdigest()

    def _count(self, status: str, number: int) -> None:
        if number:
            self._requests.labels(self._model, status).inc(number)

    def _remembered(self, key: str) -> Vector | None:
        entry = self._local.get(key)
        if entry is None or entry[0] <= self._clock():
            self._local.pop(key, None)
            return None
        self._local.move_to_end(key)
        return entry[1]

    def _remember(self, key: str, vector: Vector) -> None:
        if key not in self._local:  # a hit does not make it younger
            self._local[key] = (self._clock() + self._settings.cache_ttl, vector)
        while len(self._local) > self._settings.max_lru:
            self._local.popitem(last=False)

    async def _from_redis(self, keys: list[str]) -> dict[str, Vector]:
        if self._cache is None or self._cache_breaker is None or not self._settings.cache_ttl:
            return {}
        try:
            values = await self._cache_breaker.call_async(self._cache.mget, keys)
        except _REDIS_ERRORS:
            return {}
        # Of another dimension: the setting was changed since.
        size = 4 * self._settings.dimension
        return {key: unpack(value) for key, value in zip(keys, values, strict=True) if value and len(value) == size}

    async def _to_redis(self, vectors: t.Mapping[str, Vector]) -> None:
        if self._cache is None or self._cache_breaker is None or not self._settings.cache_ttl:
            return
        pipeline = self._cache.pipeline(transaction=False)
        for key, vector in vectors.items():
            pipeline.set(key, pack(vector), px=int(self._settings.cache_ttl * 1000))
        try:
            await self._cache_breaker.call_async(pipeline.execute)
        except _REDIS_ERRORS:
            return  # the next one asks llm-service again

    async def _from_service(self, texts: list[str]) -> list[Vector]:
        problems = []
        for client, breaker in self._turns.order(self._services):
            try:
                with self._seconds.time():
                    answer = await breaker.call_async(self._ask, client, texts)
            except (httpx.HTTPError, ValueError, BreakerError) as exc:
                problems.append(f"{client.base_url}: {type(exc).__name__}: {exc}")
                continue
            vectors = self._checked(client, answer, len(texts))
            self._count("ok" if len(texts) == 1 else "batch_ok", len(texts))
            return vectors
        self._count("error", len(texts))
        raise EmbeddingError("no llm-service gave an embedding: " + ("; ".join(problems) or "none is configured"))

    async def _ask(self, client: httpx.AsyncClient, texts: list[str]) -> t.Any:
        body = {"texts": texts, "model": self._model}
        response = await client.post("/embeddings/", json=body, timeout=self._settings.timeout)
        response.raise_for_status()
        return response.json()

    def _checked(self, client: httpx.AsyncClient, answer: t.Any, count: int) -> list[Vector]:
        vectors = answer.get("embeddings") if isinstance(answer, dict) else None
        if not isinstance(vectors, list) or len(vectors) != count:
            raise EmbeddingError(f"{client.base_url}: expected {count} embeddings, got {str(answer)[:200]}")
        for vector in vectors:
            if not isinstance(vector, list) or len(vector) != self._settings.dimension:
                size = len(vector) if isinstance(vector, list) else type(vector).__name__
                raise DimensionError(
                    f"{client.base_url}: expected embeddings of {self._settings.dimension} dimensions, got {size}. "
                    "embeddings.dimension, the model and Qdrant's collections must agree"
                )
        return [[float(value) for value in vector] for vector in vectors]


def pack(vector: t.Sequence[float]) -> bytes:
    """Little-endian float32."""
    values = array.array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def unpack(raw: bytes) -> Vector:
    """What :func:`pack` packed."""
    values = array.array("f")
    values.frombytes(raw)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()
