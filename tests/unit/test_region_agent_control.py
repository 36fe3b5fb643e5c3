"""Where a primary that was stopped in order ended, and what a former home makes of it."""

from __future__ import annotations

import json
import pathlib
import threading
import typing as t
from types import SimpleNamespace

import pytest

pytest.importorskip("prometheus_client")

from fake_etcd import FakeCluster

from shannon.resilience.errors import ResilienceError
from shannon.resilience.etcd import EtcdClient
from shannon.resilience.region_lease import Position, RegionLease, Serving, View
from shannon.resilience.registry import ACTIVE, DRAINING, ENTERING, TAKING_OVER, CellRecord
from shannon.services.region_agent import closing, control, worker
from shannon.services.region_agent.control import clean_end
from shannon.services.region_agent.keeper import Local, Standing
from shannon.services.region_agent.postgres import PostgresOfRegion, follows


@pytest.fixture
def data(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A data folder whose pg_controldata prints what the file C(said) beside it has."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "PG_VERSION").write_text("15\n")
    program = tmp_path / "pg_controldata-15"
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/said\n")
    program.chmod(0o755)
    monkeypatch.setattr(control, "_PROGRAM", str(tmp_path / "pg_controldata-{version}"))
    return folder


def say(data: pathlib.Path, state: str, checkpoint: str = "0/3000028") -> None:
    text = f"pg_control version number:            1300\nDatabase cluster state:               {state}\n"
    text += f"Latest checkpoint location:           {checkpoint}\n"
    (data.parent / "said").write_text(text)


def test_a_primary_that_was_stopped_in_order_says_where(data: pathlib.Path) -> None:
    say(data, "shut down", "2/3000028")
    assert clean_end(data) == (2 << 32) + 0x3000028 + 1


@pytest.mark.parametrize("state", ["in production", "shutting down", "in archive recovery", "shut down in recovery"])
def test_any_other_state_is_no_end(data: pathlib.Path, state: str) -> None:
    say(data, state)
    assert clean_end(data) == 0


def test_what_can_not_be_read_is_an_error(data: pathlib.Path) -> None:
    say(data, "shut down", "nowhere")
    with pytest.raises(ResilienceError, match="does not say where"):
        clean_end(data)
    (data / "PG_VERSION").unlink()
    with pytest.raises(ResilienceError, match="can't be read"):
        clean_end(data)


# -- a former home ---------------------------------------------------------------------------------------------------


class Former:
    """A worker of the former home a, whose epoch was 3, with what its parts saw and were told."""

    def __init__(self, led: int = 3) -> None:
        self.ended, self.ends_quietly, self.primaries, self.redis_quiet, self.conducts = (
            0,
            (False, 0),
            False,
            True,
            False,
        )
        self.released: list[Position] = []
        self.published: list[Position] = []
        self.checkpoints: list[str] = []
        made: t.Any = worker.Worker.__new__(worker.Worker)
        made._settings = SimpleNamespace(region="a", host="a1")
        made._cell = SimpleNamespace(name="main", postgres=5432)
        made._led = led
        made._draining_since = None
        made._closed = (0, 0)
        made._catching_up_since = None
        made.postgres = SimpleNamespace(
            ended_here=lambda: self.ended,
            no_other_primary=lambda: not self.primaries,
            end=lambda: self.ends_quietly,
            conducts=lambda _standing: self.conducts,
            last_primary=lambda: self.last_primary,
        )
        self.last_primary = True
        made.redis = SimpleNamespace(quiet=lambda: self.redis_quiet)
        leases = SimpleNamespace(
            release=lambda _lease, final: self.released.append(final) or True,
            publish_end=lambda _record, final: self.published.append(final) or True,
        )
        self.left: list[t.Any] = []
        made._keeper = SimpleNamespace(leases=leases, leave=lambda *said: self.left.append(said))
        self.worker = made

    def give_back(self, holds: bool = True) -> None:
        record = CellRecord("main", "b", 4, "entering")
        lease = RegionLease("main", "a", 3, "a1") if holds else None
        position = Position("a", 3, 100, 0.0, "a1")
        self.worker._give_back(SimpleNamespace(view=View(record, lease, lease, position, None)), record)


def test_the_former_primary_speaks_as_soon_as_it_has_ended() -> None:
    former = Former()
    former.give_back()
    # Clients wait meanwhile, so it looks often, and no longer than that.
    assert former.released == [] and former.worker._giving_back
    former.ended = 777
    former.give_back()
    assert not former.worker._giving_back
    assert [(one.lsn, one.final, one.epoch) for one in former.released] == [(777, True, 3)]


def test_it_does_not_while_another_member_takes_writes_or_redis_does() -> None:
    former = Former()
    former.ended, former.primaries = 777, True
    former.give_back()
    former.primaries, former.redis_quiet = False, False
    former.give_back()
    assert former.released == []


def test_who_was_the_primary_of_an_older_epoch_waits_for_the_regions_leader() -> None:
    former = Former(led=2)
    former.ended = 777
    former.give_back()
    assert former.released == []
    former.conducts, former.ends_quietly = True, (True, 888)
    former.give_back()
    assert [one.lsn for one in former.released] == [888]


def test_a_disk_that_does_not_say_keeps_nobody_from_giving_back() -> None:
    former = Former()

    def broken() -> int:
        raise ResilienceError("pg_controldata can't be read")

    former.worker.postgres.ended_here = broken
    former.worker._said = {}
    former.conducts, former.ends_quietly = True, (True, 888)
    former.give_back()
    assert [one.lsn for one in former.released] == [888]


def test_without_the_lease_a_redis_that_does_not_answer_is_no_matter() -> None:
    former = Former()
    former.ended, former.redis_quiet = 777, False
    former.give_back(holds=False)
    assert [one.lsn for one in former.published] == [777]


# -- a primary that is closed before it stops ------------------------------------------------------------------------


STREAMS = [("198.51.100.1", 43210), ("192.0.2.2", 43211)]


@pytest.fixture
def closable() -> Former:
    former = Former()
    former.worker._closing = SimpleNamespace(
        streams=lambda: STREAMS, end_of_clients=lambda: 555, rest=lambda: None, prepare=lambda: None
    )
    return former


def close(former: Former, role: str = "primary", state: str = ENTERING, holder: str = "a") -> None:
    record = CellRecord("main", "b", 4, state)
    lease = RegionLease("main", holder, 3, "a1")
    local = Local({"role": role, "state": "running"})
    standing: t.Any = SimpleNamespace(view=View(record, lease, lease, None, None), local=local)
    former.worker._close(standing, record)


def test_a_primary_is_closed_once_and_gives_back_while_it_still_runs(closable: Former) -> None:
    close(closable)
    close(closable)
    assert [said[1:] for said in closable.left] == [(STREAMS, worker.REST)]
    closable.give_back()
    assert [(one.lsn, one.final) for one in closable.released] == [(555, True)]


@pytest.mark.parametrize(
    "changes", [{"role": "replica"}, {"state": TAKING_OVER}, {"state": ACTIVE}, {"holder": "b"}], ids=str
)
def test_only_the_primary_of_a_switchover_is_closed_early(closable: Former, changes: dict[str, str]) -> None:
    close(closable, **changes)
    assert closable.left == []


def test_it_does_not_give_back_while_another_member_may_become_a_primary_or_redis_takes_writes(
    closable: Former,
) -> None:
    close(closable)
    closable.last_primary = False
    closable.give_back()
    closable.last_primary, closable.redis_quiet = True, False
    closable.give_back()
    assert closable.released == []


def test_a_primary_that_can_not_be_closed_is_waited_for(closable: Former) -> None:
    def silent() -> int:
        raise ResilienceError("PostgreSQL of this host can't be read")

    closable.worker._closing.end_of_clients = silent
    close(closable)
    closable.give_back()
    assert closable.released == []
    closable.ended = 777
    closable.give_back()
    assert [one.lsn for one in closable.released] == [777]


def asking(answers: dict[str, list[str]]) -> closing.Closing:
    """A session that gives these answers to statements that begin so."""
    made = closing.Closing(5432)
    asked = SimpleNamespace(
        ask=lambda statement, _timeout: next((it for key, it in answers.items() if statement.startswith(key)), [])
    )
    made._session = t.cast(t.Any, asked)
    return made


def test_what_a_follower_is_sent_over_is_known_by_its_other_end() -> None:
    found = asking({"SELECT client_addr": ["198.51.100.1/32 43210", "2001:db8::1/128 43211"]}).streams()
    assert found == [("198.51.100.1", 43210), ("2001:db8::1", 43211)]


def test_the_end_is_the_last_word_and_nothing_else() -> None:
    answers = {"SELECT pg_logical": ["0/2FFFF00"], "SELECT pg_current": ["2/3000028"]}
    assert asking(answers).end_of_clients() == (2 << 32) + 0x3000028
    with pytest.raises(ResilienceError, match="does not say how far"):
        asking({}).end_of_clients()


@pytest.mark.parametrize(
    ("wanted", "written"),
    [
        ({"host": "192.0.2.9"}, {"standby_cluster": {"host": "192.0.2.9"}}),
        # Patroni would take a key without a value for a slot that it has to name.
        ({"host": "192.0.2.9", "primary_slot_name": None}, {"standby_cluster": {"host": "192.0.2.9"}}),
        (None, {}),
    ],
    ids=["follow", "without a slot", "be a primary"],
)
def test_what_patroni_is_told_is_written_whole_and_its_turn_comes_at_once(
    wanted: dict[str, t.Any] | None, written: dict[str, t.Any]
) -> None:
    woken = threading.Event()
    with FakeCluster(1) as cluster:
        client = EtcdClient([cluster.endpoints[0]], timeout=5.0)
        key = "/shannon/main/config"
        made: t.Any = PostgresOfRegion.__new__(PostgresOfRegion)
        made._settings = SimpleNamespace(namespace="/shannon/", host="a1")
        made._cell, made._dcs, made._key = SimpleNamespace(name="main"), client, key
        made.members = {"a1": SimpleNamespace(wake=woken.set)}
        made.set_standby(wanted)
        assert client.get(key) is None, "Patroni never ran here"
        client.put(key, json.dumps({"ttl": 5, "standby_cluster": {"host": "192.0.2.1", "port": 5432}}))
        made.set_standby(wanted)
        found = client.get(key)
        assert found and json.loads(found.value) == {"ttl": 5, **written}
        assert woken.wait(5)
        made.set_standby(wanted)
        again = client.get(key)
        assert again and again.mod_revision == found.mod_revision


@pytest.mark.parametrize(
    ("leader", "config", "last"),
    [
        ("a1", {"standby_cluster": {"host": "127.0.0.1"}}, True),
        ("a2", {"standby_cluster": {"host": "127.0.0.1"}}, False),  # it took the lead, perhaps before it was told
        ("", {"standby_cluster": {"host": "127.0.0.1"}}, False),
        ("a1", {"standby_cluster": None}, False),
        ("a1", None, False),
    ],
)
def test_nobody_comes_after_a_leader_that_was_told_to_follow(
    leader: str, config: dict[str, t.Any] | None, last: bool
) -> None:
    with FakeCluster(1) as cluster:
        client = EtcdClient([cluster.endpoints[0]], timeout=5.0)
        if leader:
            client.put("/shannon/main/leader", leader)
        if config is not None:
            client.put("/shannon/main/config", json.dumps(config))
        made: t.Any = PostgresOfRegion.__new__(PostgresOfRegion)
        made._settings = SimpleNamespace(namespace="/shannon/", host="a1")
        made._cell, made._dcs, made._key = SimpleNamespace(name="main"), client, "/shannon/main/config"
        assert made.last_primary() is last


@pytest.mark.parametrize(
    ("old_end", "switch", "asked"),
    [(555, 555, 555), (555, 560, 555), (555, 500, 900), (0, 560, 900)],
    ids=["all arrived", "and a little more", "something is missing", "it did not say where it ended"],
)
def test_what_a_primary_wrote_after_it_was_closed_is_no_clients(
    monkeypatch: pytest.MonkeyPatch, old_end: int, switch: int, asked: int
) -> None:
    former = Former()
    former.ends_quietly = (True, 900)
    ends: list[int] = []
    facts = {"rows": 0, "marker": None}
    former.worker._diverged = SimpleNamespace(save=lambda _epoch, _switch, end: ends.append(end) or dict(facts))
    former.worker._client = SimpleNamespace(delete=lambda _key: None, put=lambda *_said: None)
    monkeypatch.setattr(worker, "exactly", lambda *_said: {})
    former.worker._save_diverged(None, Serving("b", 4, 0.0, "b1", switch_lsn=switch, old_end=old_end))
    assert ends == [asked]


# -- a new home that lacks something ----------------------------------------------------------------------------------


def test_what_does_not_come_is_fetched_from_who_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(worker, "now", lambda: clock[0])
    former = Former()
    told: list[t.Any] = []
    state = {"a1": {"state": "stopping"}}
    wanted = {"host": "192.0.2.1", "port": 5432, "primary_slot_name": None}
    former.worker.postgres.sources = lambda _region: state
    former.worker.postgres.catch_up_from = lambda _region, _host: wanted
    former.worker.postgres.set_standby = told.append
    position = Position("a", 3, 100, 0.0, "a1", final=True)
    present = {"host": "192.0.2.1,192.0.2.2", "port": 5432, "primary_slot_name": "region_b"}
    former.worker._catch_up(position, present)
    clock[0] += worker.STREAMING + 1
    former.worker._catch_up(position, present)
    assert told == []  # that one does not run yet
    state["a1"]["state"] = "running"
    former.worker._catch_up(position, present)
    assert told == [wanted]
    assert follows(wanted, wanted)
    former.worker._catch_up(position, wanted)
    assert told == [wanted]


def test_a_drain_writes_out_what_is_dirty_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "now", lambda: 100.0)
    asked: list[str] = []
    prepared: list[str] = []
    monkeypatch.setattr(worker, "ask", lambda statement, *_rest: asked.append(statement) or [])
    monkeypatch.setattr(worker.threading, "Thread", lambda target, **_options: SimpleNamespace(start=target))
    former = Former()
    former.worker._closing = SimpleNamespace(
        prepare=lambda: prepared.append("opened"), rest=lambda: prepared.append("closed")
    )
    standing = SimpleNamespace(record=CellRecord("main", "a", 3, DRAINING))
    former.worker._take_back_draining(standing)
    former.worker._take_back_draining(standing)
    assert (asked, prepared) == (["CHECKPOINT"], ["opened"])
    for _time in range(2):
        former.worker._take_back_draining(SimpleNamespace(record=CellRecord("main", "a", 3, ACTIVE)))
    assert prepared == ["opened", "closed"], "it was given up"


