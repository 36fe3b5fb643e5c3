"""The callback plugin: a line for each task and host, nothing of what the task returned, and never in the way."""

from __future__ import annotations

import json
import os
import pathlib
import stat
import subprocess
import sys
import types
import typing as t
from unittest import mock

import pytest

PLAYBOOK = """
- name: The play
  hosts: all
  gather_facts: false
  vars: {word: hidden, part: named}
  tasks:
    - name: Say {{ part }}
      ansible.builtin.debug: {msg: "{{ word }}"}
      changed_when: true
      notify: The handler
    - name: Left out
      ansible.builtin.debug: {msg: "{{ word }}"}
      when: false
    - name: Forgiven
      ansible.builtin.fail: {msg: "{{ word }}"}
      ignore_errors: true
    - name: Fails on one
      ansible.builtin.fail: {msg: "{{ word }}"}
      when: inventory_hostname == "two"
  handlers:
    - name: The handler
      ansible.builtin.debug: {msg: "{{ word }}"}
"""


class Base:
    """What Ansible gives to every callback plugin, as far as this one takes it."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self.disabled = False

    def set_options(self) -> None:
        pass


# The real one would make a controller of this process, in which modules return no warnings to the other tests; the
# playbook at the end has it.
with mock.patch.dict(sys.modules, {"ansible.plugins.callback": mock.Mock(CallbackBase=Base)}):
    from ansible_collections.shannon.resilience.plugins.callback import timeline


class Display:
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)


class Named:
    """A host, a play or a task."""

    def __init__(self, name: str) -> None:
        self._uuid = f"id of {name}"
        self.name = name

    def get_name(self) -> str:
        return self.name


class Result:
    """What Ansible tells of a task that ended; looking at what the task returned fails the test."""

    def __init__(self, task: Named, host: Named, changed: bool = False) -> None:
        self.task = task
        self.host = host
        self.changed = changed

    def is_changed(self) -> bool:
        return self.changed

    @property
    def result(self) -> t.Any:
        raise AssertionError("what a task returned is no business of the timeline")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    now = types.SimpleNamespace(time=1000.0)
    monkeypatch.setattr(timeline, "time", types.SimpleNamespace(time=lambda: now.time))
    return now


def plugin(path: t.Any, monkeypatch: pytest.MonkeyPatch) -> tuple[timeline.CallbackModule, Display]:
    monkeypatch.setenv("SHANNON_TIMELINE_FILE", "")  # so that what it sets is taken back
    display = Display()
    made = timeline.CallbackModule(display=display)
    given = {"file": None if path is None else str(path)}
    monkeypatch.setattr(made, "get_option", given.__getitem__, raising=False)
    made.set_options()
    return made, display


def lines(path: pathlib.Path) -> list[dict[str, t.Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("path", [None, ""])
def test_without_a_file_it_does_nothing(path: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plugin(path, monkeypatch)[0].disabled


def test_a_host_begins_when_it_began_and_not_with_the_first(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, clock: types.SimpleNamespace
) -> None:
    file = tmp_path / "steps"
    made, display = plugin(file, monkeypatch)
    task, one, two, three = (Named(name) for name in ("Stop it", "one", "two", "three"))
    made.v2_playbook_on_play_start(Named("The play"))
    made.v2_playbook_on_task_start(task, is_conditional=False)
    made.v2_runner_on_start(one, task)
    clock.time = 1001.0
    made.v2_runner_on_start(two, task)
    clock.time = 1002.5
    made.v2_runner_on_ok(Result(task, one, changed=True))
    made.v2_runner_on_unreachable(Result(task, two))
    made.v2_runner_on_skipped(Result(task, three))
    common = {"name": "Stop it", "play": "The play", "end": 1002.5}
    assert lines(file) == [
        {**common, "host": "one", "begin": 1000.0, "status": "changed"},
        {**common, "host": "two", "begin": 1001.0, "status": "unreachable"},
        {**common, "host": "three", "begin": 1000.0, "status": "skipped"},
    ]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not display.warnings


def test_a_handler_that_runs_again_begins_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, clock: types.SimpleNamespace
) -> None:
    made, _display = plugin(tmp_path / "steps", monkeypatch)
    handler, host = Named("Restart it"), Named("one")
    for start in (1000.0, 2000.0):
        clock.time = start
        made.v2_playbook_on_handler_task_start(handler)
        made.v2_runner_on_start(host, handler)
        clock.time += 3
        made.v2_runner_on_failed(Result(handler, host), ignore_errors=start == 1000.0)
    found = [(step["begin"], step["end"], step["status"]) for step in lines(tmp_path / "steps")]
    assert found == [(1000.0, 1003.0, "ignored"), (2000.0, 2003.0, "failed")]


def test_a_file_that_cannot_be_written_costs_one_warning(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, display = plugin(tmp_path / "missing" / "too" / "steps", monkeypatch)
    task, host = Named("Stop it"), Named("one")
    for _attempt in range(3):
        # Ansible asks before each call.
        if not made.disabled:
            made.v2_runner_on_ok(Result(task, host))
    assert len(display.warnings) == 1
    assert f"{tmp_path}/missing/too/steps: No such file" in display.warnings[0]


def test_its_folder_is_made_and_a_file_that_grew_too_large_is_begun_anew(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "folder" / "steps"
    task, host = Named("Stop it"), Named("one")
    for expected in (1, 2, 1):
        made, display = plugin(file, monkeypatch)
        made.v2_runner_on_ok(Result(task, host))
        assert (len(lines(file)), display.warnings) == (expected, [])
        monkeypatch.setattr(timeline, "TOO_LARGE", 1 if expected == 2 else 10**6)
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("settings", "environment"),
    [("", {"SHANNON_TIMELINE_FILE": "steps"}), ("[callback_timeline]\nfile = steps\n", {})],
    ids=["environment", "ansible.cfg"],
)
def test_a_playbook_leaves_its_timeline_and_no_secret(
    tmp_path: pathlib.Path, settings: str, environment: dict[str, str]
) -> None:
    (tmp_path / "ansible.cfg").write_text(f"[defaults]\ncallbacks_enabled = shannon.resilience.timeline\n{settings}")
    (tmp_path / "play.yml").write_text(PLAYBOOK)
    (tmp_path / "steps").write_text('{"name": "of an earlier run"}\n')
    done = subprocess.run(
        [pathlib.Path(sys.executable).parent / "ansible-playbook", "-i", "one,two,", "-c", "local", "play.yml"],
        cwd=tmp_path,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": "ansible.cfg",
            "ANSIBLE_HOME": str(tmp_path / "home"),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "[WARNING]" not in done.stderr
    first, *steps = lines(tmp_path / "steps")
    assert first == {"name": "of an earlier run"}
    assert [(step["name"], step["host"], step["status"]) for step in sorted(steps, key=lambda step: step["host"])] == [
        ("Say named", "one", "changed"),
        ("Left out", "one", "skipped"),
        ("Forgiven", "one", "ignored"),
        ("Fails on one", "one", "skipped"),
        ("The handler", "one", "ok"),
        ("Say named", "two", "changed"),
        ("Left out", "two", "skipped"),
        ("Forgiven", "two", "ignored"),
        ("Fails on one", "two", "failed"),
    ]
    for step in steps:
        assert sorted(step) == ["begin", "end", "host", "name", "play", "status"]
        assert step["play"] == "The play" and 0 <= step["end"] - step["begin"] < 60
    assert "hidden" not in (tmp_path / "steps").read_text()
