"""A former home's Redis is kept before it follows a new home, unless the new home is known to have all of it."""

from __future__ import annotations

import contextlib
import json
import pathlib
import threading
import time
import typing as t
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

pytest.importorskip("prometheus_client")

from fake_etcd import FakeCluster
from test_region_agent import Clock, configured

from shannon.resilience.errors import ResilienceError
from shannon.resilience.etcd import EtcdClient
from shannon.resilience.markers import MARKERS, Arrival, Marker, Written, redis_lost, text_of
from shannon.resilience.redis import RedisReplyError, Replication
from shannon.resilience.redis_kept import kept_text
from shannon.resilience.region_lease import DIVERGED_REDIS, Serving, View
from shannon.resilience.registry import CellRecord
from shannon.services.region_agent import diverged_redis, worker
from shannon.services.region_agent import redis as redis_of_region
from shannon.services.region_agent.diverged_redis import KEEP_WITHIN, KEPT, KeptRedis
from shannon.services.region_agent.keeper import Local, Standing
from shannon.services.region_agent.redis import NOBODY, RedisOfRegion

OURS, OTHER = "a" * 40, "b" * 40
HOME = Replication("primary", 900, "", "", 0, 2, 100, False, True, keys=7, id=OURS)
#: The same process after it stepped down.
HELD = replace(HOME, role="replica", offset=1000, link="down", primary_address=NOBODY[0], primary_port=1)
#: A process that was started anew from its append-only file.
ANEW = replace(HELD, offset=1, id=OTHER)
SERVING = Serving("b", 4, 0.0, "b1", redis_id=OURS, redis_end=950)
LAST, ARRIVED = Marker(3, 30, 130.0), Marker(3, 28, 128.0)


