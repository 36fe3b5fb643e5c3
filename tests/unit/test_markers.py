"""Markers: what the home writes all the time, what of it arrived elsewhere, and what follows from the difference."""

from __future__ import annotations

import sys
import threading
import time
import typing as t
from dataclasses import replace

import pytest
from fake_etcd import FakeCluster

from shannon.resilience import markers as library
from shannon.resilience.errors import ResilienceError
from shannon.resilience.etcd import EtcdClient
from shannon.resilience.markers import Arrival, Marker, MarkerBoard, Written, exactly, loss, losses, measure, together
from shannon.resilience.move_summary import render
from shannon.resilience.region_lease import SERVING, RegionLease, RegionLeases, Serving, View
from shannon.resilience.registry import CellRecord, Registry
from shannon.services.region_agent import marker_stores
from shannon.services.region_agent import markers as subject
from shannon.services.region_agent.keeper import Keeper, Local, Standing
from shannon.services.region_agent.marker_stores import SLOTS, StoresOfRegion
from shannon.services.region_agent.markers import Markers
from shannon.services.region_agent.settings import Settings, now
from shannon.services.region_agent.sql_session import Session

AGENTS = {"a": {"a1": "192.0.2.1"}, "b": {"b1": "192.0.2.2"}}
PORTS = {"postgres": 5432, "patroni": 8008, "redis": 6379, "sentinel": 26379}


@pytest.fixture
def cluster() -> t.Iterator[FakeCluster]:
    with FakeCluster(1) as running:
        yield running


def connect(cluster: FakeCluster) -> EtcdClient:
    return EtcdClient(cluster.endpoints, timeout=5.0, name="the registry")


def settings(region: str) -> Settings:
    return Settings(
        region=region, host=f"{region}1", address="192.0.2.1", port=8443, cells=[{"name": "main", **PORTS}],
        postgres=AGENTS, redis=AGENTS, agents=AGENTS, qdrant=AGENTS, registry=["192.0.2.3:12379"],
        etcd=["192.0.2.3:2379"], patroni_password="x", redis_password="x",
    )  # fmt: skip


class FakeStores:
    """A region's stores; C(broken) ones refuse."""

    def __init__(self) -> None:
        self.rows: list[Marker] = []
        self.vectors: list[Marker] = []
        self.key: Marker | None = None
        self.points: dict[int, Marker] = {}
        self.broken: set[str] = set()
        self.indexer_runs = True
        self.closed = 0

    def replicate(self, other: FakeStores) -> None:
        """Bring all that is here to another region."""
        other.rows, other.vectors, other.key = list(self.rows), list(self.vectors), self.key
        other.index()

    def index(self) -> None:
        if self.indexer_runs:
            self.points = {one.epoch: one for one in self.vectors}

    def _check(self, store: str) -> None:
        if store in self.broken:
            raise ResilienceError(f"{store} is away")

    def write_postgres(self, marker: Marker, vector: Marker | None) -> None:
        self._check("postgres")
        self.rows.append(marker)
        if vector:
            self.vectors.append(vector)
            self.index()

    def write_redis(self, marker: Marker) -> None:
        self._check("redis")
        self.key = marker

    def postgres(self, before: int) -> Marker | None:
        self._check("postgres")
        return max((one for one in self.rows if one.epoch < before), default=None)

    def redis(self) -> Marker | None:
        self._check("redis")
        return self.key

    def qdrant(self, before: int) -> Marker | None:
        self._check("qdrant")
        return max((one for one in self.points.values() if one.epoch < before), default=None)

    def vector_log(self, before: int) -> Marker | None:
        self._check("postgres")
        return max((one for one in self.vectors if one.epoch < before), default=None)

    def has_qdrant(self) -> bool:
        return True

    def close(self) -> None:
        self.closed += 1


class Region:
    """An agent's markers, and a clock that the test moves."""

    def __init__(self, cluster: FakeCluster, name: str, stores: FakeStores | None = None) -> None:
        self.client = connect(cluster)
        self.leases = RegionLeases(self.client)
        self.board = MarkerBoard(self.client)
        self.name = name
        self.stores = stores or FakeStores()
        self.clock = 1000.0
        given = settings(name)
        keeper = t.cast(Keeper, None)
        self.markers = Markers(given, given.cells[0], keeper, self.client, self.stores, lambda: self.clock)

    def serve(self) -> RegionLease:
        """Take the cell's lease, and say that this region serves."""
        record = Registry(self.client).get("main")
        assert record
        lease = self.leases.acquire(record, f"{self.name}1")
        assert lease
        assert self.leases.publish(lease, SERVING, Serving(self.name, record.epoch, time.time(), f"{self.name}1"))
        return lease

    def standing(self, role: str = "primary", authority: float = 7.0, error: str = "") -> Standing:
        local = Local(postgres={"role": role, "state": "running"})
        return Standing(self.leases.look("main"), local, now(), now(), now() + authority, error)

    def step(self, seconds: float = 1.0, **changes: t.Any) -> bool:
        self.clock += seconds
        return self.markers.step(self.standing(**changes))


