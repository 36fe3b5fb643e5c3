"""The client of etcd's JSON gateway, against members that answer, hang, refuse, or have lost their quorum."""

from __future__ import annotations

import threading
import time
import typing as t
from pathlib import Path

import pytest
from fake_etcd import FakeCluster, FakeMember

from ansible_collections.shannon.resilience.plugins.module_utils.errors import EndpointError, ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.etcd import (
    IDLE_CONNECTIONS,
    Endpoint,
    EtcdClient,
    NoQuorumError,
    get_op,
    parse_endpoint,
    put_op,
    when_absent,
    when_mod_revision,
    when_value,
)
from ansible_collections.shannon.resilience.plugins.module_utils.given_up import KEYS, GivenUp

TIMEOUT = 0.5


@pytest.fixture
def cluster() -> t.Iterator[FakeCluster]:
    with FakeCluster(3) as running:
        yield running


@pytest.fixture
def client(cluster: FakeCluster) -> EtcdClient:
    return EtcdClient(cluster.endpoints, timeout=TIMEOUT, name="the registry")


@pytest.mark.parametrize(
    ("value", "host", "port"),
    [
        ("192.0.2.1:2379", "192.0.2.1", 2379),
        ("[2001:db8::1]:2379", "2001:db8::1", 2379),
        ("2001:db8::1:2379", "2001:db8::1", 2379),
        ({"host": "a1", "port": 2379}, "a1", 2379),
        ({"address": "192.0.2.1", "port": "2379"}, "192.0.2.1", 2379),
    ],
)
def test_an_endpoint_is_text_or_a_mapping(value: t.Any, host: str, port: int) -> None:
    assert parse_endpoint(value) == Endpoint(host, port)


@pytest.mark.parametrize("value", ["a1", "a1:", ":2379", "a1:http", "a1:0", "a1:65536", {"host": "a1"}, {}])
def test_what_is_no_endpoint_is_refused_with_an_example(value: t.Any) -> None:
    with pytest.raises(ResilienceError, match="host:port such as"):
        parse_endpoint(value)


def test_an_ipv6_endpoint_is_written_in_brackets() -> None:
    assert str(Endpoint("2001:db8::1", 2379)) == "[2001:db8::1]:2379"


def test_a_client_needs_an_endpoint() -> None:
    with pytest.raises(ResilienceError, match="no endpoint"):
        EtcdClient([])


def test_what_is_put_is_got_and_deleted(client: EtcdClient) -> None:
    revision = client.put("/t/ä", "wört")
    found = client.get("/t/ä")
    assert found is not None
    assert (found.value, found.mod_revision) == ("wört", revision)
    assert client.delete("/t/ä") == 1
    assert client.delete("/t/ä") == 0
    assert client.get("/t/ä") is None


def test_a_range_has_the_prefixs_keys_only_and_in_order(client: EtcdClient) -> None:
    for key in ("/t/b", "/t/a", "/t0", "/t", "/s/z"):
        client.put(key, key)
    assert [found.key for found in client.range("/t/")] == ["/t/a", "/t/b"]


def test_a_transaction_takes_the_branch_that_its_comparisons_choose(client: EtcdClient) -> None:
    first = client.txn([when_absent("k")], [put_op("k", "1")], [get_op("k")])
    assert first.succeeded
    second = client.txn([when_absent("k")], [put_op("k", "2")], [get_op("k")])
    assert not second.succeeded
    assert second.reads[0][0].value == "1"
    assert client.txn([when_mod_revision("k", first.revision), when_value("k", "1")], [put_op("k", "3")]).succeeded


def test_a_lease_is_granted_prolonged_and_ended_twice(client: EtcdClient) -> None:
    lease = client.lease_grant(7)
    assert lease.ttl == 7
    client.put("k", "v", lease.id)
    assert client.lease_keepalive(lease.id) == 7
    client.lease_revoke(lease.id)
    client.lease_revoke(lease.id)
    assert client.lease_keepalive(lease.id) == 0
    assert client.get("k") is None


def test_members_statuses_and_health(cluster: FakeCluster, client: EtcdClient) -> None:
    assert [member.name for member in client.members()] == ["m0", "m1", "m2"]
    cluster.members[2].mode = "refuse"
    statuses = client.statuses()
    leaders = [str(item) for item, status in statuses.items() if not isinstance(status, Exception) and status.is_leader]
    assert leaders == [cluster.endpoints[0]]
    assert isinstance(statuses[parse_endpoint(cluster.endpoints[2])], EndpointError)
    assert [bool(error) for error in client.health().values()] == [False, False, True]


