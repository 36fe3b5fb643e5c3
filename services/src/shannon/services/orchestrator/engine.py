# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a task: chooses its mode, asks models and tools, and puts together what came of it."""

from __future__ import annotations

import asyncio
import json
import time
import typing as t
from dataclasses import dataclass, field

import psycopg

from shannon.resilience.degradation import DegradationManager, Level, Observer
from shannon.resilience.errors import ResilienceError
from shannon.resilience.mode_manager import Behaviour, Decision, FallbackPolicy, Mode, ModeManager
from shannon.resilience.partial_results import (
    Aggregate,
    PartialReason,
    PartialResult,
    aggregate,
    enough,
    should_return_partial,
)
from shannon.services.common import logs
from shannon.services.common.config import Config
from shannon.services.vectors.embeddings import EmbeddingError
from shannon.services.vectors.search import Hit

from . import graph, plan
from .events import Teller
from .llm import Answer, LlmClient, LlmError, Message
from .memory import Memory
from .sessions import Sessions
from .tasks import Ending, Lease, NotFound
from .texts import clean, shorten
from .tools import Tool, Toolbox, ToolsAway

_log = logs.get(__name__)
#: Seconds that a task looks for what was said before, and what is remembered; it goes on without.
_CONTEXT = 2.0
#: Characters of an event's message.
_MESSAGE = 2000
AGENT = "orchestrator"


@dataclass
class Attempt:
    """What is known and counted while a task runs."""

    lease: Lease
    teller: Teller
    decision: Decision
    deadline: float
    tools: list[Tool] = field(default_factory=list)
    context: list[Message] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    recalled: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    cache_hits: int = 0
    agents: int = 0
    tools_invoked: int = 0
    model: str = ""
    provider: str = ""

    def warn(self, text: str) -> None:
        """Something is missing; once is enough."""
        if text not in self.warnings:
            self.warnings.append(text)

    def count(self, answer: Answer) -> None:
        """Add an answer's figures."""
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens
        self.cost += answer.cost
        self.cache_hits += answer.cached
        self.model, self.provider = answer.model, answer.provider
        if answer.degraded:
            self.warn("an answer is an earlier one: no model answers")


