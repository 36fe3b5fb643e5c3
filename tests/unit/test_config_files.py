"""All files of a component in one call: validated before any is replaced, and honest in check mode."""

from __future__ import annotations

import getpass
import grp
import json
import os
import pathlib
import stat
import time
import typing as t

import pytest
from module_runner import run_module

from ansible_collections.shannon.resilience.plugins.modules import config_files

ME = {"owner": getpass.getuser(), "group": grp.getgrgid(os.getgid()).gr_name}


def run(**arguments: t.Any) -> dict[str, t.Any]:
    return run_module(config_files, **arguments)


def file(path: pathlib.Path, content: t.Any = "new\n", **changes: t.Any) -> dict[str, t.Any]:
    return {"path": str(path), "content": content, **ME, **changes}


def mode(path: pathlib.Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


# ---- what it makes


def test_one_call_brings_folders_files_and_links_and_the_next_changes_nothing(tmp_path: pathlib.Path) -> None:
    (tmp_path / "old").write_text("")
    wanted = {
        "directories": [{"path": str(tmp_path / "etc" / "x"), "mode": "0750", **ME}],
        "files": [file(tmp_path / "etc" / "x" / "a", mode="0640"), file(tmp_path / "etc" / "b", {"k": [1]})],
        "links": [{"path": str(tmp_path / "l"), "target": "/dev/null"}],
        "absent": [str(tmp_path / "old")],
    }
    first = run(**wanted)
    assert first["changed"]
    assert first["changed_paths"] == [str(tmp_path / name) for name in ("etc/x", "etc/x/a", "etc/b", "l", "old")]
    assert names(tmp_path) == ["a", "b", "etc", "l", "x"]
    assert mode(tmp_path / "etc" / "x") == 0o750 and mode(tmp_path / "etc" / "x" / "a") == 0o640
    assert json.loads((tmp_path / "etc" / "b").read_text()) == {"k": [1]}
    second = run(**wanted)
    assert not second["changed"] and second["changed_paths"] == []


def test_parents_are_open_to_the_services_whatever_the_umask_is(tmp_path: pathlib.Path) -> None:
    before = os.umask(0o077)
    try:
        run(directories=[{"path": str(tmp_path / "a" / "b"), **ME}])
    finally:
        os.umask(before)
    assert mode(tmp_path / "a") == mode(tmp_path / "a" / "b") == 0o755


def test_a_drifted_mode_is_corrected(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a"
    path.write_text("new\n")
    path.chmod(0o600)
    result = run(files=[file(path)], diff=True)
    assert result["changed_paths"] == [str(path)]
    assert mode(path) == 0o644
    assert "mode 0600" in result["diff"][0]["before"] and "mode 0644" in result["diff"][0]["after"]


def test_a_file_is_replaced_rather_than_written_into(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a"
    path.write_text("old\n")
    with path.open() as reader:
        run(files=[file(path)])
        assert reader.read() == "old\n"
    assert path.read_text() == "new\n"


def test_a_link_in_the_place_of_a_file_is_replaced_and_its_target_stays(tmp_path: pathlib.Path) -> None:
    (tmp_path / "target").write_text("new\n")
    (tmp_path / "a").symlink_to("target")
    assert run(files=[file(tmp_path / "a", mode="0600")])["changed"]
    assert not (tmp_path / "a").is_symlink()
    assert mode(tmp_path / "target") != 0o600


def test_a_file_to_create_only_keeps_its_content_but_not_its_mode(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a"
    assert run(files=[file(path, create_only=True)])["changed"]
    path.write_text("edited\n")
    assert not run(files=[file(path, create_only=True)])["changed"]
    assert run(files=[file(path, create_only=True, mode="0600")])["changed"]
    assert path.read_text() == "edited\n" and mode(path) == 0o600


def test_a_link_is_pointed_elsewhere(tmp_path: pathlib.Path) -> None:
    (tmp_path / "l").symlink_to("/old")
    result = run(links=[{"path": str(tmp_path / "l"), "target": "/new"}], diff=True)
    assert os.readlink(tmp_path / "l") == "/new"
    assert result["diff"][0]["before"] == "link to /old\n"


def test_content_that_is_not_text_is_replaced_as_well(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").write_bytes(b"\xff\xfe")
    assert run(files=[file(tmp_path / "a")], diff=True)["changed"]


# ---- what stops it, before anything is changed


def test_nothing_is_changed_when_one_file_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").write_text("old\n")
    result = run(
        directories=[{"path": str(tmp_path / "d" / "e"), **ME}],
        files=[
            file(tmp_path / "a"),
            file(tmp_path / "d" / "e" / "b", validate="grep -q new %s"),
            file(tmp_path / "c", "bad\n", validate="sh -c 'cat \"$0\" >&2; exit 3' %s"),
        ],
    )
    assert result["failed"] and not result["changed"]
    assert f"{tmp_path}/c: the new content was refused" in result["msg"]
    assert "exit 3" in result["msg"] and "It said: bad" in result["msg"]
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old\n"


def test_a_validating_command_that_is_missing_leaves_nothing_behind(tmp_path: pathlib.Path) -> None:
    result = run(files=[file(tmp_path / "a", validate="/no/such/command %s")])
    assert result["failed"] and "/no/such/command" in result["msg"]
    assert names(tmp_path) == []


def test_a_validating_command_that_hangs_is_stopped(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_files, "VALIDATE_TIMEOUT", 0.2)
    assert "did not end within 0.2 s" in run(files=[file(tmp_path / "a", validate="sleep 30")])["msg"]
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"files": [{"path": "d", "content": "x"}]}, "should be a file and is a folder"),
        ({"files": [{"path": "pipe", "content": "x"}]}, "is a device, pipe or socket"),
        ({"files": [{"path": "x/y", "content": "x"}]}, "Name it in 'directories'"),
        ({"files": [{"path": "x", "content": 7}]}, "content is int"),
        ({"files": [{"path": "x", "content": "x", "mode": "416"}]}, "Quote it in YAML"),
        ({"files": [{"path": "x", "content": "x", "owner": "nobody-here"}]}, "the owner nobody-here"),
        ({"files": [{"path": "x", "content": "1"}, {"path": "x", "content": "2"}]}, "is asked for twice"),
        ({"files": [{"path": "x", "content": "1"}], "absent": ["x"]}, "is asked for twice"),
        ({"directories": [{"path": "f"}]}, "should be a folder and is something else"),
        ({"links": [{"path": "f", "target": "/dev/null"}]}, "should be a link to /dev/null"),
        ({"absent": ["d"]}, "folders are not removed"),
    ],
)
def test_what_can_not_work_is_refused_before_any_change(
    tmp_path: pathlib.Path, wrong: dict[str, t.Any], said: str
) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "f").write_text("")
    os.mkfifo(tmp_path / "pipe")
    arguments: dict[str, t.Any] = {
        kind: [
            str(tmp_path / entry)
            if kind == "absent"
            else {**({} if kind == "links" else ME), **entry, "path": str(tmp_path / entry["path"])}
            for entry in entries
        ]
        for kind, entries in wrong.items()
    }
    arguments.setdefault("directories", []).append({"path": str(tmp_path / "other"), **ME})
    result = run(**arguments)
    assert result["failed"] and said in result["msg"]
    assert names(tmp_path) == ["d", "f", "pipe"]


