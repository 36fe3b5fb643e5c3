# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every physical backup of PostgreSQL has, whatever program makes it: backups, an archive of WAL, points to go to.

An engine (pgBackRest is the one that is built in) says what its repository holds; whether a wanted point can be reached
from that, and from which backup, is decided here, before anything is changed.
"""

from __future__ import annotations

import datetime
import re
import typing as t
from dataclasses import dataclass, field, replace

from .errors import ResilienceError

FULL = "full"
DIFF = "diff"
INCR = "incr"
KINDS = (FULL, DIFF, INCR)

LATEST = "latest"
TIME = "time"
LSN = "lsn"
NAME = "name"
BACKUP = "backup"
TARGETS = (LATEST, TIME, LSN, NAME, BACKUP)

#: Bytes of a WAL segment. The clusters of role postgres have initdb's default.
SEGMENT = 16 * 1024 * 1024
_LSN = re.compile(r"^[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}$")
_SEGMENT_NAME = re.compile(r"^[0-9A-F]{24}$")


def parse_lsn(text: str) -> int:
    """C(16/B374D848) as a number of bytes.

    :raises ResilienceError: it is no such thing.
    """
    if not _LSN.match(text):
        raise ResilienceError(
            f"{text!r} is no position in the WAL: expected two hexadecimal numbers, as in 16/B374D848"
        )
    high, _slash, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


def format_lsn(position: int) -> str:
    """A number of bytes as PostgreSQL writes it."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def parse_time(text: str) -> float:
    """A point in time as seconds since 1970; one without a time zone is UTC.

    :raises ResilienceError: it is no such thing.
    """
    wanted = text.strip()
    if wanted.endswith(("Z", "z")):
        wanted = wanted[:-1] + "+00:00"
    # PostgreSQL's +00 is spelled out for Python 3.10.
    wanted = re.sub(r"([+-]\d\d)$", r"\1:00", wanted) if re.search(r"\d\d:\d\d.*[+-]\d\d$", wanted) else wanted
    # Python 3.10 takes three or six digits of a second's fraction only.
    wanted = re.sub(r"\.(\d+)", lambda match: "." + match[1][:6].ljust(6, "0"), wanted)
    try:
        moment = datetime.datetime.fromisoformat(wanted)
    except ValueError:
        raise ResilienceError(f"{text!r} is no point in time: expected something like 2026-01-31 12:00:00+00") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.timezone.utc)
    return moment.timestamp()