def test_the_member_that_answered_last_is_asked_first(cluster: FakeCluster, client: EtcdClient) -> None:
    client.get("k")
    # The first question goes on probing who was too slow to be of use.
    for thread in threading.enumerate():
        if thread.name.startswith("probe-"):
            thread.join(5.0)
    before = [member.requests for member in cluster.members]
    client.get("k")
    after = [member.requests for member in cluster.members]
    assert sum(after) - sum(before) == 1


@pytest.mark.parametrize("mode", ["hang", "refuse", "no leader", "unavailable"])
def test_one_member_in_trouble_costs_one_timeout_at_most(cluster: FakeCluster, client: EtcdClient, mode: str) -> None:
    client.put("k", "v")
    for member in cluster.members:
        if str(client._good) == member.endpoint:
            member.mode = mode
    for limit in (TIMEOUT + 0.4, 0.4):  # found out once, avoided from then on
        started = time.monotonic()
        found = client.get("k")
        assert time.monotonic() - started < limit
        assert found is not None


def test_a_new_client_does_not_wait_for_members_that_hang(cluster: FakeCluster, client: EtcdClient) -> None:
    cluster.members[0].mode = cluster.members[1].mode = "hang"
    started = time.monotonic()
    client.put("k", "v")
    assert time.monotonic() - started < TIMEOUT


def test_without_a_quorum_the_error_names_each_member_and_what_it_said(
    cluster: FakeCluster, client: EtcdClient
) -> None:
    client.put("k", "v")
    for member, mode in zip(cluster.members, ("hang", "refuse", "no leader"), strict=True):
        member.mode = mode
    started = time.monotonic()
    with pytest.raises(NoQuorumError) as caught:
        client.get("k")
    assert time.monotonic() - started < 2 * TIMEOUT + 0.3
    said = [caught.value.members[endpoint] for endpoint in cluster.endpoints]
    assert "no answer in time" in said[0]
    assert "RemoteDisconnected" in said[1]
    # What it says of itself, or, when it was the one asked first, what it answered.
    assert said[2] in ("it runs but knows no leader", "HTTP 503: 'etcdserver: request timed out'")
    assert str(caught.value).startswith("the registry has no quorum")


def test_etcd_3_3_is_asked_under_its_own_prefix() -> None:
    with FakeCluster(1, prefix="/v3beta") as old:
        client = EtcdClient(old.endpoints, timeout=TIMEOUT)
        client.put("k", "v")
        asked = old.members[0].requests
        client.get("k")
        assert old.members[0].requests == asked + 1


def test_a_server_without_the_gateway_is_told_apart_from_a_dead_one() -> None:
    with FakeCluster(1, prefix="/elsewhere") as other, pytest.raises(NoQuorumError, match="HTTP 404"):
        EtcdClient(other.endpoints, timeout=TIMEOUT).get("k")


def test_a_full_store_is_an_error_with_a_remedy(cluster: FakeCluster, client: EtcdClient) -> None:
    for member in cluster.members:
        member.mode = "full"
    with pytest.raises(EndpointError, match=r"database space exceeded.*defrag"):
        client.put("k", "v")


def asked(cluster: FakeCluster, client: EtcdClient) -> FakeMember:
    """The member that is asked first."""
    return next(member for member in cluster.members if member.endpoint == str(client._good))


def test_a_connection_is_kept_for_the_next_question(cluster: FakeCluster, client: EtcdClient) -> None:
    client.get("k")
    client.get("k")
    member = asked(cluster, client)
    before = member.connections
    for number in range(5):
        client.put("k", str(number))
    assert member.connections == before


def test_a_connection_that_was_closed_meanwhile_is_replaced(cluster: FakeCluster, client: EtcdClient) -> None:
    client.put("k", "v")
    client.get("k")
    member = asked(cluster, client)
    member.mode = "mute"
    assert client.txn([when_value("k", "v")], [put_op("k", "w")]).succeeded is False, "it was done, and asked again"
    assert asked(cluster, client) is member
    found = client.get("k")
    assert found and found.value == "w"


def test_a_kept_connection_that_is_silent_costs_one_timeout(cluster: FakeCluster, client: EtcdClient) -> None:
    client.put("k", "v")
    client.get("k")
    asked(cluster, client).mode = "hang"
    started = time.monotonic()
    assert client.get("k")
    assert time.monotonic() - started < TIMEOUT + 0.4


