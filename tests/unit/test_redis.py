"""The Redis client: what it sends, what it reads, and what it says when things go wrong."""

from __future__ import annotations

import socket
import threading
import typing as t

import pytest

from ansible_collections.shannon.resilience.plugins.module_utils.errors import EndpointError
from ansible_collections.shannon.resilience.plugins.module_utils.redis import (
    RedisClient,
    RedisReplyError,
    ReplicaLink,
    encode,
    parse_info,
    parse_replication,
    replication_info,
)

PASSWORD = "correct-horse-battery-staple"
PRIMARY = """# Replication\r
role:master\r
connected_slaves:3\r
slave0:ip=192.0.2.2,port=6379,state=online,offset=700,lag=1\r
slave1:ip=192.0.2.3,port=6379,state=wait_bgsave,offset=0,lag=0\r
slave2:ip=192.0.2.4,port=6379,state=online,offset=650,lag=0\r
master_repl_offset:714\r
"""
REPLICA = """# Replication\r
role:slave\r
master_host:192.0.2.1\r
master_port:6379\r
master_link_status:up\r
slave_repl_offset:700\r
slave_priority:0\r
"""


class FakeRedis:
    """Answers each connection with the same bytes, a reply for each command that it reads."""

    def __init__(self, replies: list[bytes]) -> None:
        self.replies = replies
        self.received: list[bytes] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _peer = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as reader:
            for reply in self.replies:
                words = reader.readline()
                if not words:
                    return
                parts = [words]
                for _word in range(int(words[1:])):
                    parts += [reader.readline(), reader.readline()]
                self.received.append(b"".join(parts))
                connection.sendall(reply)
            if self.replies and self.replies[-1] == b"":  # "hang": keep the connection, say nothing
                reader.read()


@pytest.fixture
def serve() -> t.Iterator[t.Callable[..., FakeRedis]]:
    servers: list[FakeRedis] = []

    def start(*replies: bytes) -> FakeRedis:
        servers.append(FakeRedis(list(replies)))
        return servers[-1]

    yield start
    for server in servers:
        server.listener.close()


def client(server: FakeRedis, username: str = "", **more: t.Any) -> RedisClient:
    return RedisClient("127.0.0.1", server.port, username, PASSWORD, None, timeout=0.5, **more)


def bulk(text: str) -> bytes:
    return f"${len(text.encode())}\r\n{text}\r\n".encode()


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (b"+OK\r\n", "OK"),
        (b":-5\r\n", -5),
        (b"$-1\r\n", None),
        (b"$0\r\n\r\n", ""),
        (b"$4\r\na\r\nb\r\n", "a\r\nb"),
        (b"*-1\r\n", None),
        (b"*2\r\n:1\r\n*1\r\n+x\r\n", [1, ["x"]]),
        (b"_\r\n", None),
        (b",1.5\r\n", 1.5),
        (b"#t\r\n", True),
        (b"#f\r\n", False),
        (b"(123456789012345678901\r\n", 123456789012345678901),
        (b"=7\r\ntxt:abc\r\n", "abc"),
        (b"%1\r\n+a\r\n:1\r\n", {"a": 1}),
        (b"~2\r\n:1\r\n:2\r\n", [1, 2]),
        (b">1\r\n+noise\r\n+OK\r\n", "OK"),
        (b"|1\r\n+ttl\r\n:3\r\n+OK\r\n", "OK"),
    ],
)
def test_replies_of_both_protocols_are_read(serve, reply, expected):
    assert client(serve(reply)).command(["PING"]) == expected


def test_a_command_goes_out_as_a_list_of_words():
    assert encode(["SET", "k", "ä", 1]) == b"*4\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\n\xc3\xa4\r\n$1\r\n1\r\n"


def test_it_logs_in_first_and_once(serve):
    server = serve(b"+OK\r\n", b"+PONG\r\n", b"+PONG\r\n")
    with client(server, "monitor") as redis:
        assert [redis.command(["PING"]), redis.command(["PING"])] == ["PONG", "PONG"]
    assert server.received[0] == encode(["AUTH", "monitor", PASSWORD])
    assert len(server.received) == 3


def test_protocol_3_is_agreed_at_login(serve):
    server = serve(b"%0\r\n", b"+PONG\r\n")
    assert client(server, "monitor", protocol=3).command(["PING"]) == "PONG"
    assert server.received[0] == encode(["HELLO", 3, "AUTH", "monitor", PASSWORD])


def test_a_pipeline_keeps_the_order_and_survives_a_refusal(serve):
    redis = client(serve(b"+A\r\n", b"-ERR no\r\n", b"+C\r\n"))
    first, second, third = redis.pipeline([["A"], ["B"], ["C"]])
    assert (first, third) == ("A", "C")
    assert isinstance(second, RedisReplyError)
    assert "B was refused: ERR no" in str(second)


