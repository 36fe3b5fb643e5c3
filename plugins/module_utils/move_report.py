# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report on a move of a cell's home: one page for people, and the same as a mapping for programs.

A move that failed half-way is the one whose report matters most, so anything may be missing from what is given.
"""

from __future__ import annotations

import html
import json
import math
import typing as t
from datetime import datetime, timezone

from .status_table import human_bytes

KINDS = ("failover", "switchover", "automatic", "restore")
#: Seconds before the move's start from which on a playbook's step counts as its own; the callback's file may hold the
#: steps of earlier runs.
LOOKBACK = 60.0

# What a status of a step is worth: a stripe stands for a task on all its hosts, and shows the worst.
_STATUSES = ("skipped", "ok", "changed", "ignored", "failed", "unreachable")

# The drawing, in units of its view box.
_WIDTH = 960
_LEFT = 300
_RIGHT = 70
_ROW = 20
_LABEL = 44
_SMALLEST_BAR = 2.0
#: Seconds before the start of which a phase's bar is drawn.
_DRAWN_BEFORE = 10.0

_STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1c2128; --faint: #59636e; --line: #d1d9e0; --panel: #f6f8fa;
  --good: #1a7f37; --bad: #c5221f; --warn: #8a5a00; --phase: #0b63c5; --step: #6f7d8c; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #0d1117; --ink: #e6edf3; --faint: #9aa4af; --line: #363d46; --panel: #161b22;
    --good: #4ac26b; --bad: #ff7b72; --warn: #e3b341; --phase: #58a6ff; --step: #8b96a2; } }
* { box-sizing: border-box; }
body { background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 1040px; padding: 24px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; } h2 { font-size: 18px; margin: 32px 0 8px; }
p { margin: 4px 0; } .faint { color: var(--faint); }
.badge { border: 1px solid; border-radius: 12px; font-size: 14px; font-weight: 600; padding: 1px 10px;
  vertical-align: middle; white-space: nowrap; }
.good { color: var(--good); } .bad { color: var(--bad); } .warn { color: var(--warn); }
.figures { display: flex; flex-wrap: wrap; gap: 16px; margin-top: 16px; }
.figure { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; flex: 1 1 240px; padding: 12px; }
.figure b { display: block; font-size: 28px; line-height: 1.3; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: 5px 10px 5px 0; text-align: left; vertical-align: top; }
th { color: var(--faint); font-weight: 600; } td { overflow-wrap: anywhere; }
.number { font-variant-numeric: tabular-nums; text-align: right; white-space: nowrap; }
pre { background: var(--panel); border: 1px solid var(--line); border-left: 4px solid var(--bad); border-radius: 4px;
  margin: 8px 0; overflow-wrap: anywhere; padding: 10px; white-space: pre-wrap; }
svg { display: block; height: auto; min-width: 640px; width: 100%; }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; } svg .axis, svg .after { fill: var(--faint); }
svg .head { font-weight: 600; } svg line { stroke: var(--line); } svg .phase { fill: var(--phase); }
svg .step { fill: var(--step); } svg .failed { fill: var(--bad); } svg .doubtful { fill: var(--warn); }
@media print { body { max-width: none; padding: 0; } }
""".strip()


class _Bar(t.NamedTuple):
    """One line of the timeline."""

    label: str
    begin: float
    end: float
    look: str
    hint: str


def document(
    move: t.Mapping[str, t.Any], objectives: t.Mapping[str, t.Any], steps: t.Sequence[t.Mapping[str, t.Any]]
) -> dict[str, t.Any]:
    """The move with its verdicts, the objectives that they were measured by, and the playbook's steps.

    :param move: what happened; only C(cell) and C(kind) must be there.
    :param objectives: the whole of config/objectives.yml.
    :param steps: what the callback plugin wrote; their times become seconds since the move's start, like its phases'.
    """
    kind = str(move["kind"])
    own = _mapping(objectives.get(kind))
    components = _mapping(objectives.get("components"))
    return {
        **move,
        "verdicts": [_rto_verdict(move, own), _rpo_verdict(move, own)],
        "objectives": {
            "rto": number(own.get("rto")),
            "rpo": number(own.get("rpo")),
            "components": {
                name: {"rpo": number(_mapping(part).get("rpo"))} for name, part in sorted(components.items())
            },
        },
        "steps": _relative(steps, moment(move.get("started_at"))),
    }


