"""Which points a repository can reach, case by case."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.postgres_engine import (
    SEGMENT,
    BackupInfo,
    RepositoryInfo,
    RestoreTarget,
    choose_backup,
    format_lsn,
    format_time,
    parse_history,
    parse_lsn,
    parse_time,
    path_to,
    ranges_of,
    reach,
    segment_name,
    segment_position,
    target_problem,
)

T = 1_700_000_000.0


def backup(number: int, timeline: int = 1, **more: object) -> BackupInfo:
    """The backup that ended at T + number * 100, in the segment of that number."""
    lsn = number * SEGMENT
    return BackupInfo(
        f"b{number}", "full", T + number * 100 - 10, T + number * 100, lsn + 40, lsn + 80, timeline, **more
    )


def wal(timeline: int, first: int, last: int) -> dict[str, float]:
    """Segments of these numbers; number N came in at T + N * 100 + 50."""
    return {segment_name(timeline, n * SEGMENT): T + n * 100 + 50 for n in range(first, last + 1)}


def at(number: float) -> RestoreTarget:
    return RestoreTarget("time", format_time(T + number * 100))


PLAIN = RepositoryInfo((backup(2), backup(5)), ranges_of(wal(1, 1, 9)))


class TestPlain:
    @pytest.mark.parametrize(
        ("target", "label"),
        [
            (RestoreTarget(), "b5"),
            (at(2), "b2"),
            (at(4.9), "b2"),
            (at(5), "b5"),
            (at(9.5), "b5"),
            (RestoreTarget("lsn", format_lsn(3 * SEGMENT)), "b2"),
            (RestoreTarget("lsn", format_lsn(10 * SEGMENT)), "b5"),
            (RestoreTarget("name", "x"), "b5"),
            (RestoreTarget("name", "x", label="b2"), "b2"),
            (RestoreTarget("backup", "b2"), "b2"),
        ],
    )
    def test_the_newest_backup_that_can_do_it(self, target: RestoreTarget, label: str) -> None:
        assert choose_backup(PLAIN, target).label == label

    @pytest.mark.parametrize(
        ("target", "words"),
        [
            (at(1.9), "the backup b2 ended at"),
            (at(9.6), "the archive ends at"),
            (RestoreTarget("lsn", format_lsn(SEGMENT)), "the backup b2 ended at"),
            (RestoreTarget("lsn", format_lsn(10 * SEGMENT + 1)), "the archive ends at 0/A000000"),
            (RestoreTarget(timeline="4"), "knows no timeline 4, only 1"),
            (RestoreTarget("backup", "b3"), "no usable backup b3; it has b2, b5"),
            (at(4).__class__("time", at(4).value, label="b5"), "the backup b5 ended at"),
        ],
    )
    def test_what_is_out_of_reach(self, target: RestoreTarget, words: str) -> None:
        assert words in target_problem(PLAIN, target)

    def test_nothing_there(self) -> None:
        assert "no usable backup" in target_problem(RepositoryInfo(), RestoreTarget())
        only_bad = RepositoryInfo((backup(2, error=True),), PLAIN.ranges)
        assert "no usable backup" in target_problem(only_bad, RestoreTarget())
        assert only_bad.newest is None


class TestGap:
    INFO = RepositoryInfo((backup(2), backup(7)), ranges_of({**wal(1, 1, 4), **wal(1, 6, 9)}))

    def test_before_and_after_it(self) -> None:
        assert choose_backup(self.INFO, at(4.2)).label == "b2"
        assert choose_backup(self.INFO, RestoreTarget()).label == "b7"

    def test_across_it(self) -> None:
        assert segment_name(1, 5 * SEGMENT) in target_problem(self.INFO, at(6))
        info = RepositoryInfo(self.INFO.backups[:1], self.INFO.ranges)
        assert segment_name(1, 5 * SEGMENT) in target_problem(info, RestoreTarget())
        assert segment_name(1, 5 * SEGMENT) in target_problem(info, RestoreTarget("lsn", format_lsn(7 * SEGMENT)))

    def test_a_backup_without_its_own_wal(self) -> None:
        info = RepositoryInfo((backup(2),), ranges_of(wal(1, 3, 9)))
        assert segment_name(1, 2 * SEGMENT) in target_problem(info, RestoreTarget())


class TestReach:
    """How far the archive goes, without a gap, from a usable backup."""

    @staticmethod
    def of(backups: tuple[BackupInfo, ...], segments: dict[str, float], **more: t.Any) -> tuple[int, str, float] | None:
        """The last segment's number, its name, and when it came in."""
        found = reach(RepositoryInfo(backups, ranges_of(segments), **more))
        return found and (found.end_lsn // SEGMENT - 1, found.segment, (found.came_in_at - T - 50) / 100)

    def test_to_the_last_segment(self) -> None:
        assert self.of((backup(2), backup(5)), wal(1, 1, 9)) == (9, segment_name(1, 9 * SEGMENT), 9.0)

    def test_what_came_in_after_a_gap_does_not_count_before_the_next_backup(self) -> None:
        segments = {**wal(1, 1, 6), **wal(1, 8, 9)}
        assert self.of((backup(2), backup(5)), segments) == (6, segment_name(1, 6 * SEGMENT), 6.0)
        assert self.of((backup(2), backup(8)), segments) == (9, segment_name(1, 9 * SEGMENT), 9.0)
        assert self.of((backup(2), backup(8, error=True)), segments) == (6, segment_name(1, 6 * SEGMENT), 6.0)

    def test_without_a_usable_backup_there_is_none(self) -> None:
        assert self.of((), wal(1, 1, 9)) is None
        assert self.of((), {}) is None
        assert self.of((backup(2, error=True),), wal(1, 1, 9)) is None
        assert self.of((backup(2),), wal(1, 3, 9)) is None  # its own WAL is not there

    def test_across_the_timelines(self) -> None:
        left = {"branches": {2: (1, 6 * SEGMENT + 500)}}
        segments = {**wal(1, 1, 8), **wal(2, 6, 11)}
        assert self.of((backup(2),), segments, **left) == (11, segment_name(2, 11 * SEGMENT), 11.0)
        # One that was left behind leads nowhere, however much of its timeline is there.
        assert self.of((backup(8),), segments, **left) is None
        # A gap on the old timeline is not bridged by the new one.
        gap = {**wal(1, 1, 4), **wal(2, 6, 11)}
        assert self.of((backup(2),), gap, **left) == (4, segment_name(1, 4 * SEGMENT), 4.0)

    def test_a_timeline_of_which_only_the_history_is_there(self) -> None:
        """A moment after a failover: no segment of the new timeline is full, what follows is compared with it."""
        info = RepositoryInfo((backup(2),), ranges_of(wal(1, 1, 5)), {2: (1, 6 * SEGMENT + 500)})
        found = reach(info)
        assert found and (found.timeline, found.end_lsn) == (2, 6 * SEGMENT)
        assert found.segment == segment_name(1, 5 * SEGMENT)


class TestTimelines:
    #: Timeline 1 was left in segment 6 for timeline 2; a backup of each, and one of 1 that was left behind.
    INFO = RepositoryInfo(
        (backup(2), backup(8), backup(9, 2)),
        ranges_of({**wal(1, 1, 8), **wal(2, 6, 11)}),
        {2: (1, 6 * SEGMENT + 500)},
    )

    def test_the_way(self) -> None:
        assert path_to(self.INFO, "latest") == [(1, 0, 6 * SEGMENT + 500), (2, 6 * SEGMENT + 500, None)]
        assert path_to(self.INFO, "1") == [(1, 0, None)]

    def test_across_the_switch(self) -> None:
        assert choose_backup(self.INFO, RestoreTarget()).label == "b9"
        assert choose_backup(self.INFO, RestoreTarget("lsn", format_lsn(7 * SEGMENT))).label == "b2"

    def test_what_was_left_is_reached_by_its_number(self) -> None:
        assert choose_backup(self.INFO, RestoreTarget(timeline="1")).label == "b8"

    def test_a_backup_that_was_left_behind_does_not_lead_on(self) -> None:
        info = RepositoryInfo((backup(8),), self.INFO.ranges, self.INFO.branches)
        assert "after timeline 1 was left at" in target_problem(info, RestoreTarget())

    def test_the_segment_of_the_switch_is_the_new_timelines(self) -> None:
        info = RepositoryInfo((backup(2),), ranges_of({**wal(1, 1, 5), **wal(2, 6, 11)}), self.INFO.branches)
        assert target_problem(info, RestoreTarget()) == ""
        info = RepositoryInfo((backup(2),), ranges_of({**wal(1, 1, 4), **wal(2, 6, 11)}), self.INFO.branches)
        assert segment_name(1, 5 * SEGMENT) in target_problem(info, RestoreTarget())

    def test_a_timeline_without_a_whole_segment_may_only_be_young(self) -> None:
        young = "which PostgreSQL may not have closed yet"
        info = RepositoryInfo((backup(2),), ranges_of(wal(1, 1, 5)), self.INFO.branches)
        assert f"{segment_name(2, 6 * SEGMENT)}, {young}" in target_problem(info, RestoreTarget())
        # A gap before it is one.
        info = RepositoryInfo((backup(2),), ranges_of({**wal(1, 1, 4), **wal(2, 7, 11)}), self.INFO.branches)
        assert young not in target_problem(info, RestoreTarget())

    def test_its_history(self) -> None:
        assert parse_history("1\t0/6000000\tno recovery target\n2\t0/7000000\tbefore\n") == (2, 0x7000000)
        assert parse_history("") is None


class TestTexts:
    def test_targets(self) -> None:
        assert RestoreTarget.parse("latest") == RestoreTarget()
        assert RestoreTarget.parse("lsn:0/3000000") == RestoreTarget("lsn", "0/3000000")
        assert RestoreTarget.parse("name:before the mishap").value == "before the mishap"
        assert RestoreTarget.parse("2026-01-31 12:00:00+00").kind == "time"
        assert RestoreTarget.parse("time:2026-01-31 12:00:00").kind == "time"
        assert str(RestoreTarget.parse("lsn:0/1", "3")) == "lsn 0/1 on timeline 3"

    @pytest.mark.parametrize("text", ["yesterday", "lsn:x", "name:", "time:12"])
    def test_no_targets(self, text: str) -> None:
        with pytest.raises(ResilienceError):
            RestoreTarget.parse(text)

    def test_times(self) -> None:
        for text in (
            "1970-01-01 00:01:00",
            "1970-01-01T00:01:00Z",
            "1970-01-01 01:01:00+01",
            "1970-01-01 00:01:00.0+00:00",
        ):
            assert parse_time(text) == 60.0
        assert parse_time(format_time(T + 0.25)) == T + 0.25

    def test_positions(self) -> None:
        assert format_lsn(parse_lsn("16/B374D848")) == "16/B374D848"
        assert segment_position(segment_name(3, 5 << 32)) == (3, 5 << 32)
        with pytest.raises(ResilienceError):
            segment_position("00000002.history")


@pytest.mark.parametrize("text", ["2026-11-28", "time:2026-11-28"])
def test_a_time_without_a_time_of_day_was_cut_short(text: str) -> None:
    """Ansible takes what follows a space in -e for another variable."""
    with pytest.raises(ResilienceError, match="has no time of day"):
        RestoreTarget.parse(text)


def test_a_time_is_written_with_a_t() -> None:
    target = RestoreTarget.parse("2026-11-28T18:05:00.5+00")
    assert (target.kind, target.value) == ("time", "2026-11-28T18:05:00.5+00")
