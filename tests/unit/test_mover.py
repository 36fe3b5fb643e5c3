"""The mover: it judges, swaps once, follows what the agents make of it, and can be started again at any point."""

from __future__ import annotations

import contextlib
import itertools
import json
import ssl
import threading
import time
import types
import typing as t
from dataclasses import asdict, replace

import pytest
from fake_etcd import FakeCluster

from ansible_collections.shannon.resilience.plugins.module_utils import move_mark
from ansible_collections.shannon.resilience.plugins.module_utils import mover as subject
from ansible_collections.shannon.resilience.plugins.module_utils.cell_validation import Check
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ConflictError, ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.etcd import EtcdClient
from ansible_collections.shannon.resilience.plugins.module_utils.markers import (
    MARKERS,
    Arrival,
    Marker,
    MarkerBoard,
    Written,
)
from ansible_collections.shannon.resilience.plugins.module_utils.move_approval import Approval, Approvals
from ansible_collections.shannon.resilience.plugins.module_utils.move_gates import (
    FAILOVER,
    OVERRIDES,
    SWITCHOVER,
    Limits,
)
from ansible_collections.shannon.resilience.plugins.module_utils.mover import Mover, Request
from ansible_collections.shannon.resilience.plugins.module_utils.region_lease import (
    LEASES,
    POSITIONS,
    SERVING,
    Position,
    RegionLeases,
    Serving,
)
from ansible_collections.shannon.resilience.plugins.module_utils.registry import CellRecord, Registry
from ansible_collections.shannon.resilience.plugins.module_utils.registry_keys import EDGES, MOVES, REPORTS
from ansible_collections.shannon.resilience.plugins.module_utils.smoke import Client

#: How much faster the mover's clock runs here.
FASTER = 10.0
Move = dict[str, t.Any]


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    base = time.monotonic()
    clock = types.SimpleNamespace(
        monotonic=lambda: base + (time.monotonic() - base) * FASTER, sleep=lambda seconds: time.sleep(seconds / FASTER)
    )
    for module in (subject, move_mark):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(subject, "PAUSE", 0.005)
    monkeypatch.setattr(move_mark, "MARK_TTL", 2)
    for bound in ("HOLD_WITHIN", "DRAIN_WITHIN"):
        monkeypatch.setattr(subject, bound, 10.0 * FASTER)
    for bound in ("FENCE_WITHIN", "PROMOTE_WITHIN"):
        monkeypatch.setattr(subject, bound, 10.0)


@pytest.fixture
def cluster() -> t.Iterator[FakeCluster]:
    with FakeCluster(1) as running:
        yield running


@pytest.fixture
def record(cluster: FakeCluster) -> CellRecord:
    return Registry(connect(cluster)).create("main", "a")[0]


def connect(cluster: FakeCluster) -> EtcdClient:
    return EtcdClient(cluster.endpoints, timeout=5.0, name="the registry")


def members(region: str, leader: str, **more: t.Any) -> list[dict[str, t.Any]]:
    roles = [leader, "replica", "replica"]
    return [
        {"name": f"{region}{n}", "role": role, "state": "running" if role else "", "error": "", **more}
        for n, role in enumerate(roles, 1)
    ]


class World:
    """A deployment over two regions and an edge, of which region a is the home."""

    def __init__(self, home_lives: bool = True) -> None:
        self.stores: dict[str, t.Any] = {
            store: {region: {"members": members(region, "primary")} for region in "ab"} for store in ("redis", "qdrant")
        }
        of_b = members("b", "standby_leader", received=1000, replayed_at=999.0)
        self.stores["postgres"] = {"a": {"members": members("a", "primary")}, "b": {"members": of_b}}
        if home_lives:
            of_b[0]["lag_bytes"] = 0
        else:
            for one in self.stores["postgres"]["a"]["members"]:
                one.update(role="", state="", error="no answer")
        self.edge_names = ["w1"]
        self.looking: t.Callable[[], None] = lambda: None
        self.clients: list[FakeClient] = []
        self.takes_tasks = True
        #: How often somebody asked for patience, and what is seen then.
        self.asked_for_patience = 0
        self.with_patience: t.Callable[[], None] = lambda: None

    def be_patient(self) -> None:
        self.asked_for_patience += 1
        self.with_patience()

    def info(self) -> dict[str, t.Any]:
        self.looking()
        return {"cells": {"main": self.stores}, "certificate": None}

    def agents(self, region: str) -> dict[str, t.Any]:
        return {f"{region}{number}": {"version": "1"} for number in (1, 2, 3)}

    def gateways(self, region: str) -> dict[str, str]:
        return {f"{region}1": ""}

    def edges(self) -> list[str]:
        return self.edge_names

    def edge_client(self, edge: str, deadline: float) -> Client:
        self.clients.append(FakeClient(self, edge, deadline))
        return self.clients[-1]


