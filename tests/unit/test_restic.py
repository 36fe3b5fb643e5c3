"""restic: what is run, what reaches it how, and what its failures are called."""

from __future__ import annotations

import json
import os
import shutil
import stat
import typing as t
from pathlib import Path

import pytest
from module_runner import run_module

from ansible_collections.shannon.resilience.plugins.module_utils.restic import (
    AppendOnly,
    CorruptRepository,
    Keep,
    Repository,
    RepositoryFull,
    RepositoryLocked,
    RepositoryMissing,
    RepositoryUnreachable,
    Restic,
    ResticError,
    Retries,
    WrongPassword,
    brief,
    restored_path,
)
from ansible_collections.shannon.resilience.plugins.modules import restic_snapshot

PASSWORD = "a-repositorys-password"
HTTP = "a/servers password"
real = pytest.mark.skipif(shutil.which("restic") is None, reason="restic is not installed")


def repository(tmp_path: Path, url: str = "", password: str = PASSWORD) -> Repository:
    return Repository("a", url or str(tmp_path / "repository"), password, "backup", HTTP)


@pytest.fixture
def fake(tmp_path: Path) -> t.Callable[..., Restic]:
    """A program in restic's place that notes how it was called, and says what the test wants."""

    def make(said: str = "", code: int = 0, output: str = "", url: str = "rest:https://192.0.2.3:8433/") -> Restic:
        program = tmp_path / "restic"
        (tmp_path / "said").write_text(said)
        (tmp_path / "output").write_text(output)
        program.write_text(
            f'#!/bin/sh\ntr "\\0" "\\n" < /proc/$$/cmdline > {tmp_path}/argv\nenv > {tmp_path}/env\n'
            f"cat {tmp_path}/said >&2\ncat {tmp_path}/output\nexit {code}\n"
        )
        program.chmod(0o755)
        return Restic(repository(tmp_path, url), binary=str(program), lock_wait=0.0)

    return make


