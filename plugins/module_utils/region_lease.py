# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The region lease: what a cell's home must hold in the registry, and go on renewing, to take writes.

The record says which region should be the home; the lease at C(/shannon/leases/<cell>) says which one is. It can be
taken only by the record's home at the record's epoch, and only when nobody holds it, so a region that was superseded
and one that takes over never hold it together. Every host of the home renews the same lease, and may serve as a primary
until AUTHORITY seconds after it last began to do so: earlier than the registry lets anybody else have it.
"""

from __future__ import annotations

import json
import typing as t
from dataclasses import asdict, dataclass, fields

from .errors import ResilienceError
from .etcd import EtcdClient, KeyValue, delete_op, get_op, put_op, when_absent, when_mod_revision
from .registry import CELLS, CellRecord, record_of

LEASES = "/shannon/leases/"
#: Who had the lease last: unlike the lease itself it stays, so that a takeover knows that there was a home to lose.
HELD = "/shannon/held/"
#: How far the home's PostgreSQL had written, once a second; and, with C(final), where it ended in order.
POSITIONS = "/shannon/positions/"
#: Written by a region that has begun to serve as the home, with what its promotion took.
SERVING = "/shannon/serving/"
#: Rows that a rejoining region would have lost, and where they were saved.
DIVERGED = "/shannon/diverged/"
#: What a rejoining host's Redis had and the new home perhaps not, and where it was kept: the cell, the epoch with 10
#: digits, the region and the host follow.
DIVERGED_REDIS = "/shannon/diverged-redis/"
#: What an operator told a region that waits for a human.
REJOIN = "/shannon/rejoin/"

#: Seconds that the lease lives without being renewed.
LEASE_TTL = 8
#: Seconds that a host may serve after it began to renew: a second less, for the time that closing takes.
AUTHORITY = 7.0
#: Seconds that a standby region waits after the lease has ended before it takes over by itself: the home's hosts may
#: have been restarted together, and take their lease again first.
GRACE = 2.0
#: Seconds that a promise of another region's agents holds while the registry can't be asked.
PROMISE = 8.0


@dataclass(frozen=True)
class RegionLease:
    """Who holds a cell. C(id) is the registry's lease, C(revision) that of the key."""

    cell: str
    region: str
    epoch: int
    host: str
    id: int = 0
    revision: int = 0


@dataclass(frozen=True)
class Position:
    """Where PostgreSQL of a home was: C(lsn) in bytes, C(at) in seconds since 1970 by the clock of C(host)."""

    region: str
    epoch: int
    lsn: int
    at: float
    host: str = ""
    final: bool = False


@dataclass(frozen=True)
class Serving:
    """A home that takes writes: since when, and from where in the old home's WAL its own goes on.

    :ivar switch_lsn: end of what it has of its predecessor's timeline; 0 when that is not known.
    :ivar old_end: where the old home said that it ended, in bytes; 0 when it did not say so.
    :ivar seconds: by phase, what its promotion took.
    :ivar redis_id: id of the history that its Redis primary went on from; empty when that is not known.
    :ivar redis_end: bytes of that history that it has.
    :ivar redis_primary: address of its Redis primary at that time.
    """

    region: str
    epoch: int
    at: float
    host: str
    switch_lsn: int = 0
    old_end: int = 0
    seconds: dict[str, float] | None = None
    redis_id: str = ""
    redis_end: int = 0
    redis_primary: str = ""


@dataclass(frozen=True)
class View:
    """All that the registry knows of a cell at one revision."""

    record: CellRecord | None
    lease: RegionLease | None
    held: RegionLease | None
    position: Position | None
    serving: Serving | None


T = t.TypeVar("T")