def test_a_relative_path_is_refused() -> None:
    assert "no absolute path" in run(absent=["some/where"])["msg"]


def test_a_full_disk_is_told_and_leaves_nothing_behind(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_path: str, _target: str) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "a"))

    monkeypatch.setattr(config_files.disk, "replace", full)
    result = run(files=[file(tmp_path / "a")])
    assert "No space left on device" in result["msg"] and "disk full" in result["msg"]
    assert names(tmp_path) == []


def test_remains_of_a_killed_run_are_removed(tmp_path: pathlib.Path) -> None:
    remains, fresh = tmp_path / ".shannon-abcd1234a", tmp_path / ".shannon-abcd9999a"
    for path in (remains, fresh):
        path.write_text("secret")
    os.utime(remains, (time.time() - 7200,) * 2)
    run(files=[file(tmp_path / "a")])
    assert names(tmp_path) == [fresh.name, "a"]


# ---- check mode and diff


def test_check_mode_on_an_empty_host_tolerates_all_that_is_yet_to_come(tmp_path: pathlib.Path) -> None:
    result = run(
        check=True,
        directories=[{"path": str(tmp_path / "etc"), "group": "yet-to-come"}],
        files=[file(tmp_path / "etc" / "a", owner="yet-to-come", validate="/no/such/command %s")],
        links=[{"path": str(tmp_path / "units" / "l"), "target": "/dev/null"}],
        absent=[str(tmp_path / "gone")],
    )
    assert result["changed_paths"] == [str(tmp_path / name) for name in ("etc", "etc/a", "units/l")]
    assert names(tmp_path) == []


