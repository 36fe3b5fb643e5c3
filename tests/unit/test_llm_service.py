"""llm-service: deterministic answers without anything else, caches that never fail a request, clear refusals."""

from __future__ import annotations

import asyncio
import json
import time
import typing as t

import httpx
import pytest
import redis.exceptions

from shannon.resilience.circuit_breaker import CircuitBreaker, Settings
from shannon.resilience.circuit_breaker_failures import is_failure
from shannon.services.common.config import LlmService, Upstream
from shannon.services.llm_service.app import build
from shannon.services.llm_service.caches import Near, Recent, Shared, key_of
from shannon.services.llm_service.embedded import EmbeddedProvider, plan
from shannon.services.llm_service.embedder import cosine, embed
from shannon.services.llm_service.llm import Llm
from shannon.services.llm_service.openai import OpenAiProvider
from shannon.services.llm_service.provider import Completion, Message, ProviderError, Question, Vectors

ASK = {"messages": [{"role": "user", "content": "What is a quorum?"}]}


class FakeRedis:
    """Keeps values, hangs, or fails."""

    def __init__(self, mode: str = "") -> None:
        self.mode = mode
        self.values: dict[str, str] = {}
        self.calls = 0

    async def _trouble(self) -> None:
        self.calls += 1
        if self.mode == "hang":
            await asyncio.sleep(30)
        if self.mode == "away":
            raise redis.exceptions.ConnectionError("connection refused")

    async def get(self, key: str) -> str | None:
        await self._trouble()
        return self.values.get(key)

    async def set(self, key: str, value: str, px: int) -> None:
        await self._trouble()
        assert px > 0
        self.values[key] = value


class FakeProvider:
    """Counts what it is asked, and may be away."""

    name = "fake"

    def __init__(self) -> None:
        self.asked: list[Question] = []
        self.away = False

    async def complete(self, question: Question) -> Completion:
        self.asked.append(question)
        if self.away:
            raise ProviderError("the provider is away", retry_after=7)
        return Completion(f"answer {len(self.asked)}", question.model, self.name, 3, 4)

    async def embed(self, texts: t.Sequence[str], model: str) -> Vectors:
        if self.away:
            raise ProviderError("the provider is away")
        return Vectors(tuple((1.0, 0.0) for _text in texts), model, self.name, 1)

    async def close(self) -> None:
        """Nothing to close."""


def guard(kind: str) -> CircuitBreaker:
    return CircuitBreaker("x", "test", Settings(failure_threshold=3, timeout=60), is_failure=is_failure(kind))


class Rig:
    """The service without a network."""

    def __init__(self, provider: t.Any = None, cache: FakeRedis | None = None, **settings: t.Any) -> None:
        self.provider = provider or FakeProvider()
        self.settings = LlmService.model_validate({"semantic_cache": False, **settings})
        shared = Shared(t.cast("t.Any", cache), guard("redis"), self.settings.cache_ttl, self.settings.redis_timeout)
        self.llm = Llm(self.provider, self.settings, shared)
        self.app = build(self.llm, self.settings)

    def ask(self, method: str, path: str, **options: t.Any) -> httpx.Response:
        async def go() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://llm") as client:
                return await client.request(method, path, **options)

        return asyncio.run(go())


# ---- the embedder


def test_an_embedding_is_the_same_everywhere_and_of_length_one() -> None:
    vector = embed("The registry has a quorum of two.", 1536)
    assert vector == embed("The registry has a quorum of two.", 1536)
    assert len(vector) == 1536 and abs(cosine(vector, vector) - 1) < 1e-9


def test_texts_that_share_words_are_near_and_others_are_not() -> None:
    first = embed("restore the database from the last backup", 1536)
    near = embed("how to restore the last database backup", 1536)
    far = embed("bicycles need air in their tyres", 1536)
    assert cosine(first, near) > 0.5 > cosine(first, far) + 0.3