def render(document: t.Mapping[str, t.Any]) -> str:
    """One HTML page that needs nothing but itself.

    :param document: what :func:`document` made.
    """
    title = f"{_text(document['kind']).capitalize()} of cell {_text(document['cell'])}"
    parts = [
        *_headline(document, title),
        *_error(document),
        *_figures(document),
        *_refusals(document),
        *_timeline(document),
        *_phase_table(document),
        *_store_table(document),
        *_gate_table(document),
        *_validation_table(document),
        *_details(document),
        *_versions(document),
    ]
    return page(title, parts)


def page(title: str, body: t.Sequence[str]) -> str:
    """A whole page around a body that is HTML already."""
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        # Nothing on this page may load or run anything, whatever got into it.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>{_safe(title)}</title>",
        f"<style>\n{_STYLE}\n</style>",
        "</head>",
        "<body>",
        *body,
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def moment(stamp: t.Any) -> datetime | None:
    """An ISO 8601 stamp as a time in UTC; without a zone it is taken for UTC. None for anything else."""
    if not isinstance(stamp, str):
        return None
    try:
        # Python 3.10 does not know the Z yet.
        found = datetime.fromisoformat(stamp.strip().replace("Z", "+00:00"))
        return (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).astimezone(timezone.utc)
    except (ValueError, OverflowError):
        return None


def number(value: t.Any) -> float | None:
    """A finite number, also when a template made a text of it; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


# ---- verdicts


def _rto_verdict(move: t.Mapping[str, t.Any], objectives: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    target, measured = number(objectives.get("rto")), number(move.get("rto_seconds"))
    met = None if target is None or measured is None else measured <= target
    return {"name": "RTO", "target": target, "measured": measured, "met": met}


def _rpo_verdict(move: t.Mapping[str, t.Any], objectives: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    lost = _mapping(move.get("rpo"))
    target, measured, volume = number(objectives.get("rpo")), number(lost.get("seconds")), number(lost.get("bytes"))
    if measured is None and volume == 0:
        measured = 0.0
    if target is None:
        met = None
    elif target == 0 and volume:
        # Nothing may be lost: a few bytes in a time too short to measure are not nothing.
        met = False
    else:
        met = None if measured is None else measured <= target
    return {"name": "RPO", "target": target, "measured": measured, "met": met}


# ---- steps


def _relative(steps: t.Sequence[t.Mapping[str, t.Any]], start: datetime | None) -> list[dict[str, t.Any]]:
    """The steps in the order in which they began, with seconds since the move's start, or else since the first."""
    timed = []
    for step in _mappings(steps):
        begin, end = number(step.get("begin")), number(step.get("end"))
        if begin is not None and end is not None and end >= begin:
            timed.append((begin, end, step))
    if start is not None:
        timed = [item for item in timed if item[1] >= start.timestamp() - LOOKBACK]
    timed.sort(key=lambda item: item[:2])
    if not timed:
        return []
    origin = timed[0][0] if start is None else start.timestamp()
    return [{**step, "begin": round(begin - origin, 3), "end": round(end - origin, 3)} for begin, end, step in timed]


def _step_bars(steps: t.Sequence[t.Mapping[str, t.Any]]) -> list[_Bar]:
    """A stripe for each task, over all its hosts; none for a task that every host skipped."""
    groups: list[list[t.Mapping[str, t.Any]]] = []
    for step in steps:
        if groups and all(_text(step.get(key)) == _text(groups[-1][0].get(key)) for key in ("play", "name")):
            groups[-1].append(step)
        else:
            groups.append([step])
    bars = []
    for group in groups:
        worst = max((_text(step.get("status")) for step in group), key=_badness)
        if worst == "skipped":
            continue
        hosts = list(dict.fromkeys(_text(step.get("host")) for step in group))
        name = _text(group[0].get("name")) or "?"
        look = {"failed": "failed", "unreachable": "failed", "ignored": "doubtful"}.get(worst, "step")
        each = ", ".join(
            f"{_text(step.get('host'))} {_seconds(step['end'] - step['begin'])} {_text(step.get('status'))}"
            for step in group
        )
        label = name if len(hosts) < 2 else f"{name} ({len(hosts)} hosts)"
        begin, end = min(step["begin"] for step in group), max(step["end"] for step in group)
        bars.append(_Bar(label, begin, end, look, f"{name}: {each}"))
    return bars


def _badness(status: str) -> int:
    return _STATUSES.index(status) if status in _STATUSES else _STATUSES.index("ok")


# ---- parts of the page


