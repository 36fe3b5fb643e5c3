# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows as messages."""

from __future__ import annotations

from shannon.services.database.client import Row
from shannon.services.proto import shannon_pb2 as pb


def task(row: Row, user: str) -> pb.Task:
    """A task; C(user) is whose it is, by the name that the caller knows."""
    return pb.Task(
        task_id=row["id"],
        workflow_id=row["workflow_id"],
        session_id=row["session_id"],
        user_id=user,
        tenant_id=row["tenant_id"],
        query=row["query"],
        mode=row["mode"],
        requested_mode=row["requested_mode"],
        status=row["status"],
        result=row["result"],
        error=row["error_message"],
        model_used=row["model_used"],
        provider=row["provider"],
        prompt_tokens=row["prompt_tokens"],
        completion_tokens=row["completion_tokens"],
        total_tokens=row["total_tokens"],
        cost_usd=row["cost_usd"],
        duration_ms=row["duration_ms"],
        agents_used=row["agents_used"],
        tools_invoked=row["tools_invoked"],
        cache_hits=row["cache_hits"],
        metadata_json=row["metadata"] or "",
        response_json=row["response"] or "",
        created_at=row["created_at"] or 0,
        updated_at=row["updated_at"] or 0,
        started_at=row["started_at"] or 0,
        completed_at=row["completed_at"] or 0,
    )


def event(row: Row) -> pb.Event:
    """A stored event."""
    return pb.Event(
        workflow_id=row["workflow_id"],
        type=row["type"],
        agent_id=row["agent_id"],
        message=row["message"],
        payload_json=row["payload"],
        timestamp=row["timestamp"],
        seq=row["seq"],
    )


def session(row: Row, caller: pb.Caller, source: str) -> pb.Session:
    """A session of the caller."""
    return pb.Session(
        session_id=row["name"],
        user_id=caller.user_id,
        tenant_id=caller.tenant_id,
        context_json=row["context"],
        token_budget=row["token_budget"],
        tokens_used=row["tokens_used"],
        message_count=row["message_count"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        expires_at=row["expires_at"],
        source=source,
    )
