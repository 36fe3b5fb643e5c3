# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The mark by which a mover says in the registry that it moves a cell, so that the next one knows."""

from __future__ import annotations

import json
import socket
import threading
import time
import typing as t
import uuid
from datetime import datetime, timezone

from .errors import ConflictError, ResilienceError
from .etcd import EtcdClient, put_op, when_absent, when_value
from .registry_keys import MOVES

#: Seconds that a mark lives without being renewed: that long a killed mover stands in the way of the next.
MARK_TTL = 4


class TakenOver(ConflictError):
    """Somebody else goes on with the move."""


class Mark:
    """Says in the registry who moves the cell, for as long as this process lives."""

    def __init__(self, client: EtcdClient, cell: str, kind: str, target: str, operator: str, reason: str) -> None:
        self._client = client
        self._key = MOVES + cell
        self._text = json.dumps(
            {
                "operator": operator,
                "host": socket.gethostname(),
                "kind": kind,
                "to": target,
                "reason": reason,
                "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "id": uuid.uuid4().hex,
            },
            sort_keys=True,
        )
        self._lease = 0
        self._done = threading.Event()

    def other(self) -> str:
        """Who moves the cell now; empty when nobody does. A mark whose mover died is given the time to end."""
        deadline = time.monotonic() + MARK_TTL + 1.0
        found = self._client.get(self._key)
        if found is None:
            return ""
        first = found
        while time.monotonic() < deadline:
            value = {"operator": "somebody", "host": "a host", "kind": "move", "to": "?", "at": "?"}
            value.update(mapping_of(found.value))
            if found.mod_revision != first.mod_revision:
                who = f"{value['operator']} on {value['host']}"
                return f"{who} does a {value['kind']} to {value['to']} since {value['at']}"
            time.sleep(0.2)
            found = self._client.get(self._key)
            if found is None:
                return ""
        return f"the mark {self._key} does not go away: {first.value}"

    def put(self, take_over: bool = False) -> None:
        """Take the mark.

        :param take_over: also when somebody else has it: that one sees it, and changes nothing more.
        :raises ConflictError: somebody else has it.
        """
        self._lease = self._client.lease_grant(MARK_TTL).id
        conditions = [] if take_over else [when_absent(self._key)]
        outcome = self._client.txn(conditions, [put_op(self._key, self._text, self._lease)])
        if not outcome.succeeded:
            found = self._client.get(self._key)
            if found is None or found.value != self._text:
                raise ConflictError(
                    "somebody else began to move the cell at the same moment: "
                    f"{self.other() or 'it has ended already'}. Nothing was changed by this run."
                )
        threading.Thread(target=self._renew, daemon=True, name="mark").start()

    def check(self) -> None:
        """Look whether the mark is still this mover's, before it swaps the record.

        :raises TakenOver: somebody took it over.
        """
        found = self._client.get(self._key)
        if found is not None and found.value != self._text:
            who = mapping_of(found.value).get("operator", "somebody")
            raise TakenOver(f"{who} took this move over: it ends here, and what {who} began goes on")

    def _renew(self) -> None:
        while not self._done.wait(1.0):
            try:
                self._client.lease_keepalive(self._lease)
                # A beat that others can see; never over a mark that somebody took meanwhile.
                beat = put_op(self._key, self._text, self._lease)
                outcome = self._client.txn([when_value(self._key, self._text)], [beat])
            except ResilienceError:
                continue  # it ends by itself if the registry stays away
            if not outcome.succeeded:
                return  # it is another's, and check() says so

    def remove(self) -> None:
        """Give the mark back."""
        self._done.set()
        if self._lease:
            try:
                self._client.lease_revoke(self._lease)
            except ResilienceError:
                return


def mapping_of(text: str) -> dict[str, t.Any]:
    """A JSON object; empty when it is none: somebody wrote the key by hand, and it says nothing."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
