"""Backups of Redis and restores from them: with a real server where there is one, and the logic without."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import typing as t
from pathlib import Path

import pytest
from module_runner import run_module

from ansible_collections.shannon.resilience.plugins.module_utils import redis_backup, redis_restore, redis_scratch
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.redis import RedisClient, Replication
from ansible_collections.shannon.resilience.plugins.module_utils.redis_backup import (
    Source,
    newest_replica,
    take,
    verify,
)
from ansible_collections.shannon.resilience.plugins.module_utils.redis_restore import (
    LiveRestore,
    restore_files,
    verified,
)
from ansible_collections.shannon.resilience.plugins.module_utils.redis_scratch import Listener, RedisScratch
from ansible_collections.shannon.resilience.plugins.modules import redis_backup as module

real = pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A Redis on loopback, without TLS and passwords."""

    def __init__(self, folder: Path, primary: int = 0) -> None:
        folder.mkdir()
        self.folder = folder
        self.primary = primary
        self.port = free_port()
        self.start()

    def start(self) -> None:
        words = [
            "redis-server",
            "--port",
            str(self.port),
            "--dir",
            str(self.folder),
            "--appendonly",
            "yes",
            "--save",
            "",
        ]
        words += ["--repl-diskless-sync-delay", "0", "--bind", "127.0.0.1"]
        words += ["--replicaof", f"127.0.0.1 {self.primary}"] if self.primary else []
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(ResilienceError), self.client() as client:
                seen = client.replication()
                if not seen.loading and seen.link in ("", "up"):
                    return
            time.sleep(0.02)
        raise AssertionError("redis-server does not start")

    def client(self) -> RedisClient:
        return RedisClient("127.0.0.1", self.port, "", "", None, 5.0)

    def say(self, *commands: list[t.Any]) -> list[t.Any]:
        with self.client() as client:
            return client.pipeline(commands)

    @property
    def source(self) -> Source:
        return Source("127.0.0.1", self.port, "", "", None)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def servers(tmp_path: Path) -> t.Iterator[t.Callable[..., Server]]:
    made: list[Server] = []

    def make(name: str, primary: int = 0) -> Server:
        made.append(Server(tmp_path / name, primary))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def fill(server: Server) -> None:
    server.say(*[["SET", f"key{number}", "v" * 50] for number in range(300)])
    server.say(["RPUSH", "list", 1, 2, 3], ["SELECT", 3], ["HSET", "hash", "field", "value"])
    server.say(["SET", "short", "x", "PX", 300], ["SET", "long", "x", "EX", 3600])


@real
def test_a_backup_proves_itself_even_after_keys_have_expired(servers: t.Callable[..., Server], tmp_path: Path) -> None:
    server = servers("one")
    fill(server)
    manifest = take(server.source, str(tmp_path / "backup"))
    assert (manifest["keys"], manifest["expires"], manifest["databases"]) == (304, 2, {"0": 303, "3": 1})
    time.sleep(0.4)  # "short" is over
    assert verify(str(tmp_path / "backup")) == []
    assert sorted(os.listdir(tmp_path / "backup")) == ["dump.rdb", "manifest.json"]


@real
def test_equal_data_has_an_equal_digest_and_other_data_another(
    servers: t.Callable[..., Server], tmp_path: Path
) -> None:
    one, two = servers("one"), servers("two")
    one.say(["SET", "a", 1], ["SET", "b", 2])
    two.say(["SET", "b", 2], ["SET", "a", 1])
    first, second = take(one.source, str(tmp_path / "x")), take(two.source, str(tmp_path / "y"))
    assert first["digest"] == second["digest"]
    two.say(["SET", "a", 3])
    assert take(two.source, str(tmp_path / "y"))["digest"] != first["digest"]


