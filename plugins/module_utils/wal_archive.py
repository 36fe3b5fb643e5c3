# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How old the newest archived WAL of a repository is: what would be lost if nothing but that repository was left.

Two things are needed for it: how far the repository's WAL goes without a gap, and how far the cell's primary has
written. pg_stat_archiver does not tell one repository from another. When the last segment came in is not enough: a
repository that catches up takes in what was written long ago, and an idle cell has nothing to send.
"""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass, field

from .errors import ResilienceError
from .postgres_engine import SEGMENT, Reach, segment_position

#: Milliseconds that each of the primary's answers may take.
STATEMENT_TIMEOUT = 5000
_POSITION = """
SELECT pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()),
       (pg_catalog.pg_current_wal_lsn() - '0/0'::pg_lsn)::int8,
       (SELECT setting::float8 FROM pg_catalog.pg_settings WHERE name = 'archive_timeout')
"""
_FILES = """
SELECT name, extract(epoch FROM pg_catalog.clock_timestamp() - modification)::float8 FROM pg_catalog.pg_ls_waldir()
"""


@dataclass(frozen=True)
class Written:
    """How far a cell's primary has written.

    :ivar timeline: the one that it writes.
    :ivar position: in bytes.
    :ivar archive_timeout: seconds after which PostgreSQL closes a segment that holds anything; 0: it does not.
    :ivar files: the segments that it still has, by name: seconds since each was last written.
    """

    timeline: int
    position: int
    archive_timeout: float = 0.0
    files: t.Mapping[str, float] = field(default_factory=dict)

    def age_of(self, number: int) -> float | None:
        """Seconds since the segment of that number was last written, which is when it was closed; None: it is gone.

        Where timelines part two segments have one number. The newer one is in the way that was taken.
        """
        found = []
        for name, age in self.files.items():
            timeline, position = segment_position(name)
            if position // SEGMENT == number and timeline <= self.timeline:
                found.append((timeline, max(0.0, age)))
        return max(found)[1] if found else None


@dataclass(frozen=True)
class Age:
    """What a repository lacks.

    :ivar seconds: how old the oldest write may be that it lacks; 0 when it lacks none.
    :ivar behind: bytes of WAL that it lacks; None when nobody could say how far the cell has written.
    """

    seconds: float
    behind: int | None


def ask(connection: t.Any) -> Written:
    """What a primary says of itself, as a member of pg_monitor. The connection's errors come through.

    :param connection: psycopg's.
    :raises ResilienceError: it said something else than a primary does.
    """
    connection.execute(f"SET statement_timeout = {STATEMENT_TIMEOUT}")
    row = connection.execute(_POSITION).fetchone()
    if row is None or not re.fullmatch("[0-9A-F]{24}", str(row[0])):
        raise ResilienceError(f"the primary should say how far it has written, and said {row!r}")
    files = {str(name): float(age) for name, age in connection.execute(_FILES) if re.fullmatch("[0-9A-F]{24}", name)}
    return Written(segment_position(str(row[0]))[0], int(row[1]), float(row[2] or 0.0), files)


def age(reached: Reach, written: Written | None, now: float) -> Age:
    """Compare them.

    :param written: what the primary said before the repository was looked at; None when nobody did.
    :param now: seconds since 1970, by the clock of the repository's host.
    """
    arrived = max(0.0, now - reached.came_in_at)
    if written is None or written.timeline != reached.timeline:
        # Of another history than the repository's nothing has come in at all, so positions say nothing.
        return Age(arrived, None)
    behind = max(0, written.position - reached.end_lsn)
    first = reached.end_lsn // SEGMENT
    if not behind:
        return Age(0.0, 0)
    # When what is missing began: as the segment before it was closed. The segment may be gone; then it came in at once.
    since = written.age_of(first - 1)
    since = arrived if since is None else since
    if written.archive_timeout:
        # An idle cell closes nothing. What it wrote at last is in a segment that was closed, or will be, so soon after.
        closed = 0.0 if written.position // SEGMENT == first else written.age_of(first)
        if closed is not None:
            since = min(since, closed + written.archive_timeout)
    return Age(since, behind)
