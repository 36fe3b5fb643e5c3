# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The embedded provider: deterministic, without a download and without a key.

It is no language model. It answers in a fixed form that says what was asked, and plans by taking a request apart where
its sentences, lists and conjunctions do; enough to run, test and drill the whole stack with real data.
"""

from __future__ import annotations

import asyncio
import json
import re
import typing as t

from .embedder import embed
from .provider import Completion, Question, Vectors, tokens_of

_PARTS = re.compile(r"(?:[.;?!]\s+|\n+|\s+and then\s+|\s+then\s+|,?\s+and\s+)", re.IGNORECASE)
_LONGEST_ECHO = 400
_MOST_STEPS = 8
#: Texts of one request that are embedded before others get a turn of the event loop.
_TURN = 16


class EmbeddedProvider:
    """Answers from the prompt alone."""

    name = "embedded"

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension

    async def complete(self, question: Question) -> Completion:
        """A plan in JSON, or an answer."""
        text = plan(question.prompt, question.tools) if question.purpose == "plan" else answer(question)
        limit = question.max_tokens * 4
        cut = len(text) > limit
        text = text[:limit]
        return Completion(
            text=text,
            model=question.model,
            provider=self.name,
            input_tokens=sum(tokens_of(message.content) for message in question.messages),
            output_tokens=tokens_of(text),
            finish_reason="length" if cut else "stop",
        )

    async def embed(self, texts: t.Sequence[str], model: str) -> Vectors:
        """Hashed features; see :mod:`.embedder`."""
        vectors = []
        for number, text in enumerate(texts):
            if number % _TURN == _TURN - 1:
                await asyncio.sleep(0)
            vectors.append(tuple(embed(text, self._dimension)))
        return Vectors(tuple(vectors), model, self.name, sum(map(tokens_of, texts)))

    async def close(self) -> None:
        """There is nothing to close."""


def answer(question: Question) -> str:
    """Says what was asked, and how much was known beside it."""
    prompt = " ".join(question.prompt.split())
    echo = prompt if len(prompt) <= _LONGEST_ECHO else prompt[: _LONGEST_ECHO - 3] + "..."
    beside = len(question.messages) - 1
    known = f" {beside} earlier message{'s' if beside != 1 else ''} were taken into account." if beside > 0 else ""
    return f'Regarding "{echo}": this is the embedded provider\'s answer.{known}'


def plan(prompt: str, tools: t.Sequence[str]) -> str:
    """Steps in JSON: C({"steps": [{"id", "task", "tool", "depends_on"}]}).

    A step that names a tool gets it. A step that begins with a word of order waits for the one before.
    """
    parts = [part.strip(" ,.;?!\t\n") for part in _PARTS.split(prompt)]
    steps: list[dict[str, t.Any]] = []
    for part in [part for part in parts if part][:_MOST_STEPS]:
        number = len(steps) + 1
        tool = next((name for name in tools if re.search(rf"\b{re.escape(name)}\b", part)), None)
        follows = bool(steps) and re.match(r"(finally|afterwards|with that|use (it|that|them))\b", part, re.IGNORECASE)
        depends = [str(step["id"]) for step in steps] if follows else []
        steps.append({"id": str(number), "task": part, "tool": tool, "depends_on": depends})
    if not steps:
        steps = [{"id": "1", "task": prompt.strip(), "tool": None, "depends_on": []}]
    return json.dumps({"steps": steps}, ensure_ascii=False)