def _headline(document: t.Mapping[str, t.Any], title: str) -> list[str]:
    outcome = _text(document.get("outcome")) or "unknown"
    look = {"done": "good", "failed": "bad"}.get(outcome, "warn")
    way = " \u2192 ".join(_text(document.get(key)) or "?" for key in ("from", "to"))
    facts = []
    epochs = [_text(document.get(key)) for key in ("epoch_before", "epoch")]
    if any(epochs):
        facts.append("epoch " + " \u2192 ".join(epoch for epoch in epochs if epoch))
    if start := _text(document.get("started_at")):
        facts.append(f"started at {start}")
    if operator := _text(document.get("operator")):
        facts.append(f"by {operator}")
    lines = [
        f'<h1>{_safe(title)}: {_safe(way)} <span class="badge {look}">{_safe(outcome)}</span></h1>',
        f'<p class="faint">{_safe(", ".join(facts))}</p>',
    ]
    if reason := _text(document.get("reason")):
        lines.append(f"<p>Reason: {_safe(reason)}</p>")
    return lines


def _error(document: t.Mapping[str, t.Any]) -> list[str]:
    error = _text(document.get("error"))
    if error:
        return ["<h2>Error</h2>", f"<pre>{_safe(error)}</pre>"]
    return ["<h2>Error</h2>", "<pre>It failed without saying why.</pre>"] if document.get("outcome") == "failed" else []


def _figures(document: t.Mapping[str, t.Any]) -> list[str]:
    notes = {
        "RTO": "time until the cell was open again"
        if document.get("kind") == "restore"
        else "time until a task through the edge succeeded again",
        "RPO": _text(_mapping(document.get("rpo")).get("text")) or "age of the newest write that was lost",
    }
    lines = ["<h2>Measured against the objectives</h2>", '<div class="figures">']
    for verdict in _mappings(document.get("verdicts")):
        name = _text(verdict.get("name"))
        word, look = {True: ("met", "good"), False: ("missed", "bad")}.get(verdict.get("met"), ("no verdict", "warn"))
        measured, target = number(verdict.get("measured")), number(verdict.get("target"))
        seen = "not measured" if measured is None else _seconds(measured)
        wanted = "no objective" if target is None else f"objective: at most {_seconds(target)}"
        lines += [
            f'<div class="figure">{_safe(name)} <span class="badge {look}">{word}</span><b>{seen}</b>',
            f'{_safe(wanted)}<br><span class="faint">{_safe(notes.get(name, ""))}</span></div>',
        ]
    lines.append("</div>")
    promised = [
        f"{name} {_seconds(seconds)}"
        for name, part in _mapping(_mapping(document.get("objectives")).get("components")).items()
        if (seconds := number(_mapping(part).get("rpo"))) is not None
    ]
    if promised:
        lines.append(f'<p class="faint">RPO objective of each component: {_safe(", ".join(promised))}</p>')
    return lines


def _refusals(document: t.Mapping[str, t.Any]) -> list[str]:
    refused = [gate for gate in _mappings(document.get("gates")) if _verdict(gate)[0] == "refused"]
    if not refused:
        return []
    lines = ["<h2>Refusals</h2>", "<ul>"]
    for gate in refused:
        text = f"{_gate_name(gate)}: seen {_text(gate.get('seen')) or '?'}, allowed {_text(gate.get('allowed')) or '?'}"
        override = _text(gate.get("override"))
        way = f" (override: <code>{_safe(override)}</code>)" if override else ""
        lines.append(f'<li><span class="bad">{_safe(text)}</span>{way}</li>')
    return [*lines, "</ul>"]


def _timeline(document: t.Mapping[str, t.Any]) -> list[str]:
    """The phases and below them the playbook's steps, on one axis of seconds since the start."""
    steps = _step_bars(_mappings(document.get("steps")))
    phases = _phase_bars(document, max([stripe.end for stripe in steps], default=0.0))
    bars = [*phases, *steps]
    if not bars:
        return []
    first = min(0.0, *(stripe.begin for stripe in bars))
    last = max(0.0, *(stripe.end for stripe in bars))
    gap = _tick(max(last - first, 0.1))
    low, high = math.floor(first / gap + 1e-9) * gap, math.ceil(last / gap - 1e-9) * gap
    high = high if high > low else low + gap
    scale = (_WIDTH - _LEFT - _RIGHT) / (high - low)

    drawn: list[str] = []
    top = 0
    for head, group in (("Phases", phases), ("Steps of the playbook", steps)):
        if group:
            drawn.append(f'<text class="head" x="0" y="{top + 15}">{head}</text>')
            top += _ROW
            for stripe in group:
                drawn.append(
                    _draw(stripe, top, _LEFT + (stripe.begin - low) * scale, (stripe.end - stripe.begin) * scale)
                )
                top += _ROW
            top += _ROW // 2
    axis = []
    for index in range(round((high - low) / gap) + 1):
        x = _LEFT + index * gap * scale
        axis += [
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{top}"/>',
            f'<text class="axis" x="{x:.1f}" y="{top + 15}" text-anchor="middle">{low + index * gap:.6g} s</text>',
        ]
    return [
        "<h2>Timeline</h2>",
        '<p class="faint">Seconds since the start.</p>',
        f'<div class="wide"><svg viewBox="0 0 {_WIDTH} {top + 22}" role="img" '
        'aria-label="Phases and steps over the seconds since the start">',
        *axis,
        *drawn,
        "</svg></div>",
    ]


