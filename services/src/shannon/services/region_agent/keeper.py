# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Knows at every moment whether this host may serve a cell as a primary, and keeps the fence accordingly.

A round looks at the registry and at this host's own PostgreSQL and Redis, all at once, and ends within five seconds
whatever is dead, which is less than a host's authority lasts.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import typing as t
from dataclasses import dataclass, replace

from shannon.resilience.concurrently import gather
from shannon.resilience.errors import ConflictError, ResilienceError
from shannon.resilience.etcd import EtcdClient
from shannon.resilience.patroni import Patroni
from shannon.resilience.redis import RedisClient, Replication
from shannon.resilience.region_lease import AUTHORITY, GRACE, PROMISE, RegionLeases, View
from shannon.resilience.registry import RESTORING, TAKING_OVER, CellRecord, Registry
from shannon.services.common import logs

from .fence import Fence
from .promises import Peers, Promises
from .settings import CellSettings, Settings, now

_log = logs.get(__name__)
#: Seconds of silence of the registry after which other regions are asked for promises.
SILENCE = 2.0
#: Seconds for which a follower stays open in a home region without authority.
POWERLESS = 3.0
#: Patroni's roles whose PostgreSQL takes no writes.
FOLLOWERS = ("replica", "standby_leader")


@dataclass(frozen=True)
class Local:
    """This host's own PostgreSQL and Redis.

    :ivar postgres: what Patroni says; None when it does not answer.
    :ivar postgres_listens: whether anything listens on PostgreSQL's port; only looked at when Patroni is silent.
    :ivar redis: what Redis says; None when it does not answer.
    :ivar redis_listens: likewise.
    """

    postgres: dict[str, t.Any] | None = None
    postgres_listens: bool = False
    redis: Replication | None = None
    redis_listens: bool = False

    @property
    def role(self) -> str:
        """Patroni's role of this member; empty when it does not say."""
        return str(self.postgres.get("role", "")) if self.postgres else ""

    @property
    def takes_writes(self) -> bool:
        """Whether either of them might take a write: true when it can't be known."""
        postgres = (
            self.postgres_listens
            if self.postgres is None
            else (self.role not in FOLLOWERS and self.postgres.get("state") not in ("stopped", "start failed"))
        )
        redis = self.redis_listens if self.redis is None else self.redis.role != "replica"
        return postgres or redis


@dataclass(frozen=True)
class Standing:
    """What is known of a cell, at C(at)."""

    view: View
    local: Local
    at: float
    answered: float
    authority_until: float
    registry_error: str = ""
    failsafe: bool = False

    @property
    def record(self) -> CellRecord | None:
        return self.view.record

    @property
    def moving(self) -> bool:
        """Whether a region is about to be left or entered, so that every moment counts."""
        record, lease, serving = self.view.record, self.view.lease, self.view.serving
        if record is None or self.registry_error:
            return False
        if lease is not None and lease.region != record.home:
            return True
        return lease is not None and (serving is None or serving.epoch != record.epoch)

    @property
    def leads(self) -> bool:
        """Whether this host has a part in a move other than to follow: what leads, led, or does not say."""
        follows = self.local.role == "replica" and self.local.redis is not None and self.local.redis.role == "replica"
        return not follows

    def authority(self) -> float:
        """Seconds for which this host may still be a primary."""
        return max(0.0, self.authority_until - now())


NOTHING = Standing(View(None, None, None, None, None), Local(), 0.0, float("-inf"), 0.0, "nobody was asked yet")


