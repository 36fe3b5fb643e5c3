# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Storages of circuit breakers: what one process found out, the next one knows."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import threading
import typing as t
from pathlib import Path

import pytest

from ansible_collections.shannon.resilience.plugins.module_utils.circuit_breaker import (
    CircuitBreaker,
    CircuitOpenError,
    Settings,
    State,
    TooManyRequestsError,
)
from ansible_collections.shannon.resilience.plugins.module_utils.circuit_breaker_storage import (
    FORGET_AFTER,
    FileStorage,
    MemoryStorage,
    Storage,
    StorageError,
)

SETTINGS = Settings(failure_threshold=2, success_threshold=1, timeout=10.0, max_requests=1, probe_timeout=20.0)


class Process:
    """A process with clocks of its own: its monotonic one began when it did."""

    def __init__(self, storage: Storage, wall: list[float], settings: Settings = SETTINGS) -> None:
        began = wall[0]
        self.breaker = CircuitBreaker(
            "redis", "", settings, storage=storage, wall=lambda: wall[0], clock=lambda: wall[0] - began
        )

    def fail(self, times: int = 1) -> None:
        for _time in range(times):
            with pytest.raises(ConnectionError):
                self.breaker.call(boom)


def boom() -> None:
    raise ConnectionError("away")


@pytest.fixture
def wall() -> list[float]:
    return [1_700_000_000.0]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "breakers.json"


@pytest.fixture(params=["memory", "file"])
def storage(request: pytest.FixtureRequest, path: Path) -> Storage:
    return MemoryStorage() if request.param == "memory" else FileStorage(str(path))


def test_failures_of_several_processes_add_up(storage: Storage, wall: list[float]) -> None:
    Process(storage, wall).fail()
    wall[0] += 3
    Process(storage, wall).fail()
    wall[0] += 4
    late = Process(storage, wall).breaker
    assert late.state is State.OPEN and late.retry_after == pytest.approx(6, abs=0.01)
    with pytest.raises(CircuitOpenError):
        late.call(lambda: pytest.fail("it was called"))
    wall[0] += 6
    assert Process(storage, wall).breaker.call(int) == 0
    assert late.state is State.CLOSED


def test_a_result_finds_the_term_that_it_began_in(storage: Storage, wall: list[float]) -> None:
    one, other = Process(storage, wall), Process(storage, wall)
    permit = one.breaker.admit()
    other.fail(2)
    permit.succeeded()
    assert one.breaker.state is State.OPEN


def test_one_process_probes_at_a_time(storage: Storage, wall: list[float]) -> None:
    one, other = Process(storage, wall), Process(storage, wall)
    one.fail(2)
    wall[0] += 10
    permit = one.breaker.admit()
    with pytest.raises(TooManyRequestsError):
        other.breaker.admit()
    permit.succeeded()
    assert other.breaker.state is State.CLOSED


def test_the_probe_of_a_process_that_was_killed_loses_its_place(storage: Storage, wall: list[float]) -> None:
    Process(storage, wall).fail(2)
    wall[0] += 10
    Process(storage, wall).breaker.admit()
    wall[0] += 20
    assert Process(storage, wall).breaker.call(int) == 0


def test_a_clock_that_was_set_back_does_not_keep_it_open(storage: Storage, wall: list[float]) -> None:
    settings = Settings(failure_threshold=1, timeout=10.0, timeout_max=10.0)
    Process(storage, wall, settings).fail()
    wall[0] -= 86400
    assert Process(storage, wall, settings).breaker.retry_after <= 10


def test_an_operators_word_is_kept(storage: Storage, wall: list[float]) -> None:
    Process(storage, wall).breaker.force_open("maintenance")
    wall[0] += 1e6
    with pytest.raises(CircuitOpenError, match="maintenance"):
        Process(storage, wall).breaker.call(int)
    Process(storage, wall).breaker.disable()
    Process(storage, wall).fail(5)
    assert Process(storage, wall).breaker.state is State.CLOSED


def test_rates_are_kept(storage: Storage, wall: list[float]) -> None:
    settings = Settings(failure_threshold=100, failure_rate=0.5, minimum_calls=4, rate_window=60.0)
    for _process in range(2):
        process = Process(storage, wall, settings)
        process.fail()
        process.breaker.call(int)
        wall[0] += 7
    assert process.breaker.state is State.OPEN


def test_services_do_not_share_by_accident(wall: list[float]) -> None:
    storage = MemoryStorage()
    CircuitBreaker("redis", "gateway", storage=storage).force_open()
    assert CircuitBreaker("redis", "orchestrator", storage=storage).state is State.CLOSED


# ---- the file


def kept(path: Path) -> dict[str, t.Any]:
    return t.cast("dict[str, t.Any]", json.loads(path.read_text())["breakers"])