def _phase_bars(document: t.Mapping[str, t.Any], last_step: float) -> list[_Bar]:
    phases = _mappings(document.get("phases"))
    known = [number(phase.get(key)) for phase in phases for key in ("begin", "end")]
    last = max([last_step, *(seconds for seconds in known if seconds is not None)])
    bars = []
    for phase in phases:
        begin, end = number(phase.get("begin")), number(phase.get("end"))
        if begin is None:
            continue
        # A phase without an end is the one in which the move broke off: it lasted until the last that is known.
        name, note = _text(phase.get("name")) or "?", _text(phase.get("note"))
        look = "failed" if end is None else "phase"
        end = max(begin, last if end is None else end)
        label = name
        if begin < -_DRAWN_BEFORE:
            # A home that was lost an hour ago would leave no room for the rest.
            label, begin = f"{name} (since {_seconds(-begin)} before)", -_DRAWN_BEFORE
        bars.append(_Bar(label, begin, max(begin, end), look, f"{label}: {note}" if note else label))
    return bars


def _draw(stripe: _Bar, top: int, left: float, width: float) -> str:
    width = max(width, _SMALLEST_BAR)
    label = stripe.label if len(stripe.label) <= _LABEL else stripe.label[: _LABEL - 1] + "\u2026"
    return (
        f"<g><title>{_safe(stripe.hint)}</title>"
        f'<text x="{_LEFT - 8}" y="{top + 14}" text-anchor="end">{_safe(label)}</text>'
        f'<rect class="{stripe.look}" x="{left:.1f}" y="{top + 4}" width="{width:.1f}" height="{_ROW - 7}" rx="2"/>'
        f'<text class="after" x="{left + width + 5:.1f}" y="{top + 14}">'
        f"{_seconds(stripe.end - stripe.begin)}</text></g>"
    )


def _tick(span: float) -> float:
    """The distance of marks on an axis: 1, 2 or 5 of a power of ten, so that there are at most ten of them."""
    power = 10.0 ** math.floor(math.log10(span / 10))
    for factor in (1, 2, 5):
        if span / (factor * power) <= 10:
            return factor * power
    return 10 * power


def _phase_table(document: t.Mapping[str, t.Any]) -> list[str]:
    rows = []
    for phase in _mappings(document.get("phases")):
        begin, end = number(phase.get("begin")), number(phase.get("end"))
        took = "did not end"
        if begin is None:
            took = "-"
        elif end is not None:
            took = _seconds(end - begin)
        rows.append(
            [
                _safe(phase.get("name")),
                "-" if begin is None else _seconds(begin),
                "-" if end is None else _seconds(end),
                took,
                _safe(phase.get("note")),
            ]
        )
    return _table("Phases", ("phase", "#begin", "#end", "#took", "note"), rows)


def _store_table(document: t.Mapping[str, t.Any]) -> list[str]:
    """What each store lost, against what its component may."""
    components = _mapping(_mapping(document.get("objectives")).get("components"))
    rows = []
    for store, one in _mapping(_mapping(document.get("rpo")).get("stores")).items():
        lost, target = number(_mapping(one).get("seconds")), number(_mapping(components.get(store)).get("rpo"))
        met = None if lost is None or target is None else lost <= target
        word, look = {True: ("met", "good"), False: ("missed", "bad")}.get(met, ("no verdict", "warn"))
        rows.append(
            [
                _safe(store),
                "not known" if lost is None else _seconds(lost),
                _safe(_mapping(one).get("markers")) or "-",
                "-" if target is None else _seconds(target),
                f'<span class="{look}">{word}</span>',
                _safe(_mapping(one).get("note")),
            ]
        )
    return _table("Lost, by store", ("store", "#seconds", "#markers", "#objective", "verdict", "note"), rows)


