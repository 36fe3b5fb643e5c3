# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the write queue carries.

A record has an id of its own, which becomes the primary key of its row: written a second time, after a crash between
commit and acknowledgement, it meets itself (C(ON CONFLICT DO NOTHING)) and changes nothing. So at least once is exactly
once.
"""

from __future__ import annotations

import json
import typing as t
import uuid
from dataclasses import asdict, dataclass, field

#: Kinds of writes that may wait (seed facts 3). Task states are not among them: those are written at once.
KINDS = (
    "agent_execution",
    "tool_execution",
    "session_archive",
    "audit_log",
    "event_log",
    "session_message",
    "token_usage",
)


@dataclass(frozen=True)
class Record:
    """One row to be.

    :ivar kind: of KINDS.
    :ivar key: records of one key are written in the order in which they came: a workflow's, say.
    :ivar values: columns to values that JSON can hold.
    """

    kind: str
    key: str
    values: t.Mapping[str, t.Any]
    id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def encoded(self) -> bytes:
        """For the spool.

        :raises TypeError, ValueError: JSON can't hold its values.
        """
        # Halves of surrogate pairs come from texts that were cut; they are read back as they were.
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":")).encode(errors="surrogatepass")

    @classmethod
    def decoded(cls, raw: bytes) -> Record:
        """From the spool.

        :raises ValueError: these bytes are no record.
        """
        try:
            found = cls(**json.loads(raw))
        except (TypeError, UnicodeDecodeError) as exc:
            raise ValueError(f"no record: {exc}") from exc
        if found.kind not in KINDS:
            raise ValueError(f"no record: its kind is {found.kind!r}")
        return found
