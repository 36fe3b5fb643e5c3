# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cell's restore in the registry: what stands in its way, how it begins and ends, how a killed one is known again.

While it lasts the cell's record says C(restoring). The history's entry of the beginning names the restore and what it
puts in place, so that a second run goes on with the first one's work, or refuses when it was asked for something else.
"""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass, field, replace

from .errors import ConflictError, ResilienceError
from .registry import ACTIVE, RESTORING, CellRecord, HistoryEntry, Registry

#: How the history names a restore that begins.
_BEGUN = re.compile(r"^restore ([0-9]{8}T[0-9]{6}Z-[a-z0-9_]+) \(([^)]*)\)")


@dataclass(frozen=True)
class Wanted:
    """What an operator asks for.

    :ivar source: region whose repository is read; empty: the home's.
    :ivar running: hosts on which services run that write.
    :ivar stop_writes: whether these may be stopped.
    :ivar anew: whether an unfinished restore of something else may be given up.
    """

    cell: str
    store: str
    to: str
    source: str = ""
    reason: str = ""
    operator: str = ""
    running: tuple[str, ...] = ()
    stop_writes: bool = False
    anew: bool = False


@dataclass(frozen=True)
class Outlook:
    """What a restore would be.

    :ivar id: its name; that of the unfinished one when it goes on with that.
    :ivar problems: why it must not begin, a sentence each.
    """

    record: CellRecord
    id: str
    source: str
    repository: str
    resumed: bool
    problems: list[str] = field(default_factory=list)


def what(wanted: Wanted, source: str) -> str:
    """What is put in place, as the history has it."""
    return f"store {wanted.store}, to {wanted.to}, out of region {source}"


def look(
    record: CellRecord, history: t.Sequence[HistoryEntry], wanted: Wanted, repositories: t.Mapping[str, str], stamp: str
) -> Outlook:
    """Judge it; changes nothing.

    :param repositories: regions to the hosts that hold their repositories.
    :param stamp: the time, as C(20260131T130500Z), for the name of a new restore.
    """
    source = wanted.source or record.home
    problems = []
    unfinished = unfinished_of(record, history)
    resumed = unfinished is not None and (unfinished[1] == what(wanted, source) or not wanted.anew)
    if unfinished is not None and unfinished[1] != what(wanted, source) and not wanted.anew:
        problems.append(
            f"the restore {unfinished[0]} was not finished: it puts in place {unfinished[1]}. Run it again with its "
            "options, or say -e restore_anew=true to give it up for this one"
        )
    if record.state not in (ACTIVE, RESTORING):
        problems.append(f"the cell is {record.state}: a move is under way. Let it end (status.yml)")
    if source not in repositories:
        problems.append(
            f"region {source} has no repository; there is one in {', '.join(sorted(repositories)) or 'no region'} "
            "(-e from_region)"
        )
    if wanted.running and not wanted.stop_writes and not resumed:
        problems.append(
            f"writes flow: services run on {', '.join(wanted.running)}. What was written after the restored point is "
            "lost; say -e restore_stop_writes=true and they are stopped, in all regions"
        )
    if not wanted.reason.strip() and not resumed:
        problems.append('the history needs to know why: -e reason="..."')
    name = unfinished[0] if unfinished is not None and resumed else f"{stamp}-{wanted.cell}"
    return Outlook(record, name, source, repositories.get(source, ""), resumed, problems)


def unfinished_of(record: CellRecord, history: t.Sequence[HistoryEntry]) -> tuple[str, str] | None:
    """Name and content of a restore that has begun and not ended."""
    if record.state != RESTORING:
        return None
    for entry in reversed(history):
        if entry.state == RESTORING and (match := _BEGUN.match(entry.reason)):
            return match.group(1), match.group(2)
    return None


def begin(registry: Registry, outlook: Outlook, wanted: Wanted) -> tuple[CellRecord, bool]:
    """Close the cell; returns its record and whether this changed it.

    :raises ResilienceError: something stands in the way, or somebody else changed the record meanwhile.
    """
    if outlook.problems:
        raise ResilienceError(f"nothing was changed: {'; '.join(outlook.problems)}")
    record = outlook.record
    if outlook.resumed:
        return record, False
    reason = f"restore {outlook.id} ({what(wanted, outlook.source)}): {wanted.reason}"
    overrides = ["restore_stop_writes"] if wanted.running else []
    overrides += ["restore_anew"] if record.state == RESTORING else []
    # One that takes the place of an unfinished one has the same state; the history tells them apart.
    closed = replace(record, state=RESTORING)
    return registry.compare_and_swap(record, closed, reason, wanted.operator, overrides), True


def end(registry: Registry, cell: str, restore_id: str, operator: str) -> tuple[CellRecord, bool]:
    """Open the cell again; returns its record and whether this changed it.

    :raises ConflictError: another restore is under way.
    """
    record = registry.get(cell)
    if record is None:
        raise ResilienceError(f"the registry does not know the cell {cell} any more; run site.yml with --tags registry")
    if record.state == ACTIVE:
        return record, False
    unfinished = unfinished_of(record, registry.history(cell))
    if unfinished is None or unfinished[0] != restore_id:
        raise ConflictError(
            f"cell {cell}: expected the restore {restore_id} to be under way, but the registry has {record.describe()}"
            f"{f' and the restore {unfinished[0]}' if unfinished else ''}. Nothing was changed."
        )
    reason = f"the restore {restore_id} is done and validated"
    return registry.compare_and_swap(record, replace(record, state=ACTIVE), reason, operator), True
