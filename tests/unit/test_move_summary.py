"""What the terminal says of a move."""

from __future__ import annotations

import typing as t

from ansible_collections.shannon.resilience.plugins.module_utils.move_summary import render


def lines(**changes: t.Any) -> str:
    move = {"cell": "main", "kind": "failover", "from": "a", "to": "b", "outcome": "done", "epoch": 2}
    return "\n".join(render({**move, **changes}))


def test_a_failed_validation_is_loud_and_names_what_to_do() -> None:
    check = {"name": "indexes", "title": "All indexes are there", "passed": False, "seen": "one is missing",
             "expected": "all", "remedy": "Make it anew."}  # fmt: skip
    said = lines(validation={"passed": False, "checks": [check]})
    assert "validation: FAILED; the cell serves nevertheless" in said
    assert "All indexes are there: no. Seen: one is missing. Expected: all. Make it anew." in said


def test_a_validation_that_passed_is_one_line() -> None:
    assert "  validation: passed" in lines(validation={"passed": True, "checks": []})
    assert "validation" not in lines()
