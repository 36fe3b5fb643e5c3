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
#: Whom an instance follows that the region agent holds: nobody is there.
NOBODY = "127.0.0.1"


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

    @property
    def held(self) -> bool:
        """Whether the region agent has it follow nobody, since what it has is not kept yet."""
        seen = self.seen
        return not self.is_home and seen is not None and seen.role == "replica" and seen.primary_address == NOBODY


@dataclass(frozen=True)
class Step:
    """One change of one instance.

    :ivar follow: address to follow; empty when the instance already follows whom it should.
    :ivar priority: for Sentinel; None when it is right already.
    """

    name: str
    follow: str
    priority: int | None
    text: str


def choose_primary(cell: str, instances: t.Sequence[Instance]) -> Instance:
    """The primary that the cell has, or, in a fresh cell, the one that it gets.

    An existing primary is kept wherever it stands in the inventory. An empty one without replicas does not count beside
    one that has something to lose, and is never chosen while an instance that would have to follow it has data.

    :raises PlanError: none can be chosen without the risk of losing data.
    """
    home = [instance for instance in instances if instance.is_home]
    if not home:
        raise PlanError(f"cell {cell}: its home region has no Redis instance")
    silent = [str(instance.said) for instance in home if instance.seen is None]
    if len(silent) == len(home):
        raise PlanError(f"cell {cell}: no Redis of its home region answers: {'; '.join(silent)}")
    primaries = [one for one in instances if one.seen is not None and one.seen.role == "primary"]
    precious = [one for one in primaries if one.seen is not None and (one.seen.keys or one.seen.links)]
    if len(precious) > 1:
        raise PlanError(
            f"cell {cell}: {', '.join(one.name for one in precious)} are all primaries with data or replicas. "
            "Nothing was changed. Find out which one the clients wrote to, and make the others its replicas by hand "
            "(REPLICAOF)."
        )
    if precious and not precious[0].is_home:
        raise PlanError(
            f"cell {cell}: {precious[0].name} is a primary with data, outside the cell's home region. "
            "Nothing was changed. Is the registry's home right (playbooks/status.yml)?"
        )
    candidates = precious or [one for one in primaries if one.is_home]
    if candidates:
        _refuse_to_wipe(cell, candidates[0], instances)
        return candidates[0]
    followed = {one.seen.primary_address for one in home if one.seen is not None}
    known = next((one for one in home if one.address in followed), None)
    raise PlanError(
        f"cell {cell}: no Redis of its home region is a primary; its replicas follow {', '.join(sorted(followed))}"
        + (f" ({known.name}: {known.said})" if known and known.seen is None else "")
        + ". Nothing was changed: Sentinel decides this within its timeout; run again when it has, or look at its "
        f"journal (journalctl -u sentinel@{cell})."
    )


def _refuse_to_wipe(cell: str, primary: Instance, instances: t.Sequence[Instance]) -> None:
    """An empty primary wipes whoever follows it.

    :raises PlanError: an instance with data would have to follow an empty primary.
    """
    if primary.seen is None or primary.seen.keys:
        return
    holders = [one.name for one in instances if one is not primary and one.seen is not None and one.seen.keys]
    if holders:
        raise PlanError(
            f"cell {cell}: the primary {primary.name} is empty, but {', '.join(holders)} has data and would lose it by "
            f"following {primary.name}. Nothing was changed. Make the one with the newest data the primary by hand "
            "(REPLICAOF NO ONE), then run this again."
        )


def plan(primary: Instance, instances: t.Sequence[Instance]) -> list[Step]:
    """What has to change; instances that do not answer are left to Sentinel, which repoints them when they are back."""
    steps = []
    for one in instances:
        if one.seen is None:
            continue
        wanted = HOME_PRIORITY if one.is_home else STANDBY_PRIORITY
        priority = None if one.seen.priority == wanted else wanted
        # One that is held has what the primary would wipe; the agent has it follow as soon as that is kept.
        follows = (
            one is primary or one.held or (one.seen.role == "replica" and one.seen.primary_address == primary.address)
        )
        words = [] if follows else [f"follow {primary.name}"]
        words += [] if priority is None else [f"have priority {priority}"]
        if words:
            follow = "" if follows else primary.address
            steps.append(Step(one.name, follow, priority, f"{one.name}: {' and '.join(words)}"))
    return steps
