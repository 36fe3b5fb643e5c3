"""Who becomes primary, case by case."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.shannon.resilience.plugins.module_utils.errors import EndpointError
from ansible_collections.shannon.resilience.plugins.module_utils.redis import ReplicaLink, Replication
from ansible_collections.shannon.resilience.plugins.module_utils.redis_plan import (
    Instance,
    PlanError,
    Step,
    choose_primary,
    plan,
)

ADDRESSES = {"a1": "192.0.2.1", "a2": "192.0.2.2", "a3": "192.0.2.3", "b1": "198.51.100.1", "b2": "198.51.100.2"}
DEAD = EndpointError("192.0.2.1", 6379, "an answer to INFO", "no answer in time")


def instance(name: str, said: str) -> Instance:
    """From "primary", "primary 5 keys", "primary with replicas", "follows a1", "follows a1 5 keys" or "dead"."""
    words = said.split()
    if said == "dead":
        return Instance(name, ADDRESSES[name], name.startswith("a"), DEAD)
    follows = ADDRESSES[words[1]] if words[0] == "follows" else ""
    links = (ReplicaLink("192.0.2.9", 6379, "online", 1, 0),) if "replicas" in words else ()
    seen = Replication(
        role="replica" if follows else "primary",
        offset=1,
        link="up" if follows else "",
        primary_address=follows,
        primary_port=6379 if follows else 0,
        replicas=len(links),
        priority=0 if name.startswith("b") else 100,
        loading=False,
        aof=True,
        keys=5 if "keys" in words else 0,
        links=links,
    )
    return Instance(name, ADDRESSES[name], name.startswith("a"), seen)


def cell(**said: str) -> list[Instance]:
    return [instance(name, words) for name, words in said.items()]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        # a fresh cell: the first of the home region that answers
        ({"a1": "primary", "a2": "primary", "a3": "primary", "b1": "primary"}, "a1"),
        ({"b1": "primary", "a2": "primary", "a1": "primary"}, "a2"),
        ({"a1": "dead", "a2": "primary", "b1": "primary"}, "a2"),
        # the primary that there is stays, wherever it stands
        ({"a1": "follows a3", "a2": "follows a3", "a3": "primary with replicas", "b1": "follows a3"}, "a3"),
        ({"a1": "primary", "a2": "primary 5 keys", "b1": "primary"}, "a2"),
        ({"a1": "dead", "a2": "primary with replicas 5 keys", "a3": "follows a2 5 keys", "b1": "dead"}, "a2"),
        # a host that was added, empty, does not count
        ({"a1": "primary", "a2": "follows a3 5 keys", "a3": "primary with replicas 5 keys"}, "a3"),
        # the standby region is dead
        ({"a1": "primary 5 keys", "a2": "follows a1 5 keys", "b1": "dead"}, "a1"),
    ],
)
def test_the_primary_that_is_chosen(said, expected):
    assert choose_primary("main", cell(**said)).name == expected


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"a1": "primary 5 keys", "a2": "primary 5 keys"}, "a1, a2 are all primaries"),
        ({"a1": "primary 5 keys", "b1": "primary 5 keys"}, "a1, b1 are all primaries"),
        ({"a1": "primary", "b1": "primary with replicas"}, "b1 is a primary with data, outside"),
        ({"a1": "dead", "a2": "follows a1 5 keys", "b1": "follows a1"}, "no Redis of its home region is a primary"),
        ({"a1": "dead", "a2": "dead", "b1": "follows a1"}, "no Redis of its home region answers"),
        ({"b1": "primary"}, "has no Redis instance"),
        # an empty primary would wipe whoever followed it
        ({"a1": "dead", "a2": "follows a1 5 keys", "a3": "primary"}, "a3 is empty, but a2 has data"),
        ({"a1": "primary", "a2": "follows a1 5 keys"}, "a1 is empty, but a2 has data"),
        ({"a1": "primary", "b1": "follows a1 5 keys"}, "a1 is empty, but b1 has data"),
        ({"a1": "primary with replicas", "a2": "follows a3 5 keys", "a3": "dead"}, "a1 is empty, but a2 has data"),
    ],
)
def test_what_a_human_must_decide(said, words):
    with pytest.raises(PlanError, match=words) as caught:
        choose_primary("main", cell(**said))
    assert "cell main" in str(caught.value)


def test_a_fresh_cell_gets_its_roles():
    instances = cell(a1="primary", a2="primary", b1="primary")
    assert plan(instances[0], instances) == [
        Step("a2", ADDRESSES["a1"], None, "a2: follow a1"),
        Step("b1", ADDRESSES["a1"], None, "b1: follow a1"),
    ]


def test_a_cell_in_order_stays_untouched():
    instances = cell(a1="follows a2", a2="primary with replicas", b1="follows a2", b2="dead")
    assert plan(instances[1], instances) == []


def test_only_what_differs_is_changed():
    wrong = instance("b1", "follows a1")
    moved = Instance("b1", wrong.address, True, wrong.said)  # its region became the home: priority 0 must go
    instances = [*cell(a1="primary with replicas", a2="follows a3"), moved]
    assert plan(instances[0], instances) == [
        Step("a2", ADDRESSES["a1"], None, "a2: follow a1"),
        Step("b1", "", 100, "b1: have priority 100"),
    ]


def test_an_instance_that_the_agent_holds_is_left_to_it():
    primary = instance("a1", "primary 5 keys")
    held = replace(instance("b1", "follows a1 5 keys").seen, primary_address="127.0.0.1", link="down")
    others = [Instance("b1", ADDRESSES["b1"], False, held), Instance("b2", ADDRESSES["b2"], False, held)]
    assert plan(primary, [primary, *others]) == []
    at_home = Instance("a2", ADDRESSES["a2"], True, replace(held, priority=100))
    assert [step.follow for step in plan(primary, [primary, at_home])] == [ADDRESSES["a1"]]
