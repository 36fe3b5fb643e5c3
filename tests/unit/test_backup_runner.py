"""The runner: guards before anything is written, one run at a time, and the registry is told whatever becomes of it."""

from __future__ import annotations

import contextlib
import json
import typing as t
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

pytest.importorskip("pydantic")

from fake_etcd import FakeCluster

from shannon.resilience.backup_records import LOCK, Run, judge, stamp
from shannon.resilience.errors import ResilienceError, WaitTimeout
from shannon.resilience.etcd import EtcdClient
from shannon.resilience.postgres_engine import (
    SEGMENT,
    BackupInfo,
    Reach,
    RepositoryInfo,
    ranges_of,
    segment_name,
)
from shannon.resilience.registry import RESTORING, Registry
from shannon.resilience.wal_archive import Age, Written
from shannon.services.backup import metrics
from shannon.services.backup.kinds.base import Found, Made, Sandbox
from shannon.services.backup.kinds.config import ConfigKind, differences, hashes
from shannon.services.backup.lock import Lock
from shannon.services.backup.main import _write_metrics
from shannon.services.backup.runner import Runner, Skipped, Spaces, Stopped, moment
from shannon.services.backup.settings import Cell, Settings, load

START = datetime(2026, 11, 28, 12, 0, 0, tzinfo=timezone.utc)
OBJECTIVES = {"redis": {"rpo": 7200}}


@dataclass
class FakeKind:
    """A kind that keeps its backups in a list."""

    name: str = "redis"
    per_cell: bool = True
    each_region: bool = False
    error: BaseException | None = None
    wrong: list[str] = field(default_factory=list)
    kept: list[Found] = field(default_factory=list)
    regions: tuple[str, ...] = ("a", "b")
    seen: list[Path] = field(default_factory=list)

    def backup(self, cell: Cell | None, type_: str, staging: Path) -> Made:
        self.seen.append(staging)
        (staging / "dump.rdb").write_text("x")
        if self.error:
            raise self.error
        self.kept.append(Found(f"id{len(self.kept)}", "b", START.timestamp() + len(self.kept), 500))
        return Made(self.kept[-1].id, 500, list(self.regions), {"keys": 3}, [], {"keys": 3})

    def found(self, cell: Cell | None, region: str) -> list[Found]:
        return list(self.kept)

    def fetch(self, cell: Cell | None, found: Found, into: Path) -> dict[str, t.Any]:
        into.mkdir(parents=True, exist_ok=True)
        return {"keys": 3}

    @contextlib.contextmanager
    def sandbox(self, cell: Cell | None, found: Found, folder: Path, to: str) -> t.Iterator[Sandbox]:
        self.seen.append(folder)
        if self.error:
            raise self.error
        yield Sandbox(self.wrong, {"keys": 3}, "somewhere")


@dataclass
class FakeArchive(FakeKind):
    """PostgreSQL, with an archive that a look finds so."""

    name: str = "postgres"
    lacks: Age | None = field(default_factory=lambda: Age(61.26, 700))

    def archived(self, cell: Cell, clock: t.Callable[[], float]) -> tuple[Reach, Age] | None:
        if self.error:
            raise self.error
        return self.lacks and (Reach(1, SEGMENT, "0000000100000000000000A1", clock()), self.lacks)


@dataclass
class World:
    settings: Settings
    client: EtcdClient
    now: datetime = START
    slept: list[float] = field(default_factory=list)
    room: Spaces = field(default_factory=lambda: Spaces(1000, 900))

    def runner(self, region: str = "b", *kinds: FakeKind) -> Runner:
        settings = self.settings.model_copy(update={"region": region, "host": f"{region}3"})
        known = {kind.name: kind for kind in kinds}
        return Runner(settings, self.client, known, lambda: self.now, lambda _path: self.room, self.slept.append)

    @property
    def cell(self) -> Cell:
        return self.settings.cell("main")


@pytest.fixture
def world(tmp_path: Path) -> t.Iterator[World]:
    written = tmp_path / "backup.json"
    written.write_text(
        json.dumps(
            {
                "host": "b3",
                "region": "b",
                "regions": ["a", "b"],
                "repositories": {
                    region: {"host": f"{region}3", "address": "192.0.2.3", "restic": "rest:https://192.0.2.3:8433/"}
                    for region in ("a", "b")
                },
                "cells": [{"name": "main", "home": "a", "postgres": {}, "redis": {}}],
                "registry": ["192.0.2.1:12379"],
                "state": str(tmp_path / "state"),
                "objectives": OBJECTIVES,
                "home_delay": 900,
                "lock_wait": 0.2,
            }
        )
    )
    (tmp_path / "state").mkdir()
    with FakeCluster(3) as cluster:
        client = EtcdClient(cluster.endpoints, timeout=0.5)
        Registry(client).create("main", "a")
        yield World(load(written), client)