class FakeClient(Client):
    """Takes a task at the second try, and has it done at the second look."""

    def __init__(self, world: World, edge: str, deadline: float) -> None:
        super().__init__(f"https://{edge}", "key", ssl.create_default_context(), deadline)
        self.world = world
        self.keys: list[str] = []
        self.looks = 0

    def ask(self, method: str, path: str, body: t.Any = None, **headers: str) -> t.Any:
        if method == "GET":
            self.looks += 1
            return {"status": "TASK_STATUS_COMPLETED" if self.looks > 1 else "TASK_STATUS_RUNNING"}
        self.keys.append(headers["Idempotency-Key"])
        if len(self.keys) < 2 or not self.world.takes_tasks:
            raise ResilienceError("503 no region is active")
        return {"task_id": "task-1"}


class Background:
    """Repeats a step until the test ends, and fails the test if the step fails."""

    def __init__(self, step: t.Callable[[], None]) -> None:
        self._step = step
        self._ends = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            while not self._ends.wait(0.003):
                self._step()
        except Exception as exc:
            self._failure = exc

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_exc: object) -> None:
        self._ends.set()
        self._thread.join()
        if self._failure:
            raise self._failure


def agents(cluster: FakeCluster, *regions: str) -> Background:
    """Region agents of these regions: who is the home takes the lease and serves, who is not gives it back in order."""
    leases = RegionLeases(connect(cluster))
    registry = Registry(leases.client)
    lsn = 1000

    def step() -> None:
        nonlocal lsn
        view = leases.look("main")
        record, lease = view.record, view.lease
        if record is None:
            return
        lsn += 1
        if lease and lease.region in regions and lease.region != record.home:
            leases.release(lease, Position(lease.region, lease.epoch, 2000, time.time(), lease.host, final=True))
        elif lease is None and record.home in regions:
            leases.acquire(record, f"{record.home}1")
        elif lease and lease.region in regions:
            if view.serving is None or view.serving.epoch != record.epoch:
                old_end = view.position.lsn if view.position and view.position.final else 0
                serving = Serving(record.home, record.epoch, time.time(), lease.host, 2000, old_end)
                leases.publish(lease, SERVING, serving)
            leases.publish(lease, POSITIONS, Position(lease.region, lease.epoch, lsn, time.time(), lease.host))
            if record.state in ("entering", "taking_over"):
                registry.compare_and_swap(record, replace(record, state="active"), "it serves", "region agent")

    return Background(step)


def edge(cluster: FakeCluster, in_flight: t.Iterator[int], name: str = "w1") -> Background:
    """An edge that holds a draining cell, with so many requests under way."""
    client = connect(cluster)
    registry = Registry(client)

    def step() -> None:
        record = registry.get("main")
        held = record is not None and record.state == "draining"
        said = {"epoch": record.epoch if record else 0, "held": held, "in_flight": next(in_flight) if held else 9}
        client.put(f"{EDGES}{name}/main", json.dumps(said))

    return Background(step)


def lost_home(cluster: FakeCluster, record: CellRecord, lsn: int = 1000) -> World:
    """Region a was the home, told how far it was, and is gone."""
    leases = RegionLeases(connect(cluster))
    lease = leases.acquire(record, "a1")
    assert lease
    leases.publish(lease, POSITIONS, Position("a", record.epoch, lsn, 1009.0, "a1"))
    leases.drop(lease.id)
    return World(home_lives=False)


def ask(kind: str, **changes: t.Any) -> Request:
    given = Request("main", "b", kind, "a test", "ada", verify_within=10.0 * FASTER)
    return replace(given, **changes)


def run(cluster: FakeCluster, world: World, kind: str, **changes: t.Any) -> Move:
    return Mover(connect(cluster), world, ask(kind, **changes)).run()


def history(cluster: FakeCluster) -> list[tuple[int, str, str]]:
    """Epoch, home and state after each change."""
    return [(one.epoch, one.home, one.state) for one in Registry(connect(cluster)).history("main")]


def phases(move: Move) -> list[str]:
    return [one["name"] for one in move["phases"]]


def note(move: Move, phase: str) -> str:
    return next(str(one["note"]) for one in move["phases"] if one["name"] == phase)


def state(cluster: FakeCluster) -> tuple[int, dict[bytes, t.Any], int]:
    """All that a mover could change, the leases that were ever granted among it."""
    return cluster.revision, dict(cluster.keys), cluster.granted


# -- failover --------------------------------------------------------------------------------------------------------


