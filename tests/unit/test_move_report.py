"""The report on a move: verdicts against the objectives, and a page that shows whatever is known and runs nothing."""

from __future__ import annotations

import copy
import re
import typing as t
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from ansible_collections.shannon.resilience.plugins.module_utils.move_report import document, moment, number, render

ROOT = Path(__file__).resolve().parents[2]
OBJECTIVES = yaml.safe_load((ROOT / "config" / "objectives.yml").read_text())
START = 1767323045.0  # 2026-01-02T03:04:05Z
EVIL = '<script>alert("1")</script>\'&'
VOID = ("meta", "br", "line", "rect")

MOVE: dict[str, t.Any] = {
    "cell": "main",
    "kind": "failover",
    "from": "a",
    "to": "b",
    "epoch_before": 1,
    "epoch": 2,
    "operator": "root",
    "reason": "the site burns",
    "started_at": "2026-01-02T03:04:05Z",
    "outcome": "done",
    "error": "",
    "overrides": ["lag"],
    "phases": [
        {"name": "preflight", "begin": 0.0, "end": 0.4, "note": ""},
        {"name": "promote", "begin": 0.4, "end": 2.6, "note": "PostgreSQL and Redis side by side"},
        {"name": "verify", "begin": 2.6, "end": 3.2},
    ],
    "gates": [
        {"name": "quorum", "title": "The registry has a quorum", "passed": True, "seen": "3 of 3", "allowed": "2 of 3"},
        {
            "name": "lag",
            "title": "The standby is near enough",
            "passed": False,
            "seen": "7.5 s",
            "allowed": "5 s",
            "override": "failover_accept_lag",
            "overridden": True,
        },
    ],
    "lag_before": {"bytes": 2048, "seconds": 7.5},
    "rto_seconds": 3.2,
    "rpo": {"seconds": 7.5, "bytes": 2048, "text": "the last write that came over was 7.5 s old"},
    "verified": {"task_id": "t-42", "submit_ms": 20, "task_ms": 200},
    "versions": {"postgres": "15.18", "redis": "7.2"},
}


