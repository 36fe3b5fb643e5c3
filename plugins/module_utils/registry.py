# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The registry: per cell where its home is, its epoch (the fencing token) and its state, and how it came to that.

A record lives at C(/shannon/cells/<cell>), its history at C(/shannon/history/<cell>/<epoch>). Both are written in one
transaction, so there is no change without an entry. A change of state within an epoch has an entry of its own, at
C(/shannon/history/<cell>/<epoch>.<revision that it changed>).
"""

from __future__ import annotations

import json
import re
import typing as t
import uuid
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone

from .errors import ConflictError, ResilienceError
from .etcd import Body, Endpoint, EtcdClient, KeyValue, get_op, put_op, when_absent, when_mod_revision
from .given_up import GivenUp
from .tls import TlsFiles, client_context

CELLS = "/shannon/cells/"
HISTORY = "/shannon/history/"
FIRST_EPOCH = 1
ACTIVE = "active"
#: The home ends what it has under way, before it is left: edges hold new requests.
DRAINING = "draining"
#: The home is new and does not serve yet: edges hold requests. It was a switchover, so it must have all that the old
#: home wrote before it serves. Its region agents make it active.
ENTERING = "entering"
#: Likewise after a failover: what did not come is lost.
TAKING_OVER = "taking_over"
#: An operator puts a backup in place of what the cell had: it serves nobody, it does not move, and no agent makes it
#: active; restore.yml does, when all is validated.
RESTORING = "restoring"
#: States in which clients wait.
HELD_STATES = (DRAINING, ENTERING, TAKING_OVER)

_EPOCH_DIGITS = 10
_REVISION_DIGITS = 20
_CELL_NAME = re.compile(r"^[a-z][a-z0-9_]{0,30}$")
_WORD = re.compile(r"^[a-z][a-z0-9_-]{0,31}$")


@dataclass(frozen=True)
class CellRecord:
    """Who holds a cell.

    :ivar revision: the registry's revision of this record, which a compare-and-swap must name; 0 when it is not from
        the registry. It is not part of what is stored.
    """

    cell: str
    home: str
    epoch: int
    state: str = ACTIVE
    revision: int = 0

    def stored(self) -> str:
        """The text that the registry holds."""
        return json.dumps({"home": self.home, "epoch": self.epoch, "state": self.state}, sort_keys=True)

    def describe(self) -> str:
        """The record in words, for messages."""
        return f"home {self.home}, epoch {self.epoch}, state {self.state}"


@dataclass(frozen=True)
class HistoryEntry:
    """One change of a cell: what it became, from what, why, by whom, when, and which refusals were overridden."""

    cell: str
    epoch: int
    home: str
    previous_home: str | None
    state: str
    reason: str
    operator: str
    at: str
    overrides: tuple[str, ...] = ()
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def stored(self) -> str:
        """The text that the registry holds."""
        return json.dumps(asdict(self), sort_keys=True)


def utc_now() -> datetime:
    return datetime.now(timezone.utc)


class Registry:
    """The registry's records, read through the quorum and changed by compare-and-swap only.

    Every method raises :class:`.etcd.NoQuorumError` when the registry can't answer.

    :param client: the registry's etcd.
    :param clock: gives the time of history entries.
    """

    def __init__(self, client: EtcdClient, clock: t.Callable[[], datetime] = utc_now) -> None:
        self.client = client
        self._clock = clock

    @classmethod
    def connect(
        cls, endpoints: t.Sequence[str | t.Mapping[str, t.Any] | Endpoint], tls: TlsFiles, timeout: float = 2.0
    ) -> Registry:
        """The registry behind these endpoints, as the host whose certificate is given."""
        return cls(EtcdClient(endpoints, client_context(tls), timeout, name="the registry", given_up=GivenUp()))

    def get(self, cell: str) -> CellRecord | None:
        """A cell's record; None when the registry does not know the cell."""
        found = self.client.get(CELLS + _checked_cell(cell))
        return None if found is None else record_of(found)

    def records(self) -> dict[str, CellRecord]:
        """All cells that the registry knows, by name."""
        return {record.cell: record for record in map(record_of, self.client.range(CELLS))}

    def history(self, cell: str) -> list[HistoryEntry]:
        """All changes of a cell, the oldest first."""
        return [_entry(found) for found in self.client.range(f"{HISTORY}{_checked_cell(cell)}/")]

    def moves(self) -> dict[str, list[HistoryEntry]]:
        """Of each cell the changes of its home, the oldest first."""
        found: dict[str, list[HistoryEntry]] = {}
        for entry in map(_entry, self.client.range(HISTORY)):
            if entry.previous_home not in (None, entry.home):
                found.setdefault(entry.cell, []).append(entry)
        return found

    def create(
        self, cell: str, home: str, reason: str = "first deployment", operator: str = "site.yml"
    ) -> tuple[CellRecord, bool]:
        """Make the first record of a cell; leaves a cell alone that the registry knows, wherever its home is.

        :returns: the record that is there now, and whether this call made it.
        """
        key = CELLS + _checked_cell(cell)
        record = CellRecord(cell, _word("home", home), FIRST_EPOCH)
        entry = self._new_entry(record, None, reason, operator, ())
        history_key = _history_key(cell, FIRST_EPOCH)
        outcome = self.client.txn(
            [when_absent(key), when_absent(history_key)],
            [put_op(key, record.stored()), put_op(history_key, entry.stored())],
            [get_op(key), get_op(history_key)],
        )
        if outcome.succeeded:
            return replace(record, revision=outcome.revision), True
        there, begun = outcome.reads
        if not there:
            raise ResilienceError(
                f"the registry has a history of the cell {cell} ({history_key}) but no record ({key}): somebody "
                "deleted the record. Read the history with registry_cell_info, then put the record back with etcdctl "
                "or restore a snapshot of the registry."
            )
        return record_of(there[0]), bool(begun) and _entry(begun[0]).id == entry.id

    def compare_and_swap(
        self,
        expected: CellRecord,
        new: CellRecord,
        reason: str,
        operator: str,
        overrides: t.Sequence[str] = (),
    ) -> CellRecord:
        """Change a cell's record if it still is what the caller read.

        The epoch grows by exactly one when the home changes, and never otherwise.

        :param expected: the record as read, with its revision.
        :param new: the record to write.
        :param reason: why, for the history.
        :param operator: who, for the history.
        :param overrides: names of the refusals that the operator overrode, for the history.
        :returns: the record as written, with its new revision.
        :raises ConflictError: the record is another one by now; the text says who holds it.
        :raises ResilienceError: the new record breaks the rule of epochs, or reason or operator is empty.
        """
        _check_change(expected, new, reason, operator)
        key = CELLS + expected.cell
        entry = self._new_entry(new, expected.home, reason, operator, overrides)
        grown = new.epoch != expected.epoch
        entry_key = _history_key(new.cell, new.epoch, None if grown else expected.revision)
        before = self.get(expected.cell)
        if before is None or (before.revision, before.epoch) != (expected.revision, expected.epoch):
            raise self._conflict(expected, before)
        outcome = self.client.txn(
            [when_mod_revision(key, expected.revision), when_absent(entry_key)],
            [put_op(key, new.stored()), put_op(entry_key, entry.stored())],
            [get_op(key), get_op(entry_key)],
        )
        if outcome.succeeded:
            return replace(new, revision=outcome.revision)
        # Lost to somebody else, or to itself: a member that did the work but could not say so in time.
        there, written = outcome.reads
        if written and _entry(written[0]).id == entry.id:
            return replace(new, revision=written[0].mod_revision)
        raise self._conflict(expected, record_of(there[0]) if there else None)

    def put_rebuilt(
        self,
        found: CellRecord | None,
        new: CellRecord,
        reason: str,
        operator: str,
        override: str,
        also: t.Sequence[Body] = (),
    ) -> CellRecord:
        """Write a record after the registry was rebuilt: with an epoch above all that anybody has seen.

        :param found: the record as the rebuilt registry has it, or None when it has none.
        :param also: further operations of the same transaction.
        :raises ConflictError: it is another one by now.
        :raises ResilienceError: the epoch does not grow, or reason or operator is empty.
        """
        _checked_cell(new.cell)
        _word("home", new.home)
        if not reason.strip() or not operator.strip():
            raise ResilienceError(f"cell {new.cell}: a change needs a reason and an operator, for the history")
        if found is not None and new.epoch <= found.epoch:
            raise ResilienceError(f"cell {new.cell}: the epoch must exceed {found.epoch} and is {new.epoch}")
        entry = self._new_entry(new, found.home if found else None, reason, operator, (override,))
        key = CELLS + new.cell
        outcome = self.client.txn(
            [when_mod_revision(key, found.revision if found else 0)],
            [put_op(key, new.stored()), put_op(_history_key(new.cell, new.epoch), entry.stored()), *also],
            [get_op(key)],
        )
        if outcome.succeeded:
            return replace(new, revision=outcome.revision)
        there = record_of(outcome.reads[0][0]) if outcome.reads[0] else None
        if there is not None and (there.home, there.epoch) == (new.home, new.epoch):
            return there  # lost to itself
        raise self._conflict(found or replace(new, revision=0), there)

    def _new_entry(
        self, record: CellRecord, previous_home: str | None, reason: str, operator: str, overrides: t.Sequence[str]
    ) -> HistoryEntry:
        return HistoryEntry(
            cell=record.cell,
            epoch=record.epoch,
            home=record.home,
            previous_home=previous_home,
            state=record.state,
            reason=reason,
            operator=operator,
            at=self._clock().astimezone(timezone.utc).isoformat(timespec="microseconds"),
            overrides=tuple(overrides),
        )

    def _conflict(self, expected: CellRecord, found: CellRecord | None) -> ConflictError:
        wanted = f"expected {expected.describe()} (revision {expected.revision})"
        if found is None:
            return ConflictError(
                f"cell {expected.cell}: {wanted}, but the registry does not know the cell. Nothing was changed. "
                "Run site.yml with --tags registry to create its record."
            )
        entries = self.history(expected.cell)
        by = ""
        if entries:
            last = entries[-1]
            by = f", written by {last.operator} at {last.at} (reason: {last.reason})"
        return ConflictError(
            f"cell {expected.cell}: {wanted}, but the registry has {found.describe()} (revision {found.revision}){by}. "
            "Nothing was changed. Read the record again and decide anew."
        )