def test_a_text_without_words_has_a_vector_as_well() -> None:
    assert embed("?!", 8) == [1.0] + [0.0] * 7


# ---- the embedded provider


def test_a_request_is_taken_apart_into_steps_with_tools_and_order() -> None:
    steps = json.loads(plan("Count words with word_count and fetch the log. Finally compare them", ("word_count",)))[
        "steps"
    ]
    assert [step["task"] for step in steps] == ["Count words with word_count", "fetch the log", "Finally compare them"]
    assert [step["tool"] for step in steps] == ["word_count", None, None]
    assert [step["depends_on"] for step in steps] == [[], [], ["1", "2"]]


def test_a_plan_of_one_sentence_has_one_step_and_never_too_many() -> None:
    assert len(json.loads(plan("Say hello", ()))["steps"]) == 1
    assert len(json.loads(plan("go. " * 100, ()))["steps"]) == 8


def test_the_embedded_provider_answers_over_http() -> None:
    rig = Rig(EmbeddedProvider(64))
    answer = rig.ask("POST", "/completions/", json=ASK).json()
    assert "What is a quorum?" in answer["output_text"] and answer["provider"] == "embedded"
    assert answer["usage"]["total_tokens"] == answer["usage"]["input_tokens"] + answer["usage"]["output_tokens"] > 0
    found = rig.ask("POST", "/embeddings/", json={"texts": ["a", "b"]}).json()
    assert found["dimensions"] == 64 and len(found["embeddings"]) == 2


def test_openais_protocol_is_spoken() -> None:
    rig = Rig(EmbeddedProvider(16))
    answer = rig.ask("POST", "/v1/chat/completions", json={"model": "m", **ASK}).json()
    assert answer["object"] == "chat.completion" and "quorum" in answer["choices"][0]["message"]["content"]
    assert (
        len(rig.ask("POST", "/v1/embeddings", json={"model": "m", "input": "a"}).json()["data"][0]["embedding"]) == 16
    )


# ---- caches


def test_the_same_question_is_asked_once_and_another_tenants_answer_is_not_given() -> None:
    rig = Rig()
    first, again = (rig.ask("POST", "/completions/", json=ASK).json() for _turn in range(2))
    assert (first["cache_hit"], again["cache_hit"]) == (False, True)
    assert first["output_text"] == again["output_text"]
    assert not rig.ask("POST", "/completions/", json={**ASK, "tenant_id": "t2"}).json()["cache_hit"]
    assert len(rig.provider.asked) == 2


def test_what_is_random_is_not_given_twice() -> None:
    rig = Rig()
    for _turn in range(2):
        assert not rig.ask("POST", "/completions/", json={**ASK, "temperature": 0.7}).json()["cache_hit"]


def test_another_process_finds_the_answer_in_redis() -> None:
    cache = FakeRedis()
    Rig(cache=cache).ask("POST", "/completions/", json=ASK)
    assert [key.startswith("llm:cache:") for key in cache.values] == [True]
    other = Rig(cache=cache)
    assert other.ask("POST", "/completions/", json=ASK).json()["cache_hit"]
    assert other.provider.asked == []


@pytest.mark.parametrize("mode", ["away", "hang"])
def test_completions_do_not_need_redis(mode: str) -> None:
    # Facts in full, 10.1, item 6.
    cache = FakeRedis(mode)
    rig = Rig(cache=cache, redis_timeout=0.05)
    started = time.monotonic()
    for number in range(10):
        body = {"messages": [{"role": "user", "content": f"question {number}"}]}
        assert rig.ask("POST", "/completions/", json=body).status_code == 200
    assert time.monotonic() - started < 5
    assert cache.calls <= 4, "after three failures the breaker keeps Redis from being asked"


