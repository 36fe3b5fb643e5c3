"""The few facts that roles use, also on hosts that lack a tool."""

from __future__ import annotations

import sys
import typing as t

import pytest
from module_runner import run_module

from ansible_collections.shannon.resilience.plugins.modules import host_facts

ANSWERS = {
    "systemd-detect-virt": "none\n",
    "dpkg-query": "redis-server ii \nhaproxy hi \ngone rc \nbroken iU \nlibc6 ii \nlibc6 ii \n",
    "timedatectl": "NTPSynchronized=yes\n",
}
FILES = {
    "/etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12"\n# comment\nID=debian\nVERSION_ID="12"\n',
    "/proc/meminfo": "MemTotal:        2048000 kB\nMemFree: 1 kB\n",
}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    given = dict(ANSWERS)

    def run_command(_self: t.Any, command: list[str], **_rest: t.Any) -> tuple[int, str, str]:
        assert command[0] == "timeout"
        return (0, given[command[2]], "") if command[2] in given else (127, "", "No such file or directory")

    monkeypatch.setattr(host_facts.AnsibleModule, "run_command", run_command)
    monkeypatch.setattr(host_facts, "_read", lambda path: FILES[path])
    return given


def facts() -> dict[str, t.Any]:
    result = run_module(host_facts)
    assert not result["changed"]
    return t.cast("dict[str, t.Any]", result["host"])


def test_the_facts_of_a_host(answers: dict[str, str]) -> None:
    found = facts()
    assert (found["distribution"], found["version"], found["memory_mb"]) == ("debian", "12", 2000)
    assert found["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert found["time_synchronized"] and not found["container"]


def test_a_package_on_hold_is_installed_and_a_removed_or_broken_one_is_not(answers: dict[str, str]) -> None:
    assert facts()["packages"] == ["haproxy", "libc6", "redis-server"]


def test_a_container_can_not_tell_whether_its_clock_is_right(answers: dict[str, str]) -> None:
    answers["systemd-detect-virt"] = "docker\n"
    found = facts()
    assert found["container"] and not found["time_synchronized"]


def test_a_clock_that_follows_nothing(answers: dict[str, str]) -> None:
    answers["timedatectl"] = "NTPSynchronized=no\n"
    assert not facts()["time_synchronized"]


def test_a_host_without_the_tools_gives_empty_facts(answers: dict[str, str]) -> None:
    answers.clear()
    found = facts()
    assert found["packages"] == [] and not found["container"] and not found["time_synchronized"]


def test_a_file_that_is_not_there_is_empty(tmp_path: t.Any) -> None:
    assert host_facts._read(str(tmp_path / "nothing")) == ""
    assert host_facts.memory_mb("") == 0 and host_facts.os_release("") == {}
