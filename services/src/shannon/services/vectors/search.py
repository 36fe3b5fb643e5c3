# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory: what is near a vector among a caller's own points."""

from __future__ import annotations

import asyncio
import time
import typing as t
from dataclasses import dataclass

import httpx
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from shannon.resilience.circuit_breaker import BreakerError, CircuitBreaker
from shannon.resilience.errors import ResilienceError
from shannon.services.common import metrics
from shannon.services.common.config import Config, Vector
from shannon.services.common.tls import client_context

from .mmr import rerank

DEFAULT_COLLECTION = "task_embeddings"


class SearchError(ResilienceError):
    """Qdrant is away, or answered an error: go on without memory (seed facts 2)."""


class SearchRefused(SearchError):
    """The request itself is wrong: no such collection, or a vector of the wrong dimension."""


@dataclass(frozen=True)
class Hit:
    """A point that was found; the score is its cosine similarity to the query."""

    point_id: str
    score: float
    payload: dict[str, t.Any]


def qdrant_client(config: Config, api_key: str, timeout: float) -> AsyncQdrantClient:
    """A client of the region's Qdrant, over HTTP through the local data proxy."""
    deployment = config.deployment
    tls = deployment.tls.enabled
    return AsyncQdrantClient(
        host=deployment.data_proxy,
        port=deployment.qdrant_port,
        https=tls,
        api_key=api_key or None,
        timeout=max(1, round(timeout)),
        prefer_grpc=False,
        check_compatibility=False,  # it would ask in the constructor, and hold the start up while Qdrant is away
        **({"verify": client_context(deployment.tls)} if tls else {}),
    )


class MemorySearch:
    """Searches the region's Qdrant.

    :param client: see :func:`qdrant_client`.
    :param breaker: of kind http, named qdrant.
    """

    def __init__(self, client: AsyncQdrantClient, breaker: CircuitBreaker, settings: Vector) -> None:
        self._client = client
        self._breaker = breaker
        self._settings = settings
        self._count = metrics.counter("shannon_vector_search_total", "Vector searches.", ("collection", "status"))
        self._seconds = metrics.histogram(
            "shannon_vector_search_latency_seconds", "Seconds that vector searches took.", ("collection",)
        )

    async def search(
        self,
        vector: t.Sequence[float],
        *,
        tenant_id: str,
        user_id: str = "",
        session_id: str = "",
        collection: str = DEFAULT_COLLECTION,
        top_k: int = 0,
        threshold: float | None = None,
        mmr: bool | None = None,
    ) -> list[Hit]:
        """The nearest points of a tenant, nearest first, or in MMR's own order of selection.

        :param tenant_id: only points of this tenant; always given.
        :param user_id: only points of this user; empty: all.
        :param session_id: only points of this session; empty: all.
        :param top_k: at most so many; 0: as configured.
        :param threshold: least similarity; None: as configured.
        :param mmr: whether to re-rank for diversity; None: as configured.
        :raises SearchRefused: the request is wrong.
        :raises SearchError: Qdrant is away.
        """
        if not tenant_id:
            raise SearchRefused("a search needs a tenant, so that nobody finds what is another's")
        wanted = top_k or self._settings.top_k
        diverse = self._settings.mmr_enabled if mmr is None else mmr
        least = self._settings.threshold if threshold is None else threshold
        limit = wanted * self._settings.mmr_pool_multiplier if diverse else wanted
        started = time.perf_counter()
        status = "error"
        try:
            points = await self._breaker.call_async(
                self._query, collection, vector, _filter(tenant_id, user_id, session_id), limit, least, diverse
            )
            status = "ok"
        except BreakerError as exc:
            status = "rejected"
            raise SearchError(str(exc)) from exc
        except (ResponseHandlingException, httpx.HTTPError, TimeoutError) as exc:
            raise SearchError(f"Qdrant did not answer a search in {collection}: {exc}") from exc
        except UnexpectedResponse as exc:
            text = f"Qdrant answered HTTP {exc.status_code} to a search in {collection}: {exc.content[:300]!r}"
            raise (SearchRefused if exc.status_code in (400, 404, 422) else SearchError)(text) from exc
        finally:
            self._count.labels(collection, status).inc()
            self._seconds.labels(collection).observe(time.perf_counter() - started)
        return self._chosen(points, wanted, diverse)

    async def probe(self, timeout: float) -> None:
        """Ask whether Qdrant is there and lists its collections, through the breaker.

        :raises SearchError: it does not, within so many seconds.
        """
        try:
            await asyncio.wait_for(self._breaker.call_async(self._client.get_collections), timeout)
        except (
            BreakerError,
            ResponseHandlingException,
            UnexpectedResponse,
            httpx.HTTPError,
            asyncio.TimeoutError,
        ) as exc:
            raise SearchError(f"Qdrant does not answer: {type(exc).__name__} {exc}".rstrip()) from exc

    async def close(self) -> None:
        """Close connections."""
        await self._client.close()

    async def _query(
        self,
        collection: str,
        vector: t.Sequence[float],
        condition: models.Filter,
        limit: int,
        threshold: float,
        with_vectors: bool,
    ) -> list[models.ScoredPoint]:
        answer = await self._client.query_points(
            collection,
            query=list(vector),
            query_filter=condition,
            limit=limit,
            score_threshold=threshold,
            with_payload=True,
            with_vectors=with_vectors,
            timeout=max(1, round(self._settings.timeout)),
        )
        return answer.points

    def _chosen(self, points: t.Sequence[models.ScoredPoint], wanted: int, diverse: bool) -> list[Hit]:
        hits = [Hit(str(point.id), point.score, dict(point.payload or {})) for point in points]
        vectors = [point.vector for point in points if isinstance(point.vector, list)]
        if not diverse or len(vectors) != len(hits):
            return hits[:wanted]
        order = rerank(
            [hit.score for hit in hits], t.cast(list[list[float]], vectors), wanted, self._settings.mmr_lambda
        )
        return [hits[index] for index in order]


def _filter(tenant_id: str, user_id: str, session_id: str) -> models.Filter:
    given = {"tenant_id": tenant_id, "user_id": user_id, "session_id": session_id}
    return models.Filter(
        must=[
            models.FieldCondition(key=key, match=models.MatchValue(value=value))
            for key, value in given.items()
            if value
        ]
    )