def test_a_question_that_is_almost_the_same_has_the_same_answer() -> None:
    rig = Rig(semantic_cache=True, semantic_threshold=0.8)
    rig.ask("POST", "/completions/", json={"messages": [{"role": "user", "content": "what is the home of cell main"}]})
    near = {"messages": [{"role": "user", "content": "What is the home of cell main?"}]}
    assert rig.ask("POST", "/completions/", json=near).json()["cache_hit"]
    far = {"messages": [{"role": "user", "content": "who wrote the manual"}]}
    assert not rig.ask("POST", "/completions/", json=far).json()["cache_hit"]
    system = {"messages": [{"role": "system", "content": "be brief"}, *near["messages"]]}
    assert not rig.ask("POST", "/completions/", json=system).json()["cache_hit"]


def test_when_the_provider_is_away_an_old_answer_is_given_and_marked() -> None:
    rig = Rig(cache_ttl=0)
    rig.ask("POST", "/completions/", json=ASK)
    rig.provider.away = True
    answer = rig.ask("POST", "/completions/", json=ASK).json()
    assert answer["output_text"] == "answer 1" and answer["cache_hit"] and answer["degraded"]
    assert rig.ask("GET", "/health/ready").status_code == 503, "readiness is real (facts in full, 10.2, item 15)"
    rig.provider.away = False
    rig.ask("POST", "/completions/", json={**ASK, "temperature": 1.0})
    assert rig.ask("GET", "/health/ready").status_code == 200


def test_without_a_cached_answer_it_says_503_and_when_to_come_back() -> None:
    rig = Rig()
    rig.provider.away = True
    answer = rig.ask("POST", "/completions/", json=ASK, headers={"X-Request-ID": "r1"})
    assert answer.status_code == 503 and answer.headers["Retry-After"] == "7"
    assert answer.json() == {"error": "the provider is away", "request_id": "r1"}
    assert rig.ask("POST", "/embeddings/", json={"texts": ["a"]}).status_code == 503
    assert rig.ask("GET", "/health/live").status_code == 200


def test_caches_are_bounded() -> None:
    recent: Recent[int] = Recent(2, 60)
    for number in range(5):
        recent.put(str(number), number)
    assert len(recent) == 2 and recent.get("4") == 4 and recent.get("0") is None
    now = [0.0]
    aging: Recent[int] = Recent(2, 10, lambda: now[0])
    aging.put("a", 1)
    now[0] = 11
    assert aging.get("a") is None and aging.get("a", stale=True) == 1
    near = Near(2, 0.9, 10, lambda: now[0])
    done = Completion("x", "m", "p", 1, 1)
    for number in range(Near.SETS + 5):
        near.put(str(number), [1.0], done)
    assert near.get("0", [1.0]) is None and near.get(str(Near.SETS), [1.0]) is done
    now[0] = 30
    assert near.get(str(Near.SETS), [1.0]) is None


def test_the_key_depends_on_everything_that_the_answer_does() -> None:
    question = Question((Message("user", "a"),), "m")
    keys = {
        key_of("t", question),
        key_of("u", question),
        key_of("t", Question((Message("user", "a"),), "n")),
        key_of("t", Question((Message("user", "a"),), "m", purpose="plan")),
        key_of("t", Question((Message("system", "a"),), "m")),
    }
    assert len(keys) == 5


# ---- refusals


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        (b"{", {}, 400, "no JSON"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "application/json"),
        (b'{"messages": []}', {}, 422, "messages"),
        (b'{"messages": [{"role": "user", "content": "a"}], "colour": 1}', {}, 422, "colour"),
        (b'{"messages": [{"role": "king", "content": "a"}]}', {}, 422, "role"),
        (b'{"messages": [{"role": "user", "content": "a"}], "temperature": "hot"}', {}, 422, "temperature"),
        (b"x" * 3000, {}, 413, "more than 2048 bytes"),
        (json.dumps({"messages": [{"role": "user", "content": "a" * 600}]}).encode(), {}, 422, "600 characters"),
    ],
)
def test_bad_requests_are_refused_with_a_reason(body: bytes, headers: dict[str, str], status: int, said: str) -> None:
    rig = Rig(max_body=2048, max_text=500)
    answer = rig.ask("POST", "/completions/", content=body, headers={"Content-Type": "application/json", **headers})
    assert answer.status_code == status and said in answer.json()["error"]
    assert answer.json()["request_id"] and rig.provider.asked == []