@pytest.mark.parametrize(
    ("role", "unlocked", "conducts", "asks"),
    [
        ("standby_leader", False, True, False),
        ("replica", False, False, False),
        ("replica", True, True, True),
    ],
)
def test_a_follower_asks_who_else_is_there_only_when_nobody_leads(
    monkeypatch: pytest.MonkeyPatch, role: str, unlocked: bool, conducts: bool, asks: bool
) -> None:
    asked: list[str] = []

    class Member:
        def cluster(self) -> SimpleNamespace:
            asked.append("cluster")
            return SimpleNamespace(leader=None, members=[SimpleNamespace(name="a1", works=True)])

    region = PostgresOfRegion.__new__(PostgresOfRegion)
    monkeypatch.setattr(region, "_settings", SimpleNamespace(host="a1"), raising=False)
    monkeypatch.setattr(region, "members", {"a1": Member()}, raising=False)
    said: dict[str, t.Any] = {"role": role, "state": "running", **({"cluster_unlocked": True} if unlocked else {})}
    standing = Standing(View(None, None, None, None, None), Local(postgres=said), 1.0, 1.0, 0.0)
    assert (region.conducts(standing), bool(asked)) == (conducts, asks)


def test_who_ended_as_the_primary_does_not_wait_for_its_own_patroni() -> None:
    def silent() -> dict[str, t.Any]:
        raise AssertionError("asked the member that is being stopped")

    region = PostgresOfRegion.__new__(PostgresOfRegion)
    others = {"a2": {"role": "replica", "state": "running"}, "a3": {"role": "primary", "state": "running"}}
    region._settings = t.cast(t.Any, SimpleNamespace(host="a1"))
    region.members = t.cast(t.Any, {"a1": SimpleNamespace(status=silent)})
    region.members["a2"] = t.cast(t.Any, SimpleNamespace(status=lambda: others["a2"]))
    assert region.no_other_primary()
    region.members["a3"] = t.cast(t.Any, SimpleNamespace(status=lambda: others["a3"]))
    assert not region.no_other_primary()


@pytest.mark.parametrize(
    ("postgres", "redis", "leads"),
    [("replica", "replica", False), ("standby_leader", "replica", True), ("replica", "primary", True), ("", "", True)],
)
def test_who_only_follows_need_not_look_all_the_time(postgres: str, redis: str, leads: bool) -> None:
    local = Local(
        postgres={"role": postgres} if postgres else None,
        redis=t.cast(t.Any, SimpleNamespace(role=redis)) if redis else None,
    )
    assert Standing(View(None, None, None, None, None), local, 1.0, 1.0, 0.0).leads is leads
