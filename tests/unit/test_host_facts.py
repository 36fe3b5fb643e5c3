"""The few facts that roles use, also on hosts that lack a tool."""

from __future__ import annotations

import hashlib
import pathlib
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
    "/etc/passwd": "root:x:0:0::/root:/bin/sh\nqdrant:x:998:998::/var/lib/shannon/qdrant:/usr/sbin/nologin\n",
    "/etc/group": "root:x:0:\nshannon-tls:x:997:qdrant,etcd\nbroken\n",
    "/etc/hosts": "127.0.0.1 localhost\n# BEGIN hosts of the topology (shannon.resilience)\n"
    "192.0.2.1 a1\n192.0.2.2 a2\n# END hosts of the topology (shannon.resilience)\n192.0.2.9 other\n",
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


def test_accounts_groups_and_names(answers: dict[str, str]) -> None:
    found = facts()
    assert found["users"] == ["qdrant", "root"]
    assert found["groups"] == {"root": [], "shannon-tls": ["etcd", "qdrant"]}
    assert found["names"] == ["192.0.2.1 a1", "192.0.2.2 a2"]


def test_without_markers_there_are_no_names() -> None:
    assert host_facts.block("127.0.0.1 localhost\n") == []
    assert host_facts.block(host_facts.BEGIN + "\n192.0.2.1 a1\n") == []


def test_markers_say_what_is_there_and_what_notes_hold(tmp_path: t.Any) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / ".complete").write_text("")
    (tmp_path / "started").write_text("a note")
    (tmp_path / "binary").write_bytes(b"x" * (host_facts.LONGEST_NOTE + 1))
    found = host_facts.markers([f"{tmp_path}/*/.complete", f"{tmp_path}/started", f"{tmp_path}/binary", "/nowhere/*"])
    assert found == {
        f"{tmp_path}/one/.complete": hashlib.sha1(b"").hexdigest(),
        f"{tmp_path}/started": hashlib.sha1(b"a note").hexdigest(),
        f"{tmp_path}/binary": "",
    }


def test_the_markers_of_the_block_are_those_that_the_role_writes() -> None:
    role = pathlib.Path(host_facts.__file__).resolve().parents[2] / "roles" / "common" / "tasks" / "configure.yml"
    assert host_facts.BEGIN.replace("BEGIN", "{mark}") in role.read_text()
