"""Secrets are generated once, kept closed, and never generated over a file that can't be read."""

from __future__ import annotations

import os
import pathlib
import stat
import typing as t
from concurrent.futures import ProcessPoolExecutor

import pytest
import yaml
from module_runner import run_module

from ansible_collections.shannon.resilience.plugins.modules import secrets


def run(path: pathlib.Path, *names: str, **more: t.Any) -> dict[str, t.Any]:
    return run_module(secrets, path=str(path), names=list(names or ("redis_app", "postgres_app")), **more)


def generate_at(path: str) -> dict[str, str]:
    return t.cast("dict[str, str]", run(pathlib.Path(path))["secrets"])


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "closed" / "secrets.yml"


def mode(path: pathlib.Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_first_run_generates_and_the_second_reads(path: pathlib.Path) -> None:
    first, second = run(path), run(path)
    assert first["changed"] and first["generated"] == ["redis_app", "postgres_app"]
    assert not second["changed"] and second["generated"] == []
    assert first["secrets"] == second["secrets"]
    assert all(len(value) == 32 and value.isalnum() for value in first["secrets"].values())
    assert len(set(first["secrets"].values())) == 2


def test_file_and_folder_are_closed(path: pathlib.Path) -> None:
    run(path)
    assert mode(path) == mode(path.parent / ".lock") == 0o600 and mode(path.parent) == 0o700
    assert sorted(os.listdir(path.parent)) == [".lock", "secrets.yml"]


def test_a_file_that_was_left_open_is_closed(path: pathlib.Path) -> None:
    run(path)
    path.chmod(0o644)
    assert run(path, check=True)["changed"] and mode(path) == 0o644
    assert run(path)["changed"] and mode(path) == 0o600


def test_a_folder_that_others_may_read_is_told(tmp_path: pathlib.Path) -> None:
    tmp_path.chmod(0o755)
    assert "chmod 0700" in str(run(tmp_path / "secrets.yml")["warnings"])


def test_a_new_name_is_added_and_the_others_stay(path: pathlib.Path) -> None:
    before = run(path)["secrets"]
    result = run(path, "redis_app", "new_one")
    assert result["generated"] == ["new_one"] and set(result["secrets"]) == {"redis_app", "new_one"}
    assert run(path)["secrets"] == before


def test_yaml_reads_the_file_as_well(path: pathlib.Path) -> None:
    found = run(path)["secrets"]
    assert yaml.safe_load(path.read_text()) == found


def test_values_of_ones_own_are_kept(path: pathlib.Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.write_text('---\n# mine\nredis_app: "a b \\"c\\" \\\\ d"\n')
    path.chmod(0o600)
    assert run(path)["secrets"]["redis_app"] == 'a b "c" \\ d'
    assert run(path)["secrets"]["redis_app"] == 'a b "c" \\ d'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "without a single secret"),
        (b"redis_app: unquoted\n", "line 1 is not of the form"),
        (b'redis_app: ""\n', "line 1 is not of the form"),
        (b'redis_app: "a"\nredis_app: "b"\n', "a second time"),
        (b'redis_app: "\\q"\n', "escape"),
        (b"$ANSIBLE_VAULT;1.1;AES256\n6162\n", "line 1"),
        (b"\xff\xff", "no text"),
    ],
)
@pytest.mark.parametrize("check", [False, True])
def test_a_file_that_can_not_be_read_is_never_overwritten(
    path: pathlib.Path, content: bytes, said: str, check: bool
) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    result = run(path, check=check)
    assert result["failed"] and said in result["msg"] and "restore it" in result["msg"]
    assert path.read_bytes() == content


def test_a_link_to_a_volume_that_is_not_mounted_is_refused(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    path.parent.mkdir()
    path.symlink_to(tmp_path / "volume" / "secrets.yml")
    assert "which is not there" in run(path)["msg"]


def test_a_link_is_followed_and_stays(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run(path)
    link = tmp_path / "link.yml"
    link.symlink_to(path)
    run(link, "another")
    assert link.is_symlink() and "another" in path.read_text()


def test_check_mode_writes_nothing_and_gives_throw_away_values(path: pathlib.Path) -> None:
    result = run(path, check=True)
    assert result["changed"] and len(result["secrets"]["redis_app"]) == 32
    assert not path.parent.exists()


def test_runs_at_once_agree(path: pathlib.Path) -> None:
    with ProcessPoolExecutor(4) as pool:
        found = list(pool.map(generate_at, [str(path)] * 8))
    assert all(values == found[0] for values in found)


def test_a_lock_that_is_held_is_not_waited_for_for_ever(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(path)
    monkeypatch.setattr(secrets, "LOCK_TIMEOUT", 0.2)
    with secrets.disk.locked(str(path.parent / ".lock"), 1):
        assert "another run holds it" in run(path)["msg"]


def test_a_folder_that_can_not_be_made_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in run(tmp_path / "file" / "secrets.yml")["msg"]


@pytest.mark.parametrize(("more", "said"), [({"names": ["Bad-Name"]}, "Bad-Name"), ({"length": 8}, "can be guessed")])
def test_bad_arguments_are_refused(path: pathlib.Path, more: dict[str, t.Any], said: str) -> None:
    assert said in run_module(secrets, **{"path": str(path), "names": ["a"], **more})["msg"]
    assert not path.exists()


def test_a_folder_that_another_run_makes_meanwhile_is_no_error(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = secrets.disk.os.mkdir

    def slower(folder: str, *rest: int) -> None:
        make(folder, *rest)
        make(folder, *rest)  # by the time of our own call it is there

    monkeypatch.setattr(secrets.disk.os, "mkdir", slower)
    assert secrets.disk.make_folders(str(path.parent)) == []
    assert path.parent.is_dir()
