# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads what this host's PostgreSQL noted about itself on disk, whether it runs or not."""

from __future__ import annotations

import pathlib
import subprocess

from shannon.resilience.errors import ResilienceError

from .sql import parse_lsn

_STATE = "Database cluster state"
_CHECKPOINT = "Latest checkpoint location"
#: What a primary that was stopped in order leaves; a standby's word is another.
_SHUT_DOWN = "shut down"
_PROGRAM = "/usr/lib/postgresql/{version}/bin/pg_controldata"


def clean_end(data: str | pathlib.Path) -> int:
    """Where a primary that was stopped in order ended, in bytes; 0 when it runs, crashed, or is no primary.

    All that it ever acknowledged lies before its last checkpoint, so whoever has received more than the beginning of
    that checkpoint's record has everything.

    :param data: the data folder.
    :raises ResilienceError: it can't be read.
    """
    found = _asked(pathlib.Path(data))
    if found.get(_STATE) != _SHUT_DOWN:
        return 0
    try:
        return parse_lsn(found[_CHECKPOINT]) + 1
    except (KeyError, ValueError) as exc:
        raise ResilienceError(f"pg_controldata of {data} does not say where PostgreSQL ended: {exc}") from exc


def _asked(data: pathlib.Path) -> dict[str, str]:
    try:
        version = (data / "PG_VERSION").read_text(encoding="ascii").strip()
        done = subprocess.run(
            [_PROGRAM.format(version=version), "-D", str(data)],
            capture_output=True, text=True, timeout=5, check=False, env={"LC_ALL": "C"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise ResilienceError(f"pg_controldata of {data} can't be read: {exc}") from exc
    if done.returncode:
        raise ResilienceError(f"pg_controldata of {data} can't be read: {done.stderr.strip()[:300]}")
    return {
        name.strip(): value.strip()
        for name, _colon, value in (line.partition(":") for line in done.stdout.splitlines())
    }
