# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks this host's PostgreSQL as its own superuser, over the socket, which only that system user may do."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable

from shannon.resilience.errors import ResilienceError

#: The end of the timeline before the present one, as its history file says it.
SWITCH_POINT = (
    "SELECT pg_read_file("
    "'pg_wal/' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) || '.history', 0, 65536, true)"
)


def ask(statement: str, database: str, port: int, timeout: float = 120.0) -> list[str]:
    """The lines that a statement gives, without empty ones.

    :param timeout: seconds.
    :raises ResilienceError: PostgreSQL does not run here, or refused it.
    """
    command = ["/usr/sbin/runuser", "-u", "postgres", "--", "psql", "-XAtq", "-v", "ON_ERROR_STOP=1"]
    command += ["-p", str(port), "-d", database, "-c", statement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, cwd="/")
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise ResilienceError(f"PostgreSQL of this host can't be read: {exc}") from exc
    if done.returncode:
        raise ResilienceError(f"PostgreSQL of this host can't be read: {done.stderr.strip()[:300]}")
    return [line for line in done.stdout.splitlines() if line]


def end_of_former(history: Iterable[str]) -> int:
    """Where the timeline before the present one ended, in bytes, by the lines of its history; 0 when there was none."""
    ended = [line.split() for line in history if line[:1].isdigit()]
    return parse_lsn(ended[-1][1]) if ended else 0


def parse_lsn(text: str) -> int:
    """C(16/B374D848) as a number of bytes."""
    high, _slash, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)
