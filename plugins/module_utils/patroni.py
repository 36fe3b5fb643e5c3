# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Patroni's REST API: who is what in a cell's region, and what Patroni is told to want."""

from __future__ import annotations

import base64
import ssl
import typing as t
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from .concurrently import gather, wait_until
from .errors import EndpointError, ResilienceError
from .http_client import JsonEndpoint

PRIMARY = "primary"
STANDBY = "standby"
#: Roles of a leader as C(GET /cluster) names them.
LEADER_ROLES = ("leader", "standby_leader")
#: What C(GET /cluster) calls a member whose PostgreSQL does its work.
WORKING_STATES = ("running", "streaming", "in archive recovery")


@dataclass(frozen=True)
class Member:
    """One member as C(GET /cluster) lists it. C(lag) is in bytes, None when Patroni does not know it."""

    name: str
    role: str
    state: str
    host: str
    port: int
    api_url: str
    timeline: int | None = None
    lag: int | None = None
    pending_restart: bool = False

    @property
    def is_leader(self) -> bool:
        return self.role in LEADER_ROLES

    @property
    def works(self) -> bool:
        return self.state in WORKING_STATES


@dataclass(frozen=True)
class Cluster:
    """All members that Patroni knows of in one region, as one of them told it."""

    members: tuple[Member, ...] = ()
    paused: bool = False

    @property
    def leader(self) -> Member | None:
        return next((member for member in self.members if member.is_leader), None)

    def member(self, name: str) -> Member | None:
        return next((member for member in self.members if member.name == name), None)


