"""Wheels for hosts unlike the controller, collected once; pip itself is replaced by a program that makes files."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import typing as t

import pytest
from module_runner import run_module

from ansible_collections.shannon.resilience.plugins.module_utils import wheels
from ansible_collections.shannon.resilience.plugins.modules import wheelhouse


class FakePip:
    """Notes the calls and leaves the wheels that it was told to leave."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.built = "built-1-py3-none-any.whl"
        self.code = 0

    def run_command(self, command: list[str], **_rest: t.Any) -> tuple[int, str, str]:
        self.calls.append(command)
        folder = next(word.split("=", 1)[1] for word in command if word.startswith(("--wheel-dir=", "--dest=")))
        name = self.built if "wheel" in command else "found-1-cp310-cp310-manylinux2014_x86_64.whl"
        (pathlib.Path(folder) / name).write_text(name)
        return self.code, "", "No matching distribution found for x"


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> FakePip:
    fake = FakePip()
    monkeypatch.setattr(wheelhouse.AnsibleModule, "run_command", fake.run_command)
    return fake


def run(dest: pathlib.Path, check: bool = False, **changes: t.Any) -> dict[str, t.Any]:
    wanted = {"requirements": ["x==1"], "build": ["built==1"], "python": "3.10", "architecture": "x86_64", **changes}
    return run_module(wheelhouse, check=check, dest=str(dest), **wanted)


def test_the_archive_holds_all_wheels_and_nothing_else_stays(tmp_path: pathlib.Path, pip: FakePip) -> None:
    result = run(tmp_path / "wheels")
    assert result["changed"]
    with tarfile.open(result["archive"]) as archive:
        assert archive.getnames() == ["built-1-py3-none-any.whl", "found-1-cp310-cp310-manylinux2014_x86_64.whl"]
    assert sorted(os.listdir(tmp_path / "wheels")) == [".lock", os.path.basename(result["archive"])]


def test_nothing_is_downloaded_again_until_the_requirements_change(tmp_path: pathlib.Path, pip: FakePip) -> None:
    first, second = run(tmp_path), run(tmp_path)
    assert not second["changed"] and second["archive"] == first["archive"] and len(pip.calls) == 2
    for changes in ({"requirements": ["x==2"]}, {"python": "3.12"}, {"architecture": "aarch64"}, {"build": []}):
        other = run(tmp_path, **changes)
        assert other["changed"] and other["digest"] != first["digest"]


def test_check_mode_says_so_and_downloads_nothing(tmp_path: pathlib.Path, pip: FakePip) -> None:
    assert run(tmp_path / "wheels", check=True)["changed"]
    assert pip.calls == [] and not (tmp_path / "wheels").exists()


def test_a_failed_download_leaves_no_archive(tmp_path: pathlib.Path, pip: FakePip) -> None:
    pip.code = 1
    result = run(tmp_path)
    assert result["failed"] and "No matching distribution" in result["msg"] and "Python 3.10 on x86_64" in result["msg"]
    assert os.listdir(tmp_path) == [".lock"]


def test_what_was_built_for_the_controller_only_is_refused(tmp_path: pathlib.Path, pip: FakePip) -> None:
    pip.built = "built-1-cp311-cp311-linux_x86_64.whl"
    assert "runs on this controller only" in run(tmp_path)["msg"]
    assert os.listdir(tmp_path) == [".lock"]


def test_remains_of_a_killed_run_are_removed(tmp_path: pathlib.Path, pip: FakePip) -> None:
    (tmp_path / ".wheels-dead" / "wheels").mkdir(parents=True)
    run(tmp_path)
    assert not (tmp_path / ".wheels-dead").exists()


def test_without_pip_it_says_what_to_install(
    tmp_path: pathlib.Path, pip: FakePip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheelhouse, "has_pip", lambda: False)
    assert "python3-pip" in run(tmp_path)["msg"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"python": "3"}, "major and minor"),
        ({"requirements": []}, "at least one"),
        ({"requirements": ["--index-url=http://example.test"]}, "no options of pip"),
    ],
)
def test_bad_arguments_are_refused(tmp_path: pathlib.Path, pip: FakePip, changes: dict[str, t.Any], said: str) -> None:
    assert said in run(tmp_path, **changes)["msg"]
    assert pip.calls == []