class Server:
    """Redis of this host, as far as a copy needs it."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.data: bytes | None = b"REDIS0011 and so on"
        self.marker: Marker | None = LAST
        self.refuses = ""
        #: Nothing is answered before it is set.
        self.answers = threading.Event()
        self.answers.set()

    def __call__(self, *_arguments: t.Any) -> Server:
        return self

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_exc: object) -> None:
        return

    def command(self, words: t.Sequence[str | int]) -> t.Any:
        assert self.answers.wait(20.0)
        if words[0] == "GET":
            return text_of(self.marker) if self.marker else None
        if words[0] == "CONFIG":
            return [words[2], {"dir": str(self.folder), "dbfilename": "dump.rdb"}[str(words[2])]]
        assert words == ["BGSAVE"]
        if self.refuses:
            raise RedisReplyError(self.refuses)
        if self.data is not None:
            fresh = self.folder / "temp.rdb"
            fresh.write_bytes(self.data)
            fresh.replace(self.folder / "dump.rdb")
        return "Background saving started"

    def info(self, _section: str) -> dict[str, str]:
        return {"rdb_bgsave_in_progress": "0"}


class Site:
    """Host a1 of the former home a, and the registry."""

    def __init__(self, client: EtcdClient, server: Server, folder: pathlib.Path) -> None:
        self.client, self.server, self.folder = client, server, folder
        self.kept = self.agent()

    def agent(self, **changes: t.Any) -> KeptRedis:
        """The agent as it is after a start."""
        given = configured("a1", state_directory=str(self.folder), **changes)
        self.kept = KeptRedis(given, given.cells[0], self.client, None)
        return self.kept

    def settle(self, seen: Replication = HELD, serving: Serving = SERVING) -> bool:
        """Step as the worker does, until the copy that is being made is done."""
        self.server.answers.clear()
        with contextlib.suppress(ResilienceError):  # what failed before is still being tried again
            if self.kept.settle(seen, serving):
                return True
        self.server.answers.set()
        keeping = self.kept._keeping
        if keeping is None:
            return False
        assert keeping.done.wait(20.0)
        return self.kept.settle(seen, serving)

    def told(self, epoch: int = 4) -> dict[str, t.Any]:
        found = self.client.get(f"{DIVERGED_REDIS}main/{epoch:010d}/a/a1")
        return json.loads(found.value) if found else {}

    def copy(self, epoch: int = 4) -> pathlib.Path:
        return self.folder / "diverged" / f"main-epoch{epoch}" / "redis.rdb"


@pytest.fixture
def site(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> t.Iterator[Site]:
    server = Server(tmp_path)
    monkeypatch.setattr(diverged_redis, "RedisClient", server)
    monkeypatch.setattr(diverged_redis, "MEASURE_WITHIN", 0.0)
    with FakeCluster(1) as cluster:
        client = EtcdClient(cluster.endpoints, timeout=5.0)
        arrival = Arrival("b", 4, "b1", 0.0, Written("a", 3, "a1", 0.0, {"redis": ARRIVED}), {"redis": ARRIVED})
        client.put(f"{MARKERS}main/{4:010d}", json.dumps(asdict(arrival)))
        yield Site(client, server, tmp_path)


# -- what is kept ----------------------------------------------------------------------------------------------------


def test_what_the_new_home_has_is_not_kept(site: Site) -> None:
    site.kept.note(3, HOME)
    assert site.kept.owed
    assert site.settle(replace(HELD, offset=950))
    assert not site.kept.owed and not site.agent().owed
    assert not site.copy().exists()
    assert site.told()["same"] and kept_text(site.told()) == "nothing diverged"


def test_one_byte_more_is_kept_and_said(site: Site) -> None:
    site.kept.note(3, HOME)
    assert site.settle(replace(HELD, offset=951))
    assert site.copy().read_bytes() == site.server.data
    assert site.copy().stat().st_mode & 0o777 == 0o600
    assert site.told()["stream_bytes"] == 1 and site.told()["exact"]
    assert json.loads(site.copy().with_name("redis.json").read_text()) == site.told()
    assert not site.agent().owed


def test_the_process_that_acknowledged_the_writes_knows_exactly(site: Site) -> None:
    site.kept.note(3, HOME)
    assert site.settle()
    assert (site.told()["lost_seconds"], site.told()["lost_markers"]) == (2.0, 2)
    assert kept_text(site.told()) == (
        f"7 keys in {site.copy()} (19 bytes); lost exactly 2.0 s, 2 markers; "
        "exactly 50 bytes of its replication stream diverged"
    )


def test_one_that_was_started_anew_knows_what_was_noted(site: Site) -> None:
    site.kept.note(3, replace(HOME, offset=980))
    site.agent()
    assert site.settle(ANEW)
    assert site.copy().exists()
    assert site.told()["stream_bytes"] == 30 and not site.told()["exact"]
    assert "lost at least 2.0 s" in kept_text(site.told()) and "at least 30 bytes" in kept_text(site.told())


def test_a_note_from_before_the_end_proves_nothing(site: Site) -> None:
    site.kept.note(3, replace(HOME, offset=940))
    assert site.settle(ANEW)
    assert site.copy().exists(), "what was acknowledged after the note may be missing in the new home"


@pytest.mark.parametrize("serving", [replace(SERVING, redis_id=OTHER), replace(SERVING, redis_id="", redis_end=0)])
def test_of_another_history_nothing_is_guessed(site: Site, serving: Serving) -> None:
    site.kept.note(3, HOME)
    assert site.settle(HELD, serving)
    assert site.copy().exists()
    assert site.told()["stream_bytes"] is None
    assert "how far the histories diverged is not known" in kept_text(site.told())


def test_a_former_replica_keeps_its_own_and_claims_nothing_of_the_primary(site: Site) -> None:
    site.kept.note(3, replace(HOME, role="replica"))
    assert site.settle()
    assert site.copy().exists() and not site.told()["exact"]


def test_an_instance_that_moves_is_not_copied(site: Site) -> None:
    site.kept.note(3, HOME)
    assert not site.kept.settle(replace(HELD, primary_address="192.0.2.2"), SERVING)
    assert site.kept._keeping is None and site.kept.owed


def test_who_was_never_the_home_has_nothing_to_keep(site: Site) -> None:
    assert not site.kept.owed
    assert site.settle(ANEW)
    assert not site.copy().exists() and site.told() == {}


def test_a_note_that_a_power_cut_damaged_still_says_that_it_was_the_home(site: Site) -> None:
    (site.folder / "redis-main.json").write_text("")
    assert site.agent().owed
    assert site.settle(ANEW)
    assert site.copy().exists() and site.told()["stream_bytes"] is None


def test_an_instance_that_came_back_empty_is_said_to_be(site: Site) -> None:
    site.kept.note(3, HOME)
    assert site.settle(replace(ANEW, keys=0))
    assert not site.copy().exists()
    assert "not kept: it came back without any key" in kept_text(site.told())


# -- bounds ----------------------------------------------------------------------------------------------------------


def test_a_larger_snapshot_is_not_kept_and_that_is_said(site: Site) -> None:
    site.agent(redis_kept_bytes=18).note(3, HOME)
    assert site.settle()
    assert not site.copy().exists()
    assert "19 bytes, more than region_agent_redis_kept_bytes (18)" in kept_text(site.told())


def test_the_newest_copies_are_kept_and_rows_are_left_alone(site: Site) -> None:
    others = site.folder / "diverged" / "main2-epoch1"
    others.mkdir(parents=True)
    (others / "redis.rdb").touch()
    for epoch in range(8, 8 + KEPT + 1):
        site.kept.note(epoch - 1, HOME)
        site.copy(epoch).parent.mkdir(parents=True)
        site.copy(epoch).with_name("rows.jsonl").touch()
        assert site.settle(HELD, replace(SERVING, epoch=epoch))
    assert [site.copy(epoch).exists() for epoch in range(8, 8 + KEPT + 1)] == [False] + [True] * KEPT
    assert site.copy(8).with_name("rows.jsonl").exists() and site.copy(8).with_name("redis.json").exists()
    assert (others / "redis.rdb").exists(), "another cell's"


@pytest.mark.parametrize("broken", ["refused", "failed", "full"])
def test_a_copy_that_can_not_be_made_is_waited_for_and_not_for_ever(
    site: Site, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(diverged_redis, "now", clock)
    if broken == "refused":
        site.server.refuses = "ERR Can't BGSAVE while AOF log rewriting"
    elif broken == "failed":
        site.server.data = None
    else:
        monkeypatch.setattr(diverged_redis.shutil, "disk_usage", lambda _path: SimpleNamespace(free=37))
    site.kept.note(3, HOME)
    for _time in range(2):
        with pytest.raises(ResilienceError, match="follows nobody until what it has is kept"):
            site.settle()
        assert site.kept.owed and site.told() == {}
    clock.now += KEEP_WITHIN
    site.server.answers.clear()
    with pytest.raises(ResilienceError, match="follows nobody"):
        site.kept.settle(HELD, SERVING)  # it is being tried once more
    site.server.answers.set()
    keeping = site.kept._keeping
    assert keeping and keeping.done.wait(20.0)
    assert site.kept.settle(HELD, SERVING)
    assert not site.kept.owed
    assert not site.copy().exists() and "not kept: " in kept_text(site.told())
    assert site.told()["stream_bytes"] == 50


def test_an_old_snapshot_is_not_taken_for_a_new_one(site: Site) -> None:
    (site.folder / "dump.rdb").write_bytes(b"the new home's, of an earlier resynchronisation")
    site.server.data = None
    site.kept.note(3, HOME)
    with pytest.raises(ResilienceError, match="could not write"):
        site.settle()
    assert not site.copy().exists()


# -- Sentinel --------------------------------------------------------------------------------------------------------


def test_sentinel_is_told_once_and_again_when_it_does_not_do_so(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, told = Clock(), []
    monkeypatch.setattr(redis_of_region, "now", clock)
    monkeypatch.setattr(redis_of_region, "listens", lambda _port: False)
    ended = SimpleNamespace(returncode=0, stderr="")
    monkeypatch.setattr(redis_of_region.subprocess, "run", lambda words, **_options: told.append(words[2]) or ended)
    given = configured("a1")
    part = RedisOfRegion(given, given.cells[0], None)
    for seconds in (0.0, 0.1, 1.0, redis_of_region.TELL_AGAIN):
        clock.now += seconds
        part.watch(True)
        part.watch(False)  # it does not run, so there is nothing to tell
    assert told == ["start", "start"]


@pytest.mark.parametrize(
    ("sentinel", "there", "promotes"),
    [(False, True, True), (True, True, False), (False, False, False)],
    ids=["it stepped down", "Sentinel decides", "whom they follow may be a primary"],
)
def test_a_home_that_stepped_down_and_is_home_again_has_a_primary_again(
    monkeypatch: pytest.MonkeyPatch, sentinel: bool, there: bool, promotes: bool
) -> None:
    """a2 follows a1, the primary until then, which follows nobody."""
    former = replace(HOME, role="replica", link="down", primary_address=NOBODY[0], primary_port=NOBODY[1], priority=0)
    follower = replace(former, primary_address="192.0.2.1", primary_port=6379, priority=100)
    given = configured("a1")
    part = RedisOfRegion(given, given.cells[0], None)
    # One that runs is enough, on whichever host.
    monkeypatch.setattr(redis_of_region, "listens", lambda _port, address: sentinel and address == "192.0.2.2")
    found = {"192.0.2.2": follower, **({"192.0.2.1": former} if there else {})}
    monkeypatch.setattr(part, "instances", lambda _region: found)
    told: dict[str, t.Any] = {}
    monkeypatch.setattr(part, "_tell", lambda address, commands: told.update({address: list(commands)}))
    assert part.be_home() == ("192.0.2.1" if promotes else "")
    assert (["REPLICAOF", "NO", "ONE"] in told.get("192.0.2.1", [])) is promotes


def test_the_own_instance_is_asked_over_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    given = configured("a1")
    part = RedisOfRegion(given, given.cells[0], None)
    asked: list[str] = []

    def client(address: str, _timeout: float) -> t.Any:
        asked.append(address)
        return SimpleNamespace(replication=lambda: HOME)

    monkeypatch.setattr(part, "_client", client)
    assert sorted(part.instances("a")) == ["192.0.2.1", "192.0.2.2"]
    assert sorted(asked) == ["192.0.2.2", "localhost"], "the fence may be closed to all but loopback"


# -- the worker ------------------------------------------------------------------------------------------------------


class Instance:
    """This host's Redis as the worker's part for Redis sees it."""

    def __init__(self, folder: pathlib.Path, client: EtcdClient, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[list[str | int]] = []
        monkeypatch.setattr(worker, "now", Clock())
        given = configured("a1", state_directory=str(folder), runtime_directory=str(folder))
        keeper: t.Any = SimpleNamespace(leases=None, registry=None)
        self.worker = worker.Worker(given, given.cells[0], keeper, client, client, None)
        part = RedisOfRegion(given, given.cells[0], None)
        monkeypatch.setattr(part, "_tell", lambda _address, commands: self.told.extend(commands))
        monkeypatch.setattr(part, "primary_of", lambda region: "198.51.100.1" if region == "b" else "")
        monkeypatch.setattr(part, "watch", lambda _wanted: None)
        self.worker.redis = part
        monkeypatch.setattr(self.worker, "_follow", lambda _standing: None)
        monkeypatch.setattr(self.worker, "_give_back", lambda _standing, _record: None)

    def step(self, seen: Replication, serving: Serving | None) -> list[list[str | int]]:
        """One step in the standby; what Redis was told."""
        self.told.clear()
        view = View(CellRecord("main", "b", 4, "active"), None, None, None, serving)
        self.worker.step(Standing(view, Local(redis=seen), 1.0, 1.0, 0.0))
        return list(self.told)


def test_a_position_is_noted_with_the_time_at_which_it_was_looked_at(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was committed between the look and the note must not count as older than the position."""
    with FakeCluster(1) as cluster:
        part = Instance(tmp_path, EtcdClient([cluster.endpoints[0]], timeout=5.0), monkeypatch).worker
    monkeypatch.setattr(part, "_be_home", lambda _standing: None)
    noted: list[tuple[int, float]] = []
    monkeypatch.setattr(part._notes, "add", lambda lsn, at: noted.append((lsn, at)))
    clock = Clock()
    monkeypatch.setattr(worker, "now", clock)
    local = Local(postgres={"role": "primary", "xlog": {"location": 777}})
    standing = Standing(View(CellRecord("main", "a", 4, "active"), None, None, None, None), local, clock.now, 0.0, 0.0)
    monkeypatch.setattr(part, "duty", lambda _standing: worker.HOME)
    clock.now += 6.0
    began = time.time()
    part.step(standing)
    ((lsn, at),) = noted
    assert lsn == 777 and began - 6.0 - 0.01 <= at <= time.time() - 6.0 + 0.01


