"""What becomes of a task when what it needs is away: it degrades as the rules say, and says so."""

from __future__ import annotations

import asyncio
import json
import typing as t

import httpx
import pytest

from shannon.resilience.circuit_breaker import CircuitBreaker, Settings
from shannon.resilience.circuit_breaker_failures import is_failure
from shannon.resilience.degradation import DegradationManager, DependencyHealth, Level
from shannon.services.common.config import parse
from shannon.services.database.client import DatabaseAway
from shannon.services.orchestrator.engine import Engine
from shannon.services.orchestrator.llm import Answer, LlmClient, LlmError
from shannon.services.orchestrator.sessions import Found, Sessions
from shannon.services.orchestrator.tasks import Ending, Lease, NotFound, Point
from shannon.services.orchestrator.tools import Run, Tool, ToolsAway
from shannon.services.vectors.embeddings import EmbeddingError
from shannon.services.vectors.search import Hit, SearchError

TENANT = "11111111-1111-1111-1111-111111111111"


class Llm:
    """Plans in three steps, one of them with a tool, and answers everything else."""

    def __init__(self) -> None:
        self.away = False
        self.asked: list[tuple[str, list[dict[str, str]]]] = []
        self.slow: set[str] = set()

    async def complete(self, messages: list[dict[str, str]], *, purpose: str = "answer", **_more: t.Any) -> Answer:
        self.asked.append((purpose, messages))
        prompt = messages[-1]["content"]
        if self.away:
            raise LlmError("no llm-service answers")
        if prompt in self.slow:
            await asyncio.sleep(60)
        text = f"about {prompt}"
        if purpose == "plan":
            steps = [
                {"id": "1", "task": "sum 1 2", "tool": "sum"},
                {"id": "2", "task": "describe", "tool": None},
                {"id": "3", "task": "combine", "tool": None, "depends_on": ["1"]},
            ]
            text = json.dumps({"steps": steps})
        return Answer(text, "m", "p", 3, 4)


class Toolbox:
    def __init__(self) -> None:
        self.away = False

    async def listing(self, _tenant: str) -> list[Tool]:
        return [Tool("sum", "adds")]

    async def run(self, _tenant: str, tool: Tool, text: str, _timeout: float) -> Run:
        if self.away:
            raise ToolsAway("no agent-core answers")
        assert json.loads(text)["text"] == "sum 1 2"
        return Run(True, '{"sum": 3}', "", 0.01)


class History:
    def __init__(self) -> None:
        self.error: Exception | None = None

    async def get(self, *_args: t.Any) -> Found:
        if self.error:
            raise self.error
        return Found({}, [{"role": "user", "content": "before"}], "redis")


class Memory:
    def __init__(self) -> None:
        self.away = self.no_embeddings = False

    async def recall(self, *_args: t.Any) -> list[Hit]:
        if self.away:
            raise SearchError("Qdrant is away")
        return [Hit("p", 0.9, {"query": "old", "answer": "known", "task_id": "other"})]

    async def points(self, *, task: str, **_more: t.Any) -> list[Point]:
        if self.no_embeddings:
            raise EmbeddingError("llm-service is away")
        return [Point(task, [1.0], {})]


class Teller:
    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.kept: list[str] = []

    async def tell(self, kind: str, *_args: t.Any, **_more: t.Any) -> None:
        self.kinds.append(kind)

    async def keep(self, kind: str, *_args: t.Any, **_more: t.Any) -> str:
        self.kept.append(kind)
        return "id"


class Rig:
    """An engine between fakes."""

    def __init__(self, **sections: t.Any) -> None:
        self.llm, self.toolbox, self.history, self.memory = Llm(), Toolbox(), History(), Memory()
        self.manager = DegradationManager()
        self.teller = Teller()
        fakes = [t.cast(t.Any, one) for one in (self.llm, self.toolbox, self.history, self.memory)]
        self.engine = Engine(parse(sections), *fakes, self.manager)

    def down(self, *names: str) -> None:
        critical = {"database", "agent-core"}
        self.manager.report(*(DependencyHealth(name, False, name in critical) for name in names))

    def run(self, mode: str = "", query: str = "describe cells. describe regions") -> Ending:
        lease = Lease("task", "wf", TENANT, "u", "ann", "s", query, mode, {"a": 1}, 1, False, 0.0, "me")
        return asyncio.run(self.engine.run(lease, t.cast(t.Any, self.teller)))


@pytest.mark.parametrize(("mode", "agents", "kind"), [("simple", 1, "simple"), ("standard", 3, "standard"),
                                                      ("complex", 3, "agent_dag")])  # fmt: skip