def test_an_archive_is_the_same_bytes_for_the_same_wheels(tmp_path: pathlib.Path) -> None:
    digests = []
    for turn in ("one", "two"):
        folder = tmp_path / turn
        folder.mkdir()
        for name in ("b.whl", "a.whl") if turn == "one" else ("a.whl", "b.whl"):
            (folder / name).write_text(name)
            os.utime(folder / name, (len(digests), len(digests)))
        wheels.pack(str(folder), str(tmp_path / f"{turn}.tar.gz"))
        digests.append(hashlib.sha256((tmp_path / f"{turn}.tar.gz").read_bytes()).hexdigest())
    assert digests[0] == digests[1]


def test_the_hosts_platform_is_asked_for() -> None:
    command = wheels.download_command("python3", "shim", ["x==1"], "3.12", "aarch64", "/wheels")
    for word in ("--python-version=3.12", "--platform=manylinux2014_aarch64", "--platform=manylinux_2_35_aarch64"):
        assert word in command
    assert "--only-binary=:all:" in command and not any("manylinux_2_36" in word for word in command)
    assert command[-2:] == ["--", "x==1"]


def test_conditions_are_answered_for_the_hosts(tmp_path: pathlib.Path) -> None:
    shim = tmp_path / "shim.py"
    asked = "python_version < '3.11' and python_full_version < '3.11.3' and platform_machine == 'aarch64'"
    shim.write_text(wheels.SHIM.rsplit("runpy.", 1)[0] + f"print(markers.Marker({asked!r}).evaluate())\n")
    answers = [json.dumps(wheels.environment(python, "aarch64")) for python in ("3.10", "3.12")]
    said = [
        subprocess.run([sys.executable, str(shim), given], capture_output=True, text=True, check=True).stdout
        for given in answers
    ]
    assert [line.strip() for line in said] == ["True", "False"]


def project_in(tmp_path: pathlib.Path) -> dict[str, t.Any]:
    (tmp_path / "root" / "own" / "src").mkdir(parents=True)
    (tmp_path / "root" / "library").mkdir()
    (tmp_path / "root" / "own" / "pyproject.toml").write_text("[project]\nname = 'own'\nversion = '1'\n")
    (tmp_path / "root" / "library" / "shared.py").write_text("answer = 42\n")
    return {"root": str(tmp_path / "root"), "folder": "own", "needs": ["library"]}


def test_a_project_is_built_from_a_copy_with_what_it_needs(
    pip: FakePip, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = project_in(tmp_path)
    (tmp_path / "root" / "library" / "__pycache__").mkdir()
    (tmp_path / "root" / "library" / "__pycache__" / "shared.pyc").write_text("litter")
    seen: list[set[str]] = []

    def watch(command: list[str], **rest: t.Any) -> tuple[int, str, str]:
        if "wheel" in command:
            copy = pathlib.Path(command[-1])
            assert copy.name == "own" and str(tmp_path / "root") not in str(copy)
            seen.append({str(path.relative_to(copy.parent)) for path in copy.parent.rglob("*") if path.is_file()})
        return pip.run_command(command, **rest)

    monkeypatch.setattr(wheelhouse.AnsibleModule, "run_command", staticmethod(watch))
    result = run(tmp_path / "kept", requirements=["x==1"], project=project)
    assert result["changed"] and seen == [{"own/pyproject.toml", "library/shared.py"}]


def test_a_change_of_the_projects_files_makes_another_archive(pip: FakePip, tmp_path: pathlib.Path) -> None:
    project = project_in(tmp_path)
    first = run(tmp_path / "kept", requirements=["x==1"], project=project)
    again = run(tmp_path / "kept", requirements=["x==1"], project=project)
    (tmp_path / "root" / "library" / "shared.py").write_text("answer = 43\n")
    other = run(tmp_path / "kept", requirements=["x==1"], project=project)
    assert again["digest"] == first["digest"] and not again["changed"]
    assert other["digest"] != first["digest"] and other["changed"]


def test_a_project_that_is_not_there_is_named(pip: FakePip, tmp_path: pathlib.Path) -> None:
    project = {"root": str(tmp_path), "folder": "nowhere", "needs": []}
    result = run(tmp_path / "kept", requirements=["x==1"], project=project)
    assert result["failed"] and f"{tmp_path}/nowhere on the controller has no pyproject.toml" in result["msg"]