def test_a_good_run_is_told_and_leaves_nothing_behind(world: World) -> None:
    kind = FakeKind()
    run = world.runner("b", kind).run(kind, world.cell)
    assert not isinstance(run, Skipped)
    assert run.ok and run.id == "id0" and run.regions == ["a", "b"] and run.good["id"] == "id0"
    stored = world.runner().records.get("redis", "main", "b")
    assert stored == run
    assert not kind.seen[0].exists()
    assert world.client.get(LOCK) is None
    assert not (Path(world.settings.state) / "running.json").exists()


@pytest.mark.parametrize("error", [ResilienceError("no replica answers"), RuntimeError("a fault of its own")])
def test_a_failed_run_is_told_and_keeps_the_last_good_one(world: World, error: Exception) -> None:
    kind = FakeKind()
    runner = world.runner("b", kind)
    runner.run(kind, world.cell)
    kind.error = error
    run = runner.run(kind, world.cell)
    assert not isinstance(run, Skipped)
    assert not run.ok and str(error) in run.error and run.good["id"] == "id0"
    assert world.client.get(LOCK) is None


def test_a_run_that_is_told_to_stop_says_so(world: World) -> None:
    kind = FakeKind(error=Stopped())
    runner = world.runner("b", kind)
    with pytest.raises(Stopped):
        runner.run(kind, world.cell)
    stored = runner.records.get("redis", "main", "b")
    assert stored and not stored.ok and "told to stop" in stored.error
    assert world.client.get(LOCK) is None


def test_a_killed_run_is_told_of_by_the_next(world: World) -> None:
    kind = FakeKind()
    runner = world.runner("b", kind)
    left = {"kind": "dump", "cell": "main", "region": "b", "host": "b3", "started_at": stamp(START), "type": ""}
    state = Path(world.settings.state)
    (state / "running.json").write_text(json.dumps({**left, "verification": False}))
    (state / "scratch" / "dump-main-x").mkdir(parents=True)
    (state / "scratch" / "kept-redis-main-y").mkdir()
    runner.run(kind, world.cell)
    killed = runner.records.get("dump", "main", "b")
    assert killed and not killed.ok and "killed" in killed.error
    assert [path.name for path in (state / "scratch").iterdir()] == ["kept-redis-main-y"]


@pytest.mark.parametrize("error", [None, ResilienceError("pg_dump failed: timeout")])
def test_a_run_that_was_cut_off_says_why_it_failed_and_the_next_one_tells_the_registry(
    world: World, monkeypatch: pytest.MonkeyPatch, error: ResilienceError | None
) -> None:
    kind = FakeKind(name="dump", error=error)
    runner = world.runner("b", kind)
    wanted = "pg_dump failed: timeout" if error else "good"

    def cut(_run: Run) -> Run:
        raise ResilienceError("no member answers")

    with monkeypatch.context() as patched:
        patched.setattr(runner.records, "put", cut)
        with pytest.raises(ResilienceError, match=f"backup of dump: {wanted}.*no member answers"):
            runner.run(kind, world.cell)
    assert runner.records.get("dump", "main", "b") is None and not kind.seen[0].exists()
    other = FakeKind()
    world.runner("b", other).run(other, world.cell)
    told = runner.records.get("dump", "main", "b")
    assert told is not None
    assert (told.ok, told.error) == (error is None, str(error or ""))
    assert not (Path(world.settings.state) / "running.json").exists()


def test_a_disk_without_any_room_is_told_of_although_no_note_can_be_left(world: World) -> None:
    kind = FakeKind()
    # What can't be written, for root neither.
    (Path(world.settings.state) / "running.json").mkdir()
    world.room = Spaces(1000, 0)
    runner = world.runner("b", kind)
    with contextlib.suppress(OSError):
        runner.run(kind, world.cell)
    told = runner.records.get("redis", "main", "b")
    assert told is not None and not told.ok and "must stay free" in told.error


