# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Saves the rows that a rewind would discard, for an operator to reconcile.

Each host of a home notes once a second how far its WAL is. When another region has taken the cell over, the point at
which its timeline left ours is known; what was committed here after the last note before that point is written out.
Rows that were deleted leave nothing to find. Since notes are a second apart, the first rows may be ones that the new
home has as well.
"""

from __future__ import annotations

import json
import os
import pathlib
import time
import typing as t
from dataclasses import asdict

from shannon.resilience.errors import ResilienceError
from shannon.resilience.markers import COLLECTION
from shannon.services.common import logs

from .marker_stores import newest_here
from .settings import CellSettings, Settings
from .sql import ask

_log = logs.get(__name__)
#: Notes that are kept: an hour of them.
NOTES = 3600
#: Seconds by which the clocks of a region's hosts may differ.
CLOCKS = 1.0
#: How far back is looked when no note says when the point was passed.
WITHOUT_NOTE = 3600.0


class Notes:
    """When this host's WAL was how far, on disk, so that a restart of the host forgets nothing."""

    def __init__(self, path: str | pathlib.Path) -> None:
        self._path = pathlib.Path(path)
        self._since_trim = 0
        self._last = -1

    def add(self, lsn: int, at: float | None = None) -> None:
        """Note a position in bytes; the same one again is not noted."""
        if lsn <= 0 or lsn == self._last:
            return
        self._last = lsn
        try:
            with self._path.open("a", encoding="ascii") as handle:
                handle.write(f"{time.time() if at is None else at:.3f} {lsn}\n")
            self._since_trim += 1
            if self._since_trim > NOTES:
                lines = self._path.read_text(encoding="ascii", errors="replace").splitlines(keepends=True)[-NOTES:]
                fresh = self._path.with_suffix(".new")
                fresh.write_text("".join(lines), encoding="ascii", errors="replace")
                os.replace(fresh, self._path)
                self._since_trim = 0
        except OSError as exc:
            _log.error("positions can't be noted in %s: %s", self._path, exc)

    def before(self, lsn: int) -> float | None:
        """The time of the last note at or before a position; None when there is none."""
        found = None
        try:
            text = self._path.read_text(encoding="ascii", errors="replace")
        except OSError:
            return None
        # A host that lost its power may have cut the last line short, in the middle of a number even.
        for line in text[: text.rfind("\n") + 1].splitlines():
            at, _space, there = line.partition(" ")
            try:
                if int(there) <= lsn:
                    found = float(at)
            except ValueError:
                continue  # damaged
        return found


class Diverged:
    """Writes out what was committed after a moment."""

    def __init__(self, settings: Settings, cell: CellSettings, notes: Notes) -> None:
        self._settings = settings
        self._cell = cell
        self._notes = notes

    def save(self, epoch: int, switch_lsn: int, end: int) -> dict[str, t.Any]:
        """Write rows that the new home may not have to a file of their own.

        :param epoch: the epoch that superseded this region.
        :param switch_lsn: where the new home's timeline left this one, in bytes; 0 when it is not known.
        :param end: the end of this region's WAL, in bytes.
        :returns: C(host), C(path), C(rows), C(bytes) of WAL that diverged, C(since), C(marker), the last one that was
            written here; no rows and no path when nothing diverged.
        :raises ResilienceError: PostgreSQL can't be read, or the file can't be written; nothing may be discarded then.
        """
        facts: dict[str, t.Any] = {
            "host": self._settings.host,
            "epoch": epoch,
            "rows": 0,
            "path": "",
            "switch_lsn": switch_lsn,
            "end_lsn": end,
            "bytes": max(0, end - switch_lsn) if switch_lsn else 0,
            "at": time.time(),
        }
        if switch_lsn and end <= switch_lsn:
            return facts
        marker = newest_here(self._settings, self._cell)
        facts["marker"] = asdict(marker) if marker else None
        noted = self._notes.before(switch_lsn) if switch_lsn else None
        if noted is None:
            # An hour before the last thing that this region committed, however long ago that was.
            (last,) = self._ask("SELECT extract(epoch FROM coalesce(pg_last_xact_replay_timestamp(), now()))") or [""]
            noted = float(last or time.time()) - WITHOUT_NOTE
        since = noted - CLOCKS
        folder = pathlib.Path(self._settings.state_directory) / "diverged" / f"{self._cell.name}-epoch{epoch}"
        path = folder / "rows.jsonl"
        fresh = path.with_suffix(".new")
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as handle:
                for table in self._ask(
                    "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables"
                    " WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
                    " AND tablename <> 'dr_markers' ORDER BY 1"
                ):
                    # Markers are nobody's data, and there always are some.
                    theirs = f" AND t.collection <> '{COLLECTION}'" if table == "public.vector_log" else ""
                    for row in self._ask(
                        f"SELECT json_build_object('table', '{table}', 'row', to_jsonb(t),"
                        f" 'committed_at', pg_xact_commit_timestamp(t.xmin)) FROM {table} AS t"
                        f" WHERE pg_xact_commit_timestamp(t.xmin) >= to_timestamp({since:.3f}){theirs}"
                        " ORDER BY pg_xact_commit_timestamp(t.xmin)"
                    ):
                        handle.write(row + "\n")
                        facts["rows"] += 1
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(fresh, path)
            summary = folder / "summary.json"
            facts.update(path=str(path), since=since)
            summary.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        except OSError as exc:
            raise ResilienceError(f"diverged rows can't be written to {path}: {exc}") from exc
        return facts

    def _ask(self, statement: str) -> list[str]:
        return ask(statement, self._settings.database, self._cell.postgres)