def test_check_mode_says_what_would_change_and_changes_nothing(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").write_text("old\n")
    (tmp_path / "gone").write_text("")
    result = run(check=True, diff=True, files=[file(tmp_path / "a")], absent=[str(tmp_path / "gone")])
    assert result["changed_paths"] == [str(tmp_path / "a"), str(tmp_path / "gone")]
    assert (result["diff"][0]["before"], result["diff"][0]["after"]) == ("old\n", "new\n")
    assert (tmp_path / "a").read_text() == "old\n" and (tmp_path / "gone").exists()


def test_secret_content_is_in_no_diff_no_result_and_no_log(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(config_files.QuietModule, "log", lambda _self, message, **_rest: logged.append(str(message)))
    (tmp_path / "a").write_text("hunter1\n")
    wanted = file(tmp_path / "a", "hunter2\n", secret=True, validate="sh -c 'cat %s; exit 1'")
    for change in ({"validate": "sh -c 'cat %s; exit 1'"}, {"validate": "true"}):
        result = run(diff=True, files=[{**wanted, **change}])
        assert "hunter" not in json.dumps(result)
    assert (tmp_path / "a").read_text() == "hunter2\n"
    assert logged and "hunter" not in json.dumps(logged) and str(tmp_path / "a") in logged[0]


# ---- systemd


@pytest.fixture
def systemctl(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A host that systemd runs and whose units are in tmp_path."""
    calls: list[list[str]] = []

    def run_command(_self: t.Any, command: list[str], **_rest: t.Any) -> tuple[int, str, str]:
        calls.append(command)
        return 0, "", ""

    monkeypatch.setattr(config_files, "UNITS", f"{tmp_path}/")
    monkeypatch.setattr(config_files, "BOOTED", str(tmp_path))
    monkeypatch.setattr(config_files.QuietModule, "run_command", run_command)
    return calls


@pytest.mark.parametrize("kind", ["files", "links", "absent"])
def test_systemd_is_told_of_changed_units(tmp_path: pathlib.Path, systemctl: list[list[str]], kind: str) -> None:
    path = tmp_path / "x.service"
    if kind == "absent":
        path.write_text("")
    entry = {"files": file(path), "links": {"path": str(path), "target": "/dev/null"}, "absent": str(path)}[kind]
    assert run(check=True, **{kind: [entry]})["daemon_reloaded"] and systemctl == []
    assert run(**{kind: [entry]})["daemon_reloaded"]
    assert systemctl == [["timeout", "60", "systemctl", "daemon-reload"]]
    assert not run(**{kind: [entry]})["daemon_reloaded"] and len(systemctl) == 1


def test_systemd_is_not_told_where_it_does_not_run(
    tmp_path: pathlib.Path, systemctl: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_files, "BOOTED", str(tmp_path / "nothing"))
    assert not run(files=[file(tmp_path / "x.service")])["daemon_reloaded"] and systemctl == []