def test_a_full_disk_is_refused_before_anything_is_written(world: World) -> None:
    kind = FakeKind()
    world.room = Spaces(1000, 90)
    run = world.runner("b", kind).run(kind, world.cell)
    assert not isinstance(run, Skipped)
    assert not run.ok and "must stay free" in run.error and kind.seen == []


def test_a_disk_that_would_become_full_is_refused_by_what_the_last_one_took(world: World) -> None:
    kind = FakeKind()
    runner = world.runner("b", kind)
    assert runner.run(kind, world.cell).ok  # type: ignore[union-attr]
    world.room = Spaces(1000, 590)
    assert not runner.run(kind, world.cell).ok  # type: ignore[union-attr]
    world.room = Spaces(1000, 610)
    assert runner.run(kind, world.cell).ok  # type: ignore[union-attr]


def test_only_one_works_at_a_time(world: World) -> None:
    kind = FakeKind()
    runner = world.runner("b", kind)
    with Lock(world.client, {"host": "a3", "doing": "backup of qdrant"}, 1):
        with pytest.raises(WaitTimeout, match="backup of qdrant"):
            runner.run(kind, world.cell)
        assert kind.seen == []
    assert runner.run(kind, world.cell).ok  # type: ignore[union-attr]


def test_the_home_region_waits_when_a_timer_runs_it_and_the_standby_does_not(world: World) -> None:
    kind = FakeKind()
    world.runner("b", kind).run(kind, world.cell, scheduled=True)
    assert world.slept == []
    world.runner("a", kind).run(kind, world.cell, scheduled=True)
    assert world.slept == [900]


def test_what_the_standby_stored_in_both_regions_is_not_taken_again(world: World) -> None:
    kind = FakeKind()
    world.runner("b", kind).run(kind, world.cell, scheduled=True)
    skipped = world.runner("a", kind).run(kind, world.cell, scheduled=True)
    assert isinstance(skipped, Skipped) and "region b stored one" in skipped.reason
    world.now += timedelta(seconds=3601)  # half of the objective
    assert not isinstance(world.runner("a", kind).run(kind, world.cell, scheduled=True), Skipped)


def test_what_the_standby_could_not_store_here_is_taken(world: World) -> None:
    kind = FakeKind(regions=("b",))
    world.runner("b", kind).run(kind, world.cell, scheduled=True)
    assert not isinstance(world.runner("a", kind).run(kind, world.cell, scheduled=True), Skipped)


def test_each_region_fills_its_own_repository_of_postgres(world: World) -> None:
    kind = FakeKind(name="postgres", each_region=True)
    world.runner("b", kind).run(kind, world.cell, scheduled=True)
    assert not isinstance(world.runner("a", kind).run(kind, world.cell, scheduled=True), Skipped)


def test_an_operator_is_not_made_to_wait_nor_skipped(world: World) -> None:
    kind = FakeKind()
    world.runner("b", kind).run(kind, world.cell)
    assert not isinstance(world.runner("a", kind).run(kind, world.cell), Skipped)
    assert world.slept == []
    world.now += timedelta(seconds=10)
    before, after = START.timestamp() - 5, START.timestamp() + 5
    assert isinstance(world.runner("a", kind).run(kind, world.cell, since=before), Skipped)
    assert not isinstance(world.runner("a", kind).run(kind, world.cell, since=after), Skipped)


def test_a_cell_that_is_being_restored_is_not_backed_up(world: World) -> None:
    kind = FakeKind()
    registry = Registry(world.client)
    record = registry.get("main")
    assert record is not None
    registry.compare_and_swap(record, replace(record, state=RESTORING), "restore", "alice")
    assert isinstance(world.runner("b", kind).run(kind, world.cell), Skipped)


def test_a_verification_is_told_beside_the_run(world: World) -> None:
    kind = FakeKind()
    runner = world.runner("b", kind)
    runner.run(kind, world.cell)
    good = runner.verify(kind, world.cell)
    assert good.ok and good.id == "id0" and good.summary["keys"] == 3
    kind.wrong = ["keys: 2, was 3"]
    bad = runner.verify(kind, world.cell)
    assert not bad.ok and bad.differences == kind.wrong and "keys: 2, was 3" in bad.error
    found = runner.records.everything()["main/redis/b"]
    assert found["run"]["ok"] and not found["verified"]["ok"]
    assert not kind.seen[-1].exists()