@dataclass
class Patroni:
    """The REST API of one member.

    :param host: its address; it must be in its certificate.
    :param port: its REST API's port.
    :param context: TLS client context with the host's certificate; None means plain HTTP.
    :param username: for the calls that change something.
    :param password: likewise; None sends no credentials.
    :param timeout: seconds for each call.
    """

    host: str
    port: int
    context: ssl.SSLContext | None = None
    username: str = "patroni"
    password: str | None = field(default=None, repr=False)
    timeout: float = 3.0

    def __post_init__(self) -> None:
        headers = {}
        if self.password is not None:
            credentials = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
            headers["Authorization"] = f"Basic {credentials}"
        self._endpoint = JsonEndpoint(self.host, self.port, self.context, self.timeout, headers)

    def cluster(self) -> Cluster:
        """C(GET /cluster): every member of the region, as this one sees it in etcd."""
        return parse_cluster(self._mapping("/cluster"))

    def status(self) -> dict[str, t.Any]:
        """C(GET /patroni): this member alone; it answers whatever its role and health."""
        response = self._endpoint.request("GET", "/patroni")
        if not isinstance(response.body, dict):
            raise self._unexpected("a JSON object from GET /patroni", response.body)
        return response.body

    def is_primary(self) -> bool:
        """C(GET /primary): whether this member holds the lease and takes writes."""
        return self._endpoint.request("GET", "/primary").status == 200

    def is_standby_leader(self) -> bool:
        """C(GET /standby-leader): whether this member leads a standby cluster."""
        return self._endpoint.request("GET", "/standby-leader").status == 200

    def config(self) -> dict[str, t.Any]:
        """C(GET /config): the dynamic configuration of the region."""
        return self._mapping("/config")

    def patch_config(self, changes: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        """C(PATCH /config): change these keys, remove those that are None; returns the whole result."""
        return self._endpoint.expect("PATCH", "/config", dict(changes))

    def wake(self) -> None:
        """Have this member look at the region now rather than at its next turn; nothing is changed.

        Patroni does so after each C(PATCH /config), also after one that removes a key that is not there.
        """
        self._endpoint.expect("PATCH", "/config", {"shannon_wake": None})

    def reload(self) -> None:
        """C(POST /reload): have this member reread its file."""
        self._endpoint.expect("POST", "/reload", {}, statuses=(200, 202))

    def restart(self, timeout: float = 60.0, **conditions: t.Any) -> None:
        """C(POST /restart): restart PostgreSQL on this member and wait for it.

        :param conditions: as Patroni takes them: C(restart_pending), C(role), C(postgres_version), C(timeout).
        """
        self._endpoint.expect("POST", "/restart", conditions, timeout=timeout)

    def switchover(self, leader: str, candidate: str | None = None, timeout: float = 60.0) -> str:
        """C(POST /switchover): hand the lease to another member of the region; returns Patroni's words."""
        body = {"leader": leader}
        if candidate:
            body["candidate"] = candidate
        return str(self._endpoint.expect("POST", "/switchover", body, timeout=timeout))

    def _mapping(self, path: str) -> dict[str, t.Any]:
        body = self._endpoint.expect("GET", path)
        if not isinstance(body, dict):
            raise self._unexpected(f"a JSON object from GET {path}", body)
        return body

    def _unexpected(self, expected: str, body: t.Any) -> EndpointError:
        return EndpointError(
            self.host, self.port, expected, repr(body)[:200], "Is it Patroni's REST API that listens there?"
        )


@dataclass
class Region:
    """A cell's members in one region: whichever answers speaks for all.

    :param cell: name of the cell.
    :param members: member name to its client.
    """

    cell: str
    members: t.Mapping[str, Patroni]

    def any_answer(self, call: t.Callable[[Patroni], t.Any]) -> tuple[Patroni, t.Any]:
        """What the first member in order answers, of all that were asked at once.

        :raises ResilienceError: none answered; the text has each member's error.
        """
        answers = gather({name: (lambda client=client: call(client)) for name, client in self.members.items()})
        for name, answer in answers.items():
            if not isinstance(answer, ResilienceError):
                return self.members[name], answer
        said = "; ".join(str(answer) for answer in answers.values()) or "there are no members"
        raise NoMemberAnswers(
            f"cell {self.cell}: no member of Patroni answers: {said}. "
            f"Look at: systemctl status patroni@{self.cell}, journalctl -u patroni@{self.cell}"
        )

    def cluster(self) -> Cluster:
        """The region's members; of several views the one that knows a leader."""
        answers = gather({name: client.cluster for name, client in self.members.items()})
        views = [answer for answer in answers.values() if isinstance(answer, Cluster)]
        if not views:
            return self.any_answer(Patroni.cluster)[1]
        return next((view for view in views if view.leader), views[0])

    def wait_for(self, role: str, timeout: float, all_members: bool = True) -> Cluster:
        """Wait until the region has the role: a leader of that kind that works, and members that follow it.

        :param role: PRIMARY or STANDBY.
        :param all_members: also wait until every member of this region is there and works.
        :raises WaitTimeout: with what was seen last.
        """
        seen: list[Cluster] = []

        def reached() -> tuple[bool, str]:
            cluster = self.cluster()
            seen[:] = [cluster]
            missing = problems(cluster, role, self.members if all_members else ())
            if not missing and role == PRIMARY and not self._is_primary(cluster):
                missing = ["GET /primary on the leader is not 200 yet"]
            return not missing, "; ".join(missing) or "all is as wanted"

        wait_until(reached, f"the {role} of the cell {self.cell}", timeout)
        return seen[0]

    def _is_primary(self, cluster: Cluster) -> bool:
        leader = cluster.leader
        return leader is not None and leader.name in self.members and self.members[leader.name].is_primary()


class NoMemberAnswers(ResilienceError):
    """No member of the region answers at all."""


def problems(cluster: Cluster, role: str, names: t.Iterable[str]) -> list[str]:
    """What keeps the region from having the role, a few words each; empty when nothing does."""
    leader = cluster.leader
    if leader is None:
        return [f"no leader among {', '.join(f'{m.name} ({m.state})' for m in cluster.members) or 'no members'}"]
    found = []
    wanted = "leader" if role == PRIMARY else "standby_leader"
    if leader.role != wanted:
        found.append(f"{leader.name} is {leader.role}, not {wanted}")
    if not leader.works or (role == STANDBY and leader.state != "streaming"):
        found.append(f"{leader.name} is {leader.state}")
    for name in names:
        member = cluster.member(name)
        if member is None:
            found.append(f"{name} has not joined")
        elif not member.is_leader and member.state != "streaming":
            found.append(f"{name} is {member.state}")
    return found


def parse_cluster(body: t.Mapping[str, t.Any]) -> Cluster:
    """What C(GET /cluster) says, typed."""
    members = []
    for entry in body.get("members", ()):
        lag = entry.get("lag", entry.get("receive_lag"))
        timeline = entry.get("timeline")
        address = urlsplit(entry.get("api_url", ""))
        members.append(
            Member(
                name=str(entry["name"]),
                role=str(entry.get("role", "")),
                state=str(entry.get("state", "unknown")),
                host=str(entry.get("host") or address.hostname or ""),
                port=int(entry.get("port") or 0),
                api_url=str(entry.get("api_url", "")),
                timeline=timeline if isinstance(timeline, int) else None,
                lag=lag if isinstance(lag, int) else None,
                pending_restart=bool(entry.get("pending_restart")),
            )
        )
    return Cluster(tuple(members), bool(body.get("pause")))


def desired_config(
    role: str,
    settings: t.Mapping[str, t.Any],
    upstream_hosts: t.Sequence[str] = (),
    upstream_port: int = 5432,
    slot: str = "",
) -> dict[str, t.Any]:
    """The dynamic configuration that gives a region its role, on top of its settings.

    :raises ResilienceError: a standby without hosts to follow.
    """
    wanted = {key: value for key, value in settings.items() if key != "standby_cluster"}
    if role == PRIMARY:
        wanted["standby_cluster"] = None
        return wanted
    if not upstream_hosts:
        raise ResilienceError("a standby region needs upstream_hosts, the hosts of the cell's home region")
    standby: dict[str, t.Any] = {
        "host": ",".join(upstream_hosts),
        "port": upstream_port,
        "create_replica_methods": ["basebackup"],
        "primary_slot_name": slot or None,
    }
    wanted["standby_cluster"] = standby
    return wanted


def config_changes(current: t.Mapping[str, t.Any], wanted: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The least C(PATCH /config) that makes the wanted keys true; keys that are not mentioned stay as they are.

    A None removes a key. Numbers and their texts are the same, as they are to Patroni.
    """
    changes: dict[str, t.Any] = {}
    for key, value in wanted.items():
        present = current.get(key)
        if value is None:
            if present is not None:
                changes[key] = None
        elif isinstance(value, dict):
            if isinstance(present, dict):
                inner = config_changes(present, value)
                if inner:
                    changes[key] = inner
            else:
                changes[key] = _without_none(value)
        elif not _same(present, value):
            changes[key] = value
    return changes


def _without_none(value: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    return {
        key: _without_none(inner) if isinstance(inner, dict) else inner
        for key, inner in value.items()
        if inner is not None
    }


def _same(present: t.Any, value: t.Any) -> bool:
    if isinstance(present, bool) or isinstance(value, bool) or present is None:
        return present is value
    if isinstance(present, (int, float, str)) and isinstance(value, (int, float, str)):
        return str(present) == str(value)
    return present == value
