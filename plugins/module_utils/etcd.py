# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client of etcd's v3 JSON gateway (etcd 3.3 to 3.5) that survives dead members at the cost of one timeout.

Reads are linearizable: without a quorum there is no answer, never an old one.
"""

from __future__ import annotations

import base64
import http.client
import json
import queue
import ssl
import threading
import time
import typing as t
from dataclasses import dataclass

from .concurrently import gather
from .errors import EndpointError, ResilienceError
from .given_up import KEYS, GivenUp
from .http_client import JsonEndpoint, Response, describe

#: The gateway's prefixes, newest first: etcd 3.4 and later, then 3.3 (Ubuntu 22.04).
PREFIXES = ("/v3", "/v3beta")
#: gRPC status codes that another member may well not give: deadline exceeded, aborted, internal, unavailable.
_TRY_ANOTHER = frozenset({4, 10, 13, 14})
_RESOURCE_EXHAUSTED = 8
#: Connections to one member that are kept open while nobody uses them.
IDLE_CONNECTIONS = 4

Body = dict[str, t.Any]
R = t.TypeVar("R")


class NoQuorumError(ResilienceError):
    """No member could answer for the cluster.

    :ivar cluster: what the cluster is called in messages.
    :ivar members: C(host:port) of each member to what it said.
    """

    def __init__(self, cluster: str, members: t.Mapping[str, str]) -> None:
        self.cluster = cluster
        self.members = dict(members)
        said = "; ".join(f"{name}: {what}" for name, what in self.members.items())
        super().__init__(
            f"{cluster} has no quorum, or none of its members can be reached from here: nothing was answered. "
            f"Its members said: {said}. More than half of them must run and reach each other "
            "(on each: systemctl status 'etcd@*'; journalctl -u 'etcd@*')"
        )


@dataclass(frozen=True)
class Endpoint:
    """Where a member listens for clients."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class KeyValue:
    """A key as etcd holds it; C(mod_revision) is what a compare-and-swap compares."""

    key: str
    value: str
    mod_revision: int
    create_revision: int
    version: int
    lease: int


@dataclass(frozen=True)
class TxnResult:
    """What a transaction did.

    :ivar succeeded: whether all comparisons held.
    :ivar revision: the store's revision after it.
    :ivar reads: for each operation that ran, the keys that it read (empty for a put or a delete).
    """

    succeeded: bool
    revision: int
    reads: list[list[KeyValue]]


@dataclass(frozen=True)
class Lease:
    """A lease and the seconds it lives without a keepalive."""

    id: int
    ttl: int


@dataclass(frozen=True)
class Member:
    """A member as the cluster knows it; the name is empty until the member has started once."""

    id: int
    name: str
    client_urls: tuple[str, ...]
    peer_urls: tuple[str, ...]
    learner: bool = False


@dataclass(frozen=True)
class MemberStatus:
    """What one member says of itself; C(leader_id) is 0 when it knows no leader."""

    member_id: int
    leader_id: int
    version: str
    db_size: int
    raft_term: int
    raft_index: int
    errors: tuple[str, ...]
    cluster_id: str = ""

    @property
    def is_leader(self) -> bool:
        return self.leader_id != 0 and self.leader_id == self.member_id


def parse_endpoint(value: str | t.Mapping[str, t.Any]) -> Endpoint:
    """An endpoint from C(host:port) (an IPv6 address may be in brackets) or from a mapping with C(host), C(port).

    :raises ResilienceError: it is neither.
    """
    if isinstance(value, t.Mapping):
        host, port = str(value.get("host") or value.get("address") or ""), str(value.get("port", ""))
    else:
        host, _colon, port = str(value).rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ResilienceError(
            f"{value!r} is no endpoint: expected host:port such as 192.0.2.1:2379, or a mapping with host and port"
        )
    return Endpoint(host, int(port))


