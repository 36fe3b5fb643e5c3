"""The report on a verification says of each backup whether it restores, and passes only when all of them do."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
from module_runner import run_module

from ansible_collections.shannon.resilience.plugins.module_utils import backup_report
from ansible_collections.shannon.resilience.plugins.modules import dr_report

STARTED = "2026-11-28T12:00:00+00:00"
RUN: dict[str, t.Any] = {
    "kind": "redis", "cell": "main", "region": "b", "host": "b3", "started_at": STARTED, "ended_at": STARTED,
    "ok": True, "error": "", "id": "abc", "bytes": 2048, "seconds": 1.5, "differences": [],
    "summary": {"keys": 3, "made_at": "2026-11-28T10:00:00+00:00"}, "skipped": False,
}  # fmt: skip
BAD = {**RUN, "ok": False, "kind": "qdrant", "cell": "_", "differences": ["<points>: 2, was 3"]}
OBJECTIVES = {"backups": {"redis": {"rpo": 3600}}}


def test_all_good_passes() -> None:
    found = backup_report.verification([RUN], {}, STARTED, OBJECTIVES)
    assert found["passed"] and found["runs"][0]["age"] == 7200 and found["runs"][0]["overdue"]
    (line,) = backup_report.lines(found)
    assert line == "redis of cell main in region b: good, abc, keys 3"


@pytest.mark.parametrize(
    ("runs", "silent", "words"),
    [([RUN, BAD], {}, "was 3"), ([RUN], {"a3": "unreachable"}, "a3: FAILED: unreachable"), ([], {}, "no backup")],
)
def test_anything_else_fails(runs: list[t.Any], silent: dict[str, str], words: str) -> None:
    found = backup_report.verification(runs, silent, STARTED, OBJECTIVES)
    assert not found["passed"]
    assert words in "\n".join(backup_report.lines(found))


def test_the_page_is_safe_and_names_what_differs() -> None:
    page = backup_report.render(backup_report.verification([RUN, BAD], {"a3": "no <route>"}, STARTED, OBJECTIVES))
    assert "&lt;points&gt;: 2, was 3" in page and "<points>" not in page and "&lt;route&gt;" in page
    assert "failed" in page and "(overdue)" in page


def test_the_module_writes_both_files(tmp_path: Path) -> None:
    given = {"verifications": [RUN], "started_at": STARTED, "objectives": OBJECTIVES, "dest": str(tmp_path)}
    found = run_module(dr_report, **given)
    assert found["passed"] and found["html"].endswith("20261128T120000Z-verification-backups.html")
    assert json.loads(Path(found["json"]).read_text())["runs"][0]["id"] == "abc"
    assert not run_module(dr_report, **given)["changed"]