def format_time(seconds: float) -> str:
    """Seconds since 1970 as PostgreSQL and people read them, in UTC."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f").rstrip("0").rstrip(".") + "+00"


def segment_position(name: str) -> tuple[int, int]:
    """Timeline and first byte of a WAL segment, by its name."""
    if not _SEGMENT_NAME.match(name):
        raise ResilienceError(f"{name!r} is no name of a WAL segment")
    return int(name[:8], 16), (int(name[8:16], 16) << 32) + int(name[16:], 16) * SEGMENT


def segment_name(timeline: int, position: int) -> str:
    """Name of the segment that holds a byte."""
    return f"{timeline:08X}{position >> 32:08X}{(position & 0xFFFFFFFF) // SEGMENT:08X}"


@dataclass(frozen=True)
class BackupInfo:
    """One backup in a repository."""

    label: str
    kind: str
    started_at: float
    ended_at: float
    start_lsn: int
    stop_lsn: int
    timeline: int
    size: int = 0
    repo_size: int = 0
    prior: str = ""
    error: bool = False


@dataclass(frozen=True)
class ArchiveRange:
    """WAL of one timeline without a gap. C(end_lsn) is the first byte that is not there any more."""

    timeline: int
    first: str
    last: str
    start_lsn: int
    end_lsn: int
    ended_at: float


@dataclass(frozen=True)
class RepositoryInfo:
    """What a repository holds of one cell.

    :param backups: the oldest first.
    :param ranges: by timeline and position.
    :param branches: timeline to the one it left, and where.
    """

    backups: tuple[BackupInfo, ...] = ()
    ranges: tuple[ArchiveRange, ...] = ()
    branches: t.Mapping[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def newest(self) -> BackupInfo | None:
        return next((backup for backup in reversed(self.backups) if not backup.error), None)

    @property
    def archive_ended_at(self) -> float:
        """When the last segment came in."""
        return max((part.ended_at for part in self.ranges), default=0.0)

    @property
    def timelines(self) -> list[int]:
        known = {part.timeline for part in self.ranges} | {backup.timeline for backup in self.backups}
        return sorted(known | set(self.branches))


@dataclass(frozen=True)
class Reach:
    """How far a restore to the latest would get.

    :param timeline: the one that it would end on.
    :param end_lsn: the first byte that the repository lacks.
    :param segment: the name of the last segment before that.
    :param came_in_at: when that one came in, in seconds since 1970.
    """

    timeline: int
    end_lsn: int
    segment: str
    came_in_at: float


@dataclass(frozen=True)
class RestoreTarget:
    """Where to go.

    :param kind: one of TARGETS; C(backup) is the end of a backup, the earliest point that it can give.
    :param value: time, position, name or label; nothing for C(latest).
    :param timeline: C(latest), or the number of one that was left, to reach what a restore or a failover cut off.
    :param exclusive: stop before what stands at the target, not after.
    :param label: the backup to start from; empty means the newest that can do it.
    """

    kind: str = LATEST
    value: str = ""
    timeline: str = "latest"
    exclusive: bool = False
    label: str = ""

    def __post_init__(self) -> None:
        if self.kind not in TARGETS:
            raise ResilienceError(f"a restore goes to one of {', '.join(TARGETS)}, not to {self.kind!r}")
        if self.kind != LATEST and not self.value:
            raise ResilienceError(f"a restore to a {self.kind} needs to be told which one")
        if self.kind == LSN:
            parse_lsn(self.value)
        if self.kind == TIME:
            parse_time(self.value)
        if self.timeline != "latest" and not self.timeline.isdigit():
            raise ResilienceError(f"the timeline {self.timeline!r} is neither 'latest' nor a number")

    @classmethod
    def parse(cls, text: str, timeline: str = "latest", label: str = "") -> RestoreTarget:
        """C(latest), C(time:...), C(lsn:...), C(name:...), C(backup:...), or a bare point in time."""
        kind, _colon, value = text.strip().partition(":")
        if text.strip() == LATEST:
            return cls(LATEST, "", timeline, label=label)
        if kind in TARGETS and value:
            found = cls(kind, value.strip(), timeline, label=label)
        else:
            found = cls(TIME, text.strip(), timeline, label=label)
        if found.kind == TIME and ":" not in found.value:
            # Ansible cuts -e at a space, and midnight is not what was meant.
            raise ResilienceError(
                f"'{found.value}' has no time of day. Write date and time with a T between them, and the offset from "
                "UTC, such as 2026-01-31T13:05:00+00:00; nothing was changed"
            )
        return found

    def __str__(self) -> str:
        text = self.kind if self.kind == LATEST else f"{self.kind} {self.value}"
        return text if self.timeline == "latest" else f"{text} on timeline {self.timeline}"


class PostgresEngine(t.Protocol):
    """A program that makes and restores physical backups of one cell, in one repository."""

    def check(self) -> None:
        """Whether the repository can be reached and WAL arrives in it."""

    def backup(self, kind: str) -> BackupInfo:
        """Make one."""

    def info(self) -> RepositoryInfo:
        """What the repository holds."""

    def expire(self) -> None:
        """Remove what the retention does not keep."""

    def verify(self) -> list[str]:
        """Read the whole repository; what is wrong with it, a sentence each."""

    def restore(self, target: RestoreTarget, into: str) -> BackupInfo:
        """Put a data folder there that PostgreSQL recovers to the target when it is started."""


def path_to(info: RepositoryInfo, timeline: str) -> list[tuple[int, int, int | None]]:
    """The way through the timelines to the wanted one: number, first byte, and where it was left (None: not at all).

    :raises ResilienceError: the repository does not know it.
    """
    known = info.timelines
    if not known:
        raise ResilienceError("the repository holds neither a backup nor WAL of this cell")
    wanted = known[-1] if timeline == "latest" else int(timeline)
    if wanted not in known:
        raise ResilienceError(f"the repository knows no timeline {wanted}, only {', '.join(map(str, known))}")
    path: list[tuple[int, int, int | None]] = []
    left: int | None = None
    while True:
        parent = info.branches.get(wanted)
        path.insert(0, (wanted, parent[1] if parent else 0, left))
        if parent is None or parent[0] >= wanted:
            return path
        wanted, left = parent


def choose_backup(info: RepositoryInfo, target: RestoreTarget) -> BackupInfo:
    """The newest backup from which the target can be reached.

    :raises ResilienceError: there is none; the text says what the repository could do.
    """
    usable = [backup for backup in info.backups if not backup.error]
    if not usable:
        raise ResilienceError("the repository holds no usable backup of this cell")
    label = target.value if target.kind == BACKUP else target.label
    if label:
        usable = [backup for backup in usable if backup.label == label]
        if not usable:
            there = ", ".join(backup.label for backup in info.backups)
            raise ResilienceError(f"the repository has no usable backup {label}; it has {there}")
    path = path_to(info, target.timeline) if target.kind != BACKUP else path_to(info, str(usable[0].timeline))
    # The newest backup that is not too young says what is missing; when all are too young, the oldest says so.
    telling = ""
    for backup in reversed(usable):
        problem = _problem_from(info, target, backup, path)
        if not problem:
            return backup
        if not telling or _before(target, usable[usable.index(backup) + 1]):
            telling = problem
    raise ResilienceError(telling)


def reach(info: RepositoryInfo) -> Reach | None:
    """How far the WAL goes on without a gap from a usable backup, the furthest of all; None: there is no such backup.

    What came in after a gap is of no use before the next backup, however new it is.
    """
    found = None
    usable = [backup for backup in info.backups if not backup.error]
    path = path_to(info, "latest") if usable else []
    for backup in usable:
        places = [index for index, (timeline, _start, _left) in enumerate(path) if timeline == backup.timeline]
        left = path[places[0]][2] if places else None
        if places and (left is None or backup.stop_lsn <= left):
            got = _walk(info, backup, path[places[0] :])
            if got.end_lsn >= backup.stop_lsn and (found is None or got.end_lsn >= found.end_lsn):
                found = got
    return found


def _walk(info: RepositoryInfo, backup: BackupInfo, path: t.Sequence[tuple[int, int, int | None]]) -> Reach:
    """From the segment in which a backup starts along the timelines, up to the first that is missing."""
    position = backup.start_lsn - backup.start_lsn % SEGMENT
    segment, came_in_at = "", 0.0
    for timeline, _start, left in path:
        # The segment in which a timeline is left is archived under the next one's name.
        stop = None if left is None else left - left % SEGMENT
        for part in info.ranges:
            if part.timeline == timeline and part.start_lsn <= position < part.end_lsn:
                if stop is None or position < stop:
                    position = part.end_lsn if stop is None else min(part.end_lsn, stop)
                    segment = segment_name(timeline, position - SEGMENT)
                    came_in_at = max(came_in_at, part.ended_at)
                break
    return Reach(path[-1][0], position, segment, came_in_at)


def target_problem(info: RepositoryInfo, target: RestoreTarget) -> str:
    """Why the target can't be reached; empty when it can, as far as the repository tells."""
    try:
        choose_backup(info, target)
    except ResilienceError as exc:
        return f"can't restore to {target}: {exc}"
    return ""


