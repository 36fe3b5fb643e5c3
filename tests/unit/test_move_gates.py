"""The rules of a move, one by one: what passes, what does not, and what an operator may override."""

from __future__ import annotations

import pathlib
import typing as t
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
import yaml

from ansible_collections.shannon.resilience.plugins.module_utils.move_gates import (
    FAILOVER,
    GATES,
    OVERRIDES,
    SWITCHOVER,
    Facts,
    Gate,
    Limits,
    Verdict,
    judge,
    lag,
)
from ansible_collections.shannon.resilience.plugins.module_utils.region_lease import Position, RegionLease, View
from ansible_collections.shannon.resilience.plugins.module_utils.registry import CellRecord, HistoryEntry

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=timezone.utc)
MIB = 2**20
RECORD = CellRecord("main", "a", 1, revision=5)
LEASE = RegionLease("main", "a", 1, "a1", 7, 9)
Info = dict[str, dict[str, dict[str, list[dict[str, t.Any]]]]]


def member(name: str, role: str = "replica", state: str = "streaming", **more: t.Any) -> dict[str, t.Any]:
    return {"name": name, "role": role, "state": state, "error": "", **more}


def dead(name: str) -> dict[str, t.Any]:
    return {"name": name, "role": "", "state": "", "error": "no answer"}


def info() -> Info:
    """A cell that is well, with its home in a."""
    leader = member("b1", "standby_leader", lag_bytes=0, lag_seconds=0.0, received=1000, replayed_at=NOW.timestamp())
    stores: Info = {
        "postgres": {
            "a": {"members": [member("a1", "primary", "running"), member("a2"), member("a3")]},
            "b": {"members": [leader, member("b2"), member("b3")]},
        }
    }
    for store in ("redis", "qdrant"):
        stores[store] = {region: {"members": [member(f"{region}{n}") for n in (1, 2, 3)]} for region in "ab"}
    return stores


def facts(kind: str = SWITCHOVER, **changes: t.Any) -> Facts:
    """What is seen before a switchover from a to b that nothing stands in the way of."""
    seen = Facts(
        kind=kind,
        record=RECORD,
        target="b",
        view=View(RECORD, LEASE, LEASE, None, None),
        info=info(),
        home_beats=True,
        agents={"b1": {}, "b2": {}, "b3": {}},
        gateways={"b1": "", "b2": ""},
        certificate={"host": "b1", "days": 90},
        now=NOW,
    )
    return replace(seen, **changes)


def lost_home(**changes: t.Any) -> Facts:
    """What is seen before a failover from a to b that nothing stands in the way of."""
    stores = info()
    stores["postgres"]["a"]["members"] = [dead("a1"), dead("a2"), dead("a3")]
    stores["postgres"]["b"]["members"][0].update(lag_bytes=None, lag_seconds=None)
    seen = facts(FAILOVER, info=stores, home_beats=False, view=View(RECORD, None, LEASE, position(1000), None))
    return replace(seen, **changes)


def position(lsn: int, region: str = "a") -> Position:
    return Position(region, 1, lsn, NOW.timestamp())


def leader_of_b(seen: Facts, **changes: t.Any) -> Facts:
    seen.members("postgres", "b")[0].update(changes)
    return seen


def verdict(name: str, seen: Facts, *overrides: str) -> Verdict:
    (found,) = [one for one in judge(seen, overrides) if one.name == name]
    return found


def refused(seen: Facts, *overrides: str) -> list[str]:
    return [one.name for one in judge(seen, overrides) if one.stands_in_the_way()]


def moved(seconds_ago: float, home: str = "a", previous: str | None = "b") -> HistoryEntry:
    at = (NOW - timedelta(seconds=seconds_ago)).isoformat(timespec="microseconds")
    return HistoryEntry("main", 1, home, previous, "active", "a test", "ada", at)


@pytest.mark.parametrize("seen", [facts(), lost_home()], ids=["switchover", "failover"])
def test_a_move_that_nothing_speaks_against_passes(seen: Facts) -> None:
    assert refused(seen) == []


def test_each_kind_has_its_own_question_about_the_home() -> None:
    failover, switchover = ({one.name for one in judge(facts(kind), ())} for kind in (FAILOVER, SWITCHOVER))
    assert failover - switchover == {"home_gone"}
    assert switchover - failover == {"home_well"}