def test_secrets_are_in_the_environment_and_in_no_argument(fake: t.Callable[..., Restic], tmp_path: Path) -> None:
    fake().unlock()
    arguments, environment = (tmp_path / "argv").read_text(), (tmp_path / "env").read_text()
    assert PASSWORD not in arguments and HTTP not in arguments and "servers%20password" not in arguments
    assert f"RESTIC_PASSWORD={PASSWORD}" in environment
    assert "RESTIC_REPOSITORY=rest:https://backup:a%2Fservers%20password@192.0.2.3:8433/" in environment


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("Fatal: wrong password or no key found", WrongPassword),
        ("Fatal: unable to open config file: unexpected HTTP response (401): 401 Unauthorized", RepositoryUnreachable),
        (
            "Fatal: unable to open config file: dial tcp 192.0.2.3:8433: connect: connection refused",
            RepositoryUnreachable,
        ),
        ('Head "https://x/config": x509: certificate signed by unknown authority', RepositoryUnreachable),
        ("Fatal: unable to open config file: <config/> does not exist", RepositoryMissing),
        ("Fatal: unable to open config file: stat /x/config: no such file or directory", RepositoryMissing),
        ("write /x/data/aa: no space left on device", RepositoryFull),
        (
            "Save(<data/aa>) returned error, retrying after 1s: server response unexpected: 403 Forbidden",
            RepositoryFull,
        ),
        ("Remove(<snapshot/aa>) returned error, retrying after 1s: 403 Forbidden (403)", AppendOnly),
        ("unable to create lock in backend: repository is already locked by PID 1", RepositoryLocked),
        ("pack 608a1f: does not exist\nciphertext verification failed", CorruptRepository),
    ],
)
def test_a_failure_is_called_by_its_name(fake: t.Callable[..., Restic], said: str, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        fake(said, 1).unlock()
    assert caught.type is error
    assert "repository a" in str(caught.value)


def test_no_secret_is_in_an_error(fake: t.Callable[..., Restic]) -> None:
    with pytest.raises(ResticError) as caught:
        fake(f"Fatal: {PASSWORD} and {HTTP} and a%2Fservers%20password", 1).unlock()
    assert PASSWORD not in str(caught.value) and HTTP not in str(caught.value) and "%20" not in str(caught.value)


def test_a_program_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(ResticError, match="Install the package restic"):
        Restic(repository(tmp_path), binary=str(tmp_path / "none")).unlock()


def test_an_end_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    program = tmp_path / "restic"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(ResticError, match="not done within 0 s"):
        Restic(repository(tmp_path), binary=str(program), timeout=0.3).unlock()


def test_what_gets_nowhere_is_stopped_after_a_while() -> None:
    now = [0.0]
    retries = Retries(30.0, lambda: now[0])
    line = "Save(<data/aa>) returned error, retrying after 5s: connection reset"
    assert not retries.hopeless(line)
    now[0] = 29.0
    assert not retries.hopeless(line)
    now[0] = 31.0
    assert not retries.hopeless(line.replace("aa", "bb")), "another file has a time of its own"
    assert retries.hopeless(line)
    assert not retries.hopeless("processed 4 files")


def test_what_an_append_only_server_refuses_is_not_tried_again() -> None:
    assert Retries(30.0).hopeless("Save(<data/aa>) returned error, retrying after 1s: 403 Forbidden (403)")


def test_a_backup_is_told_in_figures(fake: t.Callable[..., Restic], tmp_path: Path) -> None:
    summary = {
        "message_type": "summary",
        "total_files_processed": 2,
        "total_bytes_processed": 30,
        "data_added": 10,
        "total_duration": 0.5,
        "snapshot_id": "abcd",
    }
    output = f'{{"message_type":"status","percent_done":1}}\n{json.dumps(summary)}\n'
    made = fake(output=output).backup(["/x"], ["cell=main", "kind=redis"], "a3", ["*.tmp"])
    assert (made.id, made.files, made.bytes, made.added, made.seconds) == ("abcd", 2, 30, 10, 0.5)
    words = (tmp_path / "argv").read_text().split()
    assert words[words.index("backup") :] == [
        *["backup", "--json", "--tag", "cell=main", "--tag", "kind=redis", "--host", "a3"],
        *["--exclude", "*.tmp", "--", "/x"],
    ]


def test_a_backup_without_a_snapshot_is_none(fake: t.Callable[..., Restic]) -> None:
    with pytest.raises(ResticError, match="told of no snapshot"):
        fake(output="").backup(["/x"])


def test_tags_are_refused_that_restic_would_split(fake: t.Callable[..., Restic]) -> None:
    with pytest.raises(ResticError, match="is no tag"):
        fake().backup(["/x"], ["a,b"])


def test_snapshots_are_sorted_by_their_times(fake: t.Callable[..., Restic]) -> None:
    found = [
        {"id": "2", "time": "2026-01-02T03:04:05.123456789+01:00", "hostname": "a3", "tags": ["k=v"], "paths": ["/x"]},
        {"id": "1", "time": "2026-01-02T01:04:05.1Z", "hostname": "a3", "tags": None, "paths": ["/x"]},
        {"id": "3", "time": "2026-01-02T03:04:05Z", "hostname": "b3", "tags": None, "paths": ["/x"]},
    ]
    seen = fake(output=json.dumps(found)).snapshots()
    assert [one.id for one in seen] == ["1", "2", "3"]
    assert seen[1].time.isoformat() == "2026-01-02T02:04:05.123456+00:00" and seen[1].tags == ("k=v",)
    assert fake(output="null").snapshots() == []


def test_nobody_forgets_through_the_server(fake: t.Callable[..., Restic], tmp_path: Path) -> None:
    with pytest.raises(AppendOnly, match="append-only"):
        fake().forget(Keep(last=1))
    assert not (tmp_path / "argv").exists(), "it was not even tried"


def test_a_policy_that_keeps_nothing_is_refused() -> None:
    assert Keep(last=1, weekly=2).words() == ["--keep-last", "1", "--keep-weekly", "2"]
    for policy in (Keep(), Keep(last=3, daily=-1)):
        with pytest.raises(ResticError, match="keeps nothing"):
            policy.words()


def test_what_restic_says_is_cut_to_what_matters() -> None:
    assert brief("a\nFatal: no\n\tgithub.com/x\nb") == "Fatal: no"
    assert brief("") == "nothing"
    assert len(brief("x" * 1000)) < 500


@real
def test_there_and_back_on_a_path(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(os.urandom(100_000))
    restic = Restic(repository(tmp_path), lock_wait=1.0)
    assert not restic.opens()
    assert restic.init() and not restic.init()
    with pytest.raises(WrongPassword):
        Restic(repository(tmp_path, password="another")).init()
    first = restic.backup([str(source)], ["kind=x"])
    second = restic.backup([str(source)], ["kind=x"])
    assert first.added > 100_000 > second.added
    (newest,) = restic.snapshots(["kind=x"])[-1:]
    restic.restore(newest.id, str(tmp_path / "into"))
    restored = Path(restored_path(str(tmp_path / "into"), str(source))) / "file"
    assert restored.read_bytes() == (source / "file").read_bytes()
    restic.dump(newest.id, str(source / "file"), str(tmp_path / "dumped"))
    assert (tmp_path / "dumped").read_bytes() == (source / "file").read_bytes()
    restic.check("100%")
    assert len(restic.forget(Keep(last=1))) == 1 and len(restic.snapshots()) == 1
    pack = max((tmp_path / "repository" / "data").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    pack.chmod(0o600)
    whole = pack.read_bytes()
    pack.write_bytes(whole[:50] + bytes([whole[50] ^ 255]) + whole[51:])
    with pytest.raises(CorruptRepository):
        restic.check("100%")


@real
def test_the_module_makes_a_repository_once_and_restores_once(tmp_path: Path) -> None:
    common = {"name": "a", "url": str(tmp_path / "repository"), "password": PASSWORD}
    planned = run_module(restic_snapshot, check=True, state="initialized", **common)
    assert planned["changed"] and not (tmp_path / "repository").exists()
    assert run_module(restic_snapshot, state="initialized", **common)["changed"]
    assert not run_module(restic_snapshot, state="initialized", **common)["changed"]
    (tmp_path / "file").write_text("x")
    wanted = {**common, "state": "present", "paths": [str(tmp_path / "file")], "tags": ["kind=x"]}
    assert run_module(restic_snapshot, check=True, **wanted)["changed"]
    made = run_module(restic_snapshot, **wanted)
    assert made["changed"] and len(made["snapshots"]) == 1
    assert not run_module(restic_snapshot, **wanted, unless_newer_than=3600)["changed"]
    into = str(tmp_path / "into")
    assert run_module(restic_snapshot, state="restored", into=into, tags=["kind=x"], **common)["changed"]
    assert not run_module(restic_snapshot, state="restored", into=into, tags=["kind=x"], **common)["changed"]
    assert "expected one" in run_module(restic_snapshot, state="restored", into=into, tags=["kind=y"], **common)["msg"]
    assert run_module(restic_snapshot, state="shown", **{**common, "password": "another"})["failed"]