def test_a_lost_home_is_left_for_the_target(cluster: FakeCluster, record: CellRecord) -> None:
    world = lost_home(cluster, record)
    with agents(cluster, "b"):
        move = run(cluster, world, FAILOVER)
    assert (move["outcome"], move["error"], move["changed"]) == ("done", "", True)
    assert (move["from"], move["to"], move["epoch_before"], move["epoch"]) == ("a", "b", 1, 2)
    assert history(cluster) == [(1, "a", "active"), (2, "b", "taking_over"), (2, "b", "active")]
    assert phases(move) == ["detect", "decide", "fence", "promote", "route", "verify"]
    assert note(move, "fence") == "its lease had ended"
    assert move["lag_before"] == {"bytes": 0, "seconds": 0.0}
    assert 0 < move["rto_seconds"] < 10 * FASTER


def test_what_each_store_lost_is_measured_after_the_promotion(cluster: FakeCluster, record: CellRecord) -> None:
    client = connect(cluster)
    board = MarkerBoard(client)
    old, new = Marker(1, 10, 100.0), Marker(1, 12, 102.0)
    written = Written("a", 1, "a1", 102.5, {"postgres": new, "redis": new})
    client.put(f"{MARKERS}main", json.dumps(asdict(written)))

    def say() -> None:
        lease = RegionLeases(client).look("main").lease
        if lease and lease.region == "b" and board.arrived("main", 2) is None:
            board.tell(lease, Arrival("b", 2, "b1", 110.0, written, {"postgres": new, "redis": old}))

    world = lost_home(cluster, record)
    with agents(cluster, "b"), Background(say):
        move = run(cluster, world, FAILOVER)
    assert move["outcome"] == "done" and phases(move)[-1] == "measure"
    assert {store: one["seconds"] for store, one in move["rpo"]["stores"].items()} == {"postgres": 0.0, "redis": 2.0}
    assert move["rpo"]["seconds"] == 2.0 and move["rto_seconds"] < move["phases"][-1]["end"]


def test_the_first_task_is_sent_until_it_is_taken_and_is_one_task(cluster: FakeCluster, record: CellRecord) -> None:
    world = lost_home(cluster, record)
    with agents(cluster, "b"):
        move = run(cluster, world, FAILOVER)
    (client,) = world.clients
    assert len(client.keys) == 2 and len(set(client.keys)) == 1
    assert move["verified"] == {"task_id": "task-1", "epoch": 2}


def test_a_report_is_kept_under_the_new_epoch(cluster: FakeCluster, record: CellRecord) -> None:
    world = lost_home(cluster, record)
    with agents(cluster, "b"):
        run(cluster, world, FAILOVER)
    found = connect(cluster).get(f"{REPORTS}main/{2:010d}")
    assert found
    kept = json.loads(found.value)
    assert (kept["outcome"], kept["operator"], kept["reason"]) == ("done", "ada", "a test")
    assert "gates" not in kept


def test_the_mark_is_gone_afterwards(cluster: FakeCluster, record: CellRecord) -> None:
    world = lost_home(cluster, record)
    with agents(cluster, "b"):
        run(cluster, world, FAILOVER)
    assert connect(cluster).get(f"{MOVES}main") is None


# -- what changes nothing --------------------------------------------------------------------------------------------


def test_a_busy_target_is_asked_once_more_before_it_is_refused(cluster: FakeCluster, record: CellRecord) -> None:
    world = lost_home(cluster, record)
    leader = world.stores["postgres"]["b"]["members"][0]
    well = dict(leader)
    leader.update(role="", state="", error="no answer in time")
    world.with_patience = lambda: leader.update(well)
    with agents(cluster, "b"):
        move = run(cluster, world, FAILOVER)
    assert (move["outcome"], move["error"]) == ("done", "")
    assert world.asked_for_patience == 1


def test_who_is_well_is_not_asked_twice(cluster: FakeCluster, record: CellRecord) -> None:
    world = lost_home(cluster, record)
    with agents(cluster, "b"):
        assert run(cluster, world, FAILOVER)["outcome"] == "done"
    assert world.asked_for_patience == 0


def test_a_refusal_changes_nothing_and_says_how_to_do_it_nevertheless(cluster: FakeCluster, record: CellRecord) -> None:
    world = lost_home(cluster, record, lsn=5000)
    before = state(cluster)
    move = run(cluster, world, FAILOVER)
    assert (move["outcome"], move["changed"]) == ("refused", False)
    assert state(cluster) == before
    assert "4000 bytes, 10.0 s" in move["error"]
    assert "-e failover_accept_lag=true" in move["error"]
    assert [one["name"] for one in move["gates"] if not one["passed"]] == ["lag"]


@pytest.mark.parametrize("lsn", [1000, 5000])
def test_a_plan_changes_nothing_and_judges(cluster: FakeCluster, record: CellRecord, lsn: int) -> None:
    world = lost_home(cluster, record, lsn)
    before = state(cluster)
    move = run(cluster, world, FAILOVER, plan=True)
    assert (move["outcome"], move["error"], move["changed"]) == ("planned", "", False)
    assert state(cluster) == before
    assert [one["name"] for one in move["gates"] if not one["passed"]] == (["lag"] if lsn > 1000 else [])