def _gate_table(document: t.Mapping[str, t.Any]) -> list[str]:
    rows = []
    for gate in _mappings(document.get("gates")):
        word, look = _verdict(gate)
        override = _text(gate.get("override"))
        overridden = "yes" if gate.get("overridden") else "no"
        rows.append(
            [
                _safe(_gate_name(gate)),
                f'<span class="{look}">{word}</span>',
                _safe(gate.get("seen")),
                _safe(gate.get("allowed")),
                f"{overridden} (<code>{_safe(override)}</code>)" if override else overridden,
            ]
        )
    return _table("Gates", ("gate", "verdict", "seen", "allowed", "overridden"), rows)


def _validation_table(document: t.Mapping[str, t.Any]) -> list[str]:
    """What the new home had, and what to do where it was not all."""
    rows = []
    for check in _mappings(_mapping(document.get("validation")).get("checks")):
        word, look = ("passed", "good") if check.get("passed") else ("failed", "bad")
        name, seen, expected = _gate_name(check), check.get("seen"), check.get("expected")
        remedy = _safe(check.get("remedy"))
        rows.append([_safe(name), f'<span class="{look}">{word}</span>', _safe(seen), _safe(expected), remedy])
    return _table("Validation", ("check", "verdict", "seen", "expected", "what to do"), rows)


def _verdict(gate: t.Mapping[str, t.Any]) -> tuple[str, str]:
    """What became of a gate, and how it looks."""
    if gate.get("passed"):
        return "passed", "good"
    if gate.get("overridden"):
        return "overridden", "warn"
    return ("not checked", "warn") if gate.get("passed") is None else ("refused", "bad")


def _gate_name(gate: t.Mapping[str, t.Any]) -> str:
    name, title = _text(gate.get("name")), _text(gate.get("title"))
    return f"{name}: {title}" if name and title else name or title or "?"


def _details(document: t.Mapping[str, t.Any]) -> list[str]:
    overrides = document.get("overrides")
    given = [_text(item) for item in overrides] if isinstance(overrides, (list, tuple)) else []
    rows = [
        ["lag before", _safe(_amount(_mapping(document.get("lag_before"))) or "not measured")],
        ["lost", _safe(_amount(_mapping(document.get("rpo"))) or "not measured")],
        ["approved by", _safe(document.get("approved_by") or "nobody had to")],
        ["overrides", _safe(", ".join(given) or "none")],
        ["verification task", _safe(_verified(_mapping(document.get("verified"))))],
    ]
    return _table("Details", ("what", "value"), rows)


def _verified(task: t.Mapping[str, t.Any]) -> str:
    if not task:
        return "none ran"
    times = [
        f"{word} {value:.0f} ms"
        for word, key in (("accepted after", "submit_ms"), ("answered after", "task_ms"))
        if (value := number(task.get(key))) is not None
    ]
    return ", ".join([_text(task.get("task_id")) or "?", *times])


def _amount(found: t.Mapping[str, t.Any]) -> str:
    volume, seconds = number(found.get("bytes")), number(found.get("seconds"))
    parts = [] if volume is None else [human_bytes(max(0, int(volume)))]
    parts += [] if seconds is None else [_seconds(seconds)]
    return ", ".join(parts)


def _versions(document: t.Mapping[str, t.Any]) -> list[str]:
    found = sorted(_mapping(document.get("versions")).items())
    return _table("Versions", ("component", "version"), [[_safe(name), _safe(version)] for name, version in found])


def _table(title: str, heads: t.Sequence[str], rows: t.Sequence[t.Sequence[str]]) -> list[str]:
    """A table whose cells are HTML already; a head that begins with # makes a column of numbers."""
    if not rows:
        return []
    looks = [' class="number"' if head.startswith("#") else "" for head in heads]
    lines = [f"<h2>{title}</h2>", '<div class="wide"><table>']
    for tag, row in (("th", [head.lstrip("#") for head in heads]), *(("td", row) for row in rows)):
        cells = (f"<{tag}{look}>{cell}</{tag}>" for cell, look in zip(row, looks, strict=True))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return [*lines, "</table></div>"]


# ---- values


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if abs(value) < 10 else f"{value:.1f} s"


def _mapping(value: t.Any) -> t.Mapping[str, t.Any]:
    return value if isinstance(value, dict) else {}


def _mappings(value: t.Any) -> list[t.Mapping[str, t.Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, (list, tuple)) else []


def _text(value: t.Any) -> str:
    """Whatever somebody put there, as text; nothing for None."""
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)


def _safe(value: t.Any) -> str:
    """The same for a place in HTML, also within a quoted attribute."""
    return html.escape(_text(value), quote=True)


#: For other reports.
table = _table
text_of = _text
