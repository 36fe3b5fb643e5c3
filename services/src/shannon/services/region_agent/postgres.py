# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A region's PostgreSQL: a primary, a follower of the home's, or a follower of nobody, by Patroni's own means.

A region that was the home follows nobody at first: its PostgreSQL is in recovery, takes no write, and nothing that it
has is rewound yet. It follows once another region serves and the rows that the rewind would discard are saved.
"""

from __future__ import annotations

import json
import pathlib
import threading
import typing as t

from shannon.resilience.concurrently import gather
from shannon.resilience.errors import ConflictError, ResilienceError
from shannon.resilience.etcd import EtcdClient, get_op, put_op, when_mod_revision
from shannon.resilience.patroni import Cluster, Patroni
from shannon.resilience.region_lease import Position
from shannon.services.common import logs

from .control import clean_end
from .keeper import FOLLOWERS, Standing
from .settings import CellSettings, Settings

_log = logs.get(__name__)
PRIMARY = "primary"
#: Patroni's states in which PostgreSQL takes no connection.
NOT_RUNNING = ("stopped", "starting", "start failed", "crashed", "custom bootstrap failed", "initdb failed")
LEADERS = (PRIMARY, "standby_leader")
#: States of a member that gives what it has, or soon will.
ALIVE = ("running", "stopping", "starting", "restarting")
#: Port 1 of the host itself, where nothing listens. It has the keys that following somebody has, so that the one takes
#: the other's place whole: Patroni merges what it is told, and can't bear an empty slot's name.
NOBODY: dict[str, t.Any] = {
    "host": "127.0.0.1",
    "port": 1,
    "primary_slot_name": "nobody",
    "create_replica_methods": ["basebackup"],
}
#: The same for a follower whose home's lease has ended. Patroni asks dead hosts one by one, seconds each, and can't be
#: promoted meanwhile; nobody is asked in no time. Unlike a former primary it has nothing that could be lost.
ORPHANED: dict[str, t.Any] = {**NOBODY, "primary_slot_name": "orphaned"}


class PostgresOfRegion:
    """The members of one cell in the own region.

    :param dcs: the own region's etcd, where Patroni keeps its configuration.
    """

    def __init__(self, settings: Settings, cell: CellSettings, dcs: EtcdClient, context: t.Any) -> None:
        self._settings = settings
        self._cell = cell
        self._dcs = dcs
        self._key = f"{settings.namespace}{cell.name}/config"
        self.addresses = dict(settings.postgres.get(settings.region, {}))
        self.members = {
            name: Patroni(address, cell.patroni, context, password=settings.patroni_password, timeout=2.0)
            for name, address in self.addresses.items()
        }

    @property
    def own(self) -> Patroni | None:
        """This host's member."""
        return self.members.get(self._settings.host)

    def configuration(self) -> dict[str, t.Any] | None:
        """What Patroni is told for the whole region; None before its first start."""
        found = self._dcs.get(self._key)
        return json.loads(found.value) if found else None

    def conducts(self, standing: Standing) -> bool:
        """Whether this host speaks for the region: its member leads, or nobody does and it is the first that runs."""
        if standing.local.role in LEADERS:
            return True
        if standing.local.postgres is None or self.own is None:
            return False
        # Patroni says so at each question when it knows of no leader; only then is it worth asking who else is there.
        if not standing.local.postgres.get("cluster_unlocked"):
            return False
        try:
            cluster: Cluster = self.own.cluster()
        except ResilienceError:
            return False
        if cluster.leader is not None:
            return cluster.leader.name == self._settings.host
        running = sorted(member.name for member in cluster.members if member.works)
        return bool(running) and running[0] == self._settings.host

    def statuses(self) -> dict[str, t.Any]:
        """Every member's status or error."""
        return gather({name: client.status for name, client in self.members.items()})

    def set_standby(self, wanted: dict[str, t.Any] | None) -> None:
        """Have the region follow somebody, nobody, or (None) be a primary.

        It is written to the region's etcd, where whoever leads reads it at its next turn, whether a member runs now or
        not; the own member has its turn at once.

        :raises ResilienceError: it could not be written.
        """
        found = self._dcs.get(self._key)
        if found is None:
            return
        value = json.loads(found.value)
        if wanted is not None:
            # To Patroni a slot's name that is there and empty is another thing than none: it would make one up.
            wanted = {key: one for key, one in wanted.items() if one is not None}
        if value.get("standby_cluster") != wanted:
            value["standby_cluster"] = wanted
            if wanted is None:
                del value["standby_cluster"]
            outcome = self._dcs.txn(
                [when_mod_revision(self._key, found.mod_revision)], [put_op(self._key, json.dumps(value))]
            )
            if not outcome.succeeded:
                raise ConflictError(f"{self._key} changed at the same moment")
        # Patroni of a busy host takes its time to answer, and nothing depends on it.
        threading.Thread(target=self._wake, daemon=True, name="wake").start()

    def _wake(self) -> None:
        try:
            if self.own is not None:
                self.own.wake()
        except ResilienceError as exc:
            _log.debug("cell %s: Patroni was not woken: %s", self._cell.name, exc)

    def following(self, home: str) -> dict[str, t.Any]:
        """What makes the region follow another one."""
        hosts = self._settings.postgres.get(home, {})
        return {
            "host": ",".join(hosts.values()),
            "port": self._cell.postgres,
            "primary_slot_name": f"region_{self._settings.region}",
            "create_replica_methods": ["basebackup"],
        }

    def end(self) -> tuple[bool, int]:
        """Whether the region has stepped down, and the end of the WAL that it has, in bytes.

        It has once a member leads it as a follower and no other runs as a primary. The former primary may still be
        stopped then: Patroni hands the lead on only when another member has all that it wrote.
        """
        answers = self.statuses()
        quiet = all(
            isinstance(answer, dict) and (answer.get("role") in FOLLOWERS or answer.get("state") in NOT_RUNNING)
            for answer in answers.values()
        )
        led = any(
            isinstance(answer, dict) and answer.get("role") == "standby_leader" and answer.get("state") == "running"
            for answer in answers.values()
        )
        ends = [_end(answer) for answer in answers.values() if isinstance(answer, dict)]
        return quiet and led, max(ends, default=0)

    def ended_here(self) -> int:
        """Where this host's PostgreSQL ended as a primary, in bytes, if it was stopped in order; 0 otherwise."""
        return clean_end(pathlib.Path(self._settings.postgres_directory) / self._cell.name / "data")

    def no_other_primary(self) -> bool:
        """Whether none of the other members that answer takes writes.

        Patroni of a member that is being stopped takes seconds to say anything, and its disk has said more already.
        """
        others = {name: client.status for name, client in self.members.items() if name != self._settings.host}
        return all(
            answer.get("role") in FOLLOWERS or answer.get("state") in (*NOT_RUNNING, "stopping")
            for answer in gather(others).values()
            if isinstance(answer, dict)
        )

    def last_primary(self) -> bool:
        """Whether nobody in the region becomes a primary after this host's member.

        Patroni has been told that the region follows, and this member still has the lead that it had before. Whoever
        has it next reads what was told.
        """
        leader = f"{self._settings.namespace}{self._cell.name}/leader"
        config, leads = self._dcs.txn([], [get_op(self._key), get_op(leader)]).reads
        if not config or not leads or leads[0].value != self._settings.host:
            return False
        return bool(json.loads(config[0].value).get("standby_cluster"))

    def behind(self, standing: Standing, position: Position) -> int:
        """Bytes that this host's member has yet to receive to have all that the old home wrote."""
        return max(0, position.lsn - _end(standing.local.postgres or {}))

    def sources(self, region: str) -> dict[str, dict[str, t.Any]]:
        """What the members of the old home say that still run, so that what is missing may still come from them."""
        hosts = self._settings.postgres.get(region, {})
        context = next(iter(self.members.values())).context if self.members else None
        asked = {
            name: Patroni(address, self._cell.patroni, context, timeout=3.0).status for name, address in hosts.items()
        }
        answers = gather(asked)
        return {name: it for name, it in answers.items() if isinstance(it, dict) and it.get("state") in ALIVE}

    def catch_up_from(self, region: str, host: str) -> dict[str, t.Any]:
        """What makes the region stream from one member of another that is no primary any more.

        That one has no slot for anybody, and with several hosts Patroni would look for a primary among them.
        """
        return {
            "host": self._settings.postgres[region][host],
            "port": self._cell.postgres,
            "primary_slot_name": None,
            "create_replica_methods": ["basebackup"],
        }


def _end(status: t.Mapping[str, t.Any]) -> int:
    wal = status.get("xlog") or {}
    return max(int(wal.get(name) or 0) for name in ("location", "received_location", "replayed_location"))


def follows(standby: t.Any, whom: t.Mapping[str, t.Any]) -> bool:
    """Whether a C(standby_cluster) is this one. Numbers and their texts are the same, as they are to Patroni."""
    keys = ("host", "port", "primary_slot_name")
    return isinstance(standby, dict) and all(str(standby.get(key)) == str(whom[key]) for key in keys)
