"""Embeddings: caches before the service, and no vector of the wrong size."""

from __future__ import annotations

import asyncio
import json
import typing as t

import pytest

httpx = pytest.importorskip("httpx")
pytest.importorskip("redis")

from shannon.resilience.circuit_breaker import CircuitBreaker  # noqa: E402
from shannon.services.common.config import Embeddings  # noqa: E402
from shannon.services.vectors import embeddings as module  # noqa: E402


class Service:
    """An llm-service that counts what it is asked."""

    def __init__(self, dimension: int = 3) -> None:
        self.dimension = dimension
        self.status = 200
        self.asked: list[list[str]] = []

    def client(self) -> t.Any:
        return httpx.AsyncClient(base_url="http://llm", transport=httpx.MockTransport(self.answer))

    def answer(self, request: t.Any) -> t.Any:
        texts = json.loads(request.content)["texts"]
        self.asked.append(texts)
        vectors = [[float(len(text))] + [0.5] * (self.dimension - 1) for text in texts]
        return httpx.Response(self.status, json={"embeddings": vectors})


class Cache:
    """As much of Redis as is used."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.expiry: dict[str, int] = {}
        self.down = False

    async def mget(self, keys: list[str]) -> list[bytes | None]:
        if self.down:
            raise ConnectionError("down")
        return [self.values.get(key) for key in keys]

    def pipeline(self, transaction: bool = True) -> Cache:
        assert not transaction
        return self

    def set(self, key: str, value: bytes, px: int) -> None:
        if not self.down:
            self.values[key], self.expiry[key] = value, px

    async def execute(self) -> None:
        if self.down:
            raise ConnectionError("down")


def make(service: Service, cache: Cache | None = None, clock: t.Any = None, **changed: t.Any) -> t.Any:
    settings = Embeddings(dimension=3, **changed)
    more = {"clock": clock} if clock else {}
    return module.EmbeddingClient(
        [service.client()],
        [CircuitBreaker("llm", "test")],
        settings,
        "m",
        t.cast(t.Any, cache),
        CircuitBreaker("redis", "test"),
        **more,
    )


def test_each_text_is_computed_once() -> None:
    service = Service()

    async def run() -> None:
        client = make(service)
        assert await client.embed_all(["a", "bb", "a"]) == [[1, 0.5, 0.5], [2, 0.5, 0.5], [1, 0.5, 0.5]]
        assert await client.embed("bb") == [2, 0.5, 0.5]

    asyncio.run(run())
    assert service.asked == [["a", "bb"]]


def test_the_least_recently_used_goes_first_and_entries_age() -> None:
    service = Service()
    now = [0.0]

    async def run() -> None:
        client = make(service, clock=lambda: now[0], max_lru=2, cache_ttl=10)
        for text in ("a", "bb", "a", "ccc", "a", "bb"):
            await client.embed(text)
        assert service.asked == [["a"], ["bb"], ["ccc"], ["bb"]]
        now[0] = 11
        await client.embed("bb")
        assert len(service.asked) == 5

    asyncio.run(run())


def test_redis_holds_little_endian_floats_for_an_hour() -> None:
    service, cache = Service(), Cache()

    async def run() -> None:
        await make(service, cache).embed("four")
        assert await make(service, cache).embed("four") == [4, 0.5, 0.5]

    asyncio.run(run())
    assert len(service.asked) == 1
    ((key, value),) = cache.values.items()
    assert key.startswith("emb:") and len(key) == 4 + 64
    assert value == bytes.fromhex("00008040 0000003f 0000003f")
    assert cache.expiry[key] == 3_600_000


def test_redis_away_changes_nothing() -> None:
    service, cache = Service(), Cache()
    cache.down = True
    assert asyncio.run(make(service, cache).embed("a")) == [1, 0.5, 0.5]


def test_a_cached_vector_of_another_size_is_not_used() -> None:
    service, cache = Service(), Cache()

    async def run() -> None:
        await make(service, cache).embed("a")
        cache.values = {key: value[:8] for key, value in cache.values.items()}
        assert await make(service, cache).embed("a") == [1, 0.5, 0.5]

    asyncio.run(run())
    assert len(service.asked) == 2


def test_a_wrong_dimension_says_what_is_wrong() -> None:
    with pytest.raises(module.DimensionError, match="expected embeddings of 3 dimensions, got 4"):
        asyncio.run(make(Service(4)).embed("a"))


def test_errors_name_the_service() -> None:
    service = Service()
    service.status = 500
    with pytest.raises(module.EmbeddingError, match="http://llm"):
        asyncio.run(make(service).embed("a"))
