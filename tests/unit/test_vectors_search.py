"""Memory search: a tenant's own points only, and MMR's order is the answer's."""

from __future__ import annotations

import asyncio
import types
import typing as t

import pytest

httpx = pytest.importorskip("httpx")
pytest.importorskip("qdrant_client")

from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse  # noqa: E402

from shannon.resilience.circuit_breaker import CircuitBreaker  # noqa: E402
from shannon.services.common import metrics  # noqa: E402
from shannon.services.common.config import Vector  # noqa: E402
from shannon.services.vectors.search import MemorySearch, SearchError, SearchRefused  # noqa: E402


def point(name: str, score: float, vector: list[float] | None) -> t.Any:
    return types.SimpleNamespace(id=name, score=score, vector=vector, payload={"n": name})


class Client:
    def __init__(self, points: list[t.Any]) -> None:
        self.points = points
        self.error: Exception | None = None
        self.asked: dict[str, t.Any] = {}

    async def query_points(self, collection: str, **asked: t.Any) -> t.Any:
        self.asked = {"collection": collection, **asked}
        if self.error:
            raise self.error
        return types.SimpleNamespace(points=self.points)


def search(client: Client, **asked: t.Any) -> list[t.Any]:
    memory = MemorySearch(t.cast(t.Any, client), CircuitBreaker("qdrant", "test"), Vector())
    return asyncio.run(memory.search([1.0, 0.0], **{"tenant_id": "t1", **asked}))


POINTS = [point("a", 0.9, [1, 0]), point("twin", 0.89, [1, 0]), point("c", 0.6, [0, 1])]


def test_mmr_order_is_kept() -> None:
    client = Client(POINTS)
    assert [hit.point_id for hit in search(client, top_k=3)] == ["a", "c", "twin"]
    assert client.asked["limit"] == 9
    assert client.asked["with_vectors"] is True
    assert client.asked["score_threshold"] == 0.5


def test_without_mmr_the_nearest_first() -> None:
    client = Client(POINTS)
    assert [hit.point_id for hit in search(client, mmr=False, top_k=2, threshold=0.1)] == ["a", "twin"]
    assert (client.asked["limit"], client.asked["score_threshold"]) == (2, 0.1)


def test_the_filter_has_whose_points_they_are() -> None:
    client = Client([])
    search(client, user_id="u", session_id="s")
    found = {condition.key: condition.match.value for condition in client.asked["query_filter"].must}
    assert found == {"tenant_id": "t1", "user_id": "u", "session_id": "s"}
    with pytest.raises(SearchRefused, match="tenant"):
        search(client, tenant_id="")


def test_defaults() -> None:
    client = Client([])
    search(client)
    assert client.asked["limit"] == 30
    assert client.asked["collection"] == "task_embeddings"


def test_away_and_refused_differ() -> None:
    client = Client([])
    client.error = ResponseHandlingException(httpx.ConnectError("no"))
    before = metrics.value("shannon_vector_search_total", collection="task_embeddings", status="error")
    with pytest.raises(SearchError) as away:
        search(client)
    assert not isinstance(away.value, SearchRefused)
    client.error = UnexpectedResponse(400, "Bad Request", b"wrong dimension", httpx.Headers())
    with pytest.raises(SearchRefused, match="wrong dimension"):
        search(client)
    assert metrics.value("shannon_vector_search_total", collection="task_embeddings", status="error") == before + 2
