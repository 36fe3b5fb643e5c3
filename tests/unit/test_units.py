"""Several units in one call: only what differs is acted on, and what does not come up is explained."""

from __future__ import annotations

import time
import typing as t
from pathlib import Path

import pytest
from module_runner import run_module

from ansible_collections.shannon.resilience.plugins.module_utils import systemd
from ansible_collections.shannon.resilience.plugins.modules import units

State = dict[str, str]


class FakeSystemd:
    """Answers as systemctl and journalctl do. `then` gives the states that a unit goes through after an action."""

    def __init__(self) -> None:
        self.units: dict[str, State] = {}
        self.then: dict[str, list[State]] = {}
        self.answers: dict[str, tuple[int, str]] = {}
        self.calls: list[str] = []

    def add(self, name: str, active: str = "inactive", file: str = "disabled", **more: str) -> None:
        self.units[name] = {
            "LoadState": "loaded",
            "ActiveState": active,
            "UnitFileState": file,
            "Type": "notify",
            **more,
        }

    def acted(self) -> list[str]:
        return [call for call in self.calls if not call.startswith("show")]

    def run_command(self, command: list[str], **_rest: t.Any) -> tuple[int, str, str]:
        assert command[:2] == ["timeout", "--kill-after=5"] and float(command[2]) > 0
        program, verb = command[3], command[4]
        if program == "journalctl":
            return 0, "bind: address in use\nexiting\n", ""
        names = command[command.index("--") + 1 :] if "--" in command else []
        self.calls.append(" ".join([verb, *names]))
        if verb == "show":
            return 0, "\n\n".join(self.show(name) for name in names), ""
        code, said = self.answers.get(verb, (0, ""))
        for name in names if not code else []:
            self.change(name, verb)
        return code, "", said

    def show(self, name: str) -> str:
        state = self.units.get(name, {"LoadState": "not-found", "ActiveState": "inactive", "UnitFileState": ""})
        if self.acted() and self.then.get(name):
            state = self.units[name] = {**state, **self.then[name].pop(0)}
        return "\n".join(f"{key}={value}" for key, value in {"Id": name, **state}.items())

    def change(self, name: str, verb: str) -> None:
        outcome = {"start": "active", "restart": "active", "reload": "active", "stop": "inactive"}
        if verb in outcome:
            self.units[name]["ActiveState"] = outcome[verb]
        elif verb in ("enable", "disable"):
            self.units[name]["UnitFileState"] = f"{verb}d"


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> FakeSystemd:
    fake = FakeSystemd()
    monkeypatch.setattr(units.AnsibleModule, "run_command", fake.run_command)
    monkeypatch.setattr(units, "INTERVAL", 0.01)
    return fake


def run(*wanted: dict[str, t.Any], check: bool = False, **more: t.Any) -> dict[str, t.Any]:
    return run_module(units, check=check, diff=True, units=list(wanted), **more)


def started(name: str, **more: t.Any) -> dict[str, t.Any]:
    return {"name": name, "state": "started", **more}


# ---- what it does


def test_neighbours_start_together_after_being_enabled(host: FakeSystemd) -> None:
    for name in ("redis@a.service", "redis@b.service"):
        host.add(name)
    result = run(started("redis@a", enabled=True), started("redis@b.service", enabled=True))
    assert result["changed_units"] == ["redis@a.service", "redis@b.service"]
    assert host.acted() == ["enable redis@a.service redis@b.service", "start redis@a.service redis@b.service"]


def test_a_second_run_asks_once_and_does_nothing(host: FakeSystemd) -> None:
    host.add("a.service", "active", "enabled")
    host.add("b.service", "inactive", "disabled")
    result = run(started("a", enabled=True), {"name": "b", "state": "stopped", "enabled": False})
    assert not result["changed"]
    assert host.calls == ["show a.service b.service"]


def test_no_units_is_no_work(host: FakeSystemd) -> None:
    assert not run()["changed"] and host.calls == []


def test_units_are_acted_on_in_order(host: FakeSystemd) -> None:
    for name, active in (("a.service", "inactive"), ("b.service", "active"), ("c.service", "inactive")):
        host.add(name, active)
    run(started("a"), {"name": "b", "state": "stopped"}, started("c"))
    assert host.acted() == ["start a.service", "stop b.service", "start c.service"]


def test_restarts_go_one_by_one(host: FakeSystemd) -> None:
    host.add("a.service", "active")
    host.add("b.service", "active")
    assert run(*({"name": name, "state": "restarted"} for name in "ab"))["changed"]
    assert host.acted() == ["restart a.service", "restart b.service"]


