"""How old what a repository's archive of WAL lacks is, case by case."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.shannon.resilience.plugins.module_utils import wal_archive
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.postgres_engine import SEGMENT, Reach, segment_name
from ansible_collections.shannon.resilience.plugins.module_utils.wal_archive import Age, Written, age

NOW = 1_700_000_000.0


def reached(segments: int, ago: float, timeline: int = 1) -> Reach:
    """A repository with so many segments, the last of which came in so long ago."""
    return Reach(timeline, segments * SEGMENT, segment_name(timeline, (segments - 1) * SEGMENT), NOW - ago)


def written(position: float, timeline: int = 1, timeout: float = 60.0, **files: float) -> Written:
    """A primary in the middle of that segment; segments by number, as in s5=30: last written 30 seconds ago."""
    names = {segment_name(timeline, int(name[1:]) * SEGMENT): since for name, since in files.items()}
    return Written(timeline, int(position * SEGMENT), timeout, names)


def test_what_has_arrived_to_the_last_byte_costs_nothing() -> None:
    assert age(reached(5, ago=7200), written(5), NOW) == Age(0.0, 0)


def test_of_an_open_segment_it_is_the_time_since_the_last_one_was_closed() -> None:
    assert age(reached(5, ago=20), written(5.5, s4=22, s5=0), NOW) == Age(22.0, SEGMENT // 2)


def test_a_segment_that_the_primary_has_no_more_was_closed_as_it_came_in() -> None:
    assert age(reached(5, ago=20), written(5.5), NOW).seconds == 20.0


def test_an_idle_cell_lacks_no_more_than_postgresql_leaves_open() -> None:
    """It closes no segment in which nothing is, so nothing comes in, for hours."""
    assert age(reached(5, ago=7200), written(5.001, s4=7201, s5=7100), NOW).seconds == 60.0


def test_the_first_write_after_hours_is_on_its_way_and_not_hours_old() -> None:
    assert age(reached(5, ago=7200), written(6, s4=7201, s5=1), NOW).seconds == 61.0


def test_where_nobody_closes_a_segment_in_time_it_is_as_old_as_it_looks() -> None:
    assert age(reached(5, ago=7200), written(5.5, timeout=0, s4=7201, s5=3), NOW).seconds == 7201.0


def test_a_repository_that_stopped_is_as_old_as_its_last_segment() -> None:
    found = age(reached(5, ago=600), written(9.5, s4=601, s5=540, s6=480, s8=10, s9=0), NOW)
    assert found == Age(600.0, int(4.5 * SEGMENT))
    assert age(reached(5, ago=600), written(9.5, timeout=0, s4=601, s5=540), NOW).seconds == 601.0


def test_a_repository_that_catches_up_is_as_old_as_what_it_took_in() -> None:
    """The last segment came in a second ago, and was written an hour ago."""
    assert age(reached(5, ago=1), written(90.5, s4=3600, s5=3599, s89=10, s90=0), NOW).seconds == 3600.0


def test_a_segment_that_lay_open_for_long_does_not_count_from_its_opening() -> None:
    assert age(reached(5, ago=1), written(8.5, s4=9000, s5=300), NOW).seconds == 360.0


@pytest.mark.parametrize("primary", [None, written(5, timeline=2), written(4, timeline=2)])
def test_when_nobody_can_say_how_far_it_is_only_the_arrival_counts(primary: Written | None) -> None:
    """A primary that is not asked may have written on; on a timeline that has not come in its positions say nothing."""
    assert age(reached(5, ago=900), primary, NOW) == Age(900.0, None)


def test_the_segment_in_which_a_timeline_was_left_is_the_newer_ones() -> None:
    primary = written(6.5, timeline=2, s5=30)
    files = {**primary.files, segment_name(1, 5 * SEGMENT): 500.0, segment_name(3, 5 * SEGMENT): 1.0}
    assert Written(2, primary.position, 60.0, files).age_of(5) == 30.0
    assert Written(1, primary.position, 60.0, files).age_of(5) == 500.0
    assert primary.age_of(7) is None


def test_clocks_that_differ_make_no_negative_age() -> None:
    assert age(reached(5, ago=-30), written(5.5), NOW).seconds == 0.0
    assert age(reached(5, ago=3), written(5.5, s4=-2.0), NOW).seconds == 0.0


class FakeConnection:
    """Answers a statement by the first function that it calls."""

    def __init__(self, position: tuple[t.Any, ...] | None) -> None:
        self.position = position
        self.said: list[str] = []

    def execute(self, statement: str) -> FakeConnection:
        self.said.append(statement)
        return self

    def fetchone(self) -> tuple[t.Any, ...] | None:
        return self.position

    def __iter__(self) -> t.Iterator[tuple[str, float]]:
        names = ["00000002000000000000000A", "00000002.history", "00000002000000000000000A.00000028.backup"]
        return iter([(name, 4.5) for name in names])


def test_the_primary_says_where_it_is_and_what_it_has() -> None:
    connection = FakeConnection(("00000002000000000000000B", 11 * SEGMENT + 100, 60.0))
    found = wal_archive.ask(connection)
    assert found == Written(2, 11 * SEGMENT + 100, 60.0, {"00000002000000000000000A": 4.5})
    assert found.age_of(10) == 4.5
    assert connection.said[0].startswith("SET statement_timeout")  # before anything that may take long


@pytest.mark.parametrize("row", [None, (None, None, None), ("here", 1, 60.0)])
def test_what_no_primary_says_is_an_error(row: tuple[t.Any, ...] | None) -> None:
    with pytest.raises(ResilienceError, match="how far it has written"):
        wal_archive.ask(FakeConnection(row))