FOLLOW, HOLD = ["REPLICAOF", "198.51.100.1", 6379], ["REPLICAOF", *NOBODY]


@pytest.fixture
def instance(site: Site, monkeypatch: pytest.MonkeyPatch) -> Instance:
    site.kept.note(3, HOME)
    return Instance(site.folder, site.client, monkeypatch)


def test_a_former_home_follows_nobody_before_what_it_has_is_kept(site: Site, instance: Instance) -> None:
    neighbours = replace(HELD, primary_address="192.0.2.2", priority=0)
    assert instance.step(neighbours, None) == [HOLD]
    assert instance.step(replace(neighbours, offset=951), SERVING) == [HOLD]
    held = replace(HELD, priority=0)
    assert instance.step(held, None) == []
    assert instance.step(held, replace(SERVING, epoch=3, region="a")) == [], "that was another home's beginning"
    assert instance.step(replace(held, loading=True, offset=0), SERVING) == [], "it does not know what it has"
    deadline = time.monotonic() + 20
    while not (told := instance.step(held, SERVING)) and time.monotonic() < deadline:
        assert not instance.worker._kept._keeping or not site.told()
        time.sleep(0.02)
    assert told == [FOLLOW] and site.copy().exists()


def test_after_a_switchover_it_follows_at_once(site: Site, instance: Instance) -> None:
    assert instance.step(replace(HELD, priority=0, offset=950), SERVING) == [FOLLOW]
    assert not site.copy().exists()


