# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What clients of llm-service send and get."""

from __future__ import annotations

import typing as t

from pydantic import BaseModel, ConfigDict, Field

Role = t.Literal["system", "user", "assistant", "tool"]


class Request(BaseModel):
    """A body; unknown fields are refused, and numbers are not made of texts."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Message(Request):
    """One message."""

    role: Role
    content: t.Annotated[str, Field(min_length=1)]


class Completions(Request):
    """POST /completions/ (facts in full, 9.3)."""

    messages: t.Annotated[list[Message], Field(min_length=1, max_length=1000)]
    model_tier: t.Literal["small", "medium", "large"] | None = None
    specific_model: t.Annotated[str, Field(min_length=1, max_length=200)] | None = None
    temperature: t.Annotated[float, Field(ge=0, le=2)] = 0.0
    max_tokens: t.Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    tools: t.Annotated[list[t.Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=100)] = []
    session_id: t.Annotated[str, Field(max_length=128)] | None = None
    tenant_id: t.Annotated[str, Field(max_length=64)] = ""
    purpose: t.Literal["", "plan", "answer", "synthesis"] = ""


class Embeddings(Request):
    """POST /embeddings/."""

    texts: t.Annotated[list[str], Field(min_length=1)]
    model: t.Annotated[str, Field(min_length=1, max_length=200)] | None = None


class ChatCompletions(Request):
    """POST /v1/chat/completions: what of OpenAI's protocol is understood."""

    model: t.Annotated[str, Field(min_length=1, max_length=200)]
    messages: t.Annotated[list[Message], Field(min_length=1, max_length=1000)]
    temperature: t.Annotated[float, Field(ge=0, le=2)] = 1.0
    max_tokens: t.Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    stream: t.Literal[False] = False
    user: t.Annotated[str, Field(max_length=128)] = ""


class OpenAiEmbeddings(Request):
    """POST /v1/embeddings."""

    model: t.Annotated[str, Field(min_length=1, max_length=200)]
    input: t.Annotated[str, Field(min_length=1)] | t.Annotated[list[str], Field(min_length=1)]
    encoding_format: t.Literal["float"] = "float"
    user: t.Annotated[str, Field(max_length=128)] = ""
