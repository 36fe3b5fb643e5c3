"""Plans, and the graph that they are run as."""

from __future__ import annotations

import asyncio
import json
import typing as t

import pytest

from shannon.resilience.partial_results import PartialResult
from shannon.services.orchestrator import graph, ids, plan, texts
from shannon.services.orchestrator.plan import PlanError, Step


def written(*steps: dict[str, t.Any]) -> str:
    return json.dumps({"steps": list(steps)})


def test_a_plan_comes_in_an_order_in_which_it_can_be_run() -> None:
    text = written(
        {"id": "2", "task": "add", "tool": "sum", "depends_on": ["1"]}, {"id": 1, "task": "find", "tool": None}
    )
    assert plan.parse(f"```json\n{text}\n```", ["sum"], 10) == [Step("1", "find"), Step("2", "add", "sum", ("1",))]


def test_a_tool_or_a_step_that_does_not_exist_is_not_waited_for() -> None:
    text = written({"id": "1", "task": "x", "tool": "rm", "depends_on": ["9"]})
    assert plan.parse(text, ["sum"], 10) == [Step("1", "x")]


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        "[]",
        written(),
        written({"id": "1", "task": " "}),
        written({"id": "1", "task": "x", "depends_on": "2"}),
        written({"id": "1", "task": "x"}, {"id": "1", "task": "y"}),
        written({"id": "1", "task": "x", "depends_on": ["2"]}, {"id": "2", "task": "y", "depends_on": ["1"]}),
        written({"id": "1", "task": "x", "depends_on": ["1"]}),
    ],
)
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(PlanError):
        plan.parse(text, [], 10)


def test_steps_beyond_the_limit_are_left_out_with_what_needs_them() -> None:
    steps = [{"id": str(n), "task": "x", "depends_on": [str(n - 1)] if n else []} for n in range(5)]
    assert [step.id for step in plan.parse(written(*steps), [], 3)] == ["0", "1", "2"]


def test_modes_that_requests_look_like() -> None:
    assert plan.mode_for("Hello") == "simple"
    assert plan.mode_for("Describe a cell. Describe a region.") == "standard"
    assert plan.mode_for("Find one. Find two. Then add them. Finally, say what came of it.") == "complex"
    assert 0 <= plan.complexity("and " * 1000) <= 1
    assert plan.single("sum 1 2", ["echo", "sum"]) == [Step("1", "sum 1 2", "sum")]


def run_graph(
    steps: list[Step], work: graph.Work, parallel: int = 2, seconds: float = 5.0, **more: t.Any
) -> tuple[list[PartialResult], bool]:
    async def go() -> tuple[list[PartialResult], bool]:
        deadline = asyncio.get_running_loop().time() + seconds
        return await graph.run(steps, work, parallel=parallel, deadline=deadline, **more)

    return asyncio.run(go())


def test_steps_run_side_by_side_up_to_the_limit_and_after_what_they_need() -> None:
    running: set[str] = set()
    most = 0
    ended: list[str] = []

    async def work(step: Step, before: graph.Done) -> PartialResult:
        nonlocal most
        assert set(before) == set(step.after) <= set(ended)
        running.add(step.id)
        most = max(most, len(running))
        await asyncio.sleep(0.01)
        running.discard(step.id)
        ended.append(step.id)
        return PartialResult(step.id, True, step.id)

    steps = [Step("1", "x"), Step("2", "x"), Step("3", "x"), Step("4", "x", after=("1", "3"))]
    results, late = run_graph(steps, work)
    assert [one.result for one in results] == ["1", "2", "3", "4"]
    assert (most, late) == (2, False)


def test_what_needs_a_failed_step_fails_and_the_rest_goes_on() -> None:
    async def work(step: Step, _before: graph.Done) -> PartialResult:
        return PartialResult(step.id, step.id != "1")

    steps = [Step("1", "x"), Step("2", "x", after=("1",)), Step("3", "x", after=("2",)), Step("4", "x")]
    results, _late = run_graph(steps, work, parallel=1)
    assert [one.success for one in results] == [False, False, False, True]
    assert "step 1, which failed" in results[1].error


def test_what_is_late_is_cancelled_and_what_is_done_stays() -> None:
    cancelled = []

    async def work(step: Step, _before: graph.Done) -> PartialResult:
        if step.id == "slow":
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(step.id)
                raise
        return PartialResult(step.id, True)

    results, late = run_graph([Step("quick", "x"), Step("slow", "x")], work, seconds=0.1)
    assert ([one.success for one in results], late, cancelled) == ([True, False], True, ["slow"])


def test_with_enough_done_the_rest_is_waited_for_only_so_long() -> None:
    async def work(step: Step, _before: graph.Done) -> PartialResult:
        if step.id == "slow":
            await asyncio.sleep(60)
        return PartialResult(step.id, True)

    steps = [Step("quick", "x"), Step("slow", "x")]
    results, late = run_graph(steps, work, seconds=60, patience=lambda done: 0.05 if done else None)
    assert ([one.success for one in results], late) == ([True, False], True)


def test_texts_that_postgresql_refuses_are_made_such_that_it_takes_them() -> None:
    assert texts.clean({"a\0": ["b\0", 1, None, "\ud800"]}) == {"a\ufffd": ["b\ufffd", 1, None, "?"]}
    assert json.loads(texts.document({"x": "\0", "path": "\\u0000"})) == {"x": "\ufffd", "path": "\\u0000"}


def test_names_are_derived_so_that_doing_it_again_meets_what_was_done() -> None:
    tenant, other = "11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222"
    assert ids.user_key(tenant, "ann") == ids.user_key(tenant, "ann") != ids.user_key(other, "ann")
    # A client's own name for a session is its own; a UUID is what it is.
    assert ids.session_key(tenant, "ann", "s") != ids.session_key(tenant, "bob", "s")
    assert ids.session_key(tenant, "ann", tenant.upper()) == tenant
    assert ids.chunk_key(tenant, 0) == tenant != ids.chunk_key(tenant, 1) == ids.chunk_key(tenant, 1)
    assert ids.part_key(tenant, 1, "x") != ids.part_key(tenant, 2, "x")