class Page(HTMLParser):
    """What a browser makes of it: its elements, their attributes and its text; refuses tags that don't match."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += f"{data} "

    def tags(self) -> list[str]:
        return [tag for tag, _attributes in self.elements]

    def bars(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == "rect"]


def step(
    name: str, begin: float, end: float, host: str = "w1", status: str = "ok", play: str = "p"
) -> dict[str, t.Any]:
    return {"name": name, "host": host, "begin": START + begin, "end": START + end, "status": status, "play": play}


def page(changes: dict[str, t.Any] | None = None, steps: list[dict[str, t.Any]] | None = None) -> Page:
    return Page(render(document({**MOVE, **(changes or {})}, OBJECTIVES, steps or [])))


def verdicts(kind: str, **changes: t.Any) -> dict[str, tuple[t.Any, t.Any, t.Any]]:
    made = document({"cell": "main", "kind": kind, **changes}, OBJECTIVES, [])
    return {verdict["name"]: (verdict["target"], verdict["measured"], verdict["met"]) for verdict in made["verdicts"]}


# ---- verdicts


def test_every_kind_of_move_has_objectives() -> None:
    promised = {kind: (OBJECTIVES[kind]["rto"], OBJECTIVES[kind]["rpo"]) for kind in ("failover", "switchover")}
    assert promised == {"failover": (8, 5), "switchover": (4, 0)}
    assert OBJECTIVES["automatic"] == {"rto": 15, "rpo": 5}
    assert sorted(OBJECTIVES["components"]) == ["postgres", "qdrant", "redis"]


def test_met_and_missed() -> None:
    assert verdicts("failover", rto_seconds=8.0, rpo={"seconds": 5.01}) == {
        "RTO": (8, 8.0, True),
        "RPO": (5, 5.01, False),
    }
    assert verdicts("switchover", rto_seconds="4.1", rpo={"seconds": 0.0, "bytes": 0}) == {
        "RTO": (4, 4.1, False),
        "RPO": (0, 0.0, True),
    }
    assert verdicts("automatic", rto_seconds=14)["RTO"] == (15, 14, True)


def test_what_was_not_measured_has_no_verdict() -> None:
    assert verdicts("failover") == {"RTO": (8, None, None), "RPO": (5, None, None)}
    assert verdicts("failover", rto_seconds=None, rpo=None)["RPO"] == (5, None, None)
    assert verdicts("failover", rto_seconds=float("nan"))["RTO"] == (8, None, None)


def test_without_an_objective_there_is_no_verdict() -> None:
    made = document(MOVE, {}, [])
    assert [verdict["met"] for verdict in made["verdicts"]] == [None, None]
    assert "no objective" in Page(render(made)).text


def test_no_bytes_are_no_seconds_and_bytes_break_the_promise_of_none() -> None:
    assert verdicts("switchover", rpo={"bytes": 0})["RPO"] == (0, 0.0, True)
    assert verdicts("switchover", rpo={"bytes": 12, "seconds": 0.0})["RPO"] == (0, 0.0, False)
    assert verdicts("switchover", rpo={"bytes": 12})["RPO"] == (0, None, False)
    assert verdicts("failover", rpo={"bytes": 12, "seconds": 0.1})["RPO"] == (5, 0.1, True)


def test_the_page_says_met_and_missed() -> None:
    found = page().text
    assert re.search(r"RTO\s+met\s+3\.20 s\s+objective: at most 8\.00 s", found)
    assert re.search(r"RPO\s+missed\s+7\.50 s\s+objective: at most 5\.00 s", found)
    assert "postgres 5.00 s" in found


# ---- the document


def test_each_store_is_judged_by_what_its_component_may_lose() -> None:
    lost = {"seconds": 7.0, "markers": 7, "note": ""}
    stores = {
        "postgres": {**lost, "seconds": 0.0, "markers": 0},
        "redis": lost,
        "qdrant": {"seconds": None, "markers": None, "note": "it was away"},
        "other": lost,
    }
    text = page({"rpo": {"seconds": 7.0, "stores": stores}}).text
    rows = re.findall(r"(postgres|redis|qdrant|other)\s*(0.00 s|7.00 s|not known)\s*(0|7|-)\s*(5.00 s|-)\s*(\w+)", text)
    assert rows == [
        ("postgres", "0.00 s", "0", "5.00 s", "met"),
        ("redis", "7.00 s", "7", "5.00 s", "missed"),
        ("qdrant", "not known", "-", "5.00 s", "no"),
        ("other", "7.00 s", "7", "-", "no"),
    ]
    assert "it was away" in text


def test_the_document_is_the_move_and_its_verdicts_and_leaves_what_it_was_given() -> None:
    move, steps = copy.deepcopy(MOVE), [step("one", 1, 2)]
    made = document(move, OBJECTIVES, steps)
    assert {key: made[key] for key in MOVE} == MOVE == move
    assert steps == [step("one", 1, 2)]
    assert made["objectives"]["components"] == {"postgres": {"rpo": 5}, "qdrant": {"rpo": 5}, "redis": {"rpo": 5}}


def test_steps_count_from_the_start_and_those_of_an_earlier_run_are_left_out() -> None:
    steps = [step("later", 2, 3.5), step("before", -5, -1), step("yesterday", -86400, -86399), {"name": "no times"}]
    made = document(MOVE, OBJECTIVES, steps)["steps"]
    assert [(found["name"], found["begin"], found["end"]) for found in made] == [("before", -5, -1), ("later", 2, 3.5)]


def test_steps_count_from_the_first_when_the_start_is_not_known() -> None:
    made = document({"cell": "main", "kind": "failover"}, {}, [step("b", 4, 5), step("a", 1, 2)])["steps"]
    assert [(found["name"], found["begin"]) for found in made] == [("a", 0), ("b", 3)]


# ---- the page


def test_the_page_shows_what_is_known() -> None:
    found = page().text
    for said in (
        "Failover of cell main: a → b",
        "done",
        "epoch 1 → 2",
        "by root",
        "the site burns",
        "PostgreSQL and Redis side by side",
        "lag: The standby is near enough",
        "overridden",
        "failover_accept_lag",
        "7.5 s",
        "2.0 kB, 7.50 s",
        "t-42, accepted after 20 ms, answered after 200 ms",
        "15.18",
        "the last write that came over was 7.5 s old",
    ):
        assert said in found, said
    assert "Error" not in found and "Refusals" not in found


def test_a_failed_move_says_why_and_where_it_broke_off() -> None:
    phases = [{"name": "fence", "begin": 0.0, "end": 0.5}, {"name": "promote", "begin": 0.5}]
    found = page({"outcome": "failed", "error": "b2: no answer", "phases": phases, "rto_seconds": None})
    assert "b2: no answer" in found.text and "did not end" in found.text and "not measured" in found.text
    assert [stripe["class"] for stripe in found.bars()] == ["phase", "failed"]
    assert "without saying why" in page({"outcome": "failed"}).text


def test_a_refused_move_says_what_refused_it_and_how_to_overrule_it() -> None:
    gate = {**MOVE["gates"][1], "overridden": False}
    found = page({"outcome": "refused", "gates": [gate], "phases": [], "overrides": []})
    assert "lag: The standby is near enough: seen 7.5 s, allowed 5 s" in found.text
    assert "override: failover_accept_lag" in re.sub(r"\s+", " ", found.text)


@pytest.mark.parametrize("kind", ["failover", "switchover", "automatic"])
def test_a_move_of_which_nothing_is_known_has_a_page(kind: str) -> None:
    found = Page(render(document({"cell": "main", "kind": kind}, {}, [])))
    assert f"{kind.capitalize()} of cell main: ? → ?" in found.text
    assert "svg" not in found.tags()


@pytest.mark.parametrize("key", sorted(set(MOVE) - {"cell", "kind"}))
@pytest.mark.parametrize("value", [None, "", "odd", 7, [], {}, [None], [{}], {"seconds": "odd"}])
def test_each_key_may_be_missing_or_odd(key: str, value: t.Any) -> None:
    render(document({name: given for name, given in MOVE.items() if name != key}, OBJECTIVES, []))
    render(document({**MOVE, key: value}, OBJECTIVES, [step("one", 0, 1)]))


def evil(value: t.Any) -> t.Any:
    """The same with every text replaced."""
    if isinstance(value, dict):
        return {key: evil(item) for key, item in value.items()}
    if isinstance(value, list):
        return [evil(item) for item in value]
    return EVIL if isinstance(value, str) else value


def test_nothing_that_was_given_becomes_markup() -> None:
    gates = [*MOVE["gates"], {**MOVE["gates"][1], "overridden": False}]
    move = {**evil({**MOVE, "gates": gates, "error": "x"}), "started_at": MOVE["started_at"]}
    move["versions"] = {EVIL: EVIL}
    steps = [{**step("x", 0, 1), "name": EVIL, "host": EVIL, "status": EVIL}]
    text = render(document(move, {EVIL: {"rto": 1}, "components": {EVIL: {"rpo": 1}}}, steps))
    found = Page(text)
    assert "<script" not in text and "script" not in found.tags()
    assert found.text.count(EVIL) >= 15
    assert all(EVIL not in str(attributes) for _tag, attributes in found.elements)


def test_the_reason_is_escaped() -> None:
    text = render(document({**MOVE, "reason": EVIL}, OBJECTIVES, []))
    assert "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&#x27;&amp;" in text and "<script" not in text


def test_the_page_needs_nothing_but_itself() -> None:
    text = render(document(MOVE, OBJECTIVES, [step("one", 0, 1)]))
    found = Page(text)
    assert not [tag for tag in ("script", "link", "img", "iframe", "object") if tag in found.tags()]
    assert not [name for _tag, given in found.elements for name in given if name in ("src", "href") or name[:2] == "on"]
    assert "http://" not in text and "https://" not in text and "url(" not in text and "@import" not in text
    assert "default-src 'none'" in text and "prefers-color-scheme: dark" in text


# ---- the timeline


def test_a_task_is_one_bar_over_its_hosts_with_the_worst_status() -> None:
    steps = [
        step("role : stop", 0.1, 0.5, "a1"),
        step("role : stop", 0.1, 0.9, "a2", "unreachable"),
        step("looked at", 1, 2, status="ignored"),
        step("not needed", 2, 2.1, status="skipped"),
        step("role : stop", 3, 4, "a1", "changed"),
    ]
    found = page({"phases": []}, steps)
    assert [stripe["class"] for stripe in found.bars()] == ["failed", "doubtful", "step"]
    assert "role : stop (2 hosts)" in found.text and "a2 0.80 s unreachable" in found.text
    assert "not needed" not in found.text
    assert "Steps of the playbook" in found.text


def test_bars_lie_where_the_axis_says() -> None:
    found = page({"phases": [{"name": "one", "begin": 0, "end": 5}, {"name": "two", "begin": 5, "end": 10}]})
    one, two = ((float(stripe["x"] or 0), float(stripe["width"] or 0)) for stripe in found.bars())
    marks = [float(given["x1"] or 0) for tag, given in found.elements if tag == "line"]
    assert one[0] == marks[0] and one[0] + one[1] == two[0] == marks[len(marks) // 2] and sum(two) == marks[-1]
    assert "0 s" in found.text and "10 s" in found.text


@pytest.mark.parametrize("longest", [0.0, 0.003, 0.7, 3.2, 59.0, 4000.0, 1e9])
def test_the_axis_has_few_marks_whatever_it_spans(longest: float) -> None:
    found = page({"phases": [{"name": "one", "begin": 0, "end": longest}]}, [step("before", -3, -2)])
    assert 2 <= found.tags().count("line") <= 13
    for stripe in found.bars():
        assert float(stripe["x"] or 0) + float(stripe["width"] or 0) <= 960


# ---- values


def test_moments_are_in_utc() -> None:
    for stamp in ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05", "2026-01-02T04:04:05+01:00"):
        found = moment(stamp)
        assert found and found.isoformat() == "2026-01-02T03:04:05+00:00" and found.timestamp() == START
    assert [moment(stamp) for stamp in ("yesterday", "", None, 5)] == [None] * 4


def test_numbers() -> None:
    assert [number(value) for value in (1, "2.5", True, None, "x", "inf", [])] == [1, 2.5, None, None, None, None, None]