def test_a_verification_without_a_backup_fails(world: World) -> None:
    kind = FakeKind()
    run = world.runner("b", kind).verify(kind, world.cell)
    assert not run.ok and "no backup of redis of cell main" in run.error


def test_backups_are_chosen_by_time_or_by_name(world: World) -> None:
    kind = FakeKind()
    runner = world.runner("b", kind)
    for _number in range(3):
        runner.run(kind, world.cell)
    assert runner.choose(kind, world.cell, "b").id == "id2"
    assert runner.choose(kind, world.cell, "b", "2026-11-28 12:00:01+00").id == "id1"
    assert runner.choose(kind, world.cell, "b", "time:2026-11-28 12:00:02").id == "id2"
    assert runner.choose(kind, world.cell, "b", "backup:id0").id == "id0"
    with pytest.raises(ResilienceError, match="as old as"):
        runner.choose(kind, world.cell, "b", "2026-11-28 11:59:59+00")
    with pytest.raises(ResilienceError, match="no backup nope"):
        runner.choose(kind, world.cell, "b", "backup:nope")
    with pytest.raises(ResilienceError, match="is no time"):
        moment("yesterday")


def test_a_lost_lock_fails_the_run(world: World) -> None:
    lock = Lock(world.client, {"host": "a3"}, 1)
    with lock:
        lock.lost.set()
        with pytest.raises(ResilienceError, match="lock of backups was lost"):
            lock.check()


def test_the_configuration_is_whole_and_a_changed_file_is_found_out(world: World, tmp_path: Path) -> None:
    source = tmp_path / "etc"
    (source / "pki").mkdir(parents=True)
    (source / "pki" / "host.key").write_text("secret")
    (source / "a.json").write_text("{}")
    incoming = world.settings.folder("incoming")
    (incoming / "controller.tar.gz").write_text("archive")
    settings = world.settings.model_copy(update={"config_paths": [str(source)]})
    kind = ConfigKind(settings, t.cast("t.Any", None))
    folder = tmp_path / "staging"
    folder.mkdir()
    manifest = kind.fill(None, folder)
    assert manifest["controller"] and manifest["left_out"] == [] and len(manifest["files"]) == 3
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with kind.prove(None, folder) as sandbox:
        assert sandbox.differences == []
    changed = next(folder.rglob("host.key"))
    changed.write_text("else")
    with kind.prove(None, folder) as sandbox:
        assert len(sandbox.differences) == 1 and "host.key is not what it was" in sandbox.differences[0]
    changed.unlink()
    assert "is missing" in differences(manifest["files"], hashes(folder))[0]


def test_metrics_have_a_line_for_each_figure(world: World) -> None:
    kind = FakeKind()
    runner = world.runner("b", kind)
    runner.run(kind, world.cell)
    lines = judge(runner.records.everything(), OBJECTIVES, ["main"], ["a", "b"], START + timedelta(hours=3))
    text = metrics.render(lines, 5, 10)
    assert 'shannon_backup_age_seconds{kind="redis",cell="main",region="b"} 10800' in text
    assert 'shannon_backup_overdue{kind="redis",cell="main",region="a"} 1' in text
    assert 'shannon_backup_last_run_ok{kind="redis",cell="main",region="b"} 1' in text
    assert "shannon_backup_repository_free_bytes 5" in text
    assert all(line.startswith("#") or " " in line for line in text.splitlines())


def archive_lines(world: World) -> list[dict[str, t.Any]]:
    records = world.runner().records.everything()
    lines = judge(records, {"wal": {"rpo": 120}}, ["main"], ["a", "b"], START + timedelta(seconds=240))
    return [line for line in lines if line["kind"] == "wal"]


def test_a_look_at_the_archive_is_told_and_is_a_figure(world: World) -> None:
    kind = FakeArchive()
    world.runner("b", kind).look()
    a, b = archive_lines(world)
    assert (b["state"], b["age"], b["behind"], b["id"]) == ("good", 61.3, 700, "0000000100000000000000A1")
    assert a["state"] == "missing"
    kind.lacks = Age(300.0, None)
    world.runner("a", kind).look()
    text = metrics.render(archive_lines(world), 5, 10)
    for line in (
        'shannon_backup_age_seconds{kind="wal",cell="main",region="b"} 61.3',
        'shannon_backup_objective_seconds{kind="wal",cell="main",region="b"} 120',
        'shannon_backup_overdue{kind="wal",cell="main",region="a"} 1',
        'shannon_backup_overdue{kind="wal",cell="main",region="b"} 0',
        'shannon_backup_last_run_ok{kind="wal",cell="main",region="b"} 1',
        'shannon_backup_behind_bytes{kind="wal",cell="main",region="b"} 700',
    ):
        assert line in text.splitlines()
    assert 'behind_bytes{kind="wal",cell="main",region="a"}' not in text  # nobody could say it
    assert 'size_bytes{kind="wal"' not in text and 'verified_ok{kind="wal"' not in text
    assert world.client.get(LOCK) is None


