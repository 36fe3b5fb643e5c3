# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows of vector_log, and what of a batch has to be done."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from .positions import Mark, Position

UPSERT = "upsert"
DELETE = "delete"


@dataclass(frozen=True)
class Row:
    """A row of the log.

    :ivar vector: the vector as JSON text, as PostgreSQL wrote it; None for a delete. It is passed on unparsed: that
        keeps the digits, and costs nothing.
    :ivar payload: the payload as JSON text.
    :ivar created_at: seconds since 1970.
    """

    position: Position
    collection: str
    point_id: str
    operation: str
    vector: str | None
    payload: str
    created_at: float

    @property
    def mark(self) -> Mark:
        return Mark(self.position, self.point_id, self.created_at)


@dataclass
class Work:
    """What a batch asks of one collection; no point is in both."""

    upserts: list[Row] = field(default_factory=list)
    deletes: list[Row] = field(default_factory=list)


def plan(rows: t.Iterable[Row], done: t.Mapping[str, Mark]) -> dict[str, Work]:
    """Per collection, each point's last operation in the batch.

    Rows up to a collection's own position are left out: another collection may be behind, and applying them again
    would show old values for a moment.

    :param rows: in the log's order.
    :param done: what each collection has already.
    """
    last: dict[tuple[str, str], Row] = {}
    for row in rows:
        mark = done.get(row.collection)
        if mark is None or row.position > mark.position:
            last.pop((row.collection, row.point_id), None)
            last[(row.collection, row.point_id)] = row
    works: dict[str, Work] = {}
    for row in last.values():
        work = works.setdefault(row.collection, Work())
        (work.upserts if row.operation == UPSERT else work.deletes).append(row)
    return works
