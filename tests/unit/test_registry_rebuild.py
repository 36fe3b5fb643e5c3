"""Who may rebuild the registry, which records it gets, and how a member comes back."""

from __future__ import annotations

import dataclasses
import os
import typing as t
from pathlib import Path

import pytest

from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.etcd_data import MemberConfig, identity
from ansible_collections.shannon.resilience.plugins.module_utils.given_up import GivenUp
from ansible_collections.shannon.resilience.plugins.module_utils.registry import CellRecord
from ansible_collections.shannon.resilience.plugins.module_utils.registry_rebuild import (
    AgentWord,
    Identity,
    Listed,
    MemberPlan,
    MemberSeen,
    Survey,
    agent_word,
    initial_cluster,
    judge,
    member_plan,
    next_record,
    standing_in_the_way,
)


def survey(**changes: t.Any) -> Survey:
    """Region a and the witness are lost, b1 is left."""
    members = {
        "a1": MemberSeen("a1", False, False),
        "b1": MemberSeen("b1", True, False),
        "w1": MemberSeen("w1", False, False),
    }
    base = Survey("b1", members, True, ("a", "b"), "b", ("a",), {"a": {"a1": [], "a2": []}}, "it burns")
    return dataclasses.replace(base, **changes)


def refused(found: Survey, *overrides: str) -> list[str]:
    return [one.rule for one in standing_in_the_way(judge(found), overrides)]


def test_a_registry_that_is_lost_may_be_rebuilt() -> None:
    assert refused(survey()) == []


def test_with_a_quorum_there_is_no_need_and_no_override() -> None:
    members = {**survey().members, "b1": MemberSeen("b1", True, True)}
    assert refused(survey(members=members), "accept_reachable_member", "accept_answering_region", "") == ["no_quorum"]


def test_another_member_that_listens_stands_in_the_way_unless_it_is_overridden() -> None:
    members = {**survey().members, "w1": MemberSeen("w1", True, False)}
    assert refused(survey(members=members)) == ["others_silent"]
    assert refused(survey(members=members), "accept_reachable_member") == []
    (verdict,) = standing_in_the_way(judge(survey(members=members)), [])
    assert "w1 still listens" in verdict.seen and "b1" not in verdict.seen


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({"fenced": ()}, "nobody said that region a is dead or fenced"),
        ({"fenced": ("a", "b")}, "region b is the survivor's own"),
        ({"fenced": ("a", "c")}, "c is no region"),
        ({"survivor": "w1", "survivor_region": "", "fenced": ()}, "nobody said which region"),
    ],
)
def test_the_operator_must_say_what_is_fenced(changes: dict[str, t.Any], seen: str) -> None:
    verdicts = [one for one in judge(survey(**changes)) if one.rule == "fenced"]
    assert not verdicts[0].passed and seen in verdicts[0].seen and verdicts[0].override == ""


def test_a_witness_that_is_left_needs_one_region_fenced() -> None:
    assert "fenced" not in refused(survey(survivor="w1", survivor_region="", fenced=("a",)))


def test_a_region_that_answers_is_not_fenced() -> None:
    found = survey(answering={"a": {"a1": [], "a2": [5432]}})
    assert refused(found) == ["fenced_silent"]
    assert refused(found, "accept_answering_region") == []
    assert "a2 on port 5432" in standing_in_the_way(judge(found), [])[0].seen


@pytest.mark.parametrize(
    ("changes", "rule"), [({"has_data": False}, "data"), ({"reason": " "}, "reason"), ({"survivor": "b9"}, "survivor")]
)
def test_what_else_is_refused(changes: dict[str, t.Any], rule: str) -> None:
    assert rule in refused(survey(**changes))


def word(host: str, home: str, epoch: int, serves: bool = False) -> AgentWord:
    return AgentWord(host, host[0], home, epoch, serves)


def test_the_epoch_is_above_all_that_anybody_has_seen() -> None:
    found = CellRecord("main", "a", 3, revision=9)
    assert next_record("main", found, [], ["a", "b"]) == CellRecord("main", "a", 4)
    assert next_record("main", found, [word("b1", "a", 2)], ["a", "b"]) == CellRecord("main", "a", 4)
    # The rebuilt registry lacks the last move, which an agent has seen.
    assert next_record("main", found, [word("b1", "b", 4)], ["a", "b"]) == CellRecord("main", "b", 5)


def test_the_home_is_the_region_that_serves() -> None:
    found = CellRecord("main", "a", 3)
    words = [word("b1", "b", 2, True), word("b2", "b", 2), word("a1", "a", 3)]
    assert next_record("main", found, words, ["a", "b"]) == CellRecord("main", "b", 4)
    with pytest.raises(ResilienceError, match="a and b both say that they serve"):
        next_record("main", found, [*words, word("a2", "a", 3, True)], ["a", "b"])