def test_a_look_that_fails_is_told_and_keeps_nobody_from_the_other_figures(world: World) -> None:
    kind = FakeArchive()
    runner = world.runner("b", kind)
    runner.look()
    kind.error = ResilienceError("Is it the passphrase?")
    _write_metrics(runner)
    line = archive_lines(world)[1]
    assert (line["state"], line["age"], line["error"]) == ("failed", 61.3, "Is it the passphrase?")
    text = (Path(world.settings.state) / "metrics" / "shannon_backup.prom").read_text()
    assert 'shannon_backup_last_run_ok{kind="wal",cell="main",region="b"} 0' in text


def test_the_metrics_are_written_after_a_look(world: World) -> None:
    world.now = datetime.now(timezone.utc)  # a look of long ago is no good news
    _write_metrics(world.runner("b", FakeArchive()))
    text = (Path(world.settings.state) / "metrics" / "shannon_backup.prom").read_text()
    assert 'shannon_backup_age_seconds{kind="wal",cell="main",region="b"} 61.3' in text
    _write_metrics(world.runner("b", FakeKind()))  # an engine that can't tell


def test_an_archive_without_a_backup_is_told_so(world: World) -> None:
    world.runner("b", FakeArchive(lacks=None)).look()
    assert archive_lines(world)[1]["state"] == "missing"


class FakePatroni:
    """Patroni's members by address; what they say, or the error that asking them gives."""

    said: t.ClassVar[dict[str, t.Any]] = {}

    def __init__(self, host: str, _port: int, _context: t.Any, timeout: float) -> None:
        assert timeout <= 5
        self.host = host

    def status(self) -> dict[str, t.Any]:
        said = self.said[self.host]
        if isinstance(said, Exception):
            raise said
        return t.cast("dict[str, t.Any]", said)


@pytest.fixture
def members(world: World, monkeypatch: pytest.MonkeyPatch) -> t.Iterator[dict[str, t.Any]]:
    """Two members in each region, and what each says of itself; C(asked) has those that were connected to."""
    postgres = pytest.importorskip("shannon.services.backup.kinds.postgres")
    names = {"a": ["a1", "a2"], "b": ["b1", "b2"]}
    instances = {
        region: [{"host": host, "address": host, "port": 5432, "patroni": 8008} for host in hosts]
        for region, hosts in names.items()
    }
    world.settings = world.settings.model_copy(
        update={"cells": [Cell.model_validate({**world.cell.model_dump(), "postgres": instances})]}
    )
    replica = {"role": "replica", "state": "running", "timeline": 2}
    said: dict[str, t.Any] = {host: dict(replica) for hosts in names.values() for host in hosts}
    said["a1"] = {"role": "primary", "state": "running", "timeline": 2}
    said["asked"] = []
    FakePatroni.said = said

    def connector(_settings: Settings, instance: t.Any) -> t.Callable[[str], t.Any]:
        def connect(_database: str) -> t.Any:
            said["asked"].append(instance.host)
            if said.get("refused") == instance.host:
                raise ResilienceError("no connection")
            return contextlib.nullcontext(instance.host)

        return connect

    monkeypatch.setattr(postgres, "Patroni", FakePatroni)
    monkeypatch.setattr(postgres, "client_context", lambda _tls: None)
    monkeypatch.setattr(postgres, "connector", connector)
    monkeypatch.setattr(postgres.wal_archive, "ask", lambda host: Written(int(said[host]["timeline"]), 0))
    yield said