@real
@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied"])
def test_a_damaged_file_is_told_and_restores_nothing(
    servers: t.Callable[..., Server], tmp_path: Path, damage: str
) -> None:
    server = servers("one")
    fill(server)
    take(server.source, str(tmp_path / "backup"))
    path = tmp_path / "backup" / "dump.rdb"
    whole = path.read_bytes()
    path.write_bytes(
        {"cut": whole[: len(whole) // 2], "flipped": whole[:500] + b"\xff\xff" + whole[502:], "emptied": b""}[damage]
    )
    assert verify(str(tmp_path / "backup")) != []
    with pytest.raises(ResilienceError, match=r"nothing was changed, the backup in .* is damaged"):
        verified(str(tmp_path / "backup"))
    with pytest.raises(ResilienceError, match="no whole RDB file"):
        redis_backup.check_rdb(str(path))
    with pytest.raises(ResilienceError, match="can't load"), RedisScratch(str(tmp_path / "scratch"), str(path)):
        pass


@pytest.mark.parametrize("mode", [None, 0o700, 0o755])
def test_the_scratch_instances_user_gets_to_its_folder(tmp_path: Path, mode: int | None) -> None:
    """Whoever made the folder above, and however: Redis' user only needs to pass."""
    above = tmp_path / "above"
    if mode is not None:
        above.mkdir(mode=mode)
    redis_restore.let_pass(str(above))
    assert above.stat().st_mode & 0o777 == (0o711 if mode in (None, 0o700) else mode)


def test_a_configuration_that_redis_refuses_is_said_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(
        "1:C 1 Jan 2026 # Reading config from stdin\n\n*** FATAL CONFIG FILE ERROR (Redis 7.0.15) ***\n"
        "Reading the configuration file, at line 1\n>>> 'dir /nowhere'\nPermission denied\n"
    )
    said = redis_scratch._reason(str(path))
    assert "'dir /nowhere' / Permission denied" in said and "stdin" not in said


@real
def test_an_empty_backup_never_becomes_a_source(servers: t.Callable[..., Server], tmp_path: Path) -> None:
    take(servers("one").source, str(tmp_path / "backup"))
    with pytest.raises(ResilienceError, match="holds no key at all"):
        verified(str(tmp_path / "backup"))
    assert verified(str(tmp_path / "backup"), allow_empty=True)["keys"] == 0


@real
def test_a_running_primary_and_its_replica_take_a_backup(servers: t.Callable[..., Server], tmp_path: Path) -> None:
    primary = servers("one")
    replica = servers("two", primary.port)
    fill(primary)
    redis_restore.wait_replicas(primary.client, 1, 10)  # what it has not yet is not in its backup
    manifest = take(newest_replica([primary.source, replica.source]), str(tmp_path / "backup"))
    assert manifest["port"] == replica.port, "the primary is spared"
    primary.say(["FLUSHALL"], ["SET", "newer", 1])
    restore = LiveRestore(
        primary.client, primary.source, Listener(free_port(), None), str(tmp_path / "scratch" / "instance"), ("", "")
    )
    (tmp_path / "scratch").mkdir()
    assert restore.problem() == ""
    restore.run(str(tmp_path / "backup"), manifest)
    redis_restore.wait_replicas(primary.client, 1, 10)
    for one in (primary, replica):
        assert one.say(["GET", "key7"], ["GET", "newer"], ["LRANGE", "list", 0, -1]) == [
            "v" * 50,
            None,
            ["1", "2", "3"],
        ]
    with primary.client() as client:
        seen = client.replication()
    assert seen.role == "primary" and seen.aof
    primary.stop()
    primary.start()
    assert primary.say(["GET", "key7"], ["GET", "newer"]) == ["v" * 50, None], "its append-only file has it, too"


@real
def test_a_replica_is_not_restored(servers: t.Callable[..., Server], tmp_path: Path) -> None:
    primary = servers("one")
    replica = servers("two", primary.port)
    listener = Listener(free_port(), None)
    restore = LiveRestore(replica.client, replica.source, listener, str(tmp_path / "scratch"), ("", ""))
    assert "not the group's primary" in restore.problem()


@real
def test_a_primary_that_a_killed_run_left_is_restored(servers: t.Callable[..., Server], tmp_path: Path) -> None:
    primary = servers("one")
    fill(primary)
    manifest = take(primary.source, str(tmp_path / "backup"))
    listener = Listener(free_port(), None)
    primary.say(["FLUSHALL"], ["REPLICAOF", listener.address, listener.port])
    restore = LiveRestore(primary.client, primary.source, listener, str(tmp_path / "instance"), ("", ""))
    assert restore.problem() == ""
    restore.run(str(tmp_path / "backup"), manifest)
    assert primary.say(["GET", "key7"]) == ["v" * 50]


@real
@pytest.mark.parametrize("version", [(7, 0), (6, 0)])
def test_an_instance_that_is_down_takes_a_backup(
    servers: t.Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int]
) -> None:
    server = servers("one")
    fill(server)
    manifest = take(server.source, str(tmp_path / "backup"))
    server.say(["FLUSHALL"], ["SET", "newer", 1])
    with pytest.raises(ResilienceError, match="Stop the instance first"):
        restore_files(str(tmp_path / "backup"), str(server.folder), manifest)
    server.stop()
    monkeypatch.setattr(redis_restore, "server_version", lambda _server: version)
    restore_files(str(tmp_path / "backup"), str(server.folder), manifest)
    kept = [name for name in os.listdir(server.folder) if ".before-restore-" in name]
    assert len(kept) == 1 and kept[0].startswith("appendonlydir")
    server.start()
    assert server.say(["GET", "key7"], ["GET", "newer"], ["SELECT", 3], ["HGET", "hash", "field"]) == [
        *["v" * 50, None, "OK", "value"]
    ]


def replication(role: str, offset: int = 0, link: str = "", loading: bool = False) -> Replication:
    return Replication(role, offset, link, "", 0, 0, 100, loading, True)


def sources(monkeypatch: pytest.MonkeyPatch, *answers: Replication | ResilienceError) -> list[Source]:
    def answer(source: Source, timeout: float = 3.0) -> Replication:
        found = answers[source.port]
        if isinstance(found, ResilienceError):
            raise found
        return found

    monkeypatch.setattr(Source, "replication", answer)
    return [Source("192.0.2.1", number, "backup", "", None) for number in range(len(answers))]


def test_the_replica_that_has_read_most_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = (replication("primary", 9), replication("replica", 7, "up"), replication("replica", 8, "up"))
    assert newest_replica(sources(monkeypatch, *answers)).port == 2


def test_the_primary_is_taken_when_no_replica_is_in_line(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = (replication("replica", 9, "down"), replication("primary", 9), ResilienceError("dead"))
    assert newest_replica(sources(monkeypatch, *answers)).port == 1


def test_nobody_to_take_from_is_told_with_the_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = (replication("replica", 9, "down"), replication("primary", loading=True), ResilienceError("it is dead"))
    with pytest.raises(ResilienceError, match=r"link is down.*still loads|it is dead") as caught:
        newest_replica(sources(monkeypatch, *answers))
    assert "it is dead" in str(caught.value)


def test_a_backup_without_a_manifest_is_none(tmp_path: Path) -> None:
    with pytest.raises(ResilienceError, match="was not finished"):
        redis_backup.read_manifest(str(tmp_path))
    (tmp_path / "manifest.json").write_text('{"kind": "qdrant"}')
    with pytest.raises(ResilienceError, match="no manifest of a backup of Redis"):
        redis_backup.read_manifest(str(tmp_path))


def test_a_restore_is_done_once_by_its_name(tmp_path: Path) -> None:
    mark = str(tmp_path / "restored.json")
    assert not redis_restore.already_restored(mark, "one")
    redis_restore.note_restored(mark, "one", {"sha256": "x", "keys": 1})
    assert redis_restore.already_restored(mark, "one") and not redis_restore.already_restored(mark, "two")
    redis_restore.note_restored(mark, "", {"sha256": "x", "keys": 1})
    assert not redis_restore.already_restored(mark, ""), "without a name it is always restored"


def test_the_password_is_in_no_argument_of_redis_cli(tmp_path: Path) -> None:
    program = tmp_path / "redis-cli"
    program.write_text(
        f'#!/bin/sh\ntr "\\0" "\\n" < /proc/$$/cmdline > {tmp_path}/argv\nenv > {tmp_path}/env\n'
        'echo "AUTH failed: WRONGPASS a-secret-of-tests" >&2\nexit 1\n'
    )
    program.chmod(0o755)
    source = Source("192.0.2.1", 6379, "backup", "a-secret-of-tests", None)
    with pytest.raises(ResilienceError, match=r"site\.yml --tags redis") as caught:
        redis_backup.pull(source, str(tmp_path / "x.rdb"), binary=str(program))
    assert "a-secret-of-tests" not in str(caught.value) + (tmp_path / "argv").read_text() + repr(source)
    assert "REDISCLI_AUTH=a-secret-of-tests" in (tmp_path / "env").read_text()
    assert not (tmp_path / "x.rdb.partial").exists()


@real
def test_the_module_takes_a_backup_and_leaves_a_young_one_alone(
    servers: t.Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = servers("one")
    fill(server)
    monkeypatch.setattr(module.Runner, "source", lambda _self, _host, _port: server.source)
    wanted = {"state": "present", "folder": str(tmp_path / "backup"), "sources": ["192.0.2.1:1"], "password": "x"}
    planned = run_module(module, check=True, **wanted)
    assert planned["changed"] and not (tmp_path / "backup").exists()
    made = run_module(module, **wanted)
    assert made["changed"] and made["manifest"]["keys"] == 304
    assert not run_module(module, **wanted, unless_newer_than=60)["changed"]
    assert not run_module(module, state="verified", folder=wanted["folder"])["changed"]
    manifest = json.loads((tmp_path / "backup" / "manifest.json").read_text())
    (tmp_path / "backup" / "manifest.json").write_text(json.dumps({**manifest, "digest": "0" * 40}))
    assert "digest is" in run_module(module, state="verified", folder=wanted["folder"])["msg"]
