# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A move as lines for a terminal: what became of it, what it cost, and each rule's verdict where that matters."""

from __future__ import annotations

import typing as t


def render(move: t.Mapping[str, t.Any]) -> list[str]:
    """Lines about one move.

    :param move: as the module C(cell_move) returns it.
    """
    lines = [_headline(move)]
    gates = move.get("gates") or []
    planned = move["outcome"] == "planned"
    for gate in gates:
        if planned or not gate["passed"]:
            mark = "ok " if gate["passed"] else "OVERRIDDEN" if gate["overridden"] else "NO "
            lines.append(f"  {mark} {gate['title']}: {gate['seen']} (allowed: {gate['allowed']})")
            if not gate["passed"] and gate["override"] and not gate["overridden"]:
                lines.append(f"      to do it nevertheless: -e {move['kind']}_{gate['override']}=true")
    if planned:
        refused = [gate for gate in gates if not gate["passed"] and not gate["overridden"]]
        there = move.get("from") == move["to"]
        would = "it is there already" if there else "it would be refused" if refused else "it would be done"
        lines.append(f"  {would}; nothing was changed")
    phases = move.get("phases") or []
    if phases and not planned:
        parts = [f"{one['name']} {one['end'] - one['begin']:.1f}" for one in phases]
        lines.append(f"  seconds: {', '.join(parts)}")
        lines += [f"  {one['name']}: {one['note']}" for one in phases if one.get("note")]
    lag = move.get("lag_before") or {}
    if lag.get("bytes") is not None:
        seconds = lag.get("seconds")
        lines.append(f"  lag before: {lag['bytes']} bytes" + ("" if seconds is None else f", {seconds:.1f} s"))
    if move.get("rto_seconds") is not None:
        lines.append(f"  RTO: {move['rto_seconds']:.1f} s until the first task was taken through the edge")
    rpo = move.get("rpo") or {}
    lost = [_lost(store, one) for store, one in (rpo.get("stores") or {}).items()]
    if lost:
        lines.append(f"  lost, by the markers that arrived (known to a second): {', '.join(lost)}")
    if move.get("overrides"):
        lines.append(f"  overridden: {', '.join(move['overrides'])}")
    if move.get("error"):
        lines += [f"  {line}" for line in str(move["error"]).splitlines()]
    return lines


def _lost(store: str, one: t.Mapping[str, t.Any]) -> str:
    note = f" ({one['note']})" if one.get("note") else ""
    if one.get("seconds") is None:
        return f"{store} not known{note}"
    return f"{store} {one['seconds']:.1f} s, {one['markers']} markers{note}"


def _headline(move: t.Mapping[str, t.Any]) -> str:
    words = {"done": "done", "refused": "REFUSED", "failed": "FAILED", "planned": "plan"}
    home = move.get("from") or "?"
    return f"cell {move['cell']}: {move['kind']} from {home} to {move['to']}: {words[move['outcome']]}" + (
        f", epoch {move['epoch']}" if move.get("epoch") else ""
    )