def test_a_failed_unit_is_forgiven_before_it_starts(host: FakeSystemd) -> None:
    host.add("a.service", "failed")
    host.add("b.service", "activating", SubState="auto-restart")
    run(started("a"), started("b"))
    assert host.acted() == ["reset-failed a.service b.service", "start a.service b.service"]


def test_changed_unit_files_are_read_again_first(host: FakeSystemd) -> None:
    host.add("a.service", "active", "enabled", NeedDaemonReload="yes")
    assert not run(started("a"))["changed"]
    assert host.acted() == ["daemon-reload"]


# ---- files that it has to read again


def firewall(path: Path, **more: t.Any) -> dict[str, t.Any]:
    return started("fw", enabled=True, reload_for=[str(path), "/nowhere/at/all"], **more)


def loaded(host: FakeSystemd, seconds: float, **more: str) -> None:
    """A firewall that was loaded so many seconds after now."""
    stamp = str(int((time.monotonic() + seconds) * 1e6))
    host.add("fw.service", "active", "enabled", Type="oneshot", StateChangeTimestampMonotonic=stamp, **more)


def test_what_was_written_after_the_last_load_is_loaded(host: FakeSystemd, tmp_path: Path) -> None:
    path = tmp_path / "rules"
    path.touch()
    loaded(host, -5.0)
    assert run(firewall(path), check=True)["changed_units"] == ["fw.service"]
    assert host.acted() == []
    assert run(firewall(path))["changed_units"] == ["fw.service"]
    assert host.acted() == ["reload fw.service"]


def test_what_was_loaded_is_not_loaded_again(host: FakeSystemd, tmp_path: Path) -> None:
    path = tmp_path / "rules"
    path.touch()
    loaded(host, 5.0, ReloadResult="success")
    assert not run(firewall(path))["changed"]
    assert not run(started("fw", reload_for=["/nowhere/at/all"]))["changed"]
    assert host.acted() == []


def test_a_load_that_failed_is_tried_again(host: FakeSystemd, tmp_path: Path) -> None:
    path = tmp_path / "rules"
    path.touch()
    loaded(host, 5.0, ReloadResult="exit-code")
    assert run(firewall(path))["changed"]
    assert host.acted() == ["reload fw.service"]


@pytest.mark.parametrize("state", ["stopped", "restarted", None])
def test_files_matter_only_to_what_is_to_run(host: FakeSystemd, tmp_path: Path, state: str | None) -> None:
    path = tmp_path / "rules"
    path.touch()
    loaded(host, -5.0)
    run({"name": "fw", "state": state, "reload_for": [str(path)]})
    assert host.acted() == {"stopped": ["stop fw.service"], "restarted": ["restart fw.service"], None: []}[state]


def test_one_that_does_not_run_is_started_which_reads_them(host: FakeSystemd, tmp_path: Path) -> None:
    host.add("fw.service", "inactive", "enabled", StateChangeTimestampMonotonic="1")
    (tmp_path / "rules").touch()
    run(firewall(tmp_path / "rules"))
    assert host.acted() == ["start fw.service"]


def test_a_unit_on_its_way_is_waited_for(host: FakeSystemd) -> None:
    host.add("a.service")
    host.then["a.service"] = [{"ActiveState": "activating"}, {"ActiveState": "activating"}, {"ActiveState": "active"}]
    assert run(started("a"))["changed"]


def test_a_unit_that_systemd_starts_again_by_itself_is_waited_for(host: FakeSystemd) -> None:
    host.add("a.service")
    host.answers["start"] = (1, "Job for a.service failed")
    host.then["a.service"] = [{"ActiveState": "activating", "SubState": "auto-restart"}, {"ActiveState": "active"}]
    assert run(started("a"))["changed"]


def test_a_oneshot_that_is_over_counts_as_started(host: FakeSystemd) -> None:
    host.add("a.service", Type="oneshot", Result="success")
    host.then["a.service"] = [{"ActiveState": "inactive"}]
    assert run(started("a"))["changed"]


# ---- when it does not work


def test_a_unit_that_fails_is_explained(host: FakeSystemd) -> None:
    host.add("a.service", SubState="dead")
    host.answers["start"] = (1, "Job for a.service failed because the control process exited.")
    host.then["a.service"] = [{"ActiveState": "failed", "SubState": "failed", "Result": "exit-code"}]
    result = run(started("a"))
    assert result["failed"] and result["unit"] == "a.service"
    for part in ("a.service should be running within 60 s", "is failed (failed, result exit-code)", "control process"):
        assert part in result["msg"]
    assert "bind: address in use" in result["msg"] and "journalctl -u a.service" in result["msg"]
    assert result["journal"] == ["bind: address in use", "exiting"]


