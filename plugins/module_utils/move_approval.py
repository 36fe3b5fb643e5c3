# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A second person's word on a move: it is asked for in the registry, given there, and ends by itself.

It keeps one person's haste from moving a cell. It is no defence against malice: an operator says who he is.
"""

from __future__ import annotations

import json
import typing as t
import uuid
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timedelta, timezone

from .concurrently import wait_until
from .errors import ConflictError, ResilienceError, WaitTimeout
from .etcd import EtcdClient, delete_op, put_op, when_absent, when_mod_revision
from .registry_keys import APPROVALS

#: Seconds that a request lives, approved or not: what was approved must not lie about until nobody remembers it.
EXPIRES = 900


@dataclass(frozen=True)
class Approval:
    """A move that waits for somebody's word, or has it.

    :ivar epoch: of the cell when it was asked for: once the cell has moved on the word is worth nothing.
    :ivar approved_by: empty until somebody did.
    :ivar revision: the registry's revision; no part of what is stored.
    """

    cell: str
    kind: str
    home: str
    target: str
    epoch: int
    operator: str
    reason: str
    overrides: tuple[str, ...] = ()
    id: str = ""
    at: str = ""
    expires_at: str = ""
    approved_by: str = ""
    approved_at: str = ""
    revision: int = 0

    def stored(self) -> str:
        """The text that the registry holds."""
        return json.dumps({key: it for key, it in asdict(self).items() if key != "revision"}, sort_keys=True)

    def describe(self) -> str:
        """What is asked for, in words."""
        over = f", overriding {', '.join(self.overrides)}" if self.overrides else ""
        return (
            f"the {self.kind} of cell {self.cell} from {self.home} (epoch {self.epoch}) to {self.target} by "
            f"{self.operator}{over}, reason: {self.reason} (request {self.id}, until {self.expires_at})"
        )

    def is_for(self, other: Approval) -> bool:
        """Whether it is the same move by the same person."""
        same = ("cell", "kind", "home", "target", "epoch", "operator", "overrides")
        return all(getattr(self, name) == getattr(other, name) for name in same)


class Approvals:
    """The requests in the registry.

    Every method raises :class:`.errors.ResilienceError` when the registry can't answer.
    """

    def __init__(self, client: EtcdClient, clock: t.Callable[[], datetime] | None = None) -> None:
        self._client = client
        self._clock = clock or (lambda: datetime.now(timezone.utc))

    def find(self, cell: str) -> Approval | None:
        """What is asked for a cell; None when nothing is, or when it has ended."""
        found = self._client.get(APPROVALS + cell)
        if found is None:
            return None
        try:
            value = json.loads(found.value)
            known = {one.name for one in fields(Approval)}
            given = {name: it for name, it in value.items() if name in known}
            approval = Approval(**{**given, "overrides": tuple(value["overrides"]), "revision": found.mod_revision})
            ended = datetime.fromisoformat(approval.expires_at) <= self._clock()
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise ResilienceError(
                f"the registry's key {found.key} holds {found.value[:200]!r}, which is no request for an approval: "
                "somebody wrote it by hand. Delete it with etcdctl, and ask anew."
            ) from exc
        return None if ended else approval

    def request(self, wanted: Approval, seconds: int = EXPIRES) -> Approval:
        """Ask for a word on a move; the same move by the same person is asked for once.

        :raises ConflictError: somebody asked for something else, and that has not ended.
        """
        there = self.find(wanted.cell)
        if there is not None and there.is_for(wanted):
            return there
        # What the same person asked for before is no longer wanted.
        if there is not None and not _same(there.operator, wanted.operator):
            raise ConflictError(
                f"{there.describe()} waits for an approval already. Wait for it, or take it back: "
                f"playbooks/approve.yml -e cell={wanted.cell} -e reject=true"
            )
        now = self._clock()
        asked = replace(
            wanted,
            id=uuid.uuid4().hex[:8],
            at=now.isoformat(timespec="seconds"),
            expires_at=(now + timedelta(seconds=seconds)).isoformat(timespec="seconds"),
            approved_by="",
            approved_at="",
        )
        lease = self._client.lease_grant(seconds).id
        return self._write(asked, there.revision if there else 0, lease)

    def approve(self, cell: str, operator: str, identity: str = "") -> Approval:
        """Give the word.

        :param identity: the request that is meant; empty for whichever there is.
        :raises ConflictError: nothing is asked for, or another request, or by the same person.
        """
        there = self._wanted(cell, identity)
        if not operator.strip():
            raise ResilienceError("an approval needs the name of who gives it: -e operator=NAME")
        if _same(there.operator, operator):
            raise ConflictError(
                f"{operator} asked for {there.describe()}: somebody else has to approve it. Nothing was changed."
            )
        if there.approved_by:
            return there
        given = replace(there, approved_by=operator.strip(), approved_at=self._clock().isoformat(timespec="seconds"))
        return self._write(given, there.revision, self._lease_of(cell))

    def reject(self, cell: str, identity: str = "") -> Approval:
        """Take a request away; anybody may, who asked as well.

        :raises ConflictError: nothing is asked for, or it changed at the same moment.
        """
        there = self._wanted(cell, identity)
        key = APPROVALS + cell
        if not self._client.txn([when_mod_revision(key, there.revision)], [delete_op(key)]).succeeded:
            raise ConflictError(f"the request for cell {cell} changed at the same moment; look again")
        return there

    def wait(self, asked: Approval, seconds: float, interval: float = 1.0) -> Approval:
        """Wait until somebody approved it.

        :raises ConflictError: it was rejected, or ended.
        :raises WaitTimeout: nobody did.
        """
        seen: list[Approval | None] = []

        def approved() -> tuple[bool, str]:
            seen[:] = [self.find(asked.cell)]
            there = seen[0]
            if there is None or there.id != asked.id or not there.is_for(asked):
                return True, ""
            return bool(there.approved_by), "nobody approved it yet"

        try:
            wait_until(approved, f"somebody else's approval of {asked.describe()}", seconds, interval)
        except WaitTimeout as exc:
            raise WaitTimeout(f"{exc}. Nothing was changed; run the same command again to ask again.") from exc
        if seen[0] is None or seen[0].id != asked.id or not seen[0].is_for(asked):
            raise ConflictError(f"{asked.describe()} was rejected, or its time was up. Nothing was changed.")
        return seen[0]

    def given(self, wanted: Approval) -> Approval:
        """The word that was given for a move.

        :raises ConflictError: there is none for exactly this move.
        """
        there = self.find(wanted.cell)
        if there is not None and there.approved_by and there.is_for(wanted):
            return there
        what = "nothing is asked for" if there is None else there.describe()
        state = "" if there is None else f", approved by {there.approved_by}" if there.approved_by else ", not approved"
        raise ConflictError(
            f"the {wanted.kind} of cell {wanted.cell} from {wanted.home} (epoch {wanted.epoch}) to {wanted.target} by "
            f"{wanted.operator} needs somebody else's approval, and has none (there is: {what}{state}). Nothing was "
            "changed. Run the playbook with -e approval=true, which asks for it."
        )

    def remove(self, approval: Approval) -> None:
        """It was used."""
        key = APPROVALS + approval.cell
        self._client.txn([when_mod_revision(key, approval.revision)], [delete_op(key)])

    def _wanted(self, cell: str, identity: str) -> Approval:
        there = self.find(cell)
        if there is None:
            raise ConflictError(
                f"nobody asks for an approval for cell {cell}; a request ends after {EXPIRES // 60} minutes. "
                "Nothing was changed."
            )
        if identity and there.id != identity:
            raise ConflictError(f"the request for cell {cell} is not {identity}: it is {there.describe()}")
        return there

    def _lease_of(self, cell: str) -> int:
        found = self._client.get(APPROVALS + cell)
        return found.lease if found else 0

    def _write(self, approval: Approval, revision: int, lease: int) -> Approval:
        key = APPROVALS + approval.cell
        condition = when_mod_revision(key, revision) if revision else when_absent(key)
        outcome = self._client.txn([condition], [put_op(key, approval.stored(), lease)])
        if outcome.succeeded:
            return replace(approval, revision=outcome.revision)
        # A member that did it may not have been able to say so in time.
        there = self.find(approval.cell)
        if there is not None and there.stored() == approval.stored():
            return there
        raise ConflictError(f"the request for cell {approval.cell} changed at the same moment; look again")


def _same(one: str, other: str) -> bool:
    return one.strip().casefold() == other.strip().casefold()