def test_many_may_ask_at_once(cluster: FakeCluster, client: EtcdClient) -> None:
    client.get("k")
    threads = [threading.Thread(target=client.put, args=(f"/t/{number}", "v")) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(client.range("/t/")) == 20
    assert all(len(idle) <= IDLE_CONNECTIONS for idle in client._idle.values())


class Watching(threading.Thread):
    """A watch in the background, that began before this is made."""

    def __init__(self, client: EtcdClient, prefixes: list[str], seconds: float = 2.0) -> None:
        super().__init__(daemon=True)
        self.seen: bool | ResilienceError | None = None
        self._watch = lambda: client.watch(prefixes, seconds)
        self.start()
        time.sleep(0.1)

    def run(self) -> None:
        try:
            self.seen = self._watch()
        except ResilienceError as exc:
            self.seen = exc

    def result(self) -> bool | ResilienceError | None:
        """What it gave, at once: nobody waits here for its time to be up."""
        self.join(0.5)
        return self.seen


@pytest.mark.parametrize("key", ["/t/cells/main", "/t/leases/main"])
def test_a_watch_sees_a_change_below_any_of_its_prefixes(cluster: FakeCluster, client: EtcdClient, key: str) -> None:
    watching = Watching(client, ["/t/cells/", "/t/leases/"])
    EtcdClient(cluster.endpoints).put(key, "v")
    assert watching.result() is True


def test_a_watch_sees_that_a_key_is_gone(cluster: FakeCluster, client: EtcdClient) -> None:
    client.put("/t/cells/main", "v")
    watching = Watching(client, ["/t/cells/"])
    EtcdClient(cluster.endpoints).delete("/t/cells/main")
    assert watching.result() is True


def test_a_watch_of_what_does_not_change_ends_in_time(cluster: FakeCluster, client: EtcdClient) -> None:
    client.put("/t/cells/main", "before")
    started = time.monotonic()
    watching = Watching(client, ["/t/cells/"], 0.3)
    EtcdClient(cluster.endpoints).put("/t/other", "v")
    assert watching.result() is False
    assert 0.3 <= time.monotonic() - started < 0.3 + TIMEOUT


def test_a_watch_that_is_closed_is_an_error_and_the_next_one_works(cluster: FakeCluster, client: EtcdClient) -> None:
    watching = Watching(client, ["/t/"])
    (member,) = [one for one in cluster.members if one.endpoint == str(client._good)]
    member.mode = "cut"
    assert isinstance(watching.result(), EndpointError)
    member.mode = ""
    again = Watching(client, ["/t/"])
    EtcdClient(cluster.endpoints).put("/t/k", "v")
    assert again.result() is True


def test_a_watch_of_a_member_that_died_is_an_error(cluster: FakeCluster, client: EtcdClient) -> None:
    client.get("k")
    (member,) = [one for one in cluster.members if one.endpoint == str(client._good)]
    member.mode = "refuse"
    with pytest.raises(EndpointError, match="a watch"):
        client.watch(["/t/"], 1.0)
    assert client.watch(["/t/"], 0.05) is False, "another member is asked then"


def test_without_a_quorum_nothing_is_watched(cluster: FakeCluster, client: EtcdClient) -> None:
    for member in cluster.members:
        member.mode = "no leader"
    with pytest.raises(NoQuorumError):
        client.watch(["/t/"], 1.0)


def test_a_watch_that_etcd_cancels_is_an_error(
    cluster: FakeCluster, client: EtcdClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for member in cluster.members:
        monkeypatch.setattr(member, "watch", lambda _wanted: iter([{"result": {"canceled": True}}]))
    with pytest.raises(EndpointError, match="cancelled"):
        client.watch(["/t/"], 1.0)


def test_a_cluster_that_was_given_up_is_not_believed(tmp_path: Path) -> None:
    """Members of an old and of a rebuilt registry answer side by side; only the new one's word counts."""
    with FakeCluster(2) as old, FakeCluster(1) as new:
        old.id, new.id = "66", "77"
        EtcdClient(old.endpoints).put("k", "old")
        EtcdClient(new.endpoints).put("k", "new")
        EtcdClient(new.endpoints).put(KEYS + "66", "{}")
        both = EtcdClient([*old.endpoints, *new.endpoints], given_up=GivenUp((), tmp_path / "learned"))
        assert both.learn_given_up() == ["66"]
        for _each in range(3):
            found = both.get("k")
            assert found is not None and found.value == "new"
        assert both.learn_given_up() == []
        believer = EtcdClient(old.endpoints, given_up=GivenUp((tmp_path / "learned",)))
        with pytest.raises(NoQuorumError, match="given up"):
            believer.get("k")
        assert EtcdClient(old.endpoints, given_up=GivenUp(())).get("k") is not None