def test_too_many_texts_are_refused() -> None:
    rig = Rig(max_texts=2)
    assert "3 texts" in rig.ask("POST", "/embeddings/", json={"texts": ["a", "b", "c"]}).json()["error"]


def test_a_quota_is_kept() -> None:
    rig = Rig(rate_limit=2, rate_window=60)
    statuses = [rig.ask("POST", "/completions/", json={**ASK, "tenant_id": "t"}) for _turn in range(3)]
    assert [answer.status_code for answer in statuses] == [200, 200, 429]
    assert int(statuses[-1].headers["Retry-After"]) >= 1


def test_a_page_that_is_not_there_and_a_crash_are_told_in_json() -> None:
    rig = Rig()
    assert rig.ask("GET", "/nowhere").json()["error"] == "Not Found"
    rig.provider.complete = None
    answer = rig.ask("POST", "/completions/", json=ASK)
    assert answer.status_code == 500 and "log" in answer.json()["error"]


# ---- an upstream


def upstream(answer: t.Callable[[httpx.Request], httpx.Response], dimension: int = 2) -> OpenAiProvider:
    settings = Upstream(base_url="http://provider/v1")
    return OpenAiProvider(settings, "key", dimension, guard("http"), httpx.MockTransport(answer))


QUESTION = Question((Message("user", "a"),), "m")


def test_an_upstream_is_asked_in_its_protocol() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if request.url.path.endswith("/embeddings"):
            rows = [{"index": 1, "embedding": [0, 2]}, {"index": 0, "embedding": [3, 4]}]
            return httpx.Response(200, json={"data": rows})
        message = {"message": {"content": "hi"}, "finish_reason": "stop"}
        return httpx.Response(200, json={"model": "m2", "choices": [message], "usage": {"prompt_tokens": 5}})

    provider = upstream(answer)
    done = asyncio.run(provider.complete(QUESTION))
    assert (done.text, done.model, done.input_tokens, done.output_tokens) == ("hi", "m2", 5, 1)
    assert seen[0].url.path == "/v1/chat/completions" and seen[0].headers["Authorization"] == "Bearer key"
    assert asyncio.run(upstream(answer).embed(["a", "b"], "m")).vectors == ((0.6, 0.8), (0.0, 1.0))


def test_a_dead_upstream_opens_the_breaker_and_is_then_not_asked() -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(503, text="overloaded")

    async def go() -> None:
        provider = upstream(answer)
        for _turn in range(5):
            with pytest.raises(ProviderError):
                await provider.complete(QUESTION)

    asyncio.run(go())
    assert len(asked) == 3


def test_an_upstream_that_refuses_a_request_is_not_taken_for_dead() -> None:
    rig = Rig(upstream(lambda _request: httpx.Response(400, text="no such model")))
    for _turn in range(5):
        answer = rig.ask("POST", "/completions/", json=ASK)
        assert answer.status_code == 422 and "no such model" in answer.json()["error"]
    assert rig.ask("GET", "/health/ready").status_code == 200


@pytest.mark.parametrize("document", [{}, {"choices": []}, {"choices": [{"message": None}]}, [1]])
def test_an_upstream_that_talks_nonsense_is_an_error(document: t.Any) -> None:
    with pytest.raises(ProviderError, match="completion is none"):
        asyncio.run(upstream(lambda _request: httpx.Response(200, json=document)).complete(QUESTION))


def test_vectors_of_another_dimension_are_refused_with_what_to_do() -> None:
    rows = [{"index": 0, "embedding": [1, 0, 0]}]
    with pytest.raises(ProviderError, match=r"dimensions \[3\]; embeddings.dimension is 2"):
        asyncio.run(upstream(lambda _request: httpx.Response(200, json={"data": rows})).embed(["a"], "m"))