def test_the_primary_is_asked_in_whichever_region_it_is(world: World, members: dict[str, t.Any]) -> None:
    postgres = pytest.importorskip("shannon.services.backup.kinds.postgres")
    assert postgres.written_by(world.settings, world.cell) == Written(2, 0)
    members["a2"] = ResilienceError("dead")
    members["b2"] = {"role": "primary", "state": "running", "timeline": 3}
    assert postgres.written_by(world.settings, world.cell) == Written(3, 0)  # the other one was superseded
    assert members["asked"] == ["a1", "b2"]


@pytest.mark.parametrize(
    "change",
    [
        {"a1": ResilienceError("dead")},
        {"a1": {"role": "primary", "state": "starting", "timeline": 2}},
        {"refused": "a1"},
    ],
)
def test_without_a_primary_that_answers_nobody_says_how_far_it_is(
    world: World, members: dict[str, t.Any], change: dict[str, t.Any]
) -> None:
    """A replica's position would do for a region that is cut off from a primary that writes on."""
    postgres = pytest.importorskip("shannon.services.backup.kinds.postgres")
    members.update(change)
    assert postgres.written_by(world.settings, world.cell) is None


def test_the_own_regions_repository_is_looked_at_after_the_primary(
    world: World, members: dict[str, t.Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres = pytest.importorskip("shannon.services.backup.kinds.postgres")
    segments = {segment_name(2, number * SEGMENT): START.timestamp() - 30 for number in (1, 2)}
    made = BackupInfo("x", "full", 0, 0, SEGMENT, SEGMENT + 80, 2)
    order: list[t.Any] = []

    class Engine:
        def __init__(self, _stanza: str, **options: t.Any) -> None:
            order.append((options["repo"], options["timeout"] < 600))

        def info(self) -> t.Any:
            order.append("info")
            return RepositoryInfo((made,) if segments else (), ranges_of(segments))

    def ask(_host: str) -> Written:
        order.append("primary")
        return Written(2, 3 * SEGMENT + 9, 60.0)

    monkeypatch.setattr(postgres, "PgBackRest", Engine)
    monkeypatch.setattr(postgres.wal_archive, "ask", ask)
    kind = postgres.PostgresKind(world.settings, FakeRepositories())
    reached, lacks = kind.archived(world.cell, START.timestamp)
    assert order == ["primary", (2, True), "info"]
    assert (reached.segment, lacks) == (segment_name(2, 2 * SEGMENT), Age(30.0, 9))
    segments.clear()
    assert kind.archived(world.cell, START.timestamp) is None


def test_settings_say_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "backup.json"
    with pytest.raises(ResilienceError, match="--tags backup"):
        load(path)
    path.write_text('{"host": 1}')
    with pytest.raises(ResilienceError, match="region"):
        load(path)


class FakeRepositories:
    """Repositories of all regions that keep folders by their tags."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, ...], dict[str, str]] = {}

    def put(self, folder: Path, tags: t.Sequence[str]) -> tuple[str, int, list[str], list[str]]:
        self.kept[tuple(tags)] = {one.name: one.read_text() for one in folder.iterdir()}
        return "id", 1, ["a"], ["region b did not take it"]

    def found(self, _region: str, tags: t.Sequence[str]) -> list[Found]:
        return [Found("id", "a", 0.0, extra={"tags": tuple(tags)})] if tuple(tags) in self.kept else []

    def fetch(self, found: Found, into: Path) -> None:
        into.mkdir(parents=True)
        for name, text in self.kept[found.extra["tags"]].items():
            (into / name).write_text(text)


def test_a_manifest_of_postgres_is_found_again_where_it_was_not_made(world: World, tmp_path: Path) -> None:
    postgres = pytest.importorskip("shannon.services.backup.kinds.postgres")
    repositories = FakeRepositories()
    store = postgres.ManifestStore(world.settings, repositories)
    manifest = {"rows": 7}
    (tmp_path / "staging").mkdir()
    assert store.put(world.cell, "20261128-120000F", manifest, tmp_path / "staging") == ["region b did not take it"]
    elsewhere = world.settings.model_copy(update={"state": str(tmp_path / "elsewhere")})
    assert postgres.ManifestStore(elsewhere, repositories).get(world.cell, "20261128-120000F") == manifest
    assert store.get(world.cell, "20261128-120000F") == manifest
    assert store.get(world.cell, "20261127-120000F") is None


def test_every_kind_can_be_made(world: World) -> None:
    kinds = pytest.importorskip("shannon.services.backup.kinds")
    assert set(kinds.kinds(world.settings)) == {"postgres", "dump", "redis", "qdrant", "registry", "config"}
