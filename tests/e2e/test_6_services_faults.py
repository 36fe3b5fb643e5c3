"""What the services depend on fails, one after the other, while a client goes on submitting through the edge.

Each test says what clients see, what the metrics say, and that all of it passes by itself once the fault is gone. The
client is :class:`shannon_api.Load`: in the end each of its acknowledged tasks was completed exactly once.
"""

from __future__ import annotations

import contextlib
import itertools
import time
import typing as t
import uuid

import pytest
import shannon_api as services
import wasmtime
from shannon_api import Api, Load, word

import lab

HOME = services.SERVICE_HOSTS["a"]
EVERY_DATA_HOST = (*services.DATA_HOSTS["a"], *services.DATA_HOSTS["b"])
DOWNGRADES = "shannon_mode_downgrade_total"
#: Turns for a while, and ends well.
SLOW = """(module (func (export "_start") (local $left i32) (local.set $left (i32.const 350000000))
(loop $l (br_if $l (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))))"""
#: Cuts a host's services off from PostgreSQL's primary, at its data proxy; nothing else notices.
CUT = (
    "nft add table inet e2e_away && "
    "nft 'add chain inet e2e_away out { type filter hook output priority -10; policy accept; }' && "
    "nft add rule inet e2e_away out tcp dport 15432 reject with tcp reset"
)
MEND = "nft delete table inet e2e_away 2>/dev/null || true"
#: Numbers of one attempt's events.
PER_ATTEMPT = 1_000_000


@pytest.fixture
def api(healthy: dict[str, t.Any]) -> t.Iterator[Api]:
    """A client of a lab in which nothing is amiss, the services included."""
    services.wait_until_well()
    with Api() as made:
        yield made


@contextlib.contextmanager
def stopped(units: str, hosts: t.Sequence[str]) -> t.Iterator[float]:
    """Units that don't run on these hosts; yields when that began, in seconds since 1970."""
    # The region agent starts a Sentinel that it misses, perhaps in this very moment; a mask it can't start.
    masked = " ".join(unit for unit in units.split() if unit.startswith("sentinel@"))
    mask, unmask = (f"systemctl {verb} --runtime --quiet {masked}; " if masked else "" for verb in ("mask", "unmask"))
    try:
        services.everywhere(hosts, f"{mask}systemctl stop {units}")
        yield time.time()
    finally:
        services.everywhere(hosts, f"{unmask}systemctl start --no-block {units}")


def plan_of(*words: str) -> str:
    """A request of three steps and a fourth that waits for them; one of them uses a tool."""
    return f"sum 17 25. Describe {words[0]}. List {words[1]}. Finally, combine all of it"


def downgraded(task: dict[str, t.Any], original: str, final: str, level: str) -> str:
    """See that a task ran in a simpler mode than it asked for; the reason."""
    decision = task["metadata"]["mode_decision"]
    assert (decision["original_mode"], decision["final_mode"], decision["level"]) == (original, final, level), task
    assert (task["requested_mode"], task["mode"]) == (original, final)
    assert decision["reason"] and time.time() - 600 < decision["decided_at"] <= time.time() + 1
    assert any(f"mode {original} becomes {final}" in warning for warning in task["metadata"]["warnings"])
    return str(decision["reason"])


def goes_on(load: Load, since: float, count: int = 15) -> None:
    """Submits are acknowledged, and tasks completed, although something is away."""
    load.wait_for(count)
    load.wait_for_completed(count, since)


def fails(failed: t.Sequence[str], level: str, status: str, hosts: t.Sequence[str] = HOME) -> None:
    """Each orchestrator knows what is away, and says so."""
    for host in hosts:
        found = services.detailed(host)
        assert found["failed"] == sorted(failed), found
        assert (found["level"], found["status"]) == (level, status), found
        assert found["reason"].startswith(level), found
        down = {name for name, one in found["dependencies"].items() if not one["healthy"]}
        assert down == set(failed), found
        assert all(found["dependencies"][name]["error"] for name in failed), found
        code, _document = services.page(host, services.ADMIN_PORT, "/health/ready")
        assert code == (503 if status == "unhealthy" else 200)


