# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What cell_info found, as text for a terminal of 100 columns."""

from __future__ import annotations

import typing as t

from .backup_records import age_in_words

WIDTH = 100
#: Moves that the table shows; all of them are in the JSON.
MOVES = 5
_COLUMNS = (("region", 7), ("component", 9), ("member", 14), ("role", 14), ("state", 11), ("timeline", 8), ("lag", 16))


def render(info: t.Mapping[str, t.Any]) -> str:
    """The status as lines of at most WIDTH characters.

    :param info: what C(cell_info) returns; its RETURN section gives the shape.
    """
    lines: list[str] = []
    for name, cell in info["cells"].items():
        known = "" if cell["in_registry"] else " (the registry does not say so: it does not know this cell)"
        verdict = "healthy" if cell["healthy"] else "NOT HEALTHY"
        lines.append(
            _clip(f"cell {name}: home {cell['home']}, epoch {cell['epoch']}, state {cell['state']}, {verdict}{known}")
        )
        lines.append(_row([title for title, _width in _COLUMNS]))
        lines.append("-" * WIDTH)
        for component in ("postgres", "redis", "qdrant"):
            for region, part in cell[component].items():
                lines += [_member_row(region, component, member) for member in part["members"]]
        for region, part in cell["qdrant"].items():
            lines.append(_clip(f"vectors in {region}: {_collections(part['collections'])}{_indexer(part)}"))
        lines += [_clip(f"! {problem}") for problem in cell["problems"]]
        lines += [_clip(_move(move)) for move in cell.get("moves", [])[-MOVES:]]
        lines.append("")
    if "backups" in info:
        lines += [*_backups(info["backups"]), ""]
    lines.append(_clip(_registry_line(info["registry"])))
    lines.append(_clip(_certificate_line(info["certificate"])))
    lines.append(_clip(f"asked from {info['probed_from']} at {info['at']}, in {info['seconds']:.1f} s"))
    return "\n".join(lines)


def _backups(backups: t.Mapping[str, t.Any]) -> list[str]:
    """A row per kind, and in it each region's state; what an operator should look at below."""
    if not backups["enabled"]:
        return ["backups: none, the inventory has no group backup_repository"]
    if backups["error"]:
        return [_clip(f"backups: not known: {backups['error']}")]
    lines = ["backup    cell     region  state      age       allowed   verified  size", "-" * WIDTH]
    for line in backups["kinds"]:
        mark = {"good": "", "unverified": "", "missing": "!"}.get(line["state"], "!")
        lines.append(
            _clip(
                f"{line['kind']:<9} {line['cell']:<8} {line['region']:<7} {mark + line['state']:<10} "
                f"{age_in_words(line['age']):<9} {age_in_words(line['rpo']):<9} "
                f"{age_in_words(line['verified_age']):<9} {human_bytes(line['bytes']) if line['bytes'] else '-'}"
            ).rstrip()
        )
    return lines + [_clip(f"! {warning}") for warning in backups["warnings"]]


def _move(move: t.Mapping[str, t.Any]) -> str:
    overridden = f", overridden: {', '.join(move['overrides'])}" if move["overrides"] else ""
    return (
        f"moved {move['at'][:19]}Z {move['previous_home']} -> {move['home']}, epoch {move['epoch']}, by "
        f"{move['operator']}: {move['reason']}{overridden}"
    )


def human_bytes(count: int) -> str:
    """A byte count in the largest unit that leaves a number of at least one: C(512 B), C(1.5 MB)."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TB"


def _member_row(region: str, component: str, member: t.Mapping[str, t.Any]) -> str:
    marks = [mark for mark in ("synchronous", "pending_restart") if member.get(mark)]
    state = member["state"] if member["healthy"] else (member["state"] or "dead")
    notes = " ".join({"synchronous": "sync", "pending_restart": "restart!"}[mark] for mark in marks)
    cells = [
        region,
        component,
        member["name"],
        member["role"] or "-",
        state,
        str(member.get("timeline") or "-"),
        _lag(member),
    ]
    row = _row(cells)
    return _clip(f"{row} {notes}".rstrip() if member["healthy"] else f"{row} {member['error']}".rstrip())


def _lag(member: t.Mapping[str, t.Any]) -> str:
    if member.get("lag_bytes") is None:
        return "-"
    seconds = member.get("lag_seconds")
    amount = human_bytes(member["lag_bytes"])
    if member["lag_bytes"] == 0:
        return "0"
    return amount if seconds is None else f"{amount}, {seconds:.1f} s"


def _collections(collections: t.Mapping[str, t.Mapping[str, t.Any]]) -> str:
    if not collections:
        return "no answer"
    points = sum(found["points"] or 0 for found in collections.values())
    active = sum(found["replicas_active"] for found in collections.values())
    total = sum(found["replicas"] for found in collections.values())
    return f"{len(collections)} collections, {points} points, {active} of {total} replicas active"


def _indexer(part: t.Mapping[str, t.Any]) -> str:
    indexer = part.get("indexer")
    if not indexer:
        return ""
    if not indexer["host"] or indexer["lag_rows"] is None:
        return ", indexer: no answer"
    seconds = indexer["lag_seconds"] or 0.0
    behind = f"{indexer['lag_rows']} rows, {seconds:.1f} s" if indexer["lag_rows"] else "0"
    return f", indexer lag {behind}"


def _registry_line(registry: t.Mapping[str, t.Any]) -> str:
    members = registry["members"]
    answering = [member["name"] for member in members if member["healthy"]]
    quorum = "quorum" if registry["quorum"] else "NO QUORUM"
    dead = [member["name"] for member in members if not member["healthy"]]
    silent = f"; no answer from {', '.join(dead)}" if dead else ""
    return f"registry: {quorum}, {len(answering)} of {len(members)} members, leader {registry['leader'] or '-'}{silent}"


def _certificate_line(certificate: t.Mapping[str, t.Any] | None) -> str:
    if not certificate:
        return "certificates: none seen"
    return (
        f"certificates: the first to expire is {certificate['host']}'s, on {certificate['not_after'][:10]} "
        f"({certificate['days']} days)"
    )


def _row(cells: t.Sequence[str]) -> str:
    return " ".join(f"{cell[:width]:<{width}}" for cell, (_title, width) in zip(cells, _COLUMNS, strict=True)).rstrip()


def _clip(line: str) -> str:
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."