def test_a_copy_that_fails_holds_redis_and_is_trouble(site: Site, instance: Instance) -> None:
    site.server.refuses = "ERR no"
    held = replace(HELD, priority=0)
    site.server.answers.clear()
    assert instance.step(held, SERVING) == []
    site.server.answers.set()
    keeping = instance.worker._kept._keeping
    assert keeping and keeping.done.wait(20)
    with pytest.raises(ResilienceError, match="follows nobody until"):
        instance.step(held, SERVING)
    assert instance.told == []


def test_a_standby_that_was_no_home_follows_whomever_it_followed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    instance = Instance(site.folder, site.client, monkeypatch)
    assert not instance.worker._kept.owed
    assert instance.step(replace(ANEW, priority=0), None) == [FOLLOW]


def test_the_gates_hear_whether_redis_waits(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance.worker.postgres, "configuration", lambda: None)
    monkeypatch.setattr(worker, "start_if_skipped", lambda _unit: None)
    view = View(CellRecord("main", "b", 4, "active"), None, None, None, None)
    standing = Standing(view, Local(), 1.0, 1.0, 0.0)
    instance.worker._said["duty"] = worker.STANDBY
    instance.worker.tell(standing)
    assert instance.worker.word()["redis_waits"] is True
    instance.worker._kept._forget()
    instance.worker.tell(standing)
    assert instance.worker.word()["redis_waits"] is False