@pytest.fixture
def home(cluster: FakeCluster) -> Region:
    Registry(connect(cluster)).create("main", "a")
    region = Region(cluster, "a")
    region.serve()
    return region


def move(cluster: FakeCluster, to: Region, leaving: Region) -> RegionLease:
    """The cell's record names another region, and the old home's lease ends."""
    registry = Registry(to.client)
    record = registry.get("main")
    assert record
    lease = to.leases.look("main").lease
    assert lease
    registry.compare_and_swap(record, replace(record, home=to.name, epoch=record.epoch + 1), "a test", "ada")
    assert leaving.leases.release(lease, None)
    return to.serve()


def seqs(found: t.Sequence[Marker]) -> list[int]:
    return [one.seq for one in found]


# -- writing ---------------------------------------------------------------------------------------------------------


def test_the_home_writes_to_every_store_and_says_what_was_acknowledged(home: Region) -> None:
    assert [home.step() for _time in range(4)] == [True] * 4
    assert seqs(home.stores.rows) == [1, 2, 3, 4] and seqs(home.stores.vectors) == [1, 2]
    written = home.board.written("main")
    assert written and (written.region, written.epoch, written.host) == ("a", 1, "a1")
    assert written.stores == {
        "postgres": home.stores.rows[-1],
        "redis": home.stores.key,
        "qdrant": home.stores.vectors[-1],
    }


def test_not_more_than_one_marker_a_second(home: Region) -> None:
    home.step()
    assert not home.step(0.5)
    assert home.step(0.5)
    assert seqs(home.stores.rows) == [1, 2]


@pytest.mark.parametrize("changes", [{"role": "replica"}, {"role": "standby_leader"}, {"authority": 0.5}])
def test_who_does_not_speak_for_the_home_writes_nothing(home: Region, changes: dict[str, t.Any]) -> None:
    assert not home.step(**changes)
    assert home.stores.rows == [] and home.stores.key is None and home.board.written("main") is None


def test_a_region_that_does_not_serve_yet_writes_nothing(cluster: FakeCluster) -> None:
    record, _created = Registry(connect(cluster)).create("main", "a")
    region = Region(cluster, "a")
    assert region.leases.acquire(record, "a1")
    assert not region.step() and region.stores.rows == []


def test_a_store_that_refuses_costs_the_others_nothing(home: Region) -> None:
    home.step()
    home.stores.broken = {"redis"}
    home.step()
    assert seqs(home.stores.rows) == [1, 2]
    written = home.board.written("main")
    assert (
        written and written.stores["redis"] == home.stores.rows[0] and written.stores["postgres"] == home.stores.rows[1]
    )


def test_postgresql_that_failed_is_left_alone_for_a_while(home: Region) -> None:
    home.step()
    home.stores.broken = {"postgres"}
    home.step()
    home.stores.broken = set()
    home.step()
    assert seqs(home.stores.rows) == [1]
    home.step(subject.AGAIN)
    assert seqs(home.stores.rows) == [1, 4]


def test_without_the_registry_markers_go_on_and_nothing_is_said(home: Region) -> None:
    home.step()
    home.step(error="silence")
    written = home.board.written("main")
    assert seqs(home.stores.rows) == [1, 2] and written and written.stores["postgres"] == home.stores.rows[0]


def test_another_host_of_the_region_goes_on_where_the_first_one_was(cluster: FakeCluster, home: Region) -> None:
    for _time in range(3):
        home.step()
    second = Region(cluster, "a", home.stores)
    home.stores.broken = {"redis"}
    second.step()
    assert seqs(home.stores.rows) == [1, 2, 3, 4]
    written = second.board.written("main")
    assert written and written.stores["redis"] == home.stores.rows[2]
    assert second.board.arrived("main", 1) is None