def test_the_file_is_private_and_replaced_as_a_whole(path: Path, wall: list[float]) -> None:
    Process(FileStorage(str(path)), wall).fail(2)
    assert path.stat().st_mode & 0o777 == 0o600
    assert kept(path)["redis"]["state"] == "open"
    assert sorted(one.name for one in path.parent.iterdir()) == ["breakers.json", "breakers.json.lock"]


def test_nothing_is_written_when_nothing_changed(path: Path) -> None:
    storage = FileStorage(str(path))
    with storage.transaction() as records:
        records["a"] = {"state": "closed"}
    before = path.stat().st_ino
    with storage.transaction():
        pass
    assert path.stat().st_ino == before


def test_a_block_that_fails_keeps_nothing(storage: Storage) -> None:
    with pytest.raises(RuntimeError), storage.transaction() as records:
        records["a"] = {}
        raise RuntimeError("x")
    with storage.transaction() as records:
        assert records == {}


@pytest.mark.parametrize(
    "content",
    ["", "{", "null", "[]", "{}", '{"version": 2, "breakers": {}}', '{"version": 1, "breakers": {"a": 1}}', "\0\xff"],
)
def test_a_damaged_file_is_set_aside(
    path: Path, wall: list[float], content: str, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text(content, encoding="latin-1")
    storage = FileStorage(str(path))
    Process(storage, wall).fail(2)
    assert kept(path)["redis"]["state"] == "open"
    assert Path(f"{path}.damaged").read_text(encoding="latin-1") == content
    assert f"{path} is damaged" in caplog.text and len(storage.warnings) == 1


def test_a_damaged_record_costs_no_other(path: Path, wall: list[float], caplog: pytest.LogCaptureFixture) -> None:
    storage = FileStorage(str(path))
    with storage.transaction() as records:
        records.update(redis={"state": "ajar"}, other={"state": "closed"})
    Process(storage, wall).fail(2)
    assert kept(path)["redis"]["state"] == "open" and kept(path)["other"]["state"] == "closed"
    assert "circuit breaker redis begins anew" in caplog.text


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "breakers.json"
    said = r"missing/breakers\.json: .*It needs a folder \(.*missing\)"
    with pytest.raises(StorageError, match=said), FileStorage(str(missing)).transaction():
        pass


def test_a_storage_that_fails_harms_no_call(
    tmp_path: Path, wall: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """10.1: what protects must not cause an outage. The breaker goes on with what it knows itself."""
    process = Process(FileStorage(str(tmp_path / "missing" / "breakers.json")), wall)
    assert process.breaker.call(int) == 0
    process.fail(2)
    with pytest.raises(CircuitOpenError):
        process.breaker.call(int)
    assert caplog.text.count("goes on without its storage") == 1
    (tmp_path / "missing").mkdir()
    assert process.breaker.state is State.OPEN
    assert kept(tmp_path / "missing" / "breakers.json")["redis"]["state"] == "open"


def test_read_only_keeps_nothing_and_needs_nothing(tmp_path: Path, path: Path, wall: list[float]) -> None:
    Process(FileStorage(str(path)), wall).fail()
    before = path.read_bytes()
    Process(FileStorage(str(path), read_only=True), wall).fail()
    assert path.read_bytes() == before
    with FileStorage(str(tmp_path / "missing" / "x.json"), read_only=True).transaction() as records:
        assert records == {}


def test_a_lock_that_is_never_given_back_is_named(path: Path) -> None:
    with open(f"{path}.lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        storage = FileStorage(str(path), timeout=0.1)
        with pytest.raises(StorageError, match="another run holds it"), storage.transaction():
            pass


def test_what_is_long_unused_is_forgotten(path: Path) -> None:
    now = [1e9]
    storage = FileStorage(str(path), wall=lambda: now[0])
    with storage.transaction() as records:
        records.update(old={"control": "none"}, kept={"control": "forced_open"})
    now[0] += FORGET_AFTER + 1
    with storage.transaction() as records:
        records["new"] = {"control": "none"}
    assert sorted(kept(path)) == ["kept", "new"]


def count_up(path: str) -> None:
    storage = FileStorage(path, timeout=30)
    for _turn in range(10):
        with storage.transaction() as records:
            record = records.setdefault("a", {"count": 0})
            record["count"] += 1


def test_processes_and_threads_take_turns(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers: list[t.Any] = [context.Process(target=count_up, args=(str(path),)) for _worker in range(3)]
    for worker in workers:
        worker.start()
    threads = [threading.Thread(target=count_up, args=(str(path),)) for _worker in range(2)]
    for thread in threads:
        thread.start()
    for one in (*workers, *threads):
        one.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert kept(path)["a"]["count"] == 50


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_that_may_not_be_written_is_named(path: Path) -> None:
    path.parent.chmod(0o500)
    with pytest.raises(StorageError, match="user"), FileStorage(str(path)).transaction() as records:
        records["a"] = {}