def test_a_home_that_serves_is_not_failed_over(cluster: FakeCluster, record: CellRecord) -> None:
    with agents(cluster, "a", "b"):
        wait_for_lease(cluster)
        move = run(cluster, World(), FAILOVER)
    assert move["outcome"] == "refused"
    assert "playbooks/switchover.yml" in move["error"]
    assert history(cluster) == [(1, "a", "active")]


def test_a_home_that_beats_is_not_failed_over_though_its_postgresql_is_silent(
    cluster: FakeCluster, record: CellRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "time", time)
    with agents(cluster, "a"):
        wait_for_lease(cluster)
        move = run(cluster, World(home_lives=False), FAILOVER)
    assert "a1 keeps the home's lease" in move["error"]
    assert history(cluster) == [(1, "a", "active")]


def test_a_cell_that_nobody_knows_is_not_moved(cluster: FakeCluster) -> None:
    move = run(cluster, World(), FAILOVER)
    assert move["outcome"] == "refused"
    assert "does not know the cell main" in move["error"]


def test_without_a_quorum_nothing_is_done(cluster: FakeCluster, record: CellRecord) -> None:
    cluster.members[0].mode = "no leader"
    before = state(cluster)
    move = run(cluster, World(), FAILOVER)
    assert (move["outcome"], move["changed"]) == ("refused", False)
    assert "no quorum" in move["error"]
    assert state(cluster) == before


# -- overrides -------------------------------------------------------------------------------------------------------


def test_an_override_that_was_needed_is_in_the_history(cluster: FakeCluster, record: CellRecord) -> None:
    world = lost_home(cluster, record, lsn=5000)
    with agents(cluster, "b"):
        move = run(cluster, world, FAILOVER, overrides=("accept_lag", "accept_capacity"))
    assert (move["outcome"], move["overrides"]) == ("done", ["accept_lag"])
    last = Registry(connect(cluster)).history("main")[1]
    assert (last.home, last.overrides, last.operator, last.reason) == ("b", ("accept_lag",), "ada", "a test")


# -- switchover ------------------------------------------------------------------------------------------------------


def test_a_switchover_drains_first_and_loses_nothing(cluster: FakeCluster, record: CellRecord) -> None:
    with agents(cluster, "a", "b"), edge(cluster, itertools.chain([5, 2], itertools.repeat(0))):
        wait_for_lease(cluster)
        move = run(cluster, World(), SWITCHOVER)
    assert (move["outcome"], move["error"]) == ("done", "")
    assert history(cluster) == [
        (1, "a", "active"),
        (1, "a", "draining"),
        (2, "b", "entering"),
        (2, "b", "active"),
    ]
    assert phases(move) == ["detect", "decide", "hold", "drain", "fence", "promote", "route", "verify"]
    assert note(move, "fence") == "given back in order by region a, at 2000 bytes"
    assert (move["rpo"]["bytes"], move["rpo"]["seconds"]) == (0, 0.0)
    assert (note(move, "hold"), note(move, "drain")) == ("", "")


def test_nothing_is_swapped_before_the_edges_have_nothing_under_way(cluster: FakeCluster, record: CellRecord) -> None:
    registry = Registry(connect(cluster))
    seen: list[int] = []

    def busy() -> t.Iterator[int]:
        for _look in range(4):
            found = registry.get("main")
            seen.append(found.epoch if found else 0)
            yield 1
        while True:
            yield 0

    with agents(cluster, "a", "b"), edge(cluster, busy()):
        wait_for_lease(cluster)
        move = run(cluster, World(), SWITCHOVER)
    assert move["outcome"] == "done"
    assert seen == [1] * 4


def test_an_edge_that_is_silent_or_busy_is_not_waited_for_without_end(
    cluster: FakeCluster, record: CellRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "HOLD_WITHIN", 0.3 * FASTER)
    monkeypatch.setattr(subject, "DRAIN_WITHIN", 0.1 * FASTER)
    world = World()
    world.edge_names = ["w1", "w2"]
    with agents(cluster, "a", "b"), edge(cluster, itertools.repeat(3)):
        wait_for_lease(cluster)
        move = run(cluster, world, SWITCHOVER)
    assert move["outcome"] == "done"
    assert note(move, "hold") == "not heard from: w2"
    assert note(move, "drain") == "still busy: w1"


