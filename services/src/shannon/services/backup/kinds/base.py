# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a kind of backup is, to the runner: four verbs, whatever the store."""

from __future__ import annotations

import contextlib
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

from ..settings import Cell


@dataclass(frozen=True)
class Made:
    """A backup that was just made.

    :ivar id: names it in its repository.
    :ivar regions: whose repositories hold it.
    :ivar manifest: what a restore of it must give.
    :ivar notes: what did not go as it should although the backup is good: a repository that could not be reached.
    """

    id: str
    bytes: int
    regions: list[str]
    manifest: dict[str, t.Any]
    notes: list[str] = field(default_factory=list)
    summary: dict[str, t.Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """A backup in a region's repository.

    :ivar made_at: seconds since 1970.
    """

    id: str
    region: str
    made_at: float
    bytes: int = 0
    extra: dict[str, t.Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sandbox:
    """A backup that was restored into a scratch instance, which runs while the context lasts.

    :ivar differences: what differs from the manifest, a sentence each; empty: it is proven.
    :ivar facts: figures for the report.
    :ivar where: how an operator reaches the instance.
    """

    differences: list[str]
    facts: dict[str, t.Any]
    where: str = ""


class Kind(t.Protocol):
    """One kind of backup.

    :ivar per_cell: whether it belongs to a cell.
    :ivar each_region: whether each region's host makes its own, since nobody else fills its repository.
    """

    name: str
    per_cell: bool
    each_region: bool

    def backup(self, cell: Cell | None, type_: str, staging: Path) -> Made:
        """Make one; what is written to the staging folder is removed afterwards."""

    def found(self, cell: Cell | None, region: str) -> list[Found]:
        """All that a region's repository holds, the oldest first."""

    def fetch(self, cell: Cell | None, found: Found, into: Path) -> dict[str, t.Any]:
        """Bring its files and its manifest out of the repository; returns the manifest."""

    def sandbox(
        self, cell: Cell | None, found: Found, folder: Path, to: str
    ) -> contextlib.AbstractContextManager[Sandbox]:
        """Restore it below a folder into a scratch instance, and compare that with the manifest."""