#: What makes exactly one rule refuse, with the rule and what overrides it.
REFUSALS: dict[str, tuple[t.Callable[[], Facts], str, str]] = {
    "somebody else moves it": (lambda: facts(mover="bob on w1 does a switchover"), "no_move", "accept_other_move"),
    "a restore runs": (lambda: facts(record=replace(RECORD, state="restoring")), "state", ""),
    "two standby leaders": (lambda: with_two_leaders(facts()), "target", "accept_target"),
    "no primary to switch from": (lambda: without_primary(facts()), "home_well", "accept_unwell_home"),
    "no lease to switch from": (
        lambda: facts(view=View(RECORD, None, LEASE, None, None)),
        "home_well",
        "accept_unwell_home",
    ),
    "a home that answers": (lambda: lost_home(info=info()), "home_gone", "accept_healthy_home"),
    "a home that renews its lease": (
        lambda: lost_home(view=View(RECORD, LEASE, LEASE, position(1000), None), home_beats=True),
        "home_gone",
        "accept_healthy_home",
    ),
    "one agent of three": (
        lambda: facts(agents={"b1": {}, "b2": "no answer", "b3": "no answer"}),
        "agents",
        "accept_agents",
    ),
    "one agent of two": (lambda: facts(agents={"b1": {}, "b2": "no answer"}), "agents", "accept_agents"),
    "nobody's agent": (lambda: facts(agents={}), "agents", "accept_agents"),
    "too many bytes behind": (lambda: leader_of_b(facts(), lag_bytes=64 * MIB + 1), "lag", "accept_lag"),
    "too many seconds behind": (
        lambda: leader_of_b(lost_home(), received=999, replayed_at=NOW.timestamp() - 5.1),
        "lag",
        "accept_lag",
    ),
    "nobody knows how far behind": (lambda: lost_home(view=View(RECORD, None, LEASE, None, None)), "lag", "accept_lag"),
    "one Redis of three": (lambda: with_dead(facts(), "redis", 2), "capacity", "accept_capacity"),
    "one Qdrant of three": (lambda: with_dead(facts(), "qdrant", 2), "capacity", "accept_capacity"),
    "no gateway": (lambda: facts(gateways={"b1": "no agent-core", "b2": "down"}), "capacity", "accept_capacity"),
    "a certificate that ends": (
        lambda: facts(certificate={"host": "b1", "days": 0}),
        "certificates",
        "accept_certificates",
    ),
    "moved just now": (lambda: facts(history=[moved(10)]), "cooldown", "accept_cooldown"),
}


def with_two_leaders(seen: Facts) -> Facts:
    seen.members("postgres", "b")[1].update(role="standby_leader")
    return seen


def without_primary(seen: Facts) -> Facts:
    seen.members("postgres", "a")[0].update(role="replica")
    return seen


def with_dead(seen: Facts, store: str, count: int) -> Facts:
    for one in seen.members(store, "b")[:count]:
        one.update(dead(one["name"]))
    return seen


@pytest.mark.parametrize("name", REFUSALS)
def test_a_rule_refuses_and_says_why_and_what_to_do(name: str) -> None:
    make, rule, override = REFUSALS[name]
    assert refused(make()) == [rule]
    found = verdict(rule, make())
    assert found.override == override
    assert found.seen and found.allowed and found.remedy
    assert not found.overridden


@pytest.mark.parametrize("name", [name for name, case in REFUSALS.items() if case[2]])
def test_its_override_lets_the_move_pass_and_stays_visible(name: str) -> None:
    make, rule, override = REFUSALS[name]
    assert refused(make(), override) == []
    found = verdict(rule, make(), override)
    assert (found.passed, found.overridden) == (False, True)


@pytest.mark.parametrize("name", REFUSALS)
def test_no_other_override_lets_it_pass(name: str) -> None:
    make, rule, override = REFUSALS[name]
    assert refused(make(), *(one for one in OVERRIDES if one != override)) == [rule]


def test_an_override_that_was_not_needed_does_not_count() -> None:
    found = judge(facts(), OVERRIDES)
    assert not any(one.overridden for one in found)
    assert {one.remedy for one in found} == {""}


def test_overrides_have_names_of_their_own() -> None:
    assert len(set(OVERRIDES)) == len(OVERRIDES) == 9


def test_every_override_is_documented() -> None:
    root = pathlib.Path(__file__).resolve().parents[2]
    source = (root / "plugins" / "modules" / "cell_move.py").read_text()
    documented = yaml.safe_load(source.split('DOCUMENTATION = r"""')[1].split('"""')[0])["options"]["overrides"]
    assert tuple(documented["choices"]) == OVERRIDES
    pages = (root / "docs" / "failover.md").read_text() + (root / "docs" / "switchover.md").read_text()
    assert [name for name in OVERRIDES if f"_{name}=true" not in pages] == []
    assert all(f"V({name})" in "".join(documented["description"]) for name in OVERRIDES)


