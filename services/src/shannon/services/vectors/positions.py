# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Places in vector_log, and how they are written into Qdrant."""

from __future__ import annotations

import typing as t
import uuid
from dataclasses import dataclass

#: The collection that holds the indexer's positions: they travel with Qdrant's snapshots.
COLLECTION = "indexer_positions"
_NAMESPACE = uuid.UUID("6f1d7f0e-6f0e-5c58-9d58-1d3a6a0a2c11")


@dataclass(frozen=True, order=True)
class Position:
    """A row's place in the log: everything up to and including it has been read. Ordered as the log is."""

    txid: int
    sequence: int

    def __str__(self) -> str:
        return f"({self.txid}, {self.sequence})"


START = Position(0, 0)


@dataclass(frozen=True)
class Mark:
    """A stored position and what identifies its row, so that another row at the same place is recognised.

    After a restore with loss PostgreSQL hands out transaction ids and sequence numbers again.

    :ivar row: the row's point id; empty at the start.
    :ivar created_at: the row's time of writing, seconds since 1970.
    """

    position: Position = START
    row: str = ""
    created_at: float = 0.0

    def payload(self, cell: str, collection: str, updated_at: float) -> dict[str, t.Any]:
        """The payload of the point that stores it."""
        return {
            "cell": cell,
            "collection": collection,
            "txid": self.position.txid,
            "sequence": self.position.sequence,
            "row": self.row,
            "created_at": self.created_at,
            "updated_at": updated_at,
        }

    @classmethod
    def of(cls, payload: t.Mapping[str, t.Any]) -> Mark:
        """The mark in a stored payload.

        :raises ValueError: it is none.
        """
        try:
            return cls(
                Position(int(payload["txid"]), int(payload["sequence"])),
                str(payload.get("row", "")),
                float(payload.get("created_at", 0.0)),
            )
        except (KeyError, TypeError) as exc:
            raise ValueError(f"{dict(payload)!r} is no position: expected txid and sequence") from exc


def point_of(cell: str, collection: str) -> str:
    """Id of the point that stores a collection's position: always the same, so it is replaced, never doubled."""
    return str(uuid.uuid5(_NAMESPACE, f"{cell}/{collection}"))