def breakers_open(before: dict[str, services.Metrics], like: str) -> None:
    """Wait until the breakers of a dependency have opened, on each orchestrator."""
    lab.wait_for(
        lambda: all(services.opened(before, services.orchestrators(*before), like).values()),
        f"open breakers {like} on {', '.join(before)}",
        120,
        lambda: str({host: found.breakers() for host, found in services.orchestrators(*before).items()}),
    )


def show(capsys: pytest.CaptureFixture[str], what: str, *figures: str) -> None:
    with capsys.disabled():
        print(f"\n  {what}: " + "; ".join(figures))


@pytest.mark.soak  # with the load that it makes the lab's two cores are busy to the last
def test_redis_stopped(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    """Both regions' Redis, so that there is none to fail over to."""
    session = f"e2e-{uuid.uuid4().hex}"
    said = api.run(f"The word of the day is {word()}", "simple", session)
    before = services.orchestrators()
    with Load() as load:
        with stopped("sentinel@main redis@main", EVERY_DATA_HOST) as since:
            minor = services.wait_for_level(1)
            fails(["redis"], "minor", "degraded")
            breakers_open(before, "redis@main")
            goes_on(load, since)
            # Sessions are read from the truth.
            middle = services.orchestrators()
            history = api.history(session)
            assert [message["content"] for message in history] == [said["query"], said["result"]]
            now = services.orchestrators()
            assert services.grown(middle, now, "shannon_session_reads_total", source="postgresql") >= 1
            assert services.grown(middle, now, "shannon_session_reads_total", source="redis") == 0
            # Context is still given, events still come, in order to the end.
            accepted = api.submit(plan_of(word(), word()), "complex", session)
            events = list(api.stream(accepted["task_id"], timeout=90))
            assert events[-1].data == "[DONE]"
            assert [event.data["seq"] for event in events[:-1]] == list(range(1, len(events)))
            downgraded(api.wait(accepted["task_id"]), "complex", "standard", "minor")
            assert len(api.history(session)) == 4
            assert api.run(f"sum 17 25 {word()}", "standard")["mode"] == "standard"
            now = services.orchestrators()
            assert services.grown(before, now, DOWNGRADES, from_mode="complex", to_mode="standard") >= 1
            assert services.grown(before, now, "shannon_degradation_events_total", level="minor") >= 2
            assert {found.value("shannon_dependency_health", dependency="redis", type="overall")
                    for found in now.values()} == {0}  # fmt: skip
            local = "shannon_gateway_rate_limit_local_total"
            assert sum(services.metrics(host, services.METRICS["gateway"]).value(local) for host in HOME) > 0
        well = services.wait_until_well()
        load.wait_for(10)
        assert api.run(plan_of(word(), word()), "complex")["mode"] == "complex"
    show(capsys, "Redis stopped", f"minor after {minor:.1f} s, well {well:.1f} s after its start", load.check())


@pytest.mark.soak
def test_qdrant_stopped(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    before = services.orchestrators()

    def leader() -> dict[str, t.Any]:
        return next((found for host in HOME if (found := services.indexer(host))["leader"]), {})

    with Load() as load:
        with stopped("qdrant", services.DATA_HOSTS["a"]) as since:
            minor = services.wait_for_level(1)
            fails(["qdrant"], "minor", "degraded")
            breakers_open(before, "qdrant")
            goes_on(load, since)
            found = api.search(f"anything of {word()}")
            assert found["degraded"] and found["warning"] and found["results"] == []
            task = api.run(plan_of(word(), word()), "complex")
            downgraded(task, "complex", "standard", "minor")
            assert any("memory is away" in warning for warning in task["metadata"]["warnings"]), task["metadata"]
            assert task["metadata"]["memory_hits"] == 0
            # What is written meanwhile waits in the log, and the other region has it already.
            lab.wait_for(
                lambda: bool((found := leader()) and (found["lag_rows"] or 0) > 0 and found["trouble"]),
                "an indexer that is behind and says why",
                30,
                lambda: str([services.indexer(host) for host in HOME]),
            )
            lab.wait_for(
                lambda: task["task_id"] in services.points_in("b", [task["task_id"]]), "the point in region b", 15
            )
            now = services.orchestrators()
            assert services.grown(before, now, DOWNGRADES, from_mode="complex", to_mode="standard") >= 1
            behind = leader().get("lag_rows")
        began = time.monotonic()
        lab.wait_for(
            lambda: task["task_id"] in services.points_in("a", [task["task_id"]]),
            "the point that was written during the outage in region a's Qdrant",
            180,
            lambda: str([services.indexer(host) for host in HOME]),
        )
        lab.wait_for(
            lambda: bool((found := leader()) and found["lag_rows"] == 0 and not found["trouble"]),
            "an indexer that has caught up",
            120,
            lambda: str([services.indexer(host) for host in HOME]),
        )
        caught_up = time.monotonic() - began
        well = services.wait_until_well()
        assert not api.search(task["query"], threshold=0.1)["degraded"]
    told = load.check()
    for region in ("a", "b"):
        wanted = set(load.ids)
        lab.wait_for(
            lambda region=region, wanted=wanted: services.points_in(region, sorted(wanted)) == wanted,  # type: ignore[misc]
            f"all points in region {region}",
            60,
        )
    figures = f"minor after {minor:.1f} s, {behind} rows behind, caught up {caught_up:.1f} s after its start"
    show(capsys, "Qdrant stopped", figures, f"well after {well:.1f} s more", told)


@pytest.mark.soak
def test_llm_service_stopped(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    """What was asked before is answered as before, tools run without a plan, and the rest says what is missing."""
    known = [f"Tell me of {word()} {word()}" for _query in range(3)]
    for query in known:
        api.run(query, "simple")
    planned = plan_of(word(), word())
    first = api.run(planned, "complex")
    assert first["mode"] == "complex"
    before = services.orchestrators()
    with Load(queries=known) as load:
        with stopped("shannon-llm-service", HOME) as since:
            minor = services.wait_for_level(1)
            fails(["llm-service"], "minor", "degraded")
            breakers_open(before, "llm-service@")
            goes_on(load, since)
            # An earlier answer, and told so.
            task = api.run(known[0], "simple")
            assert task["result"] and task["cache_hits"] >= 1
            assert any("earlier one" in warning for warning in task["metadata"]["warnings"]), task["metadata"]
            (part,) = task["response"]["partial_results"]
            assert part["success"] and part["degraded"] and part["confidence"] < 1
            assert task["response"]["degradation_info"]["failed_dependencies"] == ["llm-service"]
            # A plan that was made before is followed again, one mode below.
            task = api.run(planned, "complex")
            downgraded(task, "complex", "standard", "minor")
            assert task["response"]["success"] and task["tools_invoked"] == 1
            assert task["response"]["success_count"] >= 2
            # Without a plan the tool that is named still runs.
            alone = api.run(f"sum 17 25 {word()}", "standard")
            assert alone["response"]["partial_results"][0]["result"] == {"sum": 42, "count": 2}
            assert any("nobody made a plan" in warning for warning in alone["metadata"]["warnings"])
            # What nobody can answer fails, and says why; it does not hang.
            lost = api.wait(api.submit(f"Tell me of {word()} {word()}", "simple")["task_id"], 60, status="failed")
            assert "llm-service" in lost["error"]
            now = services.orchestrators()
            assert services.grown(before, now, "shannon_llm_calls_total", result="old") >= 1
            assert services.grown(before, now, DOWNGRADES, from_mode="complex", to_mode="standard") >= 1
            fallback = {"operation": "llm_generation", "behavior": "cache"}
            assert services.grown(before, now, "shannon_fallback_behavior_total", **fallback) >= 1
        well = services.wait_until_well()
        load.wait_for(10)
        assert api.run(planned, "complex")["mode"] == "complex"
    # What could not be embedded is remembered later.
    lab.wait_for(
        lambda: Load.facts([alone["task_id"]])[alone["task_id"]]["points"] == 1, "the embedding that was put off", 60
    )
    show(capsys, "llm-service stopped", f"minor after {minor:.1f} s, well {well:.1f} s after its start", load.check())


@pytest.mark.soak
def test_agent_core_stopped(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    assert api.run(f"sum 17 25 {word()}", "standard")["tools_invoked"] == 1
    before = services.orchestrators()
    with Load(mode="standard") as load:
        with stopped("shannon-agent-core", HOME) as since:
            moderate = services.wait_for_level(2)
            fails(["agent-core"], "moderate", "unhealthy")
            breakers_open(before, "agent-core@")
            goes_on(load, since)
            task = api.run(f"Tell me of {word()}. Describe {word()}", "standard")
            assert downgraded(task, "standard", "simple", "moderate") in ("dependency_failure", "circuit_breaker_open")
            task = api.run(plan_of(word(), word()), "complex")
            downgraded(task, "complex", "standard", "moderate")
            # The step with the tool is done without it, and marked.
            assert task["response"]["success"] and task["tools_invoked"] == 0
            parts = {part["source"]: part for part in task["response"]["partial_results"]}
            assert parts["1"]["degraded"] and parts["1"]["success"] and not parts["2"]["degraded"]
            assert any("agent-core is away" in warning for warning in task["metadata"]["warnings"])
            info = task["response"]["degradation_info"]
            assert info["level"] == "moderate" and info["failed_dependencies"] == ["agent-core"]
            assert info["recommended_action"].startswith("Check the failed dependencies")
            refused = api.upload(f"e{word()}", bytes(wasmtime.wat2wasm(SLOW)))
            assert refused.status_code == 503 and "retry-after" in refused.headers
            now = services.orchestrators()
            assert services.grown(before, now, DOWNGRADES, from_mode="standard", to_mode="simple") >= 5
            assert services.grown(before, now, DOWNGRADES, from_mode="complex", to_mode="standard") >= 1
            fallback = {"operation": "agent_execution", "behavior": "degrade"}
            assert services.grown(before, now, "shannon_fallback_behavior_total", **fallback) >= 1
            # Tasks are still taken: not ready is a word on health, and no reason to turn clients away.
            assert services.readiness(HOME[0], "?cell=main&role=active")[0] == 200
        well = services.wait_until_well()
        load.wait_for(10)
        assert api.run(f"sum 17 25 {word()}", "standard")["tools_invoked"] == 1
    figures = f"moderate after {moderate:.1f} s, well {well:.1f} s after its start"
    show(capsys, "agent-core stopped", figures, load.check())


@pytest.mark.soak
def test_the_host_of_the_postgres_primary_dies(
    api: Api, healthy: dict[str, t.Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """With it, if it has them, go a gateway and an orchestrator: whose tasks another takes over when the lease ends."""
    dead = lab.member_with(healthy, "postgres", "a", "primary")
    alive = [name for name in HOME if name != dead]
    before = services.orchestrators(*alive)
    with Load(rate=4) as load:
        killed = time.time()
        lab.Host(dead).kill()
        try:
            breakers_open(before, "postgresql@main")
            load.wait_for(30, timeout=120)
            gap = load.longest_gap(killed - 5)
            # Its breaker closes by itself, and all is well again with the host still dead.
            lab.wait_for(
                lambda: all(
                    found.breakers("postgresql@main") == {"postgresql@main": 0}
                    for found in services.orchestrators(*alive).values()
                ),
                "the database's breaker closed",
                60,
            )
            services.wait_for_level(0, *alive)
            goes_on(load, time.time())
            now = services.orchestrators(*alive)
            events = "shannon_degradation_events_total"
            worse = [services.grown(before, now, events, level=level) for level in ("moderate", "severe")]
            assert sum(worse) >= len(alive), worse
            changes = "shannon_circuit_breaker_state_changes_total"
            closed = services.grown(before, now, changes, name="postgresql@main", to_state="closed")
            assert closed >= len(alive)
        finally:
            lab.Host(dead).start()
        services.wait_until_well(timeout=240)
    show(capsys, f"PostgreSQL's primary dies with {dead}", load.check(timeout=240))
    lab.within(capsys, "no submit was taken", gap, 30)


@pytest.mark.soak
def test_two_and_three_dependencies_stopped(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    """Redis and Qdrant: moderate. With llm-service, too: severe, and yet what is known is answered."""
    known = [f"Tell me of {word()} {word()}" for _query in range(3)]
    # Each orchestrator must have answered each of them: with Redis away it has its own memory alone.
    with Load(rate=5, queries=known) as load:
        load.wait_for(80)
        before = services.orchestrators()
        with contextlib.ExitStack() as faults:
            faults.enter_context(stopped("qdrant", services.DATA_HOSTS["a"]))
            since = faults.enter_context(stopped("sentinel@main redis@main", EVERY_DATA_HOST))
            moderate = services.wait_for_level(2)
            fails(["qdrant", "redis"], "moderate", "degraded")
            goes_on(load, since)
            downgraded(api.run(f"Describe {word()}. List {word()}", "standard"), "standard", "simple", "moderate")
            downgraded(api.run(plan_of(word(), word()), "complex"), "complex", "standard", "moderate")
            now = services.orchestrators()
            assert services.grown(before, now, DOWNGRADES, from_mode="standard", to_mode="simple") >= 1
            with stopped("shannon-llm-service", HOME) as since:
                severe = services.wait_for_level(3)
                fails(["llm-service", "qdrant", "redis"], "severe", "degraded")
                goes_on(load, since)
                for mode in ("complex", "standard"):
                    task = api.run(known[0], mode)
                    downgraded(task, mode, "simple", "severe")
                    info = task["response"]["degradation_info"]
                    assert info["level"] == "severe" and len(info["failed_dependencies"]) == 3
                    assert info["recommended_action"].startswith("Investigate at once")
                now = services.orchestrators()
                assert services.grown(before, now, DOWNGRADES, from_mode="complex", to_mode="simple") >= 1
                for like in ("redis@main", "qdrant", "llm-service@"):
                    breakers_open(before, like)
            # One after the other comes back, and the level goes down with them.
            services.wait_for_level(2)
        well = services.wait_until_well(timeout=240)
        load.wait_for(10)
        assert api.run(plan_of(word(), word()), "complex")["mode"] == "complex"
    figures = f"moderate after {moderate:.1f} s, severe after {severe:.1f} s, well {well:.1f} s after all are back"
    show(capsys, "two and three dependencies stopped", figures, load.check())


def pid_of(host: str) -> str:
    return lab.Host(host).sh("systemctl show -p MainPID --value shannon-orchestrator").strip()


def waiting(host: str) -> int:
    """Records that a host's orchestrator holds for the database."""
    return int(services.detailed(host)["spool"]["waiting"])


def records_are_whole(task_id: str, live: list[tuple[int, str]]) -> int:
    """Each event and record of a task is stored once; returns how many attempts it took."""
    rows = services.sql("SELECT seq, type FROM event_logs WHERE task_id = %s::uuid ORDER BY seq", task_id)
    kept = [(int(seq), str(kind)) for seq, kind in rows]
    assert len(set(kept)) == len({seq for seq, _kind in kept}) == len(kept), f"doubled events of {task_id}: {kept}"
    # An event is on disk before it is sent to listeners: whatever they got must be there.
    assert set(live) <= set(kept), f"lost events of {task_id}: {sorted(set(live) - set(kept))}"
    attempts = [list(part) for _attempt, part in itertools.groupby(kept, lambda one: (one[0] - 1) // PER_ATTEMPT)]
    for part in attempts:
        begin = part[0][0]
        assert begin % PER_ATTEMPT == 1, f"the first events of an attempt of {task_id} are missing: {part[:3]}"
        assert [seq for seq, _kind in part] == list(range(begin, begin + len(part))), f"a gap in {task_id}: {part}"
    kinds = [kind for _seq, kind in kept]
    assert kinds[-1] == "STREAM_END" and kinds.count("STREAM_END") == kinds.count("WORKFLOW_COMPLETED") == 1
    # A record is kept before the event that tells of it; who was killed in between leaves one more.
    for table, ended in (
        ("agent_executions", ("AGENT_COMPLETED", "AGENT_FAILED")),
        ("tool_executions", ("TOOL_OBSERVATION",)),
    ):
        ((count,),) = services.sql(f"SELECT count(*) FROM {table} WHERE task_execution_id = %s::uuid", task_id)
        told = sum(kind in ended for kind in kinds)
        assert told <= count <= told + len(attempts) - 1, f"{table} of {task_id}: {count} rows, {told} events"
    return len(attempts)


@pytest.mark.soak  # its slow tasks want both of the lab's cores
def test_an_orchestrator_is_killed_with_queued_writes(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    """PostgreSQL is out of the orchestrators' reach while tasks run; what they would write waits on disk, and lives
    through a SIGKILL of one of them."""
    tool = f"e{word()}"
    uploaded = api.upload(tool, bytes(wasmtime.wat2wasm(SLOW)))
    assert uploaded.status_code == 201, uploaded.text
    before = services.orchestrators()
    with Load(rate=1) as load:
        queries = [". ".join(f"{tool} {word()}" for _step in range(8)) for _task in range(8)]
        slow = [api.submit(query, "standard")["task_id"] for query in queries]
        observed = (
            "SELECT count(DISTINCT task_id) FROM event_logs"
            " WHERE type = 'TOOL_OBSERVATION' AND task_id = ANY(%s::uuid[])"
        )
        lab.wait_for(lambda: services.sql(observed, slow)[0][0] >= 3, "slow tasks that are under way", 60)
        try:
            cut = time.time()
            services.everywhere(HOME, f"{MEND}; {CUT}")
            lab.wait_for(
                lambda: max(waiting(host) for host in HOME) >= 5,
                "records that wait for the database",
                30,
                lambda: str({host: services.detailed(host) for host in HOME}),
            )
            breakers_open(before, "postgresql@main")
            victim = max(HOME, key=waiting)
            running = sum(services.detailed(host)["running"] for host in HOME)
            assert running > 0, "the slow tasks had ended before the database was cut off"
            held, pid = waiting(victim), pid_of(victim)
            lab.Host(victim).sh("systemctl kill -s KILL shannon-orchestrator")
            lab.wait_for(
                lambda: pid_of(victim) not in ("0", pid) and waiting(victim) >= 0,
                f"the orchestrator on {victim} after its death",
                60,
            )
            # It has taken up what was on its disk, with the database still away.
            replayed = waiting(victim)
            assert held > 0 and replayed >= held, f"{held} records before the kill, {replayed} after it"
            lab.wait_for(
                lambda: services.detailed(victim)["level"] in ("moderate", "severe"),
                f"a level that says that the database is away on {victim}",
                60,
                lambda: str(services.detailed(victim)),
            )
            assert services.detailed(victim)["dependencies"]["database"]["healthy"] is False
            away = time.time() - cut
        finally:
            services.everywhere(HOME, MEND)
        load.wait_for(5)
        # Whoever was killed with a task holds its lease for a while.
        tasks = [api.wait(task_id, timeout=240) for task_id in slow]
        services.wait_until_well()
        assert load.repeated > 0, "no submit was refused while the database was away"
    told = load.check(timeout=240)
    lab.wait_for(
        lambda: all(waiting(host) == 0 for host in HOME),
        "empty spools",
        60,
        lambda: str({host: services.detailed(host)["spool"] for host in HOME}),
    )
    facts = Load.facts(slow)
    assert {(one["status"], one["answers"], one["points"]) for one in facts.values()} == {("completed", 1, 1)}, facts
    live = services.live_events([task["workflow_id"] for task in tasks])
    attempts = [records_are_whole(task["task_id"], live[task["workflow_id"]]) for task in tasks]
    for found in services.orchestrators().values():
        assert found.value("shannon_write_records_total", result="refused") == 0
        assert found.value("shannon_events_lost_total") == 0
    figures = f"PostgreSQL away for {away:.1f} s, {replayed} records taken up after the kill"
    show(capsys, f"orchestrator on {victim} killed", figures, f"attempts {sorted(attempts)}", told)