@pytest.mark.parametrize(
    ("seen", "rule"),
    [
        (facts(agents={"b1": {}, "b2": {}, "b3": "no answer"}), "agents"),
        (facts(gateways={"b1": "down", "b2": ""}), "capacity"),
        (facts(gateways={}), "capacity"),
        (with_dead(facts(), "qdrant", 1), "capacity"),
        (facts(certificate=None), "certificates"),
        (facts(certificate={"host": "b1", "days": 1}), "certificates"),
        (facts(history=[moved(30)]), "cooldown"),
        (facts(history=[moved(-60)]), "cooldown"),  # by the clock of another host
        (facts(history=[moved(3, previous=None)]), "cooldown"),  # its creation
        (facts(history=[moved(3, "a", "a")]), "cooldown"),  # a change of its state
        (leader_of_b(facts(), lag_bytes=64 * MIB), "lag"),
        (leader_of_b(lost_home(), received=999, replayed_at=NOW.timestamp() - 5), "lag"),
        (lost_home(view=View(RECORD, LEASE, LEASE, position(1000), None)), "home_gone"),  # not renewed any more
    ],
)
def test_what_is_just_enough_passes(seen: Facts, rule: str) -> None:
    assert verdict(rule, seen).passed


def test_members_that_lost_their_upstream_with_the_home_can_carry_the_load() -> None:
    seen = lost_home()
    for one in seen.members("redis", "b"):
        one.update(state="link down", error="no link to its primary")
    assert verdict("capacity", seen).passed


def test_limits_are_the_operators() -> None:
    far = leader_of_b(lost_home(), received=999, replayed_at=NOW.timestamp() - 30)
    assert refused(replace(far, limits=Limits(lag_seconds=30))) == []
    assert refused(replace(facts(), limits=Limits(certificate_days=91))) == ["certificates"]
    assert refused(facts(history=[moved(10)], limits=Limits(cooldown=5))) == []
    assert refused(leader_of_b(facts(limits=Limits(lag_bytes=9)), lag_bytes=10)) == ["lag"]


def test_a_target_that_nobody_leads_is_as_far_behind_as_nobody_knows() -> None:
    assert refused(leader_of_b(facts(), role="replica")) == ["target", "lag"]
    assert refused(leader_of_b(facts(), role="replica"), "accept_lag") == ["target"]
    assert refused(leader_of_b(facts(), role="replica"), *OVERRIDES) == []


def test_a_region_without_members_is_no_target() -> None:
    assert {"target", "lag", "capacity"} <= set(refused(facts(target="c")))


def test_rules_can_be_added() -> None:
    weekday = Gate("weekday", "It is no Sunday", (SWITCHOVER,), lambda _facts: (False, "x", "y", "Wait."), "on_sunday")
    gates = [*GATES, weekday]
    assert [one.name for one in judge(facts(), (), gates) if one.stands_in_the_way()] == ["weekday"]
    assert not any(one.stands_in_the_way() for one in judge(facts(), ["on_sunday"], gates))
    assert not any(one.stands_in_the_way() for one in judge(lost_home(), (), gates)), "it is of another kind"


def test_rules_can_be_left_out() -> None:
    assert judge(facts(mover="bob"), (), []) == []


def test_a_verdict_can_be_reported() -> None:
    assert verdict("agents", facts()).as_dict() == {
        "name": "agents",
        "title": "The target's region agents answer",
        "passed": True,
        "seen": "3 of 3 answer (b1, b2, b3)",
        "allowed": "a majority of the target's region agents",
        "remedy": "",
        "override": "accept_agents",
        "overridden": False,
    }


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (leader_of_b(facts(), lag_bytes=10, lag_seconds=0.5), (10, 0.5)),
        (lost_home(), (0, 0.0)),
        # The home is dead: what it last told the registry, against what was received.
        (leader_of_b(lost_home(), received=400, replayed_at=NOW.timestamp() - 2), (600, 2.0)),
        (leader_of_b(lost_home(), received=1200), (0, 0.0)),  # it wrote more after it had told
        (leader_of_b(lost_home(), received=400, replayed_at=NOW.timestamp() + 3), (600, 0.0)),
        (leader_of_b(lost_home(), received=400, replayed_at=None), (600, None)),
        (leader_of_b(lost_home(), received=None), (None, None)),
        (leader_of_b(lost_home(), role="replica"), (None, None)),
        (lost_home(view=View(RECORD, None, LEASE, None, None)), (None, None)),
        (lost_home(view=View(RECORD, None, LEASE, position(1000, "b"), None)), (None, None)),  # of an earlier home
    ],
)
def test_how_far_the_target_is_behind(seen: Facts, expected: tuple[int | None, float | None]) -> None:
    assert lag(seen) == expected


def test_bytes_without_a_time_are_not_few_enough() -> None:
    assert refused(leader_of_b(lost_home(), received=400, replayed_at=None)) == ["lag"]