class Keeper:
    """Of one cell on one host.

    :param changed: told after each round.
    """

    def __init__(
        self,
        settings: Settings,
        cell: CellSettings,
        client: EtcdClient,
        fence: Fence,
        promises: Promises,
        peers: Peers,
        context: t.Any,
        changed: t.Callable[[], None],
    ) -> None:
        self._settings = settings
        self.cell = cell
        self.leases = RegionLeases(client)
        self.registry = Registry(client)
        self._fence = fence
        self._promises = promises
        self._peers = peers
        self._context = context
        self._changed = changed
        self._standing = NOTHING
        self._lock = threading.Lock()
        #: The record at which this host closed itself to clients for another home; held while the fence is changed.
        self._left_for: CellRecord | None = None
        self._leaving = threading.Lock()
        self._gone_since: float | None = None
        self._looked = False
        self._redis: RedisClient | None = None
        self._ports = (cell.postgres, cell.redis)

    def standing(self) -> Standing:
        """What is known now."""
        with self._lock:
            return self._standing

    def wrote(self, record: CellRecord, begun: float) -> None:
        """This host changed the record, which it need not ask the registry for then.

        :param begun: when it began to, as :func:`.settings.now` gives it.
        """
        with self._lock:
            before = self._standing
            if before.record is not None and before.answered < begun:
                self._standing = replace(before, view=replace(before.view, record=record), answered=begun)

    def is_home(self) -> bool:
        """Whether this host may be a primary now."""
        standing = self.standing()
        return bool(standing.record and standing.record.home == self._settings.region and standing.authority() > 0)

    def leave(self, record: CellRecord, streams: t.Sequence[tuple[str, int]], seconds: float) -> None:
        """Close this host to the clients of a cell that has another home now, for good.

        It has no authority from now on, whatever time it had, and is opened again as a follower.

        :param streams: address and port of PostgreSQL's followers, who may have the rest.
        :param seconds: for how long they may.
        :raises ResilienceError: the fence could not be closed; nothing has changed.
        """
        with self._leaving:
            self._fence.close(self._ports, streams, seconds)
            self._left_for = record
        with self._lock:
            self._standing = self._without_what_was_left(self._standing)

    def _without_what_was_left(self, standing: Standing) -> Standing:
        record, left = standing.record, self._left_for
        if record is None or left is None or (record.home, record.epoch) != (left.home, left.epoch):
            return standing
        return replace(standing, authority_until=0.0)

    def round(self) -> None:
        """Look, renew, and keep the fence."""
        begun = now()
        before = self.standing()
        answers = gather({"view": self._look, "local": self._look_here})
        local = t.cast(Local, answers["local"])
        view = answers["view"]
        if isinstance(view, View) and self._is_old(view, before):
            view = ResilienceError(
                f"the registry says {view.record.describe() if view.record else 'nothing'}, but this host has seen "
                f"{before.record.describe() if before.record else ''}: somebody restored an old copy of it"
            )
        if isinstance(view, View):
            standing = self._with_registry(t.cast(View, view), local, before, begun)
        else:
            standing = self._without_registry(view, local, before, begun)
        with self._leaving:
            standing = self._without_what_was_left(standing)
            with self._lock:
                now_known = self._standing
                if now_known.answered > standing.answered:  # this host changed the record meanwhile
                    view = replace(standing.view, record=now_known.record)
                    standing = replace(standing, view=view, answered=now_known.answered)
                self._standing = standing
            self._keep_fence(standing, begun)
        self._looked = True
        self._say(before, standing)
        self._changed()

    # -- the registry answers ------------------------------------------------------------------------------------

    def _with_registry(self, view: View, local: Local, before: Standing, begun: float) -> Standing:
        standing = Standing(view, local, begun, begun, before.authority_until)
        record = view.record
        if record is None or record.home != self._settings.region:
            return self._perhaps_take_over(standing, begun)
        self._gone_since = None
        try:
            lease = view.lease
            if lease is None and self._may_acquire(view):
                lease = self.leases.acquire(record, self._settings.host)
                if lease:
                    _log.info("cell %s: took the region's lease at epoch %d", self.cell.name, record.epoch)
            if lease and (lease.region, lease.epoch) == (record.home, record.epoch):
                renewing = now()
                if self.leases.keep(lease):
                    standing = replace(standing, authority_until=renewing + AUTHORITY, view=replace(view, lease=lease))
        except ResilienceError as exc:
            return replace(standing, registry_error=str(exc))
        return standing

    def _may_acquire(self, view: View) -> bool:
        """Taking one's own lease again is free; another region's needs a look at what its agents promised."""
        if view.held is None or view.held.region == self._settings.region:
            return True
        free, reason = self._peers.unbound(self.cell.name, self._promises.bound(self.cell.name, self._settings.region))
        if not free:
            _log.warning("cell %s: not taken yet: %s", self.cell.name, reason)
        return free

    def _perhaps_take_over(self, standing: Standing, begun: float) -> Standing:
        """Automatic region failover: the home's lease has ended, and nobody told anybody anything."""
        view, record = standing.view, standing.record
        lost = (
            self._settings.failover == "automatic"
            and record is not None
            # What the standby has is about to be replaced, too.
            and record.state != RESTORING
            and view.lease is None
            and view.held is not None
            and (view.held.region, view.held.epoch) == (record.home, record.epoch)
        )
        if not lost or record is None:
            self._gone_since = None
            return standing
        if self._gone_since is None:
            self._gone_since = begun
        if begun - self._gone_since < GRACE or standing.local.role != "standby_leader":
            return standing
        free, reason = self._peers.unbound(self.cell.name, self._promises.bound(self.cell.name, self._settings.region))
        if not free:
            _log.warning("cell %s: not taken over yet: %s", self.cell.name, reason)
            return standing
        new = replace(record, home=self._settings.region, epoch=record.epoch + 1, state=TAKING_OVER)
        try:
            written = self.registry.compare_and_swap(
                record, new, f"the lease of region {record.home} ended", f"region agent of {self._settings.host}"
            )
        except ConflictError as exc:
            _log.warning("%s", exc)
            return standing
        except ResilienceError as exc:
            return replace(standing, registry_error=str(exc))
        _log.warning("cell %s: region %s takes over: %s", self.cell.name, new.home, written.describe())
        return replace(standing, view=replace(view, record=written))

    # -- the registry is silent ----------------------------------------------------------------------------------

    def _without_registry(self, error: t.Any, local: Local, before: Standing, begun: float) -> Standing:
        self._gone_since = None  # a lease that can't be looked at has not been seen to be gone
        standing = replace(before, local=local, at=begun, registry_error=str(error))
        record = before.record
        if not record or record.home != self._settings.region or before.authority() <= 0:
            return replace(standing, failsafe=False)
        if begun - before.answered < SILENCE:
            return standing
        asking = now()
        kept, said = self._peers.promised(self.cell.name, record.epoch)
        # What has lapsed stays lapsed: only the registry can make a primary.
        if kept and before.authority() > 0:
            if not before.failsafe:
                _log.warning("cell %s: the registry is silent, other regions promised (%s)", self.cell.name, said)
            return replace(standing, authority_until=asking + PROMISE - 1.0, failsafe=True)
        _log.warning("cell %s: the registry is silent and no promise holds: %s", self.cell.name, said)
        return replace(standing, failsafe=False)

    def promise(self, question: dict[str, t.Any]) -> dict[str, t.Any]:
        """Answer a home that can't reach the registry.

        :raises ResilienceError: the cell is promised to somebody else.
        """
        standing = self.standing()
        region, epoch = str(question["region"]), int(question["epoch"])
        if not standing.registry_error and now() - standing.answered < 3 * SILENCE:
            return {"promised": False, "reason": f"the registry answers on {self._settings.host}"}
        record = standing.record
        if record is None or (record.home, record.epoch) != (region, epoch):
            known = record.describe() if record else "nothing"
            return {"promised": False, "reason": f"{self._settings.host} last knew of {known}"}
        return {"promised": True, "seconds": self._promises.give(self.cell.name, region)}

    # -- this host -----------------------------------------------------------------------------------------------

    def _keep_fence(self, standing: Standing, begun: float) -> None:
        """A host that can take no write may be reached; one that can, as long as it has authority."""
        powerless = standing.authority() <= 0
        at_home = standing.record is not None and standing.record.home == self._settings.region
        if standing.local.takes_writes or (standing.record is None and standing.registry_error):
            # A host that hears that it was superseded keeps what it has until it has stepped down in order: nobody else
            # can have the lease before that.
            seconds = standing.authority()
        else:
            # A follower's port is open no longer than the authority that a promotion in the next moment would bring; in
            # a home that has lost its own, where Patroni may promote without being told, not even that.
            seconds = begun + (POWERLESS if at_home and powerless else AUTHORITY) - now()
        try:
            if standing.local.takes_writes and powerless:
                # Not in the first round: what is open then was opened by an agent that knew more, and closes by itself.
                if self._looked:
                    self._fence.close(self._ports)
            else:
                self._fence.open(self._ports, seconds)
        except ResilienceError as exc:
            _log.error("%s", exc)

    def _look(self) -> View:
        return self.leases.look(self.cell.name)

    def _look_here(self) -> Local:
        cell, password = self.cell, self._settings.redis_password
        address = self._settings.postgres.get(self._settings.region, {}).get(self._settings.host)
        patroni = Patroni(address or self._settings.address, cell.patroni, self._context, timeout=1.0)

        if self._redis is None:
            self._redis = RedisClient("localhost", cell.redis, "admin", password, self._context, 1.0)
        answers = gather({"postgres": patroni.status, "redis": self._redis.replication})
        postgres, said = answers["postgres"], answers["redis"]
        return Local(
            postgres=postgres if isinstance(postgres, dict) else None,
            postgres_listens=not isinstance(postgres, dict) and listens(cell.postgres),
            redis=said if isinstance(said, Replication) else None,
            redis_listens=not isinstance(said, Replication) and listens(cell.redis),
        )

    def _is_old(self, view: View, before: Standing) -> bool:
        if before.record is None or not before.record.epoch:
            return False
        return view.record is None or view.record.epoch < before.record.epoch

    def _say(self, before: Standing, standing: Standing) -> None:
        name = self.cell.name
        if standing.registry_error and not before.registry_error:
            _log.warning("cell %s: %s", name, standing.registry_error)
        elif before.registry_error and not standing.registry_error:
            _log.info("cell %s: the registry answers", name)
        if standing.record and standing.record != before.record:
            _log.info("cell %s: %s", name, standing.record.describe())
        if before.authority_until > 0 and before.at and before.authority() <= 0 < before.authority_until - before.at:
            _log.warning("cell %s: this host's authority has ended: it is fenced", name)


def listens(port: int, address: str = "127.0.0.1") -> bool:
    """Whether something listens on a port of this host, or of another."""
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=0.5):
        return True
    return False