class RegionLeases:
    """The leases, on top of the registry's etcd.

    Every method raises :class:`.errors.ResilienceError` when the registry can't answer.
    """

    def __init__(self, client: EtcdClient) -> None:
        self.client = client

    def look(self, cell: str) -> View:
        """Everything about a cell, read through the quorum at one revision."""
        keys = (CELLS, LEASES, HELD, POSITIONS, SERVING)
        answer = self.client.txn([], [get_op(key + cell) for key in keys])
        record, lease, held, position, serving = (found[0] if found else None for found in answer.reads)
        return View(
            record=record_of(record) if record else None,
            lease=_lease(lease) if lease else None,
            held=_lease(held) if held else None,
            position=_typed(Position, position) if position else None,
            serving=_typed(Serving, serving) if serving else None,
        )

    def acquire(self, record: CellRecord, host: str) -> RegionLease | None:
        """Take the lease for the record's home; None when the record changed meanwhile, or somebody holds the lease."""
        granted = self.client.lease_grant(LEASE_TTL)
        key = LEASES + record.cell
        lease = RegionLease(record.cell, record.home, record.epoch, host, granted.id)
        text = _text(lease)
        try:
            outcome = self.client.txn(
                [when_mod_revision(CELLS + record.cell, record.revision), when_absent(key)],
                [put_op(key, text, granted.id), put_op(HELD + record.cell, text)],
                [get_op(key)],
            )
        except ResilienceError:
            self.drop(granted.id)
            raise
        if outcome.succeeded:
            return RegionLease(record.cell, record.home, record.epoch, host, granted.id, outcome.revision)
        there = outcome.reads[0]
        if there and there[0].lease == granted.id:
            return _lease(there[0])
        self.drop(granted.id)
        return None

    def keep(self, lease: RegionLease) -> bool:
        """Renew it; whether it still was there."""
        return self.client.lease_keepalive(lease.id) > 0

    def drop(self, lease: int) -> None:
        """Give a lease back before its time; one that can't be given back ends by itself."""
        try:
            self.client.lease_revoke(lease)
        except ResilienceError:
            return

    def release(self, lease: RegionLease, position: Position | None) -> bool:
        """Give the cell back in order: its end position becomes known in the same step as nobody holds it.

        :returns: whether it was this lease that was there.
        """
        key = LEASES + lease.cell
        changes = [delete_op(key)]
        if position is not None:
            changes.append(put_op(POSITIONS + lease.cell, _text(position)))
        outcome = self.client.txn([when_mod_revision(key, lease.revision)], changes)
        self.drop(lease.id)
        return outcome.succeeded

    def publish_end(self, record: CellRecord, position: Position) -> bool:
        """Write where a former home ended, when its lease ran out before it could give it back.

        :returns: whether it was written; not after the record changed once more.
        """
        change = put_op(POSITIONS + record.cell, _text(position))
        return self.client.txn([when_mod_revision(CELLS + record.cell, record.revision)], [change]).succeeded

    def publish(self, lease: RegionLease, prefix: str, what: t.Any) -> bool:
        """Write a position, or that a region serves, if the lease still is what it was.

        :returns: whether it was written; who lost the lease must not overwrite what came after.
        """
        key = LEASES + lease.cell
        change = put_op(prefix + lease.cell, _text(what))
        return self.client.txn([when_mod_revision(key, lease.revision)], [change]).succeeded


def _text(what: t.Any) -> str:
    stored = asdict(what)
    for name in ("id", "revision"):
        stored.pop(name, None)
    return json.dumps(stored, sort_keys=True)


def _lease(found: KeyValue) -> RegionLease:
    value = _mapping(found)
    try:
        return RegionLease(
            str(value["cell"]), str(value["region"]), int(value["epoch"]), str(value["host"]),
            found.lease, found.mod_revision,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as exc:
        raise ResilienceError(f"the registry's key {found.key} is no region lease: {found.value[:200]!r}") from exc


def _typed(kind: type[T], found: KeyValue) -> T:
    value = _mapping(found)
    try:
        # What a newer version says besides is left out, so that hosts can be upgraded one after the other.
        known = {one.name: value[one.name] for one in fields(kind) if one.name in value}  # type: ignore[arg-type]
        for name in ("epoch", "lsn", "switch_lsn", "old_end", "redis_end"):
            if name in known:
                known[name] = int(known[name])
        return kind(**known)
    except (TypeError, ValueError) as exc:
        raise ResilienceError(f"the registry's key {found.key} can't be read: {found.value[:200]!r}") from exc


def _mapping(found: KeyValue) -> dict[str, t.Any]:
    try:
        value = json.loads(found.value)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ResilienceError(f"the registry's key {found.key} is not a JSON object: {found.value[:200]!r}")
    return value