def test_an_empty_pipeline_asks_nobody():
    assert RedisClient("192.0.2.1", 1, "", "", None).pipeline([]) == []


@pytest.mark.parametrize(
    "refusal", [b"-WRONGPASS invalid\r\n", f"-ERR unknown command 'AUTH', with args: '{PASSWORD}'\r\n".encode()]
)
def test_a_refused_login_says_who_and_where_but_not_the_password(serve, refusal):
    server = serve(refusal)
    with pytest.raises(RedisReplyError) as caught:
        client(server, "monitor").command(["PING"])
    assert f"127.0.0.1:{server.port}" in str(caught.value)
    assert "monitor" in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_a_refusal_does_not_repeat_secrets(serve):
    server = serve(b"-ERR Error in ACL SETUSER modifier '>another-long-secret': Syntax error\r\n")
    with pytest.raises(RedisReplyError) as caught:
        client(server).command(["ACL", "SETUSER", "x", ">another-long-secret"])
    assert "another-long-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b"", "no answer in time"),
        (b"$10\r\nshort", "no answer in time|closed"),
        (b"HTTP/1.1 400\r\n", "not RESP"),
        (b"*1\r\n" * 40, "nested"),
    ],
)
def test_what_is_no_answer_is_an_error_with_the_endpoint(serve, reply, words):
    server = serve(reply)
    with pytest.raises(EndpointError, match=words) as caught:
        client(server).command(["PING"])
    assert (caught.value.host, caught.value.port) == ("127.0.0.1", server.port)


def test_nothing_listens():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(EndpointError, match="connection refused"):
        RedisClient("127.0.0.1", port, "", "", None, timeout=0.5).command(["PING"])


def test_a_broken_connection_is_opened_anew(serve):
    server = serve(b"+ONCE\r\n")  # it closes after one answer
    redis = client(server)
    assert redis.command(["PING"]) == "ONCE"
    with pytest.raises(EndpointError):
        redis.command(["PING"])
    assert redis.command(["PING"]) == "ONCE"


def test_a_primarys_info():
    seen = parse_replication(
        {**parse_info(PRIMARY), "db0": "keys=3,expires=0", "db7": "keys=4,expires=1", "aof_enabled": "1"}
    )
    assert (seen.role, seen.offset, seen.link, seen.keys, seen.aof) == ("primary", 714, "", 7, True)
    assert seen.replicas == 2
    assert seen.links[1] == ReplicaLink("192.0.2.3", 6379, "wait_bgsave", 0, 0)


def test_the_histories_of_a_primary():
    assert (parse_replication(parse_info(PRIMARY)).id, parse_replication(parse_info(PRIMARY)).former_id) == ("", "")
    said = {"role": "master", "master_replid": "a" * 40, "master_replid2": "0" * 40, "second_repl_offset": "-1"}
    assert (parse_replication(said).id, parse_replication(said).former_id) == ("a" * 40, "")
    promoted = parse_replication({**said, "master_replid2": "0b" * 20, "second_repl_offset": "715"})
    # Redis names the first byte that is no longer the old history's.
    assert (promoted.former_id, promoted.former_end) == ("0b" * 20, 714)


def test_a_replicas_info_over_a_connection_of_its_own(serve):
    server = serve(b"+OK\r\n", bulk("redis_version:7.0.15\r\n"), bulk(REPLICA), bulk("loading:1\r\n"), bulk(""))
    seen = replication_info("127.0.0.1", server.port, "monitor", PASSWORD, None, 0.5)
    assert (seen.role, seen.primary_address, seen.primary_port, seen.link) == ("replica", "192.0.2.1", 6379, "up")
    assert (seen.offset, seen.priority, seen.loading, seen.keys) == (700, 0, True, 0)
    assert seen.version == "7.0.15"


def test_role_uses_our_words(serve):
    server = serve(b"*5\r\n+slave\r\n+192.0.2.1\r\n:6379\r\n+connected\r\n:700\r\n")
    assert client(server).role() == ["replica", "192.0.2.1", 6379, "connected", 700]


def test_a_sentinels_view(serve):
    words = ["ip", "192.0.2.1", "port", "6379", "flags", "master,o_down", "config-epoch", "4", "quorum", "2"]
    server = serve(f"*{len(words)}\r\n".encode() + b"".join(bulk(word) for word in words))
    view = client(server).sentinel_view("main")
    assert view is not None
    assert (view.address, view.port, view.epoch, view.flags) == ("192.0.2.1", 6379, 4, ("master", "o_down"))


def test_a_sentinel_that_does_not_know_the_group(serve):
    assert client(serve(b"-ERR No such master with that name\r\n")).sentinel_view("main") is None