def test_what_an_edge_said_in_an_earlier_epoch_does_not_count(
    cluster: FakeCluster, record: CellRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "HOLD_WITHIN", 0.05 * FASTER)
    connect(cluster).put(f"{EDGES}w1/main", json.dumps({"epoch": 0, "held": True, "in_flight": 0}))
    with agents(cluster, "a", "b"):
        wait_for_lease(cluster)
        move = run(cluster, World(), SWITCHOVER)
    assert note(move, "hold") == "not heard from: w1"


def test_a_switchover_that_fails_before_the_swap_gives_the_cell_back(cluster: FakeCluster, record: CellRecord) -> None:
    class Broken(World):
        def edges(self) -> list[str]:
            raise ResilienceError("the edges can't be asked")

    with agents(cluster, "a", "b"):
        wait_for_lease(cluster)
        move = run(cluster, Broken(), SWITCHOVER)
    assert (move["outcome"], move["error"]) == ("failed", "the edges can't be asked")
    assert history(cluster) == [(1, "a", "active"), (1, "a", "draining"), (1, "a", "active")]


def test_a_home_that_does_not_serve_is_not_switched_over(cluster: FakeCluster, record: CellRecord) -> None:
    move = run(cluster, World(), SWITCHOVER)
    assert move["outcome"] == "refused"
    assert "playbooks/failover.yml" in move["error"]
    assert history(cluster) == [(1, "a", "active")]


# -- once more -------------------------------------------------------------------------------------------------------


def test_a_move_whose_mover_died_after_the_swap_is_finished(cluster: FakeCluster, record: CellRecord) -> None:
    world = lost_home(cluster, record)
    swap(cluster, record, "b", "taking_over")
    with agents(cluster, "b"):
        move = run(cluster, world, FAILOVER)
    assert (move["outcome"], move["error"], move["epoch"]) == ("done", "", 2)
    assert note(move, "detect") == "region b is the home already: what is left is done"
    assert phases(move) == ["detect", "fence", "promote", "route", "verify"]
    assert history(cluster) == [(1, "a", "active"), (2, "b", "taking_over"), (2, "b", "active")]


def test_a_switchover_whose_mover_died_while_it_drained_is_finished(cluster: FakeCluster, record: CellRecord) -> None:
    swap(cluster, record, "a", "draining")
    with agents(cluster, "a", "b"), edge(cluster, itertools.repeat(0)):
        wait_for_lease(cluster)
        move = run(cluster, World(), SWITCHOVER)
    assert (move["outcome"], move["error"]) == ("done", "")
    assert history(cluster) == [
        (1, "a", "active"),
        (1, "a", "draining"),
        (2, "b", "entering"),
        (2, "b", "active"),
    ]


def test_a_move_that_is_done_is_only_verified(cluster: FakeCluster, record: CellRecord) -> None:
    world = lost_home(cluster, record)
    with agents(cluster, "b"):
        run(cluster, world, FAILOVER)
        move = run(cluster, world, FAILOVER)
    assert (move["outcome"], move["changed"]) == ("done", False)
    assert phases(move) == ["detect", "route", "verify"]
    assert history(cluster) == [(1, "a", "active"), (2, "b", "taking_over"), (2, "b", "active")]


