# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names that are derived instead of drawn, so that doing something again meets what was done."""

from __future__ import annotations

import re
import uuid

#: Of this project's own; any fixed one would do.
_NAMESPACE = uuid.UUID("6f1d2f4e-5a0b-5c1e-9d43-2b7c8a901e55")
_UUID = re.compile(r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")


def external_id(tenant: str, user: str) -> str:
    """A user's C(users.external_id): two tenants may both have a user of the same name."""
    return f"{tenant}:{user}"


def user_key(tenant: str, user: str) -> str:
    """A user's C(users.id)."""
    return str(uuid.uuid5(_NAMESPACE, f"user {external_id(tenant, user)}"))


def session_key(tenant: str, user: str, name: str) -> str:
    """A session's C(sessions.id): the client's own name for it is either that already, or belongs to this user."""
    if _UUID.match(name):
        return name.lower()
    return str(uuid.uuid5(_NAMESPACE, f"session {external_id(tenant, user)} {name}"))


def part_key(task: str, attempt: int, part: str) -> str:
    """The id of a record that an attempt of a task leaves: agent, tool, usage."""
    return str(uuid.uuid5(_NAMESPACE, f"task {task} {attempt} {part}"))


def chunk_key(task: str, index: int) -> str:
    """A point's id in Qdrant: the task's own for the whole text or its first chunk."""
    return task if index == 0 else str(uuid.uuid5(_NAMESPACE, f"chunk {task} {index}"))


def is_uuid(text: str) -> bool:
    """Whether it is one, in the usual form."""
    return bool(_UUID.match(text))
