"""The runner of the gates, and the generator of the roles' pages."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
import types
import typing as t
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tool(name: str) -> types.ModuleType:
    """A tool as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


gates = tool("gates")
role_docs = tool("role_docs")


def good(outcome: t.Any) -> None:
    """Does well."""
    outcome.steps.append(("a step", 1.0))


def bad(_outcome: t.Any) -> None:
    """Fails."""
    gates.run("false")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> t.Callable[..., int]:
    """Run the command line with three gates instead of the real ones."""
    monkeypatch.setattr(gates, "GATES", {"first": good, "second": bad, "third": good})
    monkeypatch.setattr(gates.shutil, "rmtree", lambda *_args, **_named: None)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def main(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["gates.py", *words])
        try:
            return int(gates.main())
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    return main


def test_the_first_that_fails_ends_it(few: t.Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert few() == 1
    out = capsys.readouterr().out
    assert "second FAILED: false ended with 1" in out and "third" not in out
    assert out.splitlines()[-1] == "1 passed, 1 failed"


def test_it_keeps_going_on_request(few: t.Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert few("--keep-going") == 1
    assert capsys.readouterr().out.splitlines()[-1] == "2 passed, 1 failed"


def test_only_the_named_ones_run(few: t.Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert few("first", "third") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == "2 passed, 0 failed"
    assert any(line.endswith("a step") for line in out)


def test_a_gate_that_does_not_exist_is_named(few: t.Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        few("frist")
    assert "there is no gate frist; there are first, second, third" in capsys.readouterr().err


@pytest.mark.parametrize("status", [0, 1])
def test_quick_gates_beside_molecule_count_and_are_heard(
    few: t.Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    status: int,
) -> None:
    child = tmp_path / "gates.py"
    child.write_text(f"import os, sys\nprint(sys.argv[1:], os.environ['{gates.BESIDE}'])\nsys.exit({status})\n")
    monkeypatch.setattr(gates, "GATES", {"quick": bad, "molecule": good, "last": good})
    monkeypatch.setattr(gates, "QUICK", ("quick",))
    monkeypatch.setattr(gates, "__file__", str(child))
    assert few("--beside", "--keep-going") == status
    out = capsys.readouterr().out
    assert "['--keep-going', 'quick'] 1" in out
    assert out.splitlines()[-1] == f"{3 - status} passed, {status} failed"


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_nothing_of_a_command_that_hangs_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gates, "LONGEST", 1)
    with pytest.raises(gates.Failed, match="took longer than"):
        gates.run("sh", "-c", f"sleep 60 & echo $! > {tmp_path}/child; wait")
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 10
    while alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_interrupted_run_says_so_and_what_it_was_at(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, 'tools'); import gates\n"
        f"gates.GATES = {{'slow': lambda outcome: gates.run('sh', '-c', 'touch {tmp_path}/begun; sleep 60')}}\n"
        "sys.argv = ['gates.py']; sys.exit(gates.main())"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ}
    ) as process:
        deadline = time.monotonic() + 20
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.terminate()
        out, _nothing = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "slow FAILED: it was interrupted" in out
    assert out.splitlines()[-1] == "0 passed, 1 failed"


@pytest.mark.parametrize(
    ("option", "shown"),
    [
        ({"required": True}, "**required**"),
        ({}, ""),
        ({"default": 3}, "`3`"),
        ({"default": True}, "`true`"),
        ({"default": ""}, '`""`'),
        ({"default": ["a", "b"]}, "`[a, b]`"),
        ({"default": "{{ x | first }}"}, "`{{ x \\| first }}`"),
        ({"default": "x" * 200}, "[see there](../../roles/redis/defaults/main.yml)"),
    ],
)
def test_a_default_is_shown_as_it_is_written(option: dict[str, t.Any], shown: str) -> None:
    assert role_docs.default_of(option, "redis") == shown


def test_markup_becomes_code() -> None:
    assert role_docs.plain("Set O(a_b) to V(x);  see\nM(shannon.resilience.units).") == (
        "Set `a_b` to `x`; see `shannon.resilience.units`."
    )
