# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans: a model's steps as a graph that can be run, and how demanding a request looks."""

from __future__ import annotations

import json
import re
import typing as t
from dataclasses import dataclass

_FENCE = re.compile(r"^\s*```[a-z]*\s*|\s*```\s*$", re.IGNORECASE)
_CLAUSE = re.compile(r"[.;?!]\s|\n|\bthen\b|\band\b|\bfinally\b", re.IGNORECASE)
#: Words from which on a request without clauses is no simple one any more.
_LONG = 40


class PlanError(ValueError):
    """What the model wrote is no plan."""


@dataclass(frozen=True)
class Step:
    """A part of a task.

    :ivar tool: the tool to run; empty: the model does it.
    :ivar after: ids of the steps whose results it needs.
    """

    id: str
    task: str
    tool: str = ""
    after: tuple[str, ...] = ()


def parse(text: str, tools: t.Collection[str], most: int) -> list[Step]:
    """A plan in the form C({"steps": [{"id", "task", "tool", "depends_on"}]}), in an order in which it can be run.

    :param tools: names that may be used; a step with another one is done by the model.
    :param most: steps beyond this many are left out, and so is what depends on them.
    :raises PlanError: it has no steps, or they wait for each other in a circle.
    """
    try:
        found = json.loads(_FENCE.sub("", text))
        steps = [_step(item, tools) for item in found["steps"]]
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise PlanError(f"expected steps in JSON: {exc}") from exc
    ordered = _ordered({step.id: step for step in steps}, len(steps))
    if not ordered:
        raise PlanError("the plan has no steps")
    return _within(ordered, most)


def single(query: str, tools: t.Iterable[str]) -> list[Step]:
    """The plan for when there is no planner: the request as one step, with the tool that it names, if any."""
    named = next((tool for tool in tools if re.search(rf"\b{re.escape(tool)}\b", query)), "")
    return [Step("1", query, named)]


def complexity(query: str) -> float:
    """How demanding a request looks, 0 to 1: its clauses, and its length."""
    clauses = 1 + len(_CLAUSE.findall(query.strip().rstrip(".;?!")))
    return min(1.0, 0.15 * (clauses - 1) + min(len(query.split()) / 400, 0.4))


def mode_for(query: str) -> str:
    """The mode for a request that names none."""
    score = complexity(query)
    if score >= 0.5:
        return "complex"
    return "standard" if score >= 0.15 or len(query.split()) > _LONG else "simple"


def _step(item: t.Any, tools: t.Collection[str]) -> Step:
    task = str(item["task"]).strip()
    if not task:
        raise ValueError("a step has an empty task")
    tool = item.get("tool") or ""
    depends = item.get("depends_on") or []
    if not isinstance(depends, list):
        raise TypeError("depends_on is no list")
    return Step(str(item["id"]), task, tool if tool in tools else "", tuple(dict.fromkeys(str(one) for one in depends)))


def _ordered(steps: dict[str, Step], given: int) -> list[Step]:
    if len(steps) != given:
        raise PlanError("two steps have the same id")
    done: dict[str, Step] = {}
    left = dict(steps)
    while left:
        # A step that is not there can't be waited for.
        ready = [step for step in left.values() if all(one in done or one not in steps for one in step.after)]
        if not ready:
            raise PlanError(f"these steps wait for each other: {', '.join(sorted(left))}")
        for step in ready:
            done[step.id] = Step(step.id, step.task, step.tool, tuple(one for one in step.after if one in steps))
            del left[step.id]
    return list(done.values())


def _within(steps: list[Step], most: int) -> list[Step]:
    kept: dict[str, Step] = {}
    for step in steps:
        if len(kept) < most and all(one in kept for one in step.after):
            kept[step.id] = step
    return list(kept.values())