def test_at_home_it_is_noted_how_far_redis_is(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    instance = Instance(site.folder, site.client, monkeypatch)
    monkeypatch.setattr(instance.worker, "_be_home", lambda _standing: None)
    view = View(CellRecord("main", "a", 3, "active"), None, None, None, None)
    monkeypatch.setattr(worker.Standing, "authority", lambda _self: 5.0)
    for seen in (replace(HOME, loading=True), HOME):
        instance.worker.step(Standing(view, Local(redis=seen), 1.0, 1.0, 0.0))
        assert instance.worker._kept.owed is not seen.loading
    assert json.loads((site.folder / "redis-main.json").read_text()) == {
        "epoch": 3, "role": "primary", "id": OURS, "offset": 900,
    }  # fmt: skip


# -- the loss by markers ---------------------------------------------------------------------------------------------


def arrival(told: Marker | None, newest: Marker | None, region: str = "a") -> Arrival:
    return Arrival("b", 4, "b1", 0.0, Written(region, 3, "a1", 0.0, {"redis": told}), {"redis": newest})


@pytest.mark.parametrize(
    ("own", "found", "seconds"),
    [
        (LAST, arrival(ARRIVED, ARRIVED), 2.0),  # the registry never heard of the last two
        (ARRIVED, arrival(LAST, ARRIVED), 2.0),  # a power cut took them from the disk
        (None, arrival(LAST, ARRIVED), 2.0),
        (ARRIVED, arrival(ARRIVED, ARRIVED), 0.0),
        (LAST, arrival(None, ARRIVED), 2.0),
        (None, arrival(LAST, ARRIVED, "c"), None),  # another region's word
        (Marker(2, 20, 50.0), arrival(LAST, ARRIVED, "c"), None),  # it missed more than one move
        (LAST, arrival(LAST, None), None),
    ],
)
def test_what_redis_lost_by_its_markers(own: Marker | None, found: Arrival, seconds: float | None) -> None:
    assert redis_lost(found, "a", own).get("lost_seconds") == seconds