def _checked_cell(cell: str) -> str:
    if not _CELL_NAME.match(cell):
        raise ResilienceError(
            f"{cell!r} is no name of a cell: a small letter, then small letters, digits and underscores, "
            "31 characters at most"
        )
    return cell


def _word(what: str, value: str) -> str:
    if not _WORD.match(value):
        raise ResilienceError(f"{what} {value!r}: expected a word of small letters, digits, '_' and '-'")
    return value


def _check_change(expected: CellRecord, new: CellRecord, reason: str, operator: str) -> None:
    _checked_cell(expected.cell)
    _word("home", new.home)
    _word("state", new.state)
    if new.cell != expected.cell:
        raise ResilienceError(f"cell {expected.cell}: the new record is of another cell, {new.cell}")
    if expected.revision <= 0:
        raise ResilienceError(f"cell {expected.cell}: read the record first, a compare-and-swap needs its revision")
    step = 1 if new.home != expected.home else 0
    if new.epoch != expected.epoch + step:
        rule = "grows by exactly one when the home changes" if step else "stays when the home stays"
        raise ResilienceError(
            f"cell {expected.cell}: the epoch {rule}; from {expected.describe()} it must become "
            f"{expected.epoch + step}, not {new.epoch}"
        )
    if not reason.strip() or not operator.strip():
        raise ResilienceError(f"cell {expected.cell}: a change needs a reason and an operator, for the history")


