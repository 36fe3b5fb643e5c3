# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The orchestrator's messages as JSON documents."""

from __future__ import annotations

import datetime
import json
import typing as t

from shannon.services.proto import shannon_pb2 as pb

_PREFIX = "TASK_STATUS_"
STATUSES = ("queued", "running", "completed", "failed", "cancelled", "timeout", "paused")


def moment(seconds: float) -> str | None:
    """A time as RFC 3339 in UTC; None for 0, which means never."""
    if not seconds:
        return None
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).isoformat().replace("+00:00", "Z")


def status_name(status: str) -> str:
    """The API's name of a task's status (seed facts in full, 9.1)."""
    return _PREFIX + (status.upper() if status in STATUSES else "UNSPECIFIED")


def status_of(name: str) -> str:
    """The status that a name means; both C(completed) and C(TASK_STATUS_COMPLETED) do."""
    return name.removeprefix(_PREFIX).lower()


def document(text: str) -> t.Any:
    """A JSON document; None for none."""
    return json.loads(text) if text else None


def task(message: pb.Task) -> dict[str, t.Any]:
    """A task."""
    return {
        "task_id": message.task_id,
        "workflow_id": message.workflow_id,
        "session_id": message.session_id,
        "status": status_name(message.status),
        "query": message.query,
        "mode": message.mode,
        "requested_mode": message.requested_mode,
        "result": message.result,
        "response": document(message.response_json),
        "error": message.error,
        "model_used": message.model_used,
        "provider": message.provider,
        "usage": {
            "total_tokens": message.total_tokens,
            "input_tokens": message.prompt_tokens,
            "output_tokens": message.completion_tokens,
            "estimated_cost": message.cost_usd,
        },
        "duration_ms": message.duration_ms,
        "agents_used": message.agents_used,
        "tools_invoked": message.tools_invoked,
        "cache_hits": message.cache_hits,
        "metadata": document(message.metadata_json),
        "created_at": moment(message.created_at),
        "updated_at": moment(message.updated_at),
        "started_at": moment(message.started_at),
        "completed_at": moment(message.completed_at),
    }


def event(message: pb.Event) -> dict[str, t.Any]:
    """An event."""
    return {
        "workflow_id": message.workflow_id,
        "type": message.type,
        "agent_id": message.agent_id,
        "message": message.message,
        "payload": document(message.payload_json),
        "timestamp": moment(message.timestamp),
        "seq": message.seq,
    }


def session(message: pb.Session) -> dict[str, t.Any]:
    """A session."""
    return {
        "session_id": message.session_id,
        "user_id": message.user_id,
        "context": document(message.context_json),
        "token_budget": message.token_budget,
        "tokens_used": message.tokens_used,
        "message_count": message.message_count,
        "created_at": moment(message.created_at),
        "updated_at": moment(message.updated_at),
        "expires_at": moment(message.expires_at),
    }


def tool(message: pb.Tool) -> dict[str, t.Any]:
    """A tool."""
    return {
        "name": message.name,
        "description": message.description,
        "sha256": message.sha256,
        "builtin": message.builtin,
        "size": message.size,
    }
