# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who of a region's indexers applies: whoever holds a lease in the region's etcd."""

from __future__ import annotations

import asyncio
import logging
import time
import typing as t

from shannon.resilience.errors import ResilienceError
from shannon.resilience.etcd import EtcdClient, Lease, get_op, put_op, when_absent
from shannon.services.common import logs

#: Share of the lease that is never used: for clocks that run differently, and for what is on its way to Qdrant.
MARGIN = 0.2
KEY = "/shannon/indexer/"

_log: logging.Logger = logs.get(__name__)


class LeadershipLost(ResilienceError):
    """The lease is about to end: nothing more may be applied."""


class Election:
    """One candidate for one cell.

    The lease is counted from before it was asked for, so it ends here before it ends in etcd: there are never two who
    apply. Without etcd's answer it runs out, and the candidate stops by itself.

    :param name: this candidate, unique among all that ever were.
    :param ttl: seconds of the lease.
    """

    def __init__(
        self, client: EtcdClient, cell: str, name: str, ttl: int, clock: t.Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._key = KEY + cell
        self._name = name
        self._ttl = ttl
        self._clock = clock
        self._lease: Lease | None = None
        self._until = float("-inf")
        #: Who leads, as far as is known; empty: nobody.
        self.holder = ""

    @property
    def remaining(self) -> float:
        """Seconds for which this candidate may still apply; 0 or less: it may not."""
        return self._until - self._clock()

    @property
    def leading(self) -> bool:
        """Whether this candidate may apply now."""
        return self.remaining > 0

    def budget(self, timeout: float) -> float:
        """Seconds that a request may take: no more than the lease has left.

        :raises LeadershipLost: it has none.
        """
        left = self.remaining
        if left <= 0:
            raise LeadershipLost(f"the lease on {self._key} in the region's etcd could not be prolonged in time")
        return min(timeout, left)

    async def run(self, stopping: asyncio.Event) -> None:
        """Take, prolong and at the end give up the lease; returns when stopping."""
        while not stopping.is_set():
            before = self.leading
            try:
                await asyncio.to_thread(self.step)
            except ResilienceError as exc:
                _log.warning("the region's etcd can't be asked", extra={"fields": {"error": str(exc)}})
            if before != self.leading:
                text = "this indexer applies now" if self.leading else "this indexer stands by now"
                _log.info(text, extra={"fields": {"key": self._key, "holder": self.holder}})
            try:
                await asyncio.wait_for(stopping.wait(), self._ttl / 5)
            except asyncio.TimeoutError:
                continue
        await asyncio.to_thread(self.resign)

    def step(self) -> None:
        """Prolong the lease, or try to become the leader; blocks for at most twice the client's timeout.

        :raises ResilienceError: etcd does not answer.
        """
        asked = self._clock()
        if self._lease is not None:
            left = self._client.lease_keepalive(self._lease.id)
            if left > 0 and self.leading and self._holds():
                self._until = asked + left * (1 - MARGIN)
                return
            if left <= 0:
                self._lease, self._until = None, float("-inf")
        if self._lease is None:
            asked = self._clock()
            self._lease = self._client.lease_grant(self._ttl)
        result = self._client.txn(
            [when_absent(self._key)], [put_op(self._key, self._name, self._lease.id)], [get_op(self._key)]
        )
        found = result.reads[0][0] if not result.succeeded and result.reads and result.reads[0] else None
        # A transaction whose answer got lost is repeated, and then loses against itself.
        won = result.succeeded or (found is not None and found.value == self._name and found.lease == self._lease.id)
        self.holder = self._name if won else (found.value if found else "")
        self._until = asked + self._lease.ttl * (1 - MARGIN) if won else float("-inf")

    def _holds(self) -> bool:
        # The lease alone proves nothing: an operator may have deleted the key, and another have taken it.
        found = self._client.get(self._key)
        return found is not None and found.value == self._name

    def resign(self) -> None:
        """Give the lease up, so that another takes over at once."""
        self._until = float("-inf")
        lease, self._lease = self._lease, None
        if lease is not None:
            try:
                self._client.lease_revoke(lease.id)
            except ResilienceError as exc:
                _log.info("the lease could not be given up; it runs out", extra={"fields": {"error": str(exc)}})


class Alone:
    """The election of a deployment without etcd: one candidate, who leads."""

    holder = "alone"
    leading = True
    remaining = float("inf")

    def budget(self, timeout: float) -> float:
        """Seconds that a request may take."""
        return timeout

    async def run(self, stopping: asyncio.Event) -> None:
        """Nothing to do until stopping."""
        await stopping.wait()
