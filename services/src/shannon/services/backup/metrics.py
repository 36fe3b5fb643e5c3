# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures of backups in Prometheus' text format, for node_exporter's textfile collector or whatever reads it."""

from __future__ import annotations

import typing as t

_FIGURES = (
    ("age_seconds", "age", "Age of the newest good backup in the region's repository; of wal: of what it lacks."),
    ("objective_seconds", "rpo", "The age that config/objectives.yml allows."),
    ("size_bytes", "bytes", "Size of the newest good backup."),
    ("duration_seconds", "seconds", "How long the newest good backup took."),
    ("verified_age_seconds", "verified_age", "Time since the newest backup was last restored for a test."),
    ("behind_bytes", "behind", "Bytes of WAL that the cell has written and the region's repository lacks."),
)
_FLAGS = (
    ("overdue", "overdue", "1 while the newest good backup is older than allowed."),
    ("last_run_ok", "ok", "1 when the last run succeeded."),
    ("verified_ok", "verified_ok", "1 when the last restore for a test gave what the manifest says."),
)


def render(lines: t.Sequence[t.Mapping[str, t.Any]], free_bytes: int, total_bytes: int) -> str:
    """The file's text.

    :param lines: what C(backup_records.judge) says.
    """
    out: list[str] = []
    for name, key, text in (*_FIGURES, *_FLAGS):
        known = [(line, line[key]) for line in lines if line.get(key) is not None]
        if not known:
            continue
        out += [f"# HELP shannon_backup_{name} {text}", f"# TYPE shannon_backup_{name} gauge"]
        for line, value in known:
            labels = ",".join(f'{label}="{line[label]}"' for label in ("kind", "cell", "region"))
            out.append(f"shannon_backup_{name}{{{labels}}} {float(value):g}")
    for name, value, text in (
        ("repository_free_bytes", free_bytes, "Room on the disk of this region's repositories."),
        ("repository_size_bytes", total_bytes, "Size of the disk of this region's repositories."),
    ):
        out += [f"# HELP shannon_backup_{name} {text}", f"# TYPE shannon_backup_{name} gauge"]
        out.append(f"shannon_backup_{name} {value}")
    return "\n".join(out) + "\n"