def test_a_cell_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ResilienceError, match="cell main: neither"):
        next_record("main", None, [], ["a", "b"])
    assert next_record("main", None, [word("a1", "a", 7)], ["a", "b"]) == CellRecord("main", "a", 8)
    with pytest.raises(ResilienceError, match="no region of the inventory"):
        next_record("main", None, [word("a1", "z", 7)], ["a", "b"])


def test_an_agents_word() -> None:
    said = {"region": "b", "duty": "home", "authority": 5.0, "record": {"home": "b", "epoch": 4}}
    assert agent_word("b1", said) == AgentWord("b1", "b", "b", 4, True)
    assert not t.cast(AgentWord, agent_word("b1", {**said, "authority": 0})).serves
    assert not t.cast(AgentWord, agent_word("b1", {**said, "duty": "fenced"})).serves
    assert agent_word("b1", {**said, "record": None}) is None
    assert agent_word("b1", {}) is None


URL = "https://192.0.2.11:12380"
OTHERS = [Listed(2, "b1", ("https://192.0.2.21:12380",)), Listed(3, "w1", ("https://192.0.2.31:12380",))]
MINE = Listed(1, "a1", (URL,))


def plan(listed: list[Listed], local: Identity | None, wipe: bool = False) -> MemberPlan:
    return member_plan("77", listed, "a1", URL, local, wipe)


def test_a_member_with_good_data_is_kept() -> None:
    assert plan([MINE, *OTHERS], Identity(1, "77")) == MemberPlan(True)
    assert plan([MINE, *OTHERS], Identity(1, "77"), wipe=True) == MemberPlan(False, (1,))


def test_a_member_that_lost_its_data_is_taken_out_first() -> None:
    assert plan([MINE, *OTHERS], None) == MemberPlan(False, (1,))


def test_data_of_another_registry_or_of_a_removed_member_does_not_count() -> None:
    assert plan([MINE, *OTHERS], Identity(1, "66")) == MemberPlan(False, (1,))
    assert plan(OTHERS, Identity(1, "77")) == MemberPlan(False)


def test_a_run_that_was_killed_after_adding_goes_on_with_it() -> None:
    pending = Listed(9, "", (URL,))
    assert plan([pending, *OTHERS], None) == MemberPlan(False, (), 9)
    # It has started once, and then its disk was lost.
    assert plan([Listed(9, "a1", (URL,)), *OTHERS], None) == MemberPlan(False, (9,))


def test_a_joining_member_is_told_of_exactly_those_that_are_there() -> None:
    listed = [OTHERS[0], Listed(9, "", (URL,))]
    assert initial_cluster(listed, 9, "a1") == f"b1=https://192.0.2.21:12380,a1={URL}"


def test_the_configuration_of_a_joining_member() -> None:
    text = (
        'name: a1\ndata-dir: /d\ninitial-cluster: "a1=x,b1=y"\ninitial-cluster-token: t\ninitial-cluster-state: new\n'
    )
    config = MemberConfig(text)
    assert (config.value("name"), config.value("initial-cluster")) == ("a1", "a1=x,b1=y")
    joining = MemberConfig(config.joining("b1=y,a1=x"))
    assert joining.value("initial-cluster") == "b1=y,a1=x"
    assert joining.value("initial-cluster-state") == "existing"
    assert joining.value("initial-cluster-token") == "t"
    with pytest.raises(ResilienceError, match="has no data"):
        config.value("data")


def test_where_there_is_no_data_there_is_no_identity(tmp_path: Path) -> None:
    assert identity(tmp_path) is None
    (tmp_path / "member" / "wal").mkdir(parents=True)
    (tmp_path / "member" / "wal" / "0000000000000000-0000000000000000.wal").write_bytes(bytes(4096))
    assert identity(tmp_path) is None


def test_what_was_given_up_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path, own = tmp_path / "given-up", tmp_path / "own"
    found = GivenUp((path,), own)
    assert found.ids() == frozenset()
    path.write_text("1 # by alice\n\n2\n")
    assert found.ids() == {"1", "2"}
    assert found.learn(["2", "3"]) == ["3"]
    assert found.learn(["3"]) == []
    assert own.read_text() == "3\n"
    assert GivenUp((path,), own).ids() == {"1", "2", "3"}
    path.write_text("4\n")
    os.utime(path, (1, 1))
    assert found.ids() == {"3", "4"}


def test_what_can_not_be_kept_is_refused_nevertheless(tmp_path: Path) -> None:
    found = GivenUp((), tmp_path / "nowhere" / "own")
    with pytest.raises(OSError, match="nowhere"):
        found.learn(["5"])
    assert found.ids() == {"5"}
