# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a cell's home has what it should: schema, indexes, rows, vectors, and services that are ready.

A list of checks, each of which says what it saw, what it expected, and what to do. Pure: C(cell_validator) asks.
"""

from __future__ import annotations

import re
import typing as t
from dataclasses import asdict, dataclass, field

from .errors import ResilienceError
from .migrations import parse

#: A collection may have lost so much of its points between two looks: deletions go through vector_log as well.
POINTS_DELETED = 0.01
#: Tables from which the system itself deletes now and then, and rows of them that may be gone: what was deleted by the
#: old home after the standby was counted, and came over, nobody counted.
PRUNED = ("public.vector_log", "public.sessions", "public.session_messages")
PRUNED_ROWS = 1000
#: As much of a problem's list as a line can bear.
SHOWN = 5

_CREATE_INDEX = re.compile(
    r"^\s*CREATE\s+(?:UNIQUE\s+)?INDEX\s+(?:CONCURRENTLY\s+)?(?:IF\s+NOT\s+EXISTS\s+)?\"?(\w+)\"?\s+ON\b", re.I | re.M
)
_DROP_INDEX = re.compile(
    r"^\s*DROP\s+INDEX\s+(?:CONCURRENTLY\s+)?(?:IF\s+EXISTS\s+)?([\w\s.,\"]+?)\s*(?:CASCADE|RESTRICT)?\s*;", re.I | re.M
)
_COMMENT = re.compile(r"--[^\n]*")

Answer: t.TypeAlias = "t.Mapping[str, t.Any] | ResilienceError"


@dataclass(frozen=True)
class Expected:
    """What the checkout that validates would deploy. What is empty is not checked.

    :ivar migrations: file name to text.
    :ivar collections: collection to its payload indexes, field to kind.
    """

    migrations: t.Mapping[str, str] = field(default_factory=dict)
    collections: t.Mapping[str, t.Mapping[str, str]] = field(default_factory=dict)

    def versions(self) -> dict[int, tuple[str, str]]:
        """Version to name and checksum, as the database keeps them."""
        return {one.version: (one.name, one.checksum) for one in parse(self.migrations)}

    def indexes(self) -> set[str]:
        """Indexes that the migrations create by name, and do not drop again."""
        found: set[str] = set()
        for one in parse(self.migrations):
            text = _COMMENT.sub("", one.sql)
            found |= {f"public.{name}" for name in _CREATE_INDEX.findall(text)}
            for names in _DROP_INDEX.findall(text):
                found -= {"public." + name.strip().strip('"').removeprefix("public.") for name in names.split(",")}
        return found


@dataclass(frozen=True)
class Before:
    """What was known of a region before it became the home; empty when nobody looked.

    :ivar facts: what an agent said of its follower.
    :ivar points: collection to number of points.
    """

    facts: t.Mapping[str, t.Any] = field(default_factory=dict)
    points: t.Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """What a home says.

    :ivar facts: each primary to what its agent says of it, or the error; and each host that was silent to its error.
    :ivar collections: collection to C({points, schema, replicas, replicas_active}), or the error that stands for all.
    :ivar services: service and host, as a text, to an empty text when it is ready, else to why not.
    """

    region: str
    cell: str
    facts: t.Mapping[str, Answer]
    collections: t.Mapping[str, Answer] | ResilienceError
    services: t.Mapping[str, str]

    def primary(self) -> t.Mapping[str, t.Any]:
        """What was said of the primary; empty when nobody said so."""
        primaries = [it for it in self.facts.values() if isinstance(it, dict) and not it["in_recovery"]]
        return primaries[0] if len(primaries) == 1 else {}


@dataclass(frozen=True)
class Check:
    """What one check found."""

    name: str
    title: str
    passed: bool
    seen: str
    expected: str
    remedy: str = ""

    def as_dict(self) -> dict[str, t.Any]:
        return asdict(self)

    def line(self) -> str:
        """The check as a sentence, for an error."""
        return f"{self.title}: no. Seen: {self.seen}. Expected: {self.expected}. {self.remedy}".rstrip()


def validate(expected: Expected, seen: Seen, before: Before | None = None) -> list[Check]:
    """All checks on a home."""
    known = before or Before()
    checks = (
        _primary(seen),
        _schema(expected, seen),
        _indexes(expected, seen, known),
        _rows(seen, known),
        _collections(expected, seen, known),
        _services(seen),
    )
    return [check for check in checks if check is not None]


def document(checks: t.Sequence[Check]) -> dict[str, t.Any]:
    """What a report and a module tell of the checks."""
    return {"passed": all(check.passed for check in checks), "checks": [check.as_dict() for check in checks]}


def _primary(seen: Seen) -> Check:
    well = {host: it for host, it in seen.facts.items() if isinstance(it, dict)}
    primaries = sorted(host for host, it in well.items() if not it["in_recovery"])
    silent = [str(it) for it in seen.facts.values() if isinstance(it, ResilienceError)]
    words = f"primary: {', '.join(primaries) or 'none'}"
    return Check(
        "primary",
        "One primary says what it has",
        len(primaries) == 1,
        words + (f" ({_few(silent)})" if silent and len(primaries) != 1 else ""),
        f"one primary of cell {seen.cell} in region {seen.region}",
        f"Look at: systemctl status shannon-region-agent patroni@{seen.cell} on the hosts of region {seen.region}. An "
        "agent that does not know /facts is an older one: run site.yml with --tags services,region_agent.",
    )


def _schema(expected: Expected, seen: Seen) -> Check | None:
    facts, wanted = seen.primary(), expected.versions()
    if not facts or not wanted:
        return None
    applied = {int(version): (str(it[0]), str(it[1])) for version, it in facts["migrations"].items()}
    problems = [f"{name} is not applied" for version, (name, _sum) in sorted(wanted.items()) if version not in applied]
    for version, (name, checksum) in sorted(applied.items()):
        if version not in wanted:
            problems.append(f"{name} is not in this checkout")
        elif wanted[version][1] != checksum:
            problems.append(f"{name} is another text than this checkout's")
    newest = applied[max(applied)][0] if applied else "none"
    return Check(
        "schema",
        "The schema has its version",
        not problems,
        _few(problems) or f"version {newest}",
        f"version {wanted[max(wanted)][0]}",
        "" if not problems else "Run site.yml with --tags postgres from the checkout that was deployed last.",
    )


def _indexes(expected: Expected, seen: Seen, before: Before) -> Check | None:
    facts = seen.primary()
    if not facts:
        return None
    there: t.Mapping[str, bool] = facts["indexes"]
    invalid = sorted(name for name, valid in there.items() if not valid)
    wanted = expected.indexes() | set(before.facts.get("indexes", ()))
    missing = sorted(wanted - set(there))
    problems = [f"{name} is not valid" for name in invalid] + [f"{name} is missing" for name in missing]
    return Check(
        "indexes",
        "All indexes are there and valid",
        not problems,
        _few(problems) or f"{len(there)} indexes, all valid",
        f"{len(wanted | set(there))} valid indexes",
        ""
        if not problems
        else "On the primary: REINDEX INDEX CONCURRENTLY for one that is not valid; make a missing one anew with the "
        "statement of roles/postgres/files/migrations that names it.",
    )


def _rows(seen: Seen, before: Before) -> Check | None:
    facts = seen.primary()
    if not facts:
        return None
    tables: t.Mapping[str, t.Mapping[str, t.Any]] = facts["tables"]
    total = sum(max(0, int(table["rows"])) for table in tables.values())
    now = f"{total} rows in {len(tables)} tables"
    known: t.Mapping[str, t.Mapping[str, t.Any]] = before.facts.get("tables", {})
    if not known:
        return Check("rows", "No rows are missing", True, now, "nothing to compare with: nobody counted before")
    same_host = before.facts.get("host") == facts.get("host")
    problems = []
    for name, old in sorted(known.items()):
        table = tables.get(name)
        if table is None:
            problems.append(f"the table {name} is gone")
        elif old["exact"] and table["exact"]:
            deleted = int(table["deleted"] or 0) - (int(old["deleted"] or 0) if same_host else 0)
            pruned = PRUNED_ROWS if name in PRUNED else 0
            if int(table["rows"]) + max(0, deleted) + pruned < int(old["rows"]):
                problems.append(f"{name}: {table['rows']}, and before {old['rows']}")
    counted = sum(max(0, int(table["rows"])) for table in known.values())
    estimated = sorted(name for name, table in known.items() if not table["exact"])
    return Check(
        "rows",
        "No rows are missing",
        not problems,
        _few(problems) or now + (f" ({_few(estimated)} estimated only)" if estimated else ""),
        f"at least the {counted} rows in {len(known)} tables that {before.facts.get('host')} had before",
        ""
        if not problems
        else "They were deleted by somebody at that moment, or lost: compare with the region that was left (rejoin.yml "
        "shows what it saved) and with a backup before anything is overwritten.",
    )


def _collections(expected: Expected, seen: Seen, before: Before) -> Check | None:
    if not expected.collections:
        return None
    found = seen.collections
    if isinstance(found, ResilienceError):
        problems, total = [str(found)], 0
    else:
        problems = []
        for name, indexes in sorted(expected.collections.items()):
            problems += _collection(name, indexes, found.get(name), before.points.get(name))
        total = sum(int(it["points"]) for it in found.values() if not isinstance(it, ResilienceError))
    return Check(
        "collections",
        "All vectors can be searched",
        not problems,
        _few(problems) or f"{total} points in {len(expected.collections)} collections",
        f"{len(expected.collections)} collections with their payload indexes, all copies active, points as before",
        ""
        if not problems
        else f"Run site.yml with --tags qdrant, which makes what is missing; look at journalctl -u qdrant in region "
        f"{seen.region} for copies, and at the vector indexer's lag in status.yml for points: it applies the rest.",
    )


def _collection(name: str, indexes: t.Mapping[str, str], found: Answer | None, points: int | None) -> list[str]:
    if found is None:
        return [f"{name} is missing"]
    if isinstance(found, ResilienceError):
        return [f"{name}: {found}"]
    problems = []
    for one, kind in indexes.items():
        there = found["schema"].get(one)
        if there is None:
            problems.append(f"{name} has no payload index {one}")
        elif there != kind:
            problems.append(f"{name}: the payload index {one} is of type {there}, not {kind}")
    if found["replicas_active"] < found["replicas"]:
        problems.append(f"{name}: {found['replicas_active']} of {found['replicas']} copies are active")
    if points is not None and found["points"] < points * (1 - POINTS_DELETED):
        problems.append(f"{name}: {found['points']} points, and before {points}")
    return problems


def _services(seen: Seen) -> Check:
    wrong = [f"{name}: {why}" for name, why in sorted(seen.services.items()) if why]
    return Check(
        "services",
        "All services of the new home are ready",
        not wrong,
        _few(wrong) or f"{len(seen.services)} ready",
        f"{len(seen.services)} services that are ready",
        "" if not wrong else "Look at journalctl -u 'shannon-*' on that host; the others serve meanwhile.",
    )


def _few(texts: t.Sequence[str]) -> str:
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return "; ".join(texts[:SHOWN]) + more


def failures(validation: t.Mapping[str, t.Any]) -> list[str]:
    """A sentence for each check that failed, of what :func:`document` made."""
    return [Check(**check).line() for check in validation.get("checks", ()) if not check["passed"]]