def test_a_crash_of_the_yardstick_does_not_end_the_agent(home: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def standing(self) -> Standing:
            home.markers.stop()
            raise ValueError("a bug")

    monkeypatch.setattr(home.markers, "_keeper", Broken())
    monkeypatch.setattr(subject, "LOOK", 0.01)
    thread = threading.Thread(target=home.markers.run)
    thread.start()
    thread.join(10)
    assert not thread.is_alive() and home.stores.closed


# -- what arrived ----------------------------------------------------------------------------------------------------


def test_a_new_home_says_what_arrived_before_it_writes_its_own(cluster: FakeCluster, home: Region) -> None:
    other = Region(cluster, "b")
    for _time in range(4):
        home.step()
    home.stores.replicate(other.stores)
    for _time in range(2):
        home.step()
    arrived, key = other.stores.rows[-1], other.stores.key
    move(cluster, other, home)
    assert other.step()
    found = other.board.arrived("main", 2)
    assert found and found.settled and not found.trouble
    assert found.stores == {"postgres": arrived, "redis": key, "qdrant": other.stores.points[1]}
    assert found.last and found.last.stores["postgres"] == home.stores.rows[-1]
    assert {name: one["markers"] for name, one in losses(found).items()} == {"postgres": 2, "redis": 2, "qdrant": 1}
    # Numbers go on after those of the old home, the lost ones too.
    assert (other.stores.rows[-1].epoch, other.stores.rows[-1].seq) == (2, 7)


def test_qdrant_may_follow_a_moment_later(cluster: FakeCluster, home: Region) -> None:
    other = Region(cluster, "b")
    for _time in range(4):
        home.step()
    other.stores.indexer_runs = False
    home.stores.replicate(other.stores)
    move(cluster, other, home)
    other.step()
    found = other.board.arrived("main", 2)
    assert found and not found.settled and found.stores["qdrant"] is None
    assert losses(found)["qdrant"]["seconds"] is None
    other.stores.indexer_runs = True
    other.stores.index()
    other.step()
    found = other.board.arrived("main", 2)
    assert found and found.settled and found.stores["qdrant"] == other.stores.points[1]


def test_a_qdrant_that_never_catches_up_is_given_up(cluster: FakeCluster, home: Region) -> None:
    other = Region(cluster, "b")
    for _time in range(2):
        home.step()
    home.stores.replicate(other.stores)
    other.stores.broken = {"qdrant"}
    move(cluster, other, home)
    other.step()
    other.step(subject.SETTLE_WITHIN + 1)
    found = other.board.arrived("main", 2)
    assert found and not found.settled and losses(found)["qdrant"]["note"] == "qdrant is away"
    before = found.at
    other.step()
    found = other.board.arrived("main", 2)
    assert found and found.at == before


def test_a_store_that_is_silent_is_asked_for_a_while_and_then_named(cluster: FakeCluster, home: Region) -> None:
    other = Region(cluster, "b")
    home.step()
    home.stores.replicate(other.stores)
    other.stores.broken = {"redis"}
    move(cluster, other, home)
    assert not other.step()
    assert other.stores.rows[-1].epoch == 1 and other.board.arrived("main", 2) is None
    assert other.step(subject.READ_WITHIN)
    found = other.board.arrived("main", 2)
    assert found and losses(found)["redis"]["note"] == "redis is away"
    assert losses(found)["postgres"]["seconds"] == 0.0


def test_an_agent_that_was_started_anew_says_it_once(cluster: FakeCluster, home: Region) -> None:
    other = Region(cluster, "b")
    home.step()
    home.stores.replicate(other.stores)
    move(cluster, other, home)
    other.step()
    found = other.board.arrived("main", 2)
    again = Region(cluster, "b", other.stores)
    assert again.step() and again.board.arrived("main", 2) == found


def test_a_home_that_lost_its_voice_for_a_moment_asks_nothing_twice(cluster: FakeCluster, home: Region) -> None:
    other = Region(cluster, "b")
    home.step()
    home.stores.replicate(other.stores)
    key = other.stores.key
    move(cluster, other, home)
    other.step()
    other.step(role="")
    other.step()
    found = other.board.arrived("main", 2)
    assert found and found.stores["redis"] == key


# -- figures ---------------------------------------------------------------------------------------------------------

OLD, NEW = Marker(1, 10, 100.0), Marker(1, 13, 103.5)


def test_the_loss_lies_between_two_markers() -> None:
    assert loss(NEW, OLD) == {"seconds": 3.5, "markers": 3}
    assert loss(OLD, NEW) == {"seconds": 0.0, "markers": 0}
    assert loss(None, OLD) == loss(OLD, None) == {"seconds": None, "markers": None}


def arrival(**stores: Marker | None) -> Arrival:
    last = Written("a", 1, "a1", 104.0, {"postgres": NEW, "redis": NEW, "qdrant": NEW})
    return Arrival("b", 2, "b1", 110.0, last, dict(stores))


def test_each_store_has_its_own_figure() -> None:
    found = losses(arrival(postgres=NEW, redis=OLD, qdrant=None))
    assert [found[store]["seconds"] for store in library.STORES] == [0.0, 3.5, None]
    assert found["qdrant"]["note"] == "no marker of the old home arrived"
    assert found["redis"]["last_at"] == 103.5 and found["redis"]["arrived_at"] == 100.0


def test_a_store_that_nobody_has_is_not_named() -> None:
    last = Written("a", 1, "a1", 104.0, {"postgres": NEW})
    assert set(losses(Arrival("b", 2, "b1", 110.0, last, {"postgres": NEW}))) == {"postgres"}


@pytest.mark.parametrize(
    ("said", "measured", "seconds"),
    [
        ({"bytes": 0, "seconds": 0.0, "text": "x"}, {"seconds": 2.0, "stores": {}, "text": "y"}, 2.0),
        ({"bytes": 5, "text": "x"}, {"seconds": 0.0, "stores": {}, "text": "y"}, 0.0),
        ({}, {"text": "y"}, None),
    ],
)
def test_the_worse_of_two_measures_counts(said: t.Any, measured: t.Any, seconds: float | None) -> None:
    found = together(said, measured)
    assert found.get("seconds") == seconds and found.get("bytes") == said.get("bytes")
    assert found["text"] == ("x; y" if said else "y")


def test_who_lost_the_lease_overwrites_nothing(home: Region) -> None:
    lease = home.leases.look("main").lease
    assert lease and home.board.tell(lease, Written("a", 1, "a1", 1.0, {"redis": OLD}))
    assert not home.board.tell(replace(lease, revision=lease.revision + 1), Written("a", 1, "a1", 2.0))
    written = home.board.written("main")
    assert written and (written.at, written.stores) == (1.0, {"redis": OLD})


def test_what_nobody_could_have_written_says_nothing(cluster: FakeCluster) -> None:
    client = connect(cluster)
    board = MarkerBoard(client)
    for text in ("", "[]", "7", '{"region": "a"}'):
        client.put("/shannon/markers/main", text)
        client.put("/shannon/markers/main/0000000002", text)
        assert board.written("main") is None and board.arrived("main", 2) is None


def test_a_mover_waits_until_it_is_told(cluster: FakeCluster, home: Region) -> None:
    client = connect(cluster)
    assert measure(client, "main", 2, within=0.2)["text"].startswith("the new home did not say within")
    lease = home.leases.look("main").lease
    assert lease
    home.board.tell(lease, replace(arrival(postgres=NEW, redis=OLD), settled=False))
    timer = threading.Timer(0.3, lambda: home.board.tell(lease, arrival(postgres=NEW, redis=OLD, qdrant=OLD)))
    timer.start()
    found = measure(client, "main", 2, within=20.0)
    assert found["seconds"] == 3.5 and found["stores"]["qdrant"]["markers"] == 3


def test_a_region_that_came_back_knows_exactly_what_it_lost(cluster: FakeCluster, home: Region) -> None:
    client = connect(cluster)
    own = Marker(1, 15, 104.75)
    assert exactly(client, "main", 2, own) == {}
    lease = home.leases.look("main").lease
    assert lease
    home.board.tell(lease, arrival(postgres=OLD))
    assert exactly(client, "main", 2, own) == {"lost_seconds": 4.75, "lost_markers": 5}
    assert exactly(client, "main", 2, None) == {}
    home.board.tell(lease, arrival(postgres=Marker(2, 20, 200.0)))
    assert exactly(client, "main", 2, own) == {}, "that home had markers of a move that this region missed"


def test_the_summary_names_each_store() -> None:
    rpo = {"stores": losses(arrival(postgres=NEW, redis=OLD, qdrant=None))}
    move = {"cell": "main", "kind": "failover", "from": "a", "to": "b", "outcome": "done", "rpo": rpo}
    (line,) = [one for one in render(move) if "lost" in one]
    assert "postgres 0.0 s, 0 markers" in line and "redis 3.5 s, 3 markers" in line
    assert "qdrant not known (no marker of the old home arrived)" in line


# -- the stores ------------------------------------------------------------------------------------------------------


class FakeSession:
    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def ask(self, statement: str, timeout: float = 2.0) -> list[str]:
        self.asked.append(statement)
        return self.answers.pop(0)

    def close(self) -> None:
        pass


def stores(session: FakeSession) -> StoresOfRegion:
    given = settings("a")
    found = StoresOfRegion(given, given.cells[0], None)
    found._session = t.cast(Session, session)
    return found


def test_a_marker_and_its_vector_are_one_statement_in_a_ring() -> None:
    session = FakeSession([str(SLOTS + 7)])
    stores(session).write_postgres(Marker(3, SLOTS + 7, 5.0), Marker(3, 303, 5.0))
    (statement,) = session.asked
    assert f"VALUES (7, {SLOTS + 7}, 3, to_timestamp(5.000)) ON CONFLICT (slot)" in statement
    assert "INSERT INTO vector_log" in statement and '"seq": 303' in statement and ";" not in statement
    assert library.point_of("main", 3) in statement and library.point_of("main", 4) not in statement


def test_what_postgresql_did_not_say_is_not_acknowledged() -> None:
    with pytest.raises(ResilienceError, match="did not take the marker"):
        stores(FakeSession([])).write_postgres(Marker(1, 1, 5.0), None)


def test_old_markers_leave_the_log_now_and_then() -> None:
    every = marker_stores.PRUNE_EVERY
    session = FakeSession([str(every)], [], [str(every + 1)])
    found = stores(session)
    found.write_postgres(Marker(1, every, 5.0), None)
    found.write_postgres(Marker(1, every + 1, 6.0), None)
    assert [one.split()[0] for one in session.asked] == ["WITH", "DELETE", "WITH"]


# -- the session -----------------------------------------------------------------------------------------------------

PSQL = """
import sys, time
for line in sys.stdin:
    line = line.rstrip("\\n")
    if line.startswith("\\\\echo "):
        print(line[6:], flush=True)
    elif "pg_stat_activity" in line:
        print(EARLIER, flush=True)
    elif "sleep" in line:
        time.sleep(30)
    elif "wrong" in line:
        print("ERROR:  it is wrong", flush=True)
    elif "end" in line:
        print("FATAL:  the server goes down", flush=True)
        sys.exit(2)
    else:
        print("WARNING:  never mind\\n\\n" + line.rstrip(";"), flush=True)
"""


@pytest.fixture
def session() -> t.Iterator[Session]:
    found = Session([sys.executable, "-c", f"EARLIER = 0{PSQL}"])
    yield found
    found.close()


def test_a_session_answers_again_and_again(session: Session) -> None:
    assert session.ask("one", 10.0) == ["one"]
    process = session._process
    assert session.ask("two", 10.0) == ["two"] and session._process is process


def test_a_statement_that_is_refused_is_an_error_and_the_session_stays(session: Session) -> None:
    with pytest.raises(ResilienceError, match="it is wrong"):
        session.ask("wrong", 10.0)
    assert session.ask("one", 10.0) == ["one"]


def test_a_session_that_hangs_or_ends_is_begun_anew(session: Session) -> None:
    session.ask("one", 10.0)
    begun = time.monotonic()
    with pytest.raises(ResilienceError, match="no answer in time"):
        session.ask("sleep", 0.2)
    assert time.monotonic() - begun < 5
    with pytest.raises(ResilienceError, match="the server goes down"):
        session.ask("end", 10.0)
    assert session.ask("two", 10.0) == ["two"]


def test_while_an_earlier_commit_waits_there_is_no_second_session() -> None:
    waiting = Session([sys.executable, "-c", f"EARLIER = 1{PSQL}"])
    with pytest.raises(ResilienceError, match="still waits"):
        waiting.ask("one", 10.0)
    assert waiting._process is None


def test_a_psql_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ResilienceError, match="can't be asked"):
        Session(["/nowhere/psql"]).ask("one")


def test_a_view_without_anything_is_no_voice(cluster: FakeCluster) -> None:
    region = Region(cluster, "a")
    nothing = Standing(View(None, None, None, None, None), Local(), now(), now(), now() + 7)
    assert not region.markers.step(nothing)
    record = CellRecord("main", "a", 1)
    assert not region.markers.step(replace(nothing, view=View(record, None, None, None, None)))