def test_a_target_that_does_not_serve_in_time_is_an_error_and_the_next_run_ends_it(
    cluster: FakeCluster, record: CellRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = lost_home(cluster, record)
    with monkeypatch.context() as patch:
        patch.setattr(subject, "PROMOTE_WITHIN", 0.1)
        move = run(cluster, world, FAILOVER)
    assert (move["outcome"], move["changed"]) == ("failed", True)
    assert "waited" in move["error"] and "the lease is held by nobody" in move["error"]
    with agents(cluster, "b"):
        assert run(cluster, world, FAILOVER)["outcome"] == "done"


def test_a_home_that_does_not_let_go_is_an_error(
    cluster: FakeCluster, record: CellRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "FENCE_WITHIN", 0.1)
    RegionLeases(connect(cluster)).acquire(record, "a1")
    move = run(cluster, World(home_lives=False), FAILOVER, overrides=("accept_lag",))
    assert move["outcome"] == "failed"
    assert "region a still holds the lease of epoch 1" in move["error"]


def test_a_task_that_is_not_taken_fails_the_move_after_it_was_made(cluster: FakeCluster, record: CellRecord) -> None:
    world = lost_home(cluster, record)
    world.takes_tasks = False
    with agents(cluster, "b"):
        move = run(cluster, world, FAILOVER, verify_within=2.0)
    assert (move["outcome"], move["epoch"]) == ("failed", 2)
    assert "no task was taken through https://w1" in move["error"]


# -- two at once -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def another_mover(cluster: FakeCluster, beats: bool = True) -> t.Iterator[None]:
    """Somebody else's mark, and its beat."""
    client = connect(cluster)
    mark = {"operator": "bob", "host": "w9", "kind": "failover", "to": "b", "at": "2026-11-24T12:00:00+00:00"}
    client.put(f"{MOVES}main", json.dumps(mark))
    with Background(lambda: client.put(f"{MOVES}main", json.dumps(mark)) if beats else None):  # type: ignore[arg-type,return-value]
        yield


def test_a_second_mover_is_told_who_moves_the_cell(cluster: FakeCluster, record: CellRecord) -> None:
    world = lost_home(cluster, record)
    with another_mover(cluster):
        move = run(cluster, world, FAILOVER)
    assert move["outcome"] == "refused"
    assert "bob on w9 does a failover to b since 2026-11-24T12:00:00+00:00" in move["error"]
    assert history(cluster) == [(1, "a", "active")]


def test_the_mark_of_a_mover_that_died_is_waited_for(cluster: FakeCluster, record: CellRecord) -> None:
    world = lost_home(cluster, record)
    client = connect(cluster)
    client.put(f"{MOVES}main", json.dumps({"operator": "bob"}))
    threading.Timer(0.05, lambda: client.delete(f"{MOVES}main")).start()
    with agents(cluster, "b"):
        assert run(cluster, world, FAILOVER)["outcome"] == "done"


def test_a_mark_that_stays_without_a_beat_is_shown(cluster: FakeCluster, record: CellRecord) -> None:
    world = lost_home(cluster, record)
    with another_mover(cluster, beats=False):
        move = run(cluster, world, FAILOVER)
    assert move["outcome"] == "refused"
    assert f"the mark {MOVES}main does not go away" in move["error"]


def test_who_loses_the_mark_changes_nothing(cluster: FakeCluster, record: CellRecord) -> None:
    world = lost_home(cluster, record)
    client = connect(cluster)
    with contextlib.ExitStack() as stack:
        # It was free when the world was looked at, and is not when it is to be taken.
        mover = Mover(client, world, ask(FAILOVER))
        real = mover._judge
        mover._judge = lambda *args: (real(*args), stack.enter_context(another_mover(cluster)))[0]  # type: ignore[method-assign]
        move = mover.run()
    assert (move["outcome"], move["changed"]) == ("refused", False)
    assert "somebody else began to move the cell at the same moment: bob" in move["error"]
    assert history(cluster) == [(1, "a", "active")]
    assert not cluster.leases, "its own mark's lease is given back"


def test_a_mark_can_be_taken_over_and_that_is_recorded(cluster: FakeCluster, record: CellRecord) -> None:
    world = lost_home(cluster, record)
    with another_mover(cluster, beats=False), agents(cluster, "b"):
        move = run(cluster, world, FAILOVER, overrides=("accept_other_move",))
    assert (move["outcome"], move["overrides"]) == ("done", ["accept_other_move"])
    swapped = [one for one in Registry(connect(cluster)).history("main") if one.state == "taking_over"]
    assert [one.overrides for one in swapped] == [("accept_other_move",)]
    assert connect(cluster).get(f"{MOVES}main") is None


def test_whose_mark_was_taken_over_changes_nothing_more(cluster: FakeCluster, record: CellRecord) -> None:
    world = lost_home(cluster, record)
    client = connect(cluster)
    mover = Mover(client, world, ask(FAILOVER))
    put = mover._mark.put

    def put_and_lose(take_over: bool = False) -> None:
        put(take_over)
        move_mark.Mark(client, "main", FAILOVER, "b", "bob", "ada's hangs").put(take_over=True)

    mover._mark.put = put_and_lose  # type: ignore[method-assign]
    move = mover.run()
    assert (move["outcome"], move["changed"]) == ("refused", False)
    assert "bob took this move over" in move["error"]
    assert history(cluster) == [(1, "a", "active")]


def test_a_switchover_that_was_taken_over_leaves_clients_waiting_for_the_other(
    cluster: FakeCluster, record: CellRecord
) -> None:
    client = connect(cluster)

    class Late(World):
        def edges(self) -> list[str]:
            move_mark.Mark(client, "main", SWITCHOVER, "b", "bob", "ada's hangs").put(take_over=True)
            return []

    with agents(cluster, "a"):
        wait_for_lease(cluster)
        move = run(cluster, Late(), SWITCHOVER)
    assert "bob took this move over" in move["error"]
    assert history(cluster)[-1] == (1, "a", "draining")


def test_a_beat_does_not_write_over_a_mark_that_was_taken(cluster: FakeCluster, record: CellRecord) -> None:
    client = connect(cluster)
    ours, theirs = (move_mark.Mark(client, "main", FAILOVER, "b", name, "a test") for name in ("ada", "bob"))
    ours.put()
    theirs.put(take_over=True)
    time.sleep(1.2)
    ours.remove()
    found = client.get(f"{MOVES}main")
    assert found and json.loads(found.value)["operator"] == "bob"
    theirs.remove()


@pytest.mark.parametrize("home", ["a", "b"])
def test_a_cell_that_is_being_restored_is_not_moved(cluster: FakeCluster, record: CellRecord, home: str) -> None:
    there = swap(cluster, record, home, "restoring")
    leases = RegionLeases(connect(cluster))
    leases.acquire(there, f"{home}1")
    move = run(cluster, World(), SWITCHOVER, overrides=OVERRIDES)
    assert move["outcome"] == "refused"
    assert "The cell is not being restored: no." in move["error"]
    assert Registry(connect(cluster)).get("main") == there


def test_a_swap_that_is_lost_says_who_won(cluster: FakeCluster, record: CellRecord) -> None:
    world = lost_home(cluster, record)
    world.looking = lambda: swap(cluster, record, "c", operator="bob")
    move = run(cluster, world, FAILOVER, limits=Limits(cooldown=0))
    assert (move["outcome"], move["changed"]) == ("refused", False)
    assert "home c, epoch 2" in move["error"] and "written by bob" in move["error"]
    assert history(cluster) == [(1, "a", "active"), (2, "c", "active")]


def test_a_switchover_that_loses_the_swap_leaves_the_winners_record(cluster: FakeCluster, record: CellRecord) -> None:
    class Late(World):
        def edges(self) -> list[str]:
            there = Registry(connect(cluster)).get("main")
            assert there and there.state == "draining"
            swap(cluster, there, "c", operator="bob")
            return []

    with agents(cluster, "a"):
        wait_for_lease(cluster)
        move = run(cluster, Late(), SWITCHOVER)
    assert move["outcome"] == "failed"
    assert history(cluster)[-1] == (2, "c", "active")


def test_somebody_who_moves_it_on_meanwhile_ends_it(cluster: FakeCluster, record: CellRecord) -> None:
    world = lost_home(cluster, record)
    registry = Registry(connect(cluster))

    def move_on() -> None:
        there = registry.get("main")
        if there and there.home == "b":
            swap(cluster, there, "c", operator="bob")

    with Background(move_on):
        move = run(cluster, world, FAILOVER)
    assert move["outcome"] == "failed"
    assert "somebody moved it on meanwhile: it is home c, epoch 3" in move["error"]


def test_of_two_movers_at_once_the_cell_moves_once(cluster: FakeCluster, record: CellRecord) -> None:
    world = lost_home(cluster, record)
    moves: list[Move] = []
    start = threading.Barrier(2)

    def go(operator: str) -> None:
        start.wait()
        moves.append(run(cluster, world, FAILOVER, operator=operator))

    with agents(cluster, "b"):
        threads = [threading.Thread(target=go, args=(name,)) for name in ("ada", "bob")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert history(cluster) == [(1, "a", "active"), (2, "b", "taking_over"), (2, "b", "active")]
    assert sum(bool(move["changed"]) for move in moves) == 1


def swap(
    cluster: FakeCluster, record: CellRecord, home: str, state: str = "active", operator: str = "eve"
) -> CellRecord:
    """Somebody else changes the record."""
    registry = Registry(connect(cluster))
    new = replace(record, home=home, epoch=record.epoch + (home != record.home), state=state)
    with contextlib.suppress(ConflictError):  # looked at twice
        return registry.compare_and_swap(record, new, "another's reason", operator)
    return record


def wait_for_lease(cluster: FakeCluster) -> None:
    """Until the home serves."""
    client = connect(cluster)
    deadline = time.monotonic() + 10
    while client.get(f"{LEASES}main") is None or client.get(f"{SERVING}main") is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


# -- validation ------------------------------------------------------------------------------------------------------


class FakeValidator:
    """Notes what it was asked, and lets a check pass or not."""

    def __init__(self, passes: bool) -> None:
        self.passes = passes
        self.asked: list[tuple[t.Any, ...]] = []

    def note(self, cell: str, host: str, collections: t.Mapping[str, t.Any]) -> None:
        self.asked.append(("note", cell, host, dict(collections)))

    def validate(self, cell: str, region: str) -> list[Check]:
        self.asked.append(("validate", cell, region))
        return [Check("indexes", "All indexes are valid", self.passes, "one is not", "all")]


@pytest.mark.parametrize("passes", [True, False])
def test_the_new_home_is_validated_and_the_move_is_done_either_way(
    cluster: FakeCluster, record: CellRecord, passes: bool
) -> None:
    world = lost_home(cluster, record)
    world.stores["qdrant"]["b"]["collections"] = {"cases": {"points": 7}}
    validator = FakeValidator(passes)
    with agents(cluster, "b"):
        move = Mover(connect(cluster), world, ask(FAILOVER), validator).run()
    assert move["outcome"] == "done"
    assert validator.asked == [("note", "main", "b1", {"cases": {"points": 7}}), ("validate", "main", "b")]
    assert move["validation"]["passed"] is passes
    assert phases(move)[-1] == "validate"
    assert note(move, "validate") == ("" if passes else "FAILED: All indexes are valid")
    # It is looked at after the first task was taken, and is not what clients waited for.
    assert move["rto_seconds"] <= move["phases"][-1]["begin"]
    kept = json.loads(connect(cluster).get(f"{REPORTS}main/0000000002").value)  # type: ignore[union-attr]
    assert kept["validation_passed"] is passes


def test_a_move_that_only_plans_validates_nothing(cluster: FakeCluster, record: CellRecord) -> None:
    validator = FakeValidator(True)
    Mover(connect(cluster), World(), ask(SWITCHOVER, plan=True), validator).run()
    assert validator.asked == []


# -- a second person -------------------------------------------------------------------------------------------------


def approval(approvals: Approvals, record: CellRecord, **changes: t.Any) -> None:
    """Ada asked for a failover to b, and bob approved it."""
    wanted = Approval("main", FAILOVER, record.home, "b", record.epoch, "ada", "a test")
    approvals.request(replace(wanted, **changes))
    approvals.approve("main", "bob")


def test_a_move_that_somebody_else_approved_is_done_once(cluster: FakeCluster, record: CellRecord) -> None:
    world = lost_home(cluster, record)
    approvals = Approvals(connect(cluster))
    approval(approvals, record)
    with agents(cluster, "b"):
        move = run(cluster, world, FAILOVER, approval=True)
    assert (move["outcome"], move["approved_by"]) == ("done", "bob")
    swapped = [one for one in Registry(connect(cluster)).history("main") if one.state == "taking_over"]
    assert [one.reason for one in swapped] == ["a test (approved by bob)"]
    assert approvals.find("main") is None


@pytest.mark.parametrize("changes", [None, {"target": "c"}, {"epoch": 7}, {"overrides": ("accept_lag",)}])
def test_a_move_that_nobody_approved_changes_nothing(
    cluster: FakeCluster, record: CellRecord, changes: dict[str, t.Any] | None
) -> None:
    world = lost_home(cluster, record)
    approvals = Approvals(connect(cluster))
    if changes is not None:
        approval(approvals, record, **changes)
    move = run(cluster, world, FAILOVER, approval=True)
    assert (move["outcome"], move["changed"]) == ("refused", False)
    assert "needs somebody else's approval" in move["error"]
    assert history(cluster) == [(1, "a", "active")]
    assert (approvals.find("main") is None) is (changes is None)


# -- what is measured ------------------------------------------------------------------------------------------------


def test_a_lost_home_is_detected_since_it_was_last_heard_of(cluster: FakeCluster, record: CellRecord) -> None:
    world = lost_home(cluster, record)
    leases = RegionLeases(connect(cluster))
    lease = leases.acquire(record, "a1")
    assert lease
    leases.publish(lease, POSITIONS, Position("a", record.epoch, 1000, time.time() - 30, "a1"))
    leases.drop(lease.id)
    with agents(cluster, "b"):
        move = run(cluster, world, FAILOVER)
    detect, decide = move["phases"][:2]
    assert -31 < detect["begin"] <= -30 < 0 < detect["end"] <= decide["begin"] <= decide["end"]
    assert note(move, "detect").startswith("the home was last heard of 30.")
    # What nobody noticed is no part of what the move took.
    assert move["rto_seconds"] < 10 * FASTER


def test_a_switchovers_decision_ends_where_clients_begin_to_wait(cluster: FakeCluster, record: CellRecord) -> None:
    with agents(cluster, "a", "b"), edge(cluster, itertools.chain([3, 2, 1], itertools.repeat(0))):
        wait_for_lease(cluster)
        move = run(cluster, World(), SWITCHOVER)
    assert move["outcome"] == "done"
    decide, hold = (next(one for one in move["phases"] if one["name"] == name) for name in ("decide", "hold"))
    assert decide["begin"] < decide["end"] <= hold["begin"]


def test_the_look_before_the_mover_began_counts(cluster: FakeCluster, record: CellRecord) -> None:
    world = lost_home(cluster, record)
    with agents(cluster, "b"):
        move = run(cluster, world, FAILOVER, began=subject.time.monotonic() - 5)
    assert move["phases"][0]["end"] >= 5 and move["rto_seconds"] > 5
    assert move["started_at"] < move["ended_at"]


def test_the_versions_that_were_seen_are_told(cluster: FakeCluster, record: CellRecord) -> None:
    class Versioned(World):
        def info(self) -> dict[str, t.Any]:
            return {**super().info(), "versions": {"redis": "7.0.15"}}

    move = run(cluster, Versioned(), SWITCHOVER, plan=True)
    assert move["versions"] == {"redis": "7.0.15", "services": "1"}
