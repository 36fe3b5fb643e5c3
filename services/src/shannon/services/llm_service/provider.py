# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a provider is asked and answers."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from shannon.resilience.errors import ResilienceError


@dataclass(frozen=True)
class Message:
    """One message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Question:
    """A request for a completion.

    :ivar purpose: what the caller will do with it: C(plan) wants a plan in JSON, anything else an answer.
    :ivar tools: names of tools that a plan may use.
    """

    messages: tuple[Message, ...]
    model: str
    temperature: float = 0.0
    max_tokens: int = 1024
    purpose: str = ""
    tools: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """What the user said last."""
        return next((message.content for message in reversed(self.messages) if message.role == "user"), "")


@dataclass(frozen=True)
class Completion:
    """An answer, and what it took."""

    text: str
    model: str
    provider: str
    input_tokens: int
    output_tokens: int
    cost_usd: float = 0.0
    finish_reason: str = "stop"


@dataclass(frozen=True)
class Vectors:
    """Embeddings in the order of their texts."""

    vectors: tuple[tuple[float, ...], ...]
    model: str
    provider: str
    tokens: int


class ProviderError(ResilienceError):
    """A provider did not answer as it should.

    :ivar retry_after: seconds after which it may be worth asking again.
    """

    def __init__(self, text: str, retry_after: float = 5.0) -> None:
        self.retry_after = retry_after
        super().__init__(text)


class RefusedError(ResilienceError):
    """A provider understood a request and refuses it; asking again won't help."""


class Provider(t.Protocol):
    """Whoever completes and embeds."""

    name: str

    async def complete(self, question: Question) -> Completion: ...

    async def embed(self, texts: t.Sequence[str], model: str) -> Vectors: ...

    async def close(self) -> None: ...


@dataclass(frozen=True)
class Models:
    """What a provider offers."""

    completions: tuple[str, ...] = field(default=())
    embeddings: tuple[str, ...] = field(default=())


def tokens_of(text: str) -> int:
    """About how many tokens a text has: four characters each (seed facts 6)."""
    return (len(text) + 3) // 4
