# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bodies of requests and answers, as the OpenAPI document shows them."""

from __future__ import annotations

import typing as t

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

ID = r"^[A-Za-z0-9:_.-]{1,128}$"
#: Something to read, and no NUL character, which PostgreSQL can't hold.
TEXT = r"^[^\x00]*[^\s\x00][^\x00]*$"
Id = t.Annotated[str, Field(pattern=ID)]
TOOL_NAME = r"^[a-z][a-z0-9_-]{0,63}$"
#: Base64 of what begins as a WebAssembly module does: 00 61 73 6d 01 00 00 00.
WASM = r"^AGFzbQEAAA(A=|[A-D][A-Za-z0-9+/]([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)?)$"
Json = dict[str, t.Any]


def _whole(value: t.Any) -> t.Any:
    """JSON has no integers: 3.0 is one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Request(BaseModel):
    """A request's body: no field that is not known, and no guessing of types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Submit(Request):
    """A task."""

    query: t.Annotated[str, Field(min_length=1, max_length=1_000_000, pattern=TEXT)]
    session_id: Id | None = Field(None, description="An own session; left out: a new one.")
    mode: t.Literal["simple", "standard", "complex"] | None = Field(None, description="Left out: it is chosen.")
    context: Json | None = None


class Cancel(Request):
    """Why a task is cancelled."""

    reason: t.Annotated[str, Field(max_length=1000)] = ""


class Search(Request):
    """A search among the caller's own memory."""

    query: t.Annotated[str, Field(min_length=1, max_length=64000, pattern=TEXT)]
    top_k: t.Annotated[int, Field(ge=1, le=100), BeforeValidator(_whole)] | None = None
    threshold: t.Annotated[float, Field(ge=0, le=1)] | None = None
    mmr: bool = True
    session_id: Id | None = None
    consistency: t.Literal["home", "local"] = Field("home", description="local: this region's copy will do.")


class Upload(Request):
    """A tool as a WebAssembly module (WASI preview 1)."""

    name: t.Annotated[str, Field(pattern=TOOL_NAME)]
    description: t.Annotated[str, Field(max_length=2000)] = ""
    module: t.Annotated[str, Field(pattern=WASM, description="The module in base64.")]


class Error(BaseModel):
    """What went wrong."""

    error: str
    code: str
    request_id: str


class Submitted(BaseModel):
    """A task that is durable."""

    task_id: str
    workflow_id: str
    session_id: str
    status: str
    mode: str
    message: str
    created_at: str | None


class Usage(BaseModel):
    """What a task cost."""

    total_tokens: int
    input_tokens: int
    output_tokens: int
    estimated_cost: float


class Task(BaseModel):
    """A task."""

    task_id: str
    workflow_id: str
    session_id: str
    status: str
    query: str
    mode: str
    requested_mode: str
    result: str
    response: t.Any = None
    error: str
    model_used: str
    provider: str
    usage: Usage
    duration_ms: int
    agents_used: int
    tools_invoked: int
    cache_hits: int
    metadata: t.Any = None
    created_at: str | None
    updated_at: str | None
    started_at: str | None
    completed_at: str | None


class Tasks(BaseModel):
    """A page of tasks."""

    tasks: list[Task]
    total_count: int


class Event(BaseModel):
    """Something that happened to a task."""

    workflow_id: str
    type: str
    agent_id: str
    message: str
    payload: t.Any = None
    timestamp: str | None
    seq: int


class Events(BaseModel):
    """A page of events."""

    events: list[Event]
    count: int
    status: str


class Cancelled(BaseModel):
    """Whether a cancellation had an effect."""

    success: bool
    message: str


class Session(BaseModel):
    """A conversation."""

    session_id: str
    user_id: str
    context: t.Any = None
    token_budget: int
    tokens_used: int
    message_count: int
    created_at: str | None
    updated_at: str | None
    expires_at: str | None


class Sessions(BaseModel):
    """A page of sessions."""

    sessions: list[Session]
    total_count: int


class Message(BaseModel):
    """A turn of a conversation."""

    role: str
    content: str
    task_id: str
    timestamp: str | None


class History(BaseModel):
    """A conversation's messages, the oldest first."""

    session_id: str
    messages: list[Message]
    count: int


class Hit(BaseModel):
    """Something that is remembered."""

    point_id: str
    score: float
    payload: t.Any = None


class Hits(BaseModel):
    """What was found; degraded: memory is away or incomplete, and the warning says how."""

    results: list[Hit]
    count: int
    degraded: bool
    warning: str


class Tool(BaseModel):
    """A tool that tasks may use."""

    name: str
    description: str
    sha256: str
    builtin: bool
    size: int


class Tools(BaseModel):
    """All tools of the caller."""

    tools: list[Tool]


class Health(BaseModel):
    """The process answers."""

    status: str
    version: str
    checks: dict[str, str]


class CellReadiness(BaseModel):
    """What a cell is here: active, standby or unknown."""

    role: t.Literal["active", "standby", "unknown"]
    home: str | None
    epoch: int


class Readiness(BaseModel):
    """Whether requests should come here."""

    ready: bool
    region: str
    draining: bool
    orchestrator: bool
    cells: dict[str, CellReadiness]
    registry_age_seconds: float | None
    reason: str