class Engine:
    """Runs a cell's tasks.

    :param observers: hear of partial results.
    """

    def __init__(
        self,
        config: Config,
        llm: LlmClient,
        toolbox: Toolbox,
        sessions: Sessions,
        memory: Memory,
        manager: DegradationManager,
        observers: t.Sequence[Observer] = (),
    ) -> None:
        self._config = config
        self._llm = llm
        self._toolbox = toolbox
        self._sessions = sessions
        self._memory = memory
        self._manager = manager
        self._observers = tuple(observers)
        self._modes = ModeManager(
            lambda: manager.assessment, observers=self._observers, enabled=config.degradation.enabled
        )
        self._policy = FallbackPolicy(
            lambda: manager.assessment, config.degradation.fallback_behaviors, observers=self._observers
        )
        shares = config.degradation.partial_results
        self._shares = {name: getattr(shares, name) for name in ("simple", "standard", "complex", "agent_dag", "other")}

    async def run(self, lease: Lease, teller: Teller) -> Ending:
        """Run a task to its end; what goes wrong within it is its result."""
        began = time.monotonic()
        limit = self._config.orchestrator.task_timeout
        tools = await self._tools(lease)
        decision = self._modes.decide(self._requested(lease, tools), time_left=limit)
        attempt = Attempt(lease, teller, decision, asyncio.get_running_loop().time() + limit, tools)
        await teller.tell(
            "WORKFLOW_STARTED", "the task begins", AGENT, mode=decision.final.value, attempt=lease.attempt
        )
        if decision.downgraded:
            text = f"mode {decision.original.value} becomes {decision.final.value}"
            attempt.warn(f"{text}: {self._manager.assessment.reason or (decision.reason and decision.reason.value)}")
            await teller.tell("MODE_DOWNGRADED", text, AGENT, **decision.as_dict())
        await self._gather_context(attempt)
        whole, kind = await self._execute(attempt)
        return await self._ending(attempt, whole, kind, time.monotonic() - began)

    def _requested(self, lease: Lease, tools: t.Sequence[Tool]) -> Mode:
        if lease.requested_mode:
            return Mode.of(lease.requested_mode)
        mode = Mode.of(plan.mode_for(lease.query))
        # Only a plan can use a tool.
        if mode is Mode.SIMPLE and plan.single(lease.query, [tool.name for tool in tools])[0].tool:
            mode = Mode.STANDARD
        return mode

    async def _tools(self, lease: Lease) -> list[Tool]:
        try:
            return await self._toolbox.listing(lease.tenant)
        except (ResilienceError, psycopg.Error) as exc:
            _log.warning("a task goes on without tools: %s", exc)
            return []

    async def _gather_context(self, attempt: Attempt) -> None:
        """What was said before, and what is remembered, side by side; a task goes on without either."""
        lease = attempt.lease
        found = await asyncio.gather(
            asyncio.wait_for(self._history(attempt), _CONTEXT),
            asyncio.wait_for(self._recall(attempt), _CONTEXT),
            return_exceptions=True,
        )
        for item, warning in zip(found, ("the session's history is away", "memory is away"), strict=True):
            if isinstance(item, (ResilienceError, psycopg.Error, asyncio.TimeoutError)):
                attempt.warn(f"{warning}; the task goes on without it")
            elif isinstance(item, BaseException):
                raise item
        history = found[0] if isinstance(found[0], list) else []
        hits = found[1] if isinstance(found[1], list) else []
        attempt.recalled = len(hits)
        known = []
        if lease.context:
            known.append("Given with the request: " + json.dumps(lease.context, ensure_ascii=False))
        known += [f"Asked before: {_of(hit, 'query')}\nAnswered: {_of(hit, 'answer')}" for hit in hits]
        attempt.context = [{"role": "system", "content": text} for text in known] + history

    async def _history(self, attempt: Attempt) -> list[Message]:
        lease = attempt.lease
        if not self._policy.behaviour("session_update").runs or not self._config.session.context_messages:
            return []
        try:
            found = await self._sessions.get(
                lease.tenant, lease.user, lease.session, self._config.session.context_messages
            )
        except NotFound:
            return []
        said = [{"role": str(row["role"]), "content": str(row["content"])} for row in found.messages]
        return [message for message in said if message["content"]]

    async def _recall(self, attempt: Attempt) -> list[Hit]:
        if not self._policy.behaviour("vector_search").runs:
            return []
        lease = attempt.lease
        hits = await self._memory.recall(lease.tenant, lease.user, lease.query)
        return [hit for hit in hits if hit.payload.get("task_id") != lease.id]

    async def _execute(self, attempt: Attempt) -> tuple[Aggregate, str]:
        mode = attempt.decision.final
        if mode is Mode.SIMPLE:
            steps = [plan.Step("answer", attempt.lease.query)]
        else:
            steps = await self._plan(attempt)
        kind = mode.value
        if mode is Mode.COMPLEX and any(step.after for step in steps):
            kind = "agent_dag"
        parallel = self._config.orchestrator.max_parallel_steps if mode is Mode.COMPLEX else 1
        results, late = await graph.run(
            steps,
            lambda step, before: self._step(attempt, step, before),
            parallel=parallel,
            deadline=attempt.deadline,
            patience=self._patience(kind, len(steps)),
        )
        assessment = self._manager.assessment
        whole = aggregate(
            results,
            kind,
            assessment,
            thresholds=self._shares,
            observers=self._observers,
            reason=PartialReason.TIMEOUT if late else None,
        )
        return whole, kind

    def _patience(self, kind: str, total: int) -> graph.Patience:
        """While the system is degraded, nobody waits long for the rest once there is enough."""
        settings = self._config.degradation.partial_results
        began = time.monotonic()

        def patience(done: graph.Done) -> float | None:
            if self._manager.level is Level.NONE:
                return None
            left = max(settings.max_wait - (time.monotonic() - began), 0.0)
            if enough(kind, sum(one.success for one in done.values()), total, self._shares):
                return min(settings.timeout_override, left)
            return None

        return patience

    async def _plan(self, attempt: Attempt) -> list[plan.Step]:
        lease, names = attempt.lease, [tool.name for tool in attempt.tools]
        most = self._config.orchestrator.max_steps
        try:
            answer = await self._ask(attempt, lease.query, purpose="plan", tools=names)
            steps = plan.parse(answer.text, names, most)
        except LlmError as exc:
            _log.warning("a task is run without a plan: %s", exc)
            attempt.warn("nobody made a plan: no model answers")
            steps = plan.single(lease.query, names)
        except plan.PlanError as exc:
            _log.warning("a model's plan can't be used: %s", exc)
            attempt.warn(f"the model's plan can't be used: {exc}")
            steps = plan.single(lease.query, names)
        await attempt.teller.tell("PLAN_CREATED", f"{len(steps)} steps", AGENT, steps=[vars(step) for step in steps])
        return steps

    async def _step(self, attempt: Attempt, step: plan.Step, before: graph.Done) -> PartialResult:
        """Do one step; whatever goes wrong is its result."""
        agent = f"agent-{step.id}"
        attempt.agents += 1
        order = attempt.agents
        began = time.monotonic()
        await attempt.teller.tell("AGENT_STARTED", shorten(step.task, _MESSAGE), agent, tool=step.tool)
        try:
            result = await self._attempted(attempt, step, before, agent)
        except (ResilienceError, psycopg.Error) as exc:
            result = PartialResult(step.id, False, error=str(exc), confidence=0.0)
        except asyncio.CancelledError:
            raise
        except Exception as exc:
            _log.exception("a step crashed")
            result = PartialResult(step.id, False, error=f"{type(exc).__name__}: {exc}", confidence=0.0)
        output = _text(result.result) if result.success else ""
        await attempt.teller.keep(
            "agent_execution",
            f"agent {step.id}",
            task_execution_id=attempt.lease.id,
            agent_id=agent,
            execution_order=order,
            input=step.task,
            output=output or None,
            mode=attempt.decision.final.value,
            state="completed" if result.success else "failed",
            error_message=result.error or None,
            tokens_used=int(result.metadata.get("tokens", 0)),
            model_used=result.metadata.get("model"),
            duration_ms=round((time.monotonic() - began) * 1000),
        )
        kind = "AGENT_COMPLETED" if result.success else "AGENT_FAILED"
        await attempt.teller.tell(
            kind, shorten(output or result.error, _MESSAGE), agent, degraded=result.degraded, step=step.id
        )
        return result

    async def _attempted(self, attempt: Attempt, step: plan.Step, before: graph.Done, agent: str) -> PartialResult:
        degraded = False
        if step.tool:
            behaviour = self._policy.behaviour("agent_execution")
            if not behaviour.runs:
                return PartialResult(step.id, False, error=f"tools are not run now ({behaviour.value})", confidence=0.0)
            if behaviour is not Behaviour.DEGRADE:
                try:
                    return await self._use_tool(attempt, step, before, agent)
                except ToolsAway as exc:
                    _log.warning("a step is done without its tool: %s", exc)
            attempt.warn(f"the tool {step.tool} was not run: agent-core is away")
            degraded = True
        prompt = step.task
        if before:
            prompt += "\n\nWhat is known:\n" + "\n".join(_text(one.result) for one in before.values())
        answer = await self._ask(attempt, prompt)
        return PartialResult(
            step.id,
            True,
            answer.text,
            metadata={"model": answer.model, "tokens": answer.prompt_tokens + answer.completion_tokens},
            confidence=0.5 if degraded or answer.degraded else 1.0,
            degraded=degraded or answer.degraded,
        )

    async def _use_tool(self, attempt: Attempt, step: plan.Step, before: graph.Done, agent: str) -> PartialResult:
        lease = attempt.lease
        tool = next(one for one in attempt.tools if one.name == step.tool)
        given: dict[str, t.Any] = {"text": step.task}
        if before:
            given["inputs"] = [one.result for one in before.values()]
        await attempt.teller.tell("TOOL_INVOKED", f"{tool.name} runs", agent, tool=tool.name, input=given)
        left = attempt.deadline - asyncio.get_running_loop().time()
        limit = min(self._config.orchestrator.step_timeout, self._config.agent_core.timeout, max(left, 0.1))
        attempt.tools_invoked += 1
        run = await self._toolbox.run(lease.tenant, tool, json.dumps(given, ensure_ascii=False), limit)
        output = _parsed(run.output)
        await attempt.teller.keep(
            "tool_execution",
            f"tool {step.id}",
            task_execution_id=lease.id,
            tool_name=tool.name,
            input_params=given,
            output=clean(output) if run.success else None,
            success=run.success,
            error=run.error or None,
            duration_ms=round(run.seconds * 1000),
            sandboxed=True,
        )
        message = shorten(run.output if run.success else run.error, _MESSAGE)
        await attempt.teller.tell("TOOL_OBSERVATION", message, agent, tool=tool.name, success=run.success)
        if not run.success:
            return PartialResult(step.id, False, error=f"the tool {tool.name} failed: {run.error}", confidence=0.0)
        return PartialResult(step.id, True, output, metadata={"tool": tool.name})

    async def _ask(self, attempt: Attempt, prompt: str, purpose: str = "answer", tools: t.Sequence[str] = ()) -> Answer:
        behaviour = self._policy.behaviour("llm_generation")
        if not behaviour.runs:
            raise LlmError(f"models are not asked now ({behaviour.value})")
        left = max(attempt.deadline - asyncio.get_running_loop().time(), 0.1)
        # A plan is made of the request alone, so that the same request has the same plan.
        context = [] if purpose == "plan" else attempt.context
        answer = await self._llm.complete(
            [*context, {"role": "user", "content": prompt}],
            tenant=attempt.lease.tenant,
            timeout=min(self._config.orchestrator.step_timeout, left),
            purpose=purpose,
            tools=tools,
        )
        attempt.count(answer)
        return answer

    async def _ending(self, attempt: Attempt, whole: Aggregate, kind: str, seconds: float) -> Ending:
        level = self._manager.level
        kept = whole.success or should_return_partial(level, whole.success_count, whole.total_components)
        late = asyncio.get_running_loop().time() >= attempt.deadline
        ending = Ending(
            status="completed" if kept else "timeout" if late else "failed",
            mode=attempt.decision.final.value,
            duration_ms=round(seconds * 1000),
            agents=attempt.agents,
            tools=attempt.tools_invoked,
            complexity=round(plan.complexity(attempt.lease.query), 2),
        )
        if kept:
            ending.result = await self._synthesis(attempt, whole)
            await attempt.teller.tell("LLM_OUTPUT", ending.result, AGENT)
            await self._embed(attempt, ending)
        else:
            ending.error = whole.warning or "no step succeeded"
        if whole.warning:
            attempt.warn(whole.warning)
        ending.model, ending.provider = attempt.model or None, attempt.provider or None
        ending.prompt_tokens, ending.completion_tokens = attempt.prompt_tokens, attempt.completion_tokens
        ending.cost, ending.cache_hits = attempt.cost, attempt.cache_hits
        ending.metadata = {
            "mode_decision": attempt.decision.as_dict(),
            "warnings": attempt.warnings,
            "workflow_type": kind,
            "attempt": attempt.lease.attempt,
            "memory_hits": attempt.recalled,
        }
        ending.response = whole.as_dict()
        if attempt.provider:
            await attempt.teller.keep(
                "token_usage",
                "usage",
                user_id=attempt.lease.user_id,
                task_id=attempt.lease.id,
                agent_id=AGENT,
                provider=attempt.provider,
                model=attempt.model,
                prompt_tokens=attempt.prompt_tokens,
                completion_tokens=attempt.completion_tokens,
                cost_usd=attempt.cost,
            )
        return ending

    async def _synthesis(self, attempt: Attempt, whole: Aggregate) -> str:
        """One answer from the steps' results; without a model, the results one after the other."""
        good = [one for one in whole.partial_results if one.success]
        if len(good) == 1:
            return _text(good[0].result)
        parts = [_text(one.result) for one in good]
        if self._policy.behaviour("result_synthesis").runs:
            prompt = f"{attempt.lease.query}\n\nWhat was found out:\n" + "\n".join(f"- {part}" for part in parts)
            try:
                return (await self._ask(attempt, prompt, purpose="synthesis")).text
            except LlmError as exc:
                _log.warning("results are not put together by a model: %s", exc)
                attempt.warn("the results stand side by side: no model answers")
        return "\n".join(parts)

    async def _embed(self, attempt: Attempt, ending: Ending) -> None:
        lease = attempt.lease
        try:
            ending.points = await asyncio.wait_for(
                self._memory.points(
                    task=lease.id,
                    tenant=lease.tenant,
                    user=lease.user,
                    session=lease.session,
                    query=lease.query,
                    answer=ending.result or "",
                    at=time.time(),
                ),
                _CONTEXT,
            )
            ending.embedding_state = "done"
        except (EmbeddingError, asyncio.TimeoutError):
            # It is made up for when llm-service is back.
            ending.embedding_state = "pending"


def _text(value: t.Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _parsed(text: str) -> t.Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _of(hit: Hit, name: str) -> str:
    return shorten(str(hit.payload.get(name, "")), 500)
