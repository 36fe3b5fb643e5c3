"""The module that writes the report: two private files, named after the move, and the same ones when it runs again."""

from __future__ import annotations

import json
import pathlib
import re
import stat
import typing as t

import pytest
from module_runner import run_module

from ansible_collections.shannon.resilience.plugins.modules import dr_report

MOVE = {
    "cell": "main",
    "kind": "failover",
    "from": "a",
    "to": "b",
    "started_at": "2026-01-02T04:04:05+01:00",
    "outcome": "done",
    "reason": "<script>alert(1)</script>",
    "rto_seconds": 3.2,
    "rpo": {"seconds": 6.0, "bytes": 10},
}
OBJECTIVES = {"failover": {"rto": 8, "rpo": 5}}
BASE = "20260102T030405Z-failover-main"


def run(folder: pathlib.Path, move: dict[str, t.Any] | None = None, **arguments: t.Any) -> dict[str, t.Any]:
    given = {"objectives": OBJECTIVES, **arguments}
    return run_module(dr_report, move=MOVE if move is None else move, dest=str(folder), **given)


def mode(path: pathlib.Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_writes_a_page_and_the_same_as_json_for_its_owner_alone(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "reports" / "main"
    made = run(folder)
    assert made["changed"]
    assert (made["html"], made["json"]) == (str(folder / f"{BASE}.html"), str(folder / f"{BASE}.json"))
    assert made["verdicts"] == [
        {"name": "RTO", "target": 8, "measured": 3.2, "met": True},
        {"name": "RPO", "target": 5, "measured": 6.0, "met": False},
    ]
    assert sorted(path.name for path in folder.iterdir()) == [f"{BASE}.html", f"{BASE}.json"]
    assert [mode(path) for path in (folder, *folder.iterdir())] == [0o700, 0o600, 0o600]
    stored = json.loads((folder / f"{BASE}.json").read_text())
    assert stored["verdicts"] == made["verdicts"] and {key: stored[key] for key in MOVE} == MOVE
    page = (folder / f"{BASE}.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and "&lt;script&gt;alert(1)" in page and "<script" not in page


def test_the_same_move_changes_nothing_and_a_new_figure_replaces_the_files(tmp_path: pathlib.Path) -> None:
    run(tmp_path)
    before = {path: path.stat().st_ino for path in tmp_path.iterdir()}
    assert not run(tmp_path)["changed"]
    assert {path: path.stat().st_ino for path in tmp_path.iterdir()} == before
    assert run(tmp_path, {**MOVE, "rto_seconds": 9})["changed"]
    assert sorted(tmp_path.iterdir()) == sorted(before)
    assert "9.00 s" in (tmp_path / f"{BASE}.html").read_text()


def test_a_file_that_others_may_read_is_closed(tmp_path: pathlib.Path) -> None:
    run(tmp_path)
    (tmp_path / f"{BASE}.html").chmod(0o644)
    assert run(tmp_path)["changed"]
    assert mode(tmp_path / f"{BASE}.html") == 0o600


def test_check_mode_says_what_it_would_do_and_writes_nothing(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "reports"
    made = run(folder, check=True)
    assert made["changed"] and made["html"] == str(folder / f"{BASE}.html") and made["verdicts"][0]["met"]
    assert not folder.exists()
    run(folder)
    assert not run(folder, check=True)["changed"]


def test_a_cell_and_a_kind_are_enough(tmp_path: pathlib.Path) -> None:
    made = run_module(dr_report, move={"cell": "main", "kind": "automatic"}, dest=str(tmp_path))
    assert re.fullmatch(r"\d{8}T\d{6}Z-automatic-main\.html", pathlib.Path(made["html"]).name)
    assert [verdict["met"] for verdict in made["verdicts"]] == [None, None]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cell": "../../etc"}, "move.cell"),
        ({"cell": None}, "move.cell"),
        ({"kind": "../x"}, "move.kind"),
        ({"kind": ["failover"]}, "failover, switchover, automatic"),
        ({"started_at": "yesterday"}, "move.started_at"),
    ],
)
def test_what_would_name_a_file_is_checked(tmp_path: pathlib.Path, changes: dict[str, t.Any], said: str) -> None:
    made = run(tmp_path, {**MOVE, **changes})
    assert made["failed"] and said in made["msg"]
    assert not list(tmp_path.iterdir())


def test_the_steps_come_from_the_file_and_a_broken_line_is_passed_over(tmp_path: pathlib.Path) -> None:
    steps = tmp_path / "steps.jsonl"
    line = {"name": "Promote <b>", "host": "b1", "begin": 1767323046.0, "end": 1767323047.5, "status": "changed"}
    steps.write_text(f'{json.dumps(line)}\n[1]\n\n{{"name": "half wri')
    made = run(tmp_path / "reports", steps_file=str(steps))
    stored = json.loads(pathlib.Path(made["json"]).read_text())["steps"]
    assert stored == [{**line, "begin": 1.0, "end": 2.5}]
    assert "Promote &lt;b&gt;" in pathlib.Path(made["html"]).read_text()
    assert not made.get("warnings")


def test_a_missing_file_of_steps_costs_a_warning_only(tmp_path: pathlib.Path) -> None:
    made = run(tmp_path, steps_file=str(tmp_path / "none"))
    assert made["changed"] and "No such file" in str(made["warnings"])


def test_a_folder_that_cannot_be_made_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    made = run(tmp_path / "file" / "reports")
    assert made["failed"] and f"cannot write the report into {tmp_path}/file/reports" in made["msg"]