def test_each_mode_completes_with_an_answer_and_an_embedding(mode: str, agents: int, kind: str) -> None:
    rig = Rig()
    ending = rig.run(mode)
    assert (ending.status, ending.mode, ending.agents) == ("completed", mode, agents)
    assert ending.result and ending.embedding_state == "done" and len(ending.points) == 1
    assert ending.metadata["workflow_type"] == kind and ending.metadata["warnings"] == []
    assert ending.tools == (0 if mode == "simple" else 1)
    assert rig.teller.kinds[0] == "WORKFLOW_STARTED" and rig.teller.kinds[-1] == "LLM_OUTPUT"
    assert rig.teller.kept.count("agent_execution") == agents and rig.teller.kept.count("token_usage") == 1
    # What was said before and what is remembered is given to the model, but not to the planner.
    answers = [messages for purpose, messages in rig.llm.asked if purpose != "plan"]
    assert all(any(message["content"] == "before" for message in messages) for messages in answers)
    assert all(len(messages) == 1 for purpose, messages in rig.llm.asked if purpose == "plan")


def test_without_a_mode_one_is_chosen_and_a_tool_needs_a_plan() -> None:
    assert Rig().run(query="hello").mode == "simple"
    assert Rig().run(query="sum 1 2").mode == "standard"


@pytest.mark.parametrize(
    ("down", "asked", "becomes"),
    [
        (["llm-service"], "complex", "standard"),
        (["llm-service"], "standard", "standard"),
        (["agent-core"], "standard", "simple"),
        (["redis", "qdrant", "llm-service"], "complex", "simple"),
    ],
)
def test_modes_are_downgraded_by_level(down: list[str], asked: str, becomes: str) -> None:
    rig = Rig()
    rig.down(*down)
    ending = rig.run(asked)
    assert ending.mode == becomes
    assert ending.metadata["mode_decision"]["original_mode"] == asked
    assert ("MODE_DOWNGRADED" in rig.teller.kinds) == (asked != becomes)
    assert bool(ending.metadata["warnings"]) == (asked != becomes)


def test_a_step_whose_tool_is_away_is_done_without_it() -> None:
    rig = Rig()
    rig.toolbox.away = True
    ending = rig.run("standard")
    assert ending.status == "completed"
    parts = t.cast("dict[str, t.Any]", ending.response)["partial_results"]
    assert [part["degraded"] for part in parts] == [True, False, False]
    assert any("the tool sum was not run" in warning for warning in ending.metadata["warnings"])


def test_without_models_what_needs_none_is_returned_when_the_level_allows_it() -> None:
    rig = Rig()
    rig.llm.away = rig.memory.no_embeddings = True
    assert rig.run("simple").status == "failed"
    # Named in the request, the tool runs without a plan.
    ending = rig.run("standard", "sum 1 2")
    assert (ending.status, ending.result) == ("completed", '{"sum": 3}')
    assert ending.embedding_state == "pending" and ending.points == []
    assert "nobody made a plan: no model answers" in ending.metadata["warnings"]


def test_without_memory_and_history_it_goes_on() -> None:
    rig = Rig()
    rig.memory.away = True
    rig.history.error = DatabaseAway("the database is away")
    ending = rig.run("simple")
    assert ending.status == "completed"
    assert [warning.partition(";")[0] for warning in ending.metadata["warnings"]] == [
        "the session's history is away",
        "memory is away",
    ]
    rig.history.error = NotFound("a new session")
    assert rig.run("simple").status == "completed"


def test_a_task_has_its_time_and_what_was_done_in_it_counts() -> None:
    rig = Rig(orchestrator={"task_timeout": "200ms"})
    rig.llm.slow = {"describe cells. describe regions"}
    ending = rig.run("simple")
    assert (ending.status, ending.result) == ("timeout", None)
    rig.llm.slow = {"describe"}
    ending = rig.run("complex")
    assert ending.status == "completed"
    assert "missing: 2" in ending.metadata["warnings"][-1]


def test_partial_results_are_returned_when_degraded_and_not_when_well() -> None:
    for level, status in ((Level.NONE, "failed"), (Level.MINOR, "completed")):
        rig = Rig()
        if level is Level.MINOR:
            rig.down("redis")
        rig.llm.away = False

        async def complete(messages: t.Any, *, purpose: str = "answer", rig: Rig = rig, **more: t.Any) -> Answer:
            if purpose != "plan":
                raise LlmError("no llm-service answers")
            return await Llm.complete(rig.llm, messages, purpose=purpose, **more)

        rig.llm.complete = complete  # type: ignore[method-assign]
        assert rig.run("standard").status == status


# ---- llm-service, asked in turn