def when_mod_revision(key: str, revision: int) -> Body:
    """Comparison for a transaction: the key was last changed at this revision; 0 means that it does not exist."""
    return {"key": _encode(key), "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}


def when_absent(key: str) -> Body:
    """Comparison for a transaction: the key does not exist."""
    return when_mod_revision(key, 0)


def when_value(key: str, value: str) -> Body:
    """Comparison for a transaction: the key has this value."""
    return {"key": _encode(key), "target": "VALUE", "result": "EQUAL", "value": _encode(value)}


def put_op(key: str, value: str, lease: int = 0) -> Body:
    """Operation for a transaction: write a key, bound to a lease or for good."""
    return {"request_put": _put(key, value, lease)}


def get_op(key: str) -> Body:
    """Operation for a transaction: read a key."""
    return {"request_range": {"key": _encode(key)}}


def range_op(prefix: str) -> Body:
    """Operation for a transaction: read all keys with a prefix, in order."""
    return {"request_range": _prefixed(prefix)}


def delete_op(key: str) -> Body:
    """Operation for a transaction: delete a key."""
    return {"request_delete_range": {"key": _encode(key)}}


class EtcdClient:
    """One etcd cluster, through whichever member answers.

    The member that answered last is asked first. When it fails, all others are probed at once and the first that knows
    a leader is asked, so however many members are dead, a call ends within twice the timeout. A client may be shared
    by threads.

    :param endpoints: the members.
    :param context: TLS client context with the host's certificate; None means plain HTTP.
    :param timeout: seconds that one member may take to answer.
    :param name: what the cluster is called in messages.
    :param given_up: clusters whose members are not believed, wherever they answer.
    """

    def __init__(
        self,
        endpoints: t.Sequence[str | t.Mapping[str, t.Any] | Endpoint],
        context: ssl.SSLContext | None = None,
        timeout: float = 2.0,
        name: str = "etcd",
        given_up: GivenUp | None = None,
    ) -> None:
        self.endpoints = [item if isinstance(item, Endpoint) else parse_endpoint(item) for item in endpoints]
        if not self.endpoints:
            raise ResilienceError(f"no endpoint of {name} was given: name at least one member as host:port")
        self.context = context
        self.timeout = timeout
        self.name = name
        self.given_up = given_up
        self._good: Endpoint | None = None
        self._lock = threading.Lock()
        self._idle: dict[Endpoint, list[http.client.HTTPConnection]] = {}
        self._prefixes: dict[Endpoint, str] = {}

    # -- keys ----------------------------------------------------------------------------------------------------

    def get(self, key: str) -> KeyValue | None:
        """A key as the quorum knows it now; None when it does not exist."""
        found = _key_values(self._call("/kv/range", {"key": _encode(key)}))
        return found[0] if found else None

    def range(self, prefix: str) -> list[KeyValue]:
        """All keys that start with the prefix, in the order of keys."""
        return _key_values(self._call("/kv/range", _prefixed(prefix)))

    def put(self, key: str, value: str, lease: int = 0) -> int:
        """Write a key whatever it was; returns the store's new revision.

        Writing the same again is harmless, so a member that does not answer is followed by the next. Where another
        writer may be at work, use :meth:`txn` with a comparison.
        """
        return _revision(self._call("/kv/put", _put(key, value, lease)))

    def delete(self, key: str) -> int:
        """Delete a key; returns how many were deleted: 0 or 1."""
        return int(self._call("/kv/deleterange", {"key": _encode(key)}).get("deleted", 0))

    def txn(self, compare: t.Sequence[Body], success: t.Sequence[Body], failure: t.Sequence[Body] = ()) -> TxnResult:
        """Run C(success) when all comparisons hold, else C(failure), as one step.

        When a member does not answer, the next is asked. The first may have done it nevertheless, so a transaction
        must compare something that it changes, and whoever loses the comparison must look whether it lost to itself.
        """
        body = {"compare": list(compare), "success": list(success), "failure": list(failure)}
        answer = self._call("/kv/txn", body)
        reads = [_key_values(response.get("response_range") or {}) for response in answer.get("responses") or []]
        return TxnResult(bool(answer.get("succeeded", False)), _revision(answer), reads)

    # -- leases --------------------------------------------------------------------------------------------------

    def lease_grant(self, ttl: int) -> Lease:
        """A new lease of this many seconds (etcd may give more)."""
        answer = self._call("/lease/grant", {"TTL": str(ttl), "ID": "0"})
        return Lease(int(answer["ID"]), int(answer["TTL"]))

    def lease_keepalive(self, lease: int) -> int:
        """Prolong a lease; returns the seconds it has now, 0 when it is gone and with it all of its keys."""
        answer = self._call("/lease/keepalive", {"ID": str(lease)})
        return int((answer.get("result") or {}).get("TTL", 0))

    def lease_revoke(self, lease: int) -> None:
        """End a lease and delete its keys; fine when it has ended already."""
        path = "/kv/lease/revoke"  # the one path that 3.3, 3.4 and 3.5 share
        self._call(path, {"ID": str(lease)}, tolerated=("lease not found",))

    # -- watching ------------------------------------------------------------------------------------------------

    def watch(self, prefixes: t.Sequence[str], seconds: float) -> bool:
        """Wait until a key below one of the prefixes changes, or the time is up.

        What changed before the watch was set up is not seen, so look once more after a first watch, or at times anyway.

        :returns: whether something changed.
        :raises ResilienceError: no member can watch, or the one that did is gone.
        """
        if self._good is None:
            self.range(prefixes[0])
        member = self._good
        if member is None:
            raise NoQuorumError(self.name, {})
        deadline = time.monotonic() + seconds
        connection = self._json(member, self.timeout).connection()
        path = (self._prefixes.get(member) or PREFIXES[0]) + "/watch"
        asked = "".join(json.dumps({"create_request": _prefixed(prefix)}) + "\n" for prefix in prefixes)
        try:
            connection.request("POST", path, body=asked.encode(), headers={"Content-Type": "application/json"})
            answer = connection.getresponse()
            while (left := deadline - time.monotonic()) > 0:
                if connection.sock is not None:
                    connection.sock.settimeout(left)
                line = answer.readline()
                if not line:
                    raise ConnectionError("the watch was closed")
                result = json.loads(line).get("result") or {}
                self._believe(member, {"result": result})
                if result.get("events"):
                    return True
                if result.get("canceled"):
                    raise ConnectionError("the watch was cancelled")
            return False
        except (OSError, http.client.HTTPException, ValueError) as exc:
            if time.monotonic() >= deadline:
                return False
            self._good = None
            raise EndpointError(member.host, member.port, "a watch", describe(exc)) from exc
        finally:
            connection.close()

    # -- the cluster ---------------------------------------------------------------------------------------------

    def members(self) -> list[Member]:
        """The members that the cluster has, running or not."""
        answer = self._call("/cluster/member/list", {})
        return [_member(member) for member in answer.get("members") or []]

    def member_add(self, peer_urls: t.Sequence[str], learner: bool = False) -> Member:
        """Make the cluster expect a further member; one that only learns counts for no quorum (etcd 3.4 and later)."""
        body: Body = {"peerURLs": list(peer_urls)}
        if learner:
            body["isLearner"] = True
        return _member(self._call("/cluster/member/add", body).get("member") or {})

    def member_remove(self, member: int) -> None:
        """Take a member out of the cluster for good; fine when it is out already."""
        self._call("/cluster/member/remove", {"ID": str(member)}, tolerated=("member not found",))

    def member_promote(self, member: int) -> None:
        """Let a learner vote.

        :raises EndpointError: it has not caught up yet.
        """
        self._call("/cluster/member/promote", {"ID": str(member)})

    def learn_given_up(self) -> list[str]:
        """Ask each member by itself which clusters were given up: a rebuilt registry says so, whoever else answers.

        :returns: cluster ids that were not known.
        :raises ResilienceError: they can't be kept; this client refuses them nevertheless.
        """
        if self.given_up is None:
            return []
        body = _prefixed(KEYS)
        answers = gather(
            {item: lambda item=item: self._ask(item, "/kv/range", body, self.timeout) for item in self.endpoints}  # type: ignore[misc]
        )
        told = [it for it in answers.values() if isinstance(it, dict)]
        found = [item.key.removeprefix(KEYS) for it in told for item in _key_values(it)]
        try:
            return self.given_up.learn(found)
        except OSError as exc:
            raise ResilienceError(f"which registries were given up can't be kept: {exc}") from exc

    def status(self, endpoint: Endpoint) -> MemberStatus:
        """What one member says of itself; it says so without a quorum too.

        :raises EndpointError: it does not answer.
        """
        return _status(self._ask(endpoint, "/maintenance/status", {}, self.timeout))

    def statuses(self) -> dict[Endpoint, MemberStatus | ResilienceError]:
        """Every member's status or error, asked all at once."""
        return gather({item: lambda item=item: self.status(item) for item in self.endpoints})  # type: ignore[misc]

    def health(self) -> dict[Endpoint, str]:
        """For every member, asked all at once, why it is not healthy; an empty string when it is.

        A member is healthy when it can read through the quorum.
        """
        found = gather({item: lambda item=item: self._health(item) for item in self.endpoints})  # type: ignore[misc]
        return {item: str(answer) for item, answer in found.items()}

    # -- how a call finds its member -----------------------------------------------------------------------------

    def _health(self, endpoint: Endpoint) -> str:
        response = self._json(endpoint, self.timeout).request("GET", "/health")
        body = response.body if isinstance(response.body, dict) else {}
        if str(body.get("health", "")).lower() == "true":
            return ""
        reason = body.get("reason") or body.get("message") or "it can't read through a quorum"
        return f"{endpoint}: not healthy (HTTP {response.status}): {reason}"

    def _call(self, path: str, body: Body, tolerated: t.Sequence[str] = ()) -> Body:
        """The answer of the first member that can give one for the whole cluster.

        :raises NoQuorumError: none can.
        :raises EndpointError: a member refused the request itself.
        """
        deadline = time.monotonic() + 2 * self.timeout
        said: dict[Endpoint, str] = {}
        good = self._good
        if good is not None:
            try:
                return self._ask(good, path, body, self.timeout, tolerated)
            except _Unavailable as exc:
                said[good] = exc.seen
                self._good = None
        others = [item for item in self.endpoints if item not in said]
        for endpoint, status in self._probe(others, deadline):
            if isinstance(status, EndpointError):
                said[endpoint] = status.seen
            elif not status.leader_id:
                said[endpoint] = "it runs but knows no leader"
            elif (left := deadline - time.monotonic()) <= 0:
                said[endpoint] = "no time was left to ask it"
            else:
                try:
                    answer = self._ask(endpoint, path, body, min(left, self.timeout), tolerated)
                except _Unavailable as exc:
                    said[endpoint] = f"it runs and knows a leader, but asked for {path} it gave {exc.seen}"
                else:
                    self._good = endpoint
                    return answer
        raise NoQuorumError(self.name, {str(item): said.get(item, "no answer in time") for item in self.endpoints})

    def _probe(
        self, endpoints: t.Sequence[Endpoint], deadline: float
    ) -> t.Iterator[tuple[Endpoint, MemberStatus | EndpointError]]:
        """Statuses and errors as they come in; who is slow is not waited for when another will do."""
        answers: queue.SimpleQueue[tuple[Endpoint, MemberStatus | EndpointError]] = queue.SimpleQueue()

        def probe(endpoint: Endpoint) -> None:
            try:
                answers.put((endpoint, self.status(endpoint)))
            except EndpointError as exc:
                answers.put((endpoint, exc))
            except Exception as exc:
                answers.put((endpoint, EndpointError(endpoint.host, endpoint.port, "a status", repr(exc))))

        for endpoint in endpoints:
            threading.Thread(target=probe, args=(endpoint,), daemon=True, name=f"probe-{endpoint}").start()
        for _each in endpoints:
            try:
                yield answers.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return

    def _json(self, endpoint: Endpoint, timeout: float) -> JsonEndpoint:
        return JsonEndpoint(endpoint.host, endpoint.port, self.context, timeout)

    def _post(self, endpoint: Endpoint, path: str, body: Body, timeout: float) -> Response:
        """One request, over a connection that was kept open: a handshake costs more than most questions.

        A member may have closed it meanwhile; then a fresh one is tried, once. That may do a thing twice, as asking
        another member may, and what is changed here bears it.
        """
        asker = self._json(endpoint, timeout)
        with self._lock:
            idle = self._idle.setdefault(endpoint, [])
            kept = idle.pop() if idle else None
        if kept is not None and kept.sock is not None:
            kept.sock.settimeout(timeout)
            began = time.monotonic()
            try:
                return self._keep(endpoint, kept, asker.request("POST", path, body, kept=kept))
            except EndpointError:
                if time.monotonic() - began > timeout / 2:
                    raise  # it is not closed, it is silent
        fresh = asker.connection()
        return self._keep(endpoint, fresh, asker.request("POST", path, body, kept=fresh))

    def _keep(self, endpoint: Endpoint, connection: http.client.HTTPConnection, response: Response) -> Response:
        with self._lock:
            idle = self._idle[endpoint]
            if connection.sock is not None and len(idle) < IDLE_CONNECTIONS:
                idle.append(connection)
                return response
        connection.close()
        return response

    def _ask(self, endpoint: Endpoint, path: str, body: Body, timeout: float, tolerated: t.Sequence[str] = ()) -> Body:
        """One request to one member, under the prefix that its version knows.

        :raises _Unavailable: it can't answer now, another member may.
        :raises EndpointError: it refused the request.
        """
        known = self._prefixes.get(endpoint)
        for prefix in (known,) if known else PREFIXES:
            try:
                response = self._post(endpoint, prefix + path, body, timeout)
            except EndpointError as exc:
                raise _Unavailable(endpoint, exc.expected, exc.seen) from exc
            if response.status == 404 and not _error(response.body)[1]:
                continue
            if response.status == 200 and isinstance(response.body, dict) and "error" not in response.body:
                self._believe(endpoint, response.body)
                self._prefixes[endpoint] = prefix
                return response.body
            code, message = _error(response.body)
            if any(words in message for words in tolerated):
                return {}
            seen = f"HTTP {response.status}: {message or response.body!r}"
            if code in _TRY_ANOTHER or (response.status >= 500 and code != _RESOURCE_EXHAUSTED):
                raise _Unavailable(endpoint, f"an answer to {path}", seen)
            remedy = ""
            if code == _RESOURCE_EXHAUSTED:
                remedy = (
                    "The store is full: defragment every member (etcdctl defrag), then etcdctl alarm disarm, "
                    "or raise etcd_quota_backend_bytes."
                )
            raise EndpointError(endpoint.host, endpoint.port, f"an answer to {path}", seen, remedy)
        self._prefixes.pop(endpoint, None)
        raise _Unavailable(endpoint, f"etcd's JSON gateway at {' or '.join(PREFIXES)}", "HTTP 404")

    def _believe(self, endpoint: Endpoint, answer: Body) -> None:
        """Refuse what a member of a cluster says that was given up.

        :raises _Unavailable: it is one.
        """
        if self.given_up is None:
            return
        cluster = _cluster_id(answer)
        if cluster and cluster in self.given_up.ids():
            self._good = None
            raise _Unavailable(
                endpoint,
                f"a member of {self.name}",
                f"one of a registry that was given up (cluster id {cluster})",
                "Add it again with playbooks/registry_member.yml -e member=NAME.",
            )


class _Unavailable(EndpointError):
    """This member can't answer now; another one may."""

    def __init__(
        self,
        endpoint: Endpoint,
        expected: str,
        seen: str,
        remedy: str = "Is etcd running there? Look at its journal.",
    ) -> None:
        super().__init__(endpoint.host, endpoint.port, expected, seen, remedy)


def _encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _decode(text: str) -> str:
    return base64.b64decode(text).decode(errors="replace")


def _put(key: str, value: str, lease: int) -> Body:
    return {"key": _encode(key), "value": _encode(value), "lease": str(lease)}


def _prefixed(prefix: str) -> Body:
    """A range over all keys with a prefix: up to the first key that is greater than all of them."""
    raw = prefix.encode()
    end = raw[:-1] + bytes([raw[-1] + 1])  # UTF-8 never has the byte 255
    return {"key": _encode(prefix), "range_end": base64.b64encode(end).decode()}


def _key_values(answer: Body) -> list[KeyValue]:
    # The gateway leaves out what is zero or empty, and writes 64-bit integers as strings.
    return [
        KeyValue(
            key=_decode(item["key"]),
            value=_decode(item.get("value", "")),
            mod_revision=int(item.get("mod_revision", 0)),
            create_revision=int(item.get("create_revision", 0)),
            version=int(item.get("version", 0)),
            lease=int(item.get("lease", 0)),
        )
        for item in answer.get("kvs") or []
    ]


def _revision(answer: Body) -> int:
    return int((answer.get("header") or {}).get("revision", 0))


def _cluster_id(answer: Body) -> str:
    header = answer.get("header") or (answer.get("result") or {}).get("header") or {}
    return str(header.get("cluster_id", ""))


def _member(found: Body) -> Member:
    return Member(
        int(found.get("ID", 0)),
        found.get("name", ""),
        tuple(found.get("clientURLs") or ()),
        tuple(found.get("peerURLs") or ()),
        bool(found.get("isLearner", False)),
    )


def _status(answer: Body) -> MemberStatus:
    header = answer.get("header") or {}
    return MemberStatus(
        member_id=int(header.get("member_id", 0)),
        leader_id=int(answer.get("leader", 0)),
        version=str(answer.get("version", "")),
        db_size=int(answer.get("dbSize", 0)),
        raft_term=int(answer.get("raftTerm", 0)),
        raft_index=int(answer.get("raftIndex", 0)),
        errors=tuple(answer.get("errors") or ()),
        cluster_id=_cluster_id(answer),
    )


def _error(body: t.Any) -> tuple[int, str]:
    """Code and message of a gateway's error; (0, "") when the body is none."""
    if not isinstance(body, dict):
        return 0, ""
    inner = body.get("error")
    if isinstance(inner, dict):  # a stream's error, as lease/keepalive gives it
        return int(inner.get("grpc_code") or inner.get("code") or 0), str(inner.get("message", ""))
    return int(body.get("code", 0)), str(inner or body.get("message") or "")