def _history_key(cell: str, epoch: int, revision: int | None = None) -> str:
    """Keys sort as the changes happened."""
    key = f"{HISTORY}{cell}/{epoch:0{_EPOCH_DIGITS}d}"
    return key if revision is None else f"{key}.{revision:0{_REVISION_DIGITS}d}"


def record_of(found: KeyValue) -> CellRecord:
    """A record from its key.

    :raises ResilienceError: somebody wrote it by hand, and wrong.
    """
    value = _mapping(found)
    try:
        return CellRecord(
            cell=found.key.removeprefix(CELLS),
            home=str(value["home"]),
            epoch=int(value["epoch"]),
            state=str(value["state"]),
            revision=found.mod_revision,
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise _corrupt(found, "home, epoch and state") from exc


def _entry(found: KeyValue) -> HistoryEntry:
    value = _mapping(found)
    try:
        previous = value["previous_home"]
        return HistoryEntry(
            cell=str(value["cell"]),
            epoch=int(value["epoch"]),
            home=str(value["home"]),
            previous_home=None if previous is None else str(previous),
            state=str(value["state"]),
            reason=str(value["reason"]),
            operator=str(value["operator"]),
            at=str(value["at"]),
            overrides=tuple(str(name) for name in value["overrides"]),
            id=str(value["id"]),
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise _corrupt(found, "an entry of the history") from exc


def _mapping(found: KeyValue) -> dict[str, t.Any]:
    try:
        value = json.loads(found.value)
    except ValueError as exc:
        raise _corrupt(found, "JSON") from exc
    if not isinstance(value, dict):
        raise _corrupt(found, "a JSON object")
    return value


def _corrupt(found: KeyValue, expected: str) -> ResilienceError:
    return ResilienceError(
        f"the registry's key {found.key} (revision {found.mod_revision}) should hold {expected} and holds "
        f"{found.value[:200]!r}: somebody wrote it by hand. Nothing is decided on such a record; put it right with "
        "etcdctl or restore a snapshot of the registry."
    )
