# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Patroni's REST client, and the decisions of patroni_cluster, against a small REST API of our own."""

from __future__ import annotations

import base64
import json
import threading
import typing as t
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ansible_collections.shannon.resilience.plugins.module_utils.errors import (
    EndpointError,
    ResilienceError,
    WaitTimeout,
)
from ansible_collections.shannon.resilience.plugins.module_utils.patroni import (
    PRIMARY,
    STANDBY,
    NoMemberAnswers,
    Patroni,
    Region,
    config_changes,
    desired_config,
    parse_cluster,
    problems,
)

CREDENTIALS = "Basic " + base64.b64encode(b"patroni:secret").decode()


def member(name: str, role: str = "replica", state: str = "streaming", **more: t.Any) -> dict[str, t.Any]:
    return {
        "name": name, "role": role, "state": state, "host": "198.18.0.1", "port": 5432, "timeline": 1,
        "api_url": "https://198.18.0.1:8008/patroni", **more,
    }  # fmt: skip


class FakePatroni:
    """A member that answers as Patroni does, with what the test put into it."""

    def __init__(self) -> None:
        self.config: dict[str, t.Any] | None = {"ttl": 30}
        self.members = [member("a1", "leader", "running"), member("a2", "quorum_standby", lag=0)]
        self.primary = True
        self.posted: list[tuple[str, t.Any]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self, status: int, body: t.Any = None) -> None:
                raw = b"" if body is None else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def body(self) -> t.Any:
                return json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"null")

            def do_GET(self) -> None:
                if self.path == "/cluster":
                    self.answer(200, {"members": fake.members, "scope": "main"})
                elif self.path == "/config":
                    self.answer(200, fake.config) if fake.config is not None else self.answer(502)
                elif self.path == "/primary":
                    self.answer(200 if fake.primary else 503, {})
                elif self.path == "/patroni":
                    self.answer(503, {"state": "starting"})
                else:
                    self.answer(404)

            def do_PATCH(self) -> None:
                if self.headers.get("Authorization") != CREDENTIALS:
                    self.answer(401)
                    return
                fake.config = {**(fake.config or {}), **self.body()}
                self.answer(200, fake.config)

            def do_POST(self) -> None:
                fake.posted.append((self.path, self.body()))
                self.answer(202 if self.path == "/reload" else 200, "done")

            def log_message(self, *_args: t.Any) -> None:
                """Keep the test's output clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def client(self, password: str | None = "secret") -> Patroni:
        return Patroni("127.0.0.1", self.server.server_address[1], password=password, timeout=2)


@pytest.fixture
def fake() -> t.Iterator[FakePatroni]:
    patroni = FakePatroni()
    yield patroni
    patroni.server.shutdown()
    patroni.server.server_close()


def test_a_cluster_is_typed(fake: FakePatroni) -> None:
    cluster = fake.client().cluster()
    assert cluster.leader is not None
    assert (cluster.leader.name, cluster.leader.timeline, cluster.leader.lag) == ("a1", 1, None)
    assert cluster.member("a2").lag == 0  # type: ignore[union-attr]


def test_an_unknown_lag_and_timeline_are_none() -> None:
    cluster = parse_cluster({"members": [member("a1", lag="unknown", timeline="unknown")]})
    assert (cluster.members[0].lag, cluster.members[0].timeline) == (None, None)


def test_status_is_read_whatever_the_code(fake: FakePatroni) -> None:
    assert fake.client().status() == {"state": "starting"}


def test_a_change_needs_the_password(fake: FakePatroni) -> None:
    with pytest.raises(EndpointError, match="HTTP 401"):
        fake.client(password="wrong").patch_config({"ttl": 20})
    assert fake.client().patch_config({"ttl": 20})["ttl"] == 20


def test_the_password_is_not_shown() -> None:
    assert "secret" not in repr(Patroni("h", 1, password="secret"))


def test_verbs(fake: FakePatroni) -> None:
    client = fake.client()
    client.reload()
    client.restart(restart_pending=True)
    client.switchover("a1", "a2")
    assert fake.posted == [
        ("/reload", {}),
        ("/restart", {"restart_pending": True}),
        ("/switchover", {"leader": "a1", "candidate": "a2"}),
    ]


def test_any_member_speaks_for_the_region(fake: FakePatroni) -> None:
    region = Region("main", {"a1": Patroni("127.0.0.1", 1, timeout=1), "a2": fake.client()})
    assert region.any_answer(Patroni.config)[1] == {"ttl": 30}


def test_when_nobody_answers_the_error_says_where_to_look() -> None:
    region = Region("main", {"a1": Patroni("127.0.0.1", 1, timeout=1)})
    with pytest.raises(NoMemberAnswers, match=r"127\.0\.0\.1:1.*journalctl -u patroni@main"):
        region.cluster()


def test_waiting_for_a_role_that_is_there(fake: FakePatroni) -> None:
    region = Region("main", {"a1": fake.client(), "a2": fake.client()})
    assert region.wait_for(PRIMARY, 1).leader.name == "a1"  # type: ignore[union-attr]


def test_waiting_for_a_role_that_does_not_come(fake: FakePatroni) -> None:
    with pytest.raises(WaitTimeout, match="a1 is leader, not standby_leader"):
        Region("main", {"a1": fake.client()}).wait_for(STANDBY, 0)


def test_a_leader_that_takes_no_writes_yet_is_not_enough(fake: FakePatroni) -> None:
    fake.primary = False
    with pytest.raises(WaitTimeout, match="GET /primary"):
        Region("main", {"a1": fake.client(), "a2": fake.client()}).wait_for(PRIMARY, 0)


@pytest.mark.parametrize(
    ("members", "role", "expected"),
    [
        ([member("a1", "leader", "running"), member("a2")], PRIMARY, []),
        ([member("a1", "leader", "running")], PRIMARY, ["a2 has not joined"]),
        (
            [member("a1", "leader", "running"), member("a2", state="creating replica")],
            PRIMARY,
            ["a2 is creating replica"],
        ),
        ([member("a1", "standby_leader"), member("a2")], STANDBY, []),
        ([member("a1", "standby_leader", "running"), member("a2")], STANDBY, ["a1 is running"]),
        ([member("a1", "leader", "stopped"), member("a2")], PRIMARY, ["a1 is stopped"]),
        ([member("a1")], PRIMARY, ["no leader among a1 (streaming)"]),
        ([], PRIMARY, ["no leader among no members"]),
    ],
)
def test_what_keeps_a_region_from_its_role(members: list[dict[str, t.Any]], role: str, expected: list[str]) -> None:
    assert problems(parse_cluster({"members": members}), role, ["a1", "a2"]) == expected


def test_a_primary_has_no_standby_cluster() -> None:
    assert desired_config(PRIMARY, {"ttl": 20, "standby_cluster": {"host": "x"}}) == {
        "ttl": 20,
        "standby_cluster": None,
    }


def test_a_standby_follows_all_hosts_of_the_home() -> None:
    wanted = desired_config(STANDBY, {}, ["198.18.0.11", "198.18.0.12"], 5442, "region_b")
    assert wanted["standby_cluster"] == {
        "host": "198.18.0.11,198.18.0.12", "port": 5442, "create_replica_methods": ["basebackup"],
        "primary_slot_name": "region_b",
    }  # fmt: skip


def test_a_standby_without_upstream_is_refused() -> None:
    with pytest.raises(ResilienceError, match="upstream_hosts"):
        desired_config(STANDBY, {})


@pytest.mark.parametrize(
    ("current", "wanted", "changes"),
    [
        ({"ttl": 20}, {"ttl": 20}, {}),
        ({"ttl": "20"}, {"ttl": 20}, {}),
        ({"ttl": 30, "pause": True}, {"ttl": 20}, {"ttl": 20}),
        ({}, {"standby_cluster": None}, {}),
        ({"standby_cluster": {"host": "x"}}, {"standby_cluster": None}, {"standby_cluster": None}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, {"a": {"c": 3}}),
        ({"a": 1}, {"a": {"b": 1, "c": None}}, {"a": {"b": 1}}),
        ({"m": ["basebackup"]}, {"m": ["basebackup"]}, {}),
        ({"f": False}, {"f": True}, {"f": True}),
        ({"f": 1}, {"f": True}, {"f": True}),
        ({"p": {"x": "on"}}, {"p": {"x": None}}, {"p": {"x": None}}),
        ({}, {"slots": {}}, {"slots": {}}),
    ],
)
def test_only_differences_are_sent(
    current: dict[str, t.Any], wanted: dict[str, t.Any], changes: dict[str, t.Any]
) -> None:
    assert config_changes(current, wanted) == changes
