"""The registry is rebuilt from one member and gets the others back, with etcd itself on the loopback."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import types
import typing as t
from pathlib import Path

import pytest

from ansible_collections.shannon.resilience.plugins.module_utils import etcd_data
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.etcd import EtcdClient, NoQuorumError
from ansible_collections.shannon.resilience.plugins.module_utils.given_up import KEYS, GivenUp
from ansible_collections.shannon.resilience.plugins.module_utils.registry import Registry
from ansible_collections.shannon.resilience.plugins.modules import registry_epochs, registry_member, registry_rebuild

pytestmark = pytest.mark.skipif(
    not (shutil.which("etcd") and shutil.which("etcdctl")), reason="etcd is not installed here"
)
NAMES = ("a1", "b1", "w1")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Site:
    """Three hosts' worth of etcd, each with a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {name: (free_port(), free_port()) for name in NAMES}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        cluster = ",".join(f"{name}={self.peer(name)}" for name in NAMES)
        for name in NAMES:
            (folder / name).mkdir()
            (folder / name / "etcd.yml").write_text(
                f"name: {name}\ndata-dir: {folder}/{name}/data\n"
                f'listen-client-urls: "{self.client(name)}"\nadvertise-client-urls: "{self.client(name)}"\n'
                f'listen-peer-urls: "{self.peer(name)}"\ninitial-advertise-peer-urls: "{self.peer(name)}"\n'
                f'initial-cluster: "{cluster}"\ninitial-cluster-token: old\ninitial-cluster-state: new\n'
                "strict-reconfig-check: true\nenable-grpc-gateway: true\nheartbeat-interval: 50\n"
                "election-timeout: 500\nlogger: zap\nlog-outputs: [stderr]\nlog-level: error\n"
            )

    def client(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name][0]}"

    def peer(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name][1]}"

    def endpoints(self, *names: str) -> list[str]:
        return [self.client(name).removeprefix("http://") for name in names]

    def start(self, *names: str, config: str | None = None) -> None:
        for name in names:
            path = config or f"{self.folder}/{name}/etcd.yml"
            with (self.folder / name / "log").open("ab") as log:
                self.processes[name] = subprocess.Popen(["etcd", "--config-file", path], stdout=log, stderr=log)

    def stop(self, *names: str, kill: bool = False) -> None:
        for name in names:
            process = self.processes.pop(name, None)
            if process:
                process.kill() if kill else process.terminate()
                process.wait(20)

    def etcd(self, *names: str, given_up: GivenUp | None = None) -> EtcdClient:
        return EtcdClient(self.endpoints(*(names or NAMES)), None, 2.0, "the registry", given_up)

    def wait(self, *names: str) -> None:
        deadline = time.monotonic() + 20
        while any(self.etcd(*names).health().values()):
            assert time.monotonic() < deadline, self.etcd(*names).health()
            time.sleep(0.1)


class FakeModule:
    """As much of an AnsibleModule as these use."""

    def __init__(self, **params: t.Any) -> None:
        self.params = params
        self.check_mode = False

    def run_command(self, _words: list[str]) -> tuple[int, str, str]:
        return 0, "", ""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> t.Iterator[Site]:
    here = Site(tmp_path)
    current = types.SimpleNamespace(name="b1")
    here.current = current  # type: ignore[attr-defined]
    read = etcd_data.MemberConfig.read
    monkeypatch.setattr(
        etcd_data.MemberConfig, "read", classmethod(lambda cls, _path: read(f"{tmp_path}/{current.name}/etcd.yml"))
    )
    for module in (registry_rebuild, registry_member):
        monkeypatch.setattr(module, "WORK", str(tmp_path / "work"))
    monkeypatch.setattr(registry_member, "FILE", str(tmp_path / "given-up"))
    monkeypatch.setattr(registry_rebuild, "stop", lambda _module, _unit: here.stop(current.name))
    monkeypatch.setattr(registry_rebuild.shutil, "chown", lambda *_: None)
    run = tmp_path / "run"
    real = registry_member.pathlib.Path
    monkeypatch.setattr(
        registry_member,
        "pathlib",
        types.SimpleNamespace(Path=lambda path: (run / path.lstrip("/")) if path.startswith("/run") else real(path)),
    )
    (run / "run").mkdir(parents=True)

    def systemctl(joiner: registry_member.Joiner, *words: str) -> None:
        if words[0] == "stop":
            here.stop(current.name)
        elif words[0] == "start" and current.name not in here.processes:
            dropin = run / f"run/systemd/system/{joiner.unit}.d/join.conf"
            joining = run / "run/shannon-etcd-join-registry/config.yml"
            here.start(current.name, config=str(joining) if dropin.exists() else None)

    monkeypatch.setattr(registry_member.Joiner, "systemctl", systemctl)
    try:
        yield here
    finally:
        here.stop(*NAMES, kill=True)


def rebuild(site: Site, token: str = "shannon-registry-2") -> dict[str, t.Any]:
    module = FakeModule(members=[{"name": "b1", "address": "127.0.0.1"}], token=token, snapshot=None,
                        instance="registry", user="")  # fmt: skip
    return registry_rebuild.run(t.cast("t.Any", module))


def join(site: Site, name: str, wipe: bool = False, timeout: float = 40) -> dict[str, t.Any]:
    site.current.name = name  # type: ignore[attr-defined]
    module = FakeModule(endpoints=site.endpoints(*NAMES), instance="registry", user="root", wipe=wipe, timeout=timeout)
    return registry_member.Joiner(t.cast("t.Any", module)).run()


