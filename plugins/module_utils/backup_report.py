# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report on a verification of backups: which were restored for a test, and whether each gave what it should."""

from __future__ import annotations

import typing as t

from .backup_records import NO_CELL, age_in_words, seconds_since
from .move_report import moment, number, page, table, text_of
from .status_table import human_bytes


def verification(
    runs: t.Sequence[t.Mapping[str, t.Any]],
    silent: t.Mapping[str, str],
    started_at: str,
    objectives: t.Mapping[str, t.Any],
) -> dict[str, t.Any]:
    """What C(shannon-backup verify --json) said on all hosts, with a verdict.

    :param runs: the runs of all hosts.
    :param silent: hosts that said nothing, and why.
    :param objectives: the whole of config/objectives.yml.
    """
    promised = objectives.get("backups")
    promised = promised if isinstance(promised, dict) else {}
    found = []
    for run in runs:
        if run.get("skipped"):
            continue
        limits = promised.get(run.get("kind"))
        rpo = number(limits.get("rpo")) if isinstance(limits, dict) else None
        facts = run.get("summary") if isinstance(run.get("summary"), dict) else {}
        then = moment(run.get("started_at"))
        age = None if then is None else seconds_since(facts.get("made_at"), then)
        found.append({**run, "age": age, "rpo": rpo, "overdue": None not in (age, rpo) and age > rpo})
    return {
        "kind": "verification",
        "started_at": started_at,
        "runs": found,
        "silent": dict(silent),
        "passed": bool(found) and all(run.get("ok") for run in found) and not silent,
    }


def lines(document: t.Mapping[str, t.Any]) -> list[str]:
    """A sentence for each backup, for a terminal."""
    said = []
    for run in document["runs"]:
        said.append(
            f"{_name(run)}: {_verdict(run)}, {text_of(run.get('id')) or 'no backup'}, {_facts(run)}".rstrip(", ")
        )
        said += [f"  {one}" for one in _wrongs(run)]
    said += [f"{host}: FAILED: {error}" for host, error in document["silent"].items()]
    return said or ["FAILED: no backup was looked at"]


def render(document: t.Mapping[str, t.Any]) -> str:
    """One HTML page that needs nothing but itself."""
    passed = document["passed"]
    parts = [
        f'<h1>Verification of backups <span class="badge {"good" if passed else "bad"}">'
        f"{'passed' if passed else 'failed'}</span></h1>",
        f'<p class="faint">started at {_safe(document["started_at"])}; each backup was restored into a scratch '
        "instance and compared with the manifest that was taken with it</p>",
    ]
    rows = []
    for run in document["runs"]:
        look = "good" if run.get("ok") else "bad"
        rows.append(
            [
                _safe(_name(run)),
                f'<span class="{look}">{_verdict(run)}</span>',
                _safe(text_of(run.get("id")) or "-"),
                _safe(age_in_words(run["age"]) + (" (overdue)" if run["overdue"] else "")),
                _safe(human_bytes(int(number(run.get("bytes")) or 0))),
                _safe(f"{number(run.get('seconds')) or 0.0:.1f} s"),
                _safe(_facts(run)),
            ]
        )
    heads = ("backup", "verdict", "id", "#age", "#size", "#took", "what was compared")
    parts += table("Backups", heads, rows)
    for run in document["runs"]:
        if wrongs := _wrongs(run):
            parts += [f"<h2>{_safe(_name(run))}</h2>", f"<pre>{_safe(chr(10).join(wrongs))}</pre>"]
    parts += table(
        "Hosts that said nothing", ("host", "why"), [[_safe(h), _safe(e)] for h, e in document["silent"].items()]
    )
    return page("Verification of backups", parts)


def _name(run: t.Mapping[str, t.Any]) -> str:
    cell = run.get("cell")
    of = "" if cell in (None, "", NO_CELL) else f" of cell {cell}"
    return f"{text_of(run.get('kind')) or '?'}{of} in region {text_of(run.get('region')) or '?'}"


def _verdict(run: t.Mapping[str, t.Any]) -> str:
    return "good" if run.get("ok") else "FAILED"


def _wrongs(run: t.Mapping[str, t.Any]) -> list[str]:
    if run.get("ok"):
        return []
    wrongs = [text_of(one) for one in run.get("differences") or []]
    return wrongs or [text_of(run.get("error")) or "it failed without saying why"]


def _facts(run: t.Mapping[str, t.Any]) -> str:
    facts = run.get("summary")
    if not isinstance(facts, dict):
        return ""
    return ", ".join(f"{name} {text_of(value)}" for name, value in facts.items() if name != "made_at")


def _safe(value: t.Any) -> str:
    from html import escape

    return escape(text_of(value))
