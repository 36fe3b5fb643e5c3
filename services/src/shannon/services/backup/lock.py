# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Only one backup, verification or restore for a test runs at a time, in all regions together.

The lock is a key with a lease in the registry: it ends by itself when its holder dies.
"""

from __future__ import annotations

import json
import threading
import time
import typing as t

from shannon.resilience.backup_records import LOCK
from shannon.resilience.errors import ResilienceError, WaitTimeout
from shannon.resilience.etcd import EtcdClient, get_op, put_op, when_absent
from shannon.services.common import logs

_log = logs.get(__name__)
TTL = 30
#: Seconds between two looks at a lock that somebody else holds, and between two renewals of one's own.
LOOK = 2.0
RENEW = 8.0


class LockLost(ResilienceError):
    """The registry took the lock away: it could not be renewed in time."""


class Lock:
    """A context: inside it nobody else backs up.

    :param holder: what others are told: host, and what it does.
    :param wait: seconds to wait for another holder to end.
    """

    def __init__(self, client: EtcdClient, holder: t.Mapping[str, str], wait: float) -> None:
        self._client = client
        self._holder = json.dumps({**holder}, sort_keys=True)
        self._wait = wait
        self._lease = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        #: Set once the lock is lost; who works under it must stop before it changes anything more.
        self.lost = threading.Event()

    def __enter__(self) -> Lock:
        deadline = time.monotonic() + self._wait
        told = False
        while True:
            held = self._try()
            if held is None:
                break
            if time.monotonic() >= deadline:
                raise WaitTimeout(
                    f"waited {self._wait:.0f} s for the lock of backups, which is held by {held}. Look there with "
                    "journalctl -u 'shannon-backup@*'; a holder that died loses it within "
                    f"{TTL} s."
                )
            if not told:
                _log.info("waiting for the lock of backups, held by %s", held)
                told = True
            self._ended.wait(min(LOOK, max(0.05, deadline - time.monotonic())))
        self._thread = threading.Thread(target=self._renew, daemon=True, name="lock")
        self._thread.start()
        return self

    def _try(self) -> str | None:
        """Take it; returns who holds it when somebody else does."""
        if not self._lease or not self._client.lease_keepalive(self._lease):
            self._lease = self._client.lease_grant(TTL).id
        # The lease's id makes the value one's own, so that an answer that was lost is known again.
        value = json.dumps({**json.loads(self._holder), "lease": str(self._lease)}, sort_keys=True)
        outcome = self._client.txn([when_absent(LOCK)], [put_op(LOCK, value, self._lease)], [get_op(LOCK)])
        if outcome.succeeded:
            return None
        found = outcome.reads[0] if outcome.reads else []
        if found and found[0].value == value:
            return None
        return found[0].value if found else "somebody who has just let go of it"

    def _renew(self) -> None:
        last = time.monotonic()
        while not self._ended.wait(RENEW):
            try:
                alive = self._client.lease_keepalive(self._lease) > 0
            except ResilienceError as exc:
                _log.warning("the lock could not be renewed: %s", exc)
                alive = time.monotonic() - last < TTL
            else:
                last = time.monotonic() if alive else last
            if not alive:
                _log.error("the lock of backups was lost")
                self.lost.set()
                return

    def check(self) -> None:
        """Stop here when the lock was lost.

        :raises LockLost: it was.
        """
        if self.lost.is_set():
            raise LockLost(
                "the lock of backups was lost: the registry could not be reached for too long. Run it again."
            )

    def __exit__(self, *_exc: object) -> None:
        self._ended.set()
        if self._thread:
            self._thread.join(timeout=10)
        try:
            self._client.lease_revoke(self._lease)
        except ResilienceError as exc:
            _log.warning("the lock of backups ends by itself within %d s: %s", TTL, exc)
