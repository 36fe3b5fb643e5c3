# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who of a cell's Redis instances should be primary, and what it takes to get there. Pure: it asks nobody."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from .errors import ResilienceError
from .redis import Replication

HOME_PRIORITY = 100
STANDBY_PRIORITY = 0


class PlanError(ResilienceError):
    """The cell is in a state that no rule may resolve without a human; the text names the instances."""


@dataclass(frozen=True)
class Instance:
    """An instance of a cell: where it is, and what it said (or the error instead)."""

    name: str
    address: str
    is_home: bool
    said: Replication | ResilienceError

    @property
    def seen(self) -> Replication | None:
        """What it said, or None when it did not answer."""
        return self.said if isinstance(self.said, Replication) else None


@dataclass(frozen=True)
class Step:
    """One change: make the instance follow somebody (empty for a primary) and give it a priority."""

    name: str
    follow: str
    priority: int
    text: str


def choose_primary(cell: str, instances: t.Sequence[Instance]) -> Instance:
    """The primary that the cell has, or, in a fresh cell, the one that it gets.

    An existing primary is kept wherever it stands in the inventory. An empty one without replicas does not count beside
    one that has something to lose.

    :raises PlanError: none can be chosen without the risk of losing data.
    """
    home = [instance for instance in instances if instance.is_home]
    if not home:
        raise PlanError(f"cell {cell}: its home region has no Redis instance")
    silent = [str(instance.said) for instance in home if instance.seen is None]
    if len(silent) == len(home):
        raise PlanError(f"cell {cell}: no Redis of its home region answers: {'; '.join(silent)}")
    primaries = [one for one in instances if one.seen is not None and one.seen.role == "primary"]
    precious = [one for one in primaries if one.seen is not None and (one.seen.keys or one.seen.replicas)]
    if len(precious) > 1:
        raise PlanError(
            f"cell {cell}: {', '.join(one.name for one in precious)} are all primaries with data or replicas. Nothing was "
            "changed. Find out which one the clients wrote to, and make the others its replicas by hand (REPLICAOF)."
        )
    if precious and not precious[0].is_home:
        raise PlanError(
            f"cell {cell}: {precious[0].name} is a primary with data, outside the cell's home region. Nothing was changed. "
            "Is the registry's home right (playbooks/status.yml)?"
        )
    if precious:
        return precious[0]
    candidates = [one for one in primaries if one.is_home]
    if candidates:
        return candidates[0]
    followed = {one.seen.primary_address for one in home if one.seen is not None}
    known = next((one for one in home if one.address in followed), None)
    raise PlanError(
        f"cell {cell}: no Redis of its home region is a primary; its replicas follow {', '.join(sorted(followed))}"
        + (f" ({known.name}: {known.said})" if known and known.seen is None else "")
        + ". Nothing was changed: Sentinel decides this within its timeout; run again when it has, or look at its journal "
        f"(journalctl -u sentinel@{cell})."
    )


def plan(primary: Instance, instances: t.Sequence[Instance]) -> list[Step]:
    """What has to change; instances that do not answer are left to Sentinel, which repoints them when they are back."""
    steps = []
    for one in instances:
        if one.seen is None:
            continue
        priority = HOME_PRIORITY if one.is_home else STANDBY_PRIORITY
        follow = "" if one is primary else primary.address
        words = []
        if (one.seen.role == "primary") != (follow == "") or (follow and one.seen.primary_address != follow):
            words.append("be primary" if not follow else f"follow {primary.name}")
        if one.seen.priority != priority:
            words.append(f"have priority {priority}")
        if words:
            steps.append(Step(one.name, follow, priority, f"{one.name}: {' and '.join(words)}"))
    return steps
