"""PostgreSQL's archive command: what it tells PostgreSQL of what pgBackRest said."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import jinja2
import pytest

ROLE = Path(__file__).parents[2] / "roles" / "postgres"
HISTORY = "1\t0/3000000\tno recovery target specified\n\n25\t0/F10007C0\tno recovery target specified\n"


class Primary:
    """A data folder on timeline 26 (1A), which left 25 (19) in its segment F1, and programs that say as told."""

    def __init__(self, folder: Path) -> None:
        self.data, self.programs = folder / "data", folder / "bin"
        (self.data / "pg_wal" / "archive_status").mkdir(parents=True)
        self.programs.mkdir()
        # The last one is no history of ours: a restore leaves such behind.
        for name, text in {"00000019": "1\t0/3000000\tx\n", "0000001A": HISTORY, "0000001C": "26\t0/1\tx\n"}.items():
            (self.data / "pg_wal" / f"{name}.history").write_text(text)
        template = (ROLE / "templates" / "shannon-pgbackrest-push.j2").read_text()
        self.program("push", jinja2.Template(template).render(__postgres_bin=self.programs))
        self.state("in production")

    def program(self, name: str, text: str) -> None:
        path = self.programs / name
        path.write_text(text)
        path.chmod(0o755)

    def state(self, text: str) -> None:
        said = f"Database cluster state:               {text}\nLatest checkpoint's TimeLineID:       26\n"
        self.program("pg_controldata", f"#!/bin/sh\ncat <<'END'\n{said}END\n")

    def push(self, name: str, status: int) -> tuple[int, str]:
        """What it gives for a segment (of 16 MB, which take no room) when pgBackRest ends so."""
        self.program("pgbackrest", f"#!/bin/sh\nexit {status}\n")
        with (self.data / "pg_wal" / name).open("wb") as segment:
            segment.truncate(16 * 2**20)
        path = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["/bin/sh", self.programs / "push", "main", f"pg_wal/{name}"],
            cwd=self.data, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        return done.returncode, done.stderr


@pytest.fixture
def primary(tmp_path: Path) -> Primary:
    return Primary(tmp_path)


@pytest.mark.parametrize("name", ["0000001900000000000000F1", "0000001900000000000000F2", "000000010000000000000003"])
def test_what_the_timeline_left_behind_need_not_be_archived_twice(primary: Primary, name: str) -> None:
    status, said = primary.push(name, 45)
    assert status == 0 and f"pg_wal/{name} is of a timeline that this one left" in said


@pytest.mark.parametrize(
    "name",
    [
        "0000001900000000000000F0",  # before the point
        "000000190000000000000002",
        "000000010000000000000002",
        "0000001A00000000000000F1",  # the present timeline
        "0000001B00000000000000F1",  # none of ours
        "0000001A.history",
        "0000001900000000000000F1.partial",
    ],
)
def test_another_file_in_the_archive_is_an_error_otherwise(primary: Primary, name: str) -> None:
    assert primary.push(name, 45)[0] == 45


@pytest.mark.parametrize("status", [0, 82, 104])
def test_whatever_else_pgbackrest_says_is_passed_on(primary: Primary, status: int) -> None:
    assert primary.push("0000001900000000000000F1", status)[0] == status


@pytest.mark.parametrize("state", ["shutting down", "shut down"])
def test_a_primary_that_stops_gives_up(primary: Primary, state: str) -> None:
    primary.state(state)
    assert primary.push("0000001A00000000000000F1", 82)[0] == 200
    assert primary.push("0000001A00000000000000F1", 0)[0] == 0