def _before(target: RestoreTarget, backup: BackupInfo) -> bool:
    if target.kind == TIME:
        return parse_time(target.value) < backup.ended_at
    return target.kind == LSN and parse_lsn(target.value) < backup.stop_lsn


def _problem_from(
    info: RepositoryInfo, target: RestoreTarget, backup: BackupInfo, path: list[tuple[int, int, int | None]]
) -> str:
    if _before(target, backup):
        if target.kind == TIME:
            return f"the backup {backup.label} ended at {format_time(backup.ended_at)}, after that"
        return f"the backup {backup.label} ended at {format_lsn(backup.stop_lsn)}, after that"
    place = next((index for index, (timeline, _start, _left) in enumerate(path) if timeline == backup.timeline), None)
    last = path[-1][0]
    if place is None:
        return f"the backup {backup.label} is on timeline {backup.timeline}, which does not lead to timeline {last}"
    left = path[place][2]
    if left is not None and backup.stop_lsn > left:
        return (
            f"the backup {backup.label} ended at {format_lsn(backup.stop_lsn)}, after timeline {backup.timeline} was "
            f"left at {format_lsn(left)}"
        )
    return _missing_wal(info, target, backup, path[place:])


def _missing_wal(
    info: RepositoryInfo, target: RestoreTarget, backup: BackupInfo, path: list[tuple[int, int, int | None]]
) -> str:
    """Walk from the backup to the target; the first gap, the archive's end before the target, or nothing."""
    goal = parse_lsn(target.value) if target.kind == LSN else None
    if target.kind == BACKUP:
        goal = backup.stop_lsn
    position = backup.start_lsn - backup.start_lsn % SEGMENT
    reached_at = 0.0
    for timeline, _start, left in path:
        # The segment in which a timeline is left is archived under the next one's name.
        stop = None if left is None else left - left % SEGMENT
        if goal is not None and (stop is None or goal <= stop):
            stop = goal
        parts = [part for part in info.ranges if part.timeline == timeline]
        part = next((part for part in parts if part.start_lsn <= position < part.end_lsn), None)
        if stop is not None and position >= stop:
            pass
        elif part is None:
            lacks = f"the archive lacks the WAL segment {segment_name(timeline, position)}"
            # After a failover that is so until the first segment of the new timeline is closed.
            return lacks if parts or left is not None else f"{lacks}, which PostgreSQL may not have closed yet"
        else:
            reached_at = max(reached_at, part.ended_at)
            further = min((other.start_lsn for other in parts if other.start_lsn >= part.end_lsn), default=None)
            if stop is not None and part.end_lsn < stop:
                if further is None and left is None:
                    return (
                        f"the archive ends at {format_lsn(part.end_lsn)} (it came in at {format_time(part.ended_at)})"
                    )
                return f"the archive lacks the WAL segment {segment_name(timeline, part.end_lsn)}"
            if stop is None and further is not None and not _reached(target, part):
                return f"the archive lacks the WAL segment {segment_name(timeline, part.end_lsn)}"
        if goal is not None and stop == goal:
            return ""
        if stop is not None:
            position = stop
    if target.kind == TIME and parse_time(target.value) > reached_at:
        return f"the archive ends at {format_time(reached_at)}, before that"
    return ""


def _reached(target: RestoreTarget, part: ArchiveRange) -> bool:
    return target.kind == TIME and parse_time(target.value) <= part.ended_at


def ranges_of(segments: t.Mapping[str, float]) -> tuple[ArchiveRange, ...]:
    """Contiguous ranges of the WAL segments that are there.

    :param segments: name to when it came in.
    """
    found: list[ArchiveRange] = []
    for name in sorted(segments):
        timeline, position = segment_position(name)
        last = found[-1] if found else None
        if last is not None and last.timeline == timeline and last.end_lsn == position:
            ended = max(last.ended_at, segments[name])
            found[-1] = replace(last, last=name, end_lsn=position + SEGMENT, ended_at=ended)
        else:
            found.append(ArchiveRange(timeline, name, name, position, position + SEGMENT, segments[name]))
    return tuple(found)


def parse_history(text: str) -> tuple[int, int] | None:
    """The timeline that was left, and where, from a timeline's history file; None when it has no parent."""
    entries = [line.split() for line in text.splitlines() if line[:1].isdigit()]
    return (int(entries[-1][0]), parse_lsn(entries[-1][1])) if entries else None