def test_a_unit_that_hangs_is_not_waited_for_longer_than_asked(host: FakeSystemd) -> None:
    host.add("a.service", "inactive")
    host.answers["start"] = (124, "")
    host.then["a.service"] = [{"ActiveState": "activating", "SubState": "start"}] * 500
    result = run(started("a"), timeout=1)
    assert "within 1 s" in result["msg"] and "did not get there in time" in result["msg"]


def test_a_service_that_dies_over_and_over_is_not_taken_for_running(host: FakeSystemd) -> None:
    host.add("a.service", Type="exec")
    host.then["a.service"] = [{"ActiveState": "active", "InvocationID": str(turn)} for turn in range(500)]
    result = run(started("a"), timeout=1)
    assert result["failed"] and "a.service should be running" in result["msg"]


def test_a_refused_reload_is_told_although_the_unit_runs(host: FakeSystemd) -> None:
    host.add("a.service", "active")
    host.answers["reload"] = (1, "Job type reload is not applicable for unit a.service.")
    result = run({"name": "a", "state": "reloaded"})
    assert result["failed"] and "not applicable" in result["msg"]


@pytest.mark.parametrize("load", ["not-found", "bad-setting"])
def test_a_unit_that_is_not_there_is_refused_before_any_is_touched(host: FakeSystemd, load: str) -> None:
    host.add("a.service")
    host.add("b.service", LoadState=load)
    result = run(started("a"), started("b"))
    assert result["failed"] and load in result["msg"] and "Run the role" in result["msg"]
    assert host.acted() == ["daemon-reload"]


def test_a_unit_that_can_not_be_enabled_is_refused(host: FakeSystemd) -> None:
    host.add("a.service", file="static")
    assert "[Install]" in run(started("a", enabled=True))["msg"]
    assert not run({"name": "a", "enabled": False})["changed"]


def test_a_unit_named_twice_is_refused(host: FakeSystemd) -> None:
    assert "asked for twice" in run(started("a"), started("a.service"))["msg"]


def test_a_timeout_of_nothing_is_refused(host: FakeSystemd) -> None:
    assert "at least 1 second" in run(started("a"), timeout=0)["msg"]


# ---- check mode


def test_check_mode_on_an_empty_host_reports_what_would_change(host: FakeSystemd) -> None:
    result = run(started("a", enabled=True), {"name": "b", "state": "stopped", "enabled": False}, check=True)
    assert result["changed_units"] == ["a.service"]
    assert result["diff"] == {"before": "a.service: inactive, not there\n", "after": "a.service: enable, start\n"}
    assert host.acted() == []


def test_check_mode_on_a_converged_host_reports_nothing(host: FakeSystemd) -> None:
    host.add("a.service", "active", "enabled")
    assert not run(started("a", enabled=True), check=True)["changed"]


# ---- the decisions on their own


@pytest.mark.parametrize(
    ("wanted", "file", "verb"),
    [
        (True, "disabled", "enable"),
        (True, "enabled-runtime", "enable"),
        (True, "enabled", ""),
        (True, "alias", ""),
        (False, "enabled", "disable"),
        (False, "masked", ""),
        (False, "", ""),
        (None, "enabled", ""),
    ],
)
def test_enablement(wanted: bool | None, file: str, verb: str) -> None:
    assert systemd.enablement(systemd.Unit("a.service", enabled=wanted), {"UnitFileState": file}) == verb


@pytest.mark.parametrize(
    ("state", "active", "verb"),
    [
        ("started", "activating", "start"),
        ("started", "reloading", ""),
        ("stopped", "failed", ""),
        ("stopped", "activating", "stop"),
        ("stopped", "deactivating", "stop"),
        ("restarted", "inactive", "restart"),
        ("reloaded", "active", "reload"),
        ("reloaded", "inactive", "start"),
        (None, "inactive", ""),
    ],
)
def test_action(state: str | None, active: str, verb: str) -> None:
    assert systemd.action(systemd.Unit("a.service", state), {"ActiveState": active}) == verb


def test_names_get_their_suffix() -> None:
    assert systemd.full_name("etcd@region") == "etcd@region.service"
    assert systemd.full_name("x.timer") == "x.timer"