def test_broken_glass_and_the_way_back(site: Site, tmp_path: Path) -> None:
    site.start(*NAMES)
    site.wait(*NAMES)
    registry = Registry(site.etcd())
    record, _made = registry.create("main", "a")
    old = next(iter(site.etcd().statuses().values())).cluster_id  # type: ignore[union-attr]
    # A follower hears with the next heartbeat what was agreed on; what it has not heard yet it loses.
    assert Registry(site.etcd("b1")).get("main") == record
    time.sleep(0.5)
    site.stop("a1", "w1", kill=True)
    site.stop("b1", kill=True)

    first = rebuild(site)
    assert first["changed"] and first["given_up"] == old and first["cluster_id"] not in ("", old)
    assert (Path(first["kept"]) / "member" / "wal").is_dir()
    again = rebuild(site)
    assert again == {**first, "changed": False}

    given_up = tmp_path / "given-up"
    given_up.write_text(f"{old}\n")
    site.start("b1")
    site.wait("b1")
    rebuilt = Registry(site.etcd("b1"))
    assert rebuilt.get("main") == record
    topology = {"components": {"postgres": {}, "redis": {}}, "hosts": {}, "ports": {"region_agent": 1},
                "cells": [{"name": "main"}], "regions": ["a", "b"]}  # fmt: skip
    params = {"topology": topology, "members": ["b1"], "token": "t", "override": "break_glass", "also_overridden": [],
              "reason": "a burns", "operator": "alice", "given_up": [old],
              "known": {"main": {"home": "a", "epoch": 6}}, "wait": 10, "timeout": 2}  # fmt: skip
    raised = registry_epochs.run(t.cast("t.Any", FakeModule(**params)), site.etcd("b1"), None)
    assert raised["records"] == {"main": {"home": "a", "epoch": 7, "state": "active"}}
    assert not registry_epochs.run(t.cast("t.Any", FakeModule(**params)), site.etcd("b1"), None)["changed"]
    entry = rebuilt.history("main")[-1]
    assert (entry.overrides, entry.operator, entry.previous_home, entry.home) == (("break_glass",), "alice", "a", "a")

    # The members that were lost come back together, with a quorum among themselves: nobody who knows believes them.
    site.start("a1", "w1")
    site.wait("a1", "w1")
    assert Registry(site.etcd("a1", "w1")).get("main") == record
    with pytest.raises(NoQuorumError, match="given up"):
        Registry(site.etcd("a1", "w1", given_up=GivenUp((given_up,)))).get("main")
    knows_nothing = site.etcd(given_up=GivenUp((), tmp_path / "learned"))
    assert knows_nothing.learn_given_up() == [old]
    assert Registry(knows_nothing).get("main") == rebuilt.get("main")

    # One after the other they become members of the new one, the first while the other still has the old one's data.
    given_up.unlink()
    for name in ("a1", "w1"):
        joined = join(site, name)
        assert joined["added"] and joined["kept"] and joined["cluster_id"] == first["cluster_id"]
    site.wait(*NAMES)
    assert {one.name: one.learner for one in site.etcd().members()} == dict.fromkeys(NAMES, False)
    assert given_up.read_text().split() == [old]
    assert [item.key for item in site.etcd("a1").range(KEYS)] == [KEYS + old]
    assert not join(site, "w1")["changed"]

    # A disk is lost.
    site.stop("a1", kill=True)
    shutil.rmtree(tmp_path / "a1" / "data" / "member")
    joined = join(site, "a1")
    assert joined["added"] and joined["kept"] == ""
    site.wait(*NAMES)
    assert Registry(site.etcd("a1")).get("main") == rebuilt.get("main")


def test_a_member_does_not_come_back_without_a_quorum(site: Site) -> None:
    site.start(*NAMES)
    site.wait(*NAMES)
    site.stop(*NAMES)
    shutil.rmtree(site.folder / "a1" / "data" / "member")
    with pytest.raises(ResilienceError, match="no quorum"):
        join(site, "a1")
    assert "a1" not in site.processes


def test_all_members_from_a_snapshot(site: Site, tmp_path: Path) -> None:
    site.start(*NAMES)
    site.wait(*NAMES)
    record, _made = Registry(site.etcd()).create("main", "a")
    snapshot = tmp_path / "registry-20270301T101500Z.db"
    endpoint = site.endpoints("a1")[0]
    subprocess.run(
        ["etcdctl", "--endpoints", endpoint, "snapshot", "save", str(snapshot)], check=True, capture_output=True,
        env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    Registry(site.etcd()).create("later", "b")
    site.stop("w1", kill=True)
    shutil.rmtree(tmp_path / "w1" / "data" / "member")
    ids = set()
    # Hosts have addresses of their own; here it is the port that tells them apart.
    monkeypatched = registry_rebuild.peer_url
    registry_rebuild.peer_url = lambda _template, address: site.peer(address)  # type: ignore[assignment]
    try:
        for name in NAMES:
            site.current.name = name  # type: ignore[attr-defined]
            members = [{"name": each, "address": each} for each in NAMES]
            module = FakeModule(members=members, token="t2", snapshot=str(snapshot), instance="registry", user="")
            done = registry_rebuild.run(t.cast("t.Any", module))
            assert bool(done["given_up"]) == (name != "w1")
            ids.add(done["cluster_id"])
            (tmp_path / "work" / "t2").rename(tmp_path / "work" / f"t2-{name}")  # each host has its own
    finally:
        registry_rebuild.peer_url = monkeypatched
    assert len(ids) == 1
    site.start(*NAMES)
    site.wait(*NAMES)
    assert Registry(site.etcd()).records() == {"main": record}