class Cache:
    """A Redis of two commands."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    async def get(self, key: str) -> str | None:
        return self.values.get(key)

    async def set(self, key: str, value: str, px: int = 0) -> None:
        del px
        self.values[key] = value


def llm_client(cache: Cache, *handlers: t.Callable[[httpx.Request], httpx.Response]) -> LlmClient:
    clients = [
        httpx.AsyncClient(transport=httpx.MockTransport(handler), base_url=f"http://llm{number}")
        for number, handler in enumerate(handlers)
    ]
    guards = [
        CircuitBreaker(f"llm{n}", "test", Settings(failure_threshold=2), is_failure=is_failure("http"))
        for n in range(len(handlers))
    ]
    return LlmClient(clients, guards, t.cast(t.Any, cache), CircuitBreaker("redis", "test"), 60)


def answering(_request: httpx.Request) -> httpx.Response:
    usage = {"input_tokens": 1, "output_tokens": 2, "cost_usd": 0.0}
    found = {"output_text": "yes", "model": "m", "provider": "p", "usage": usage, "cache_hit": False, "degraded": False}
    return httpx.Response(200, json=found)


def failing(_request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused")


async def ask(client: LlmClient, prompt: str, **more: t.Any) -> Answer:
    return await client.complete([{"role": "user", "content": prompt}], tenant=TENANT, timeout=1, **more)


def test_another_llm_service_is_asked_and_breakers_keep_count() -> None:
    calls = 0

    def counted(request: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        return failing(request)

    async def go() -> None:
        client = llm_client(Cache(), counted, answering)
        for number in range(10):
            assert (await ask(client, f"q{number}")).text == "yes"

    asyncio.run(go())
    # One breaker for the process's life, so its failures add up (facts in full, 10.2, item 7): it is asked no more.
    assert calls == 2


def test_calls_at_the_same_time_each_ask_every_llm_service() -> None:
    """One of two is gone; whose turn is shifted by the others would ask it twice, and never the one that lives."""

    async def run() -> None:
        async def gone(request: httpx.Request) -> httpx.Response:
            await asyncio.sleep(0.01)
            raise httpx.ConnectError("gone", request=request)

        client = llm_client(Cache(), t.cast(t.Any, gone), answering)
        answers = await asyncio.gather(*(ask(client, f"question {number}") for number in range(9)))
        assert all(answer.text and not answer.degraded for answer in answers)

    asyncio.run(run())


def test_without_any_an_earlier_answer_of_the_same_tenant_serves() -> None:
    async def go() -> None:
        cache = Cache()
        await ask(llm_client(cache, answering), "what is a  cell?")
        for client in (llm_client(cache, failing), llm_client(cache, lambda request: httpx.Response(503))):
            old = await ask(client, "what is a cell?")
            assert (old.text, old.cached, old.degraded, old.prompt_tokens) == ("yes", True, True, 0)
            with pytest.raises(LlmError, match="no llm-service answers"):
                await ask(client, "what is a region?")
            with pytest.raises(LlmError):
                await ask(client, "what is a cell?", may_be_old=False)

    asyncio.run(go())


def test_what_an_llm_service_refuses_is_not_asked_of_the_next() -> None:
    async def go() -> None:
        client = llm_client(Cache(), lambda request: httpx.Response(422, text="too long"), failing)
        with pytest.raises(LlmError, match="HTTP 422"):
            await ask(client, "x")
            await ask(client, "x")

    asyncio.run(go())


# ---- sessions: PostgreSQL is the truth


class Rows:
    """A session with messages."""

    def __init__(self) -> None:
        self.away = False
        self.texts = ["one"]
        self.read = 0

    async def fetch_one(self, _query: str, params: tuple[str, str]) -> dict[str, t.Any] | None:
        if self.away:
            raise DatabaseAway("the database is away")
        seq = len(self.texts)
        return {"id": params[0], "context": "{}", "seq": seq, "message_count": seq}

    async def fetch(self, _query: str, _params: t.Any) -> list[dict[str, t.Any]]:
        self.read += 1
        return [{"role": "user", "content": text, "task_id": "", "at": 0.0} for text in reversed(self.texts)]


def test_a_copy_in_redis_serves_only_while_it_is_as_new_as_the_truth() -> None:
    rows, cache = Rows(), Cache()
    guard = CircuitBreaker("redis", "test")
    sessions = Sessions(t.cast(t.Any, rows), t.cast(t.Any, cache), guard, parse({}).session)

    async def said(user: str = "ann") -> tuple[list[str], str]:
        found = await sessions.get(TENANT, user, "s", 10)
        return [row["content"] for row in found.messages], found.source

    async def go() -> None:
        assert await said() == (["one"], "postgresql")
        assert await said() == (["one"], "redis")
        # Another orchestrator wrote (facts in full, 10.3, item 23): the copy is stale, and seen to be.
        rows.texts.append("two")
        assert await said() == (["one", "two"], "postgresql")
        assert rows.read == 2
        rows.away = True
        assert await said() == (["one", "two"], "redis")
        with pytest.raises(DatabaseAway):
            await said("bob")
        cache.values.clear()
        with pytest.raises(DatabaseAway):
            await said()

    asyncio.run(go())
