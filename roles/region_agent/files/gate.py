# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a unit of a cell may start, by the word that the region agent leaves.

    gate.py postgres CELL SECONDS    succeeds when PostgreSQL may start: as what the registry says, and nothing else
    gate.py sentinel CELL SECONDS    succeeds in the cell's home region only

Exits with 0 when it may, with 1 when it may not, and says why.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

WORDS = Path("/run/shannon-region-agent")
#: Seconds after which a word is too old to act on; the agent renews it every second.
FRESH = 10.0
PAUSE = 0.2


def fresh_word(cell: str, folder: Path = WORDS) -> dict | None:
    """The agent's word; None when there is none, or the agent fell silent."""
    try:
        word = json.loads((folder / f"{cell}.json").read_text(encoding="utf-8"))
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - float(word["at"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return word if 0 <= age <= FRESH else None


def verdict(verb: str, word: dict | None) -> tuple[bool | None, str]:
    """Whether it may start (None: ask again later), and why."""
    if word is None:
        return None, "the region agent has not said anything (systemctl status shannon-region-agent)"
    said = f"duty {word['duty']}, registry: {word['registry_error'] or 'answers'}"
    if word["duty"] not in ("home", "standby", "fenced"):
        return None, said
    # What may not start now is not waited for, or the host's boot would be: the agent starts it when it may.
    return (word["duty"] == "home" if verb == "sentinel" else bool(word["postgres_may_start"])), said


def main() -> int:
    """Command line."""
    if len(sys.argv) != 4 or sys.argv[1] not in ("postgres", "sentinel"):
        print(__doc__, file=sys.stderr)
        return 2
    verb, cell, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    deadline = time.monotonic() + seconds
    while True:
        may, why = verdict(verb, fresh_word(cell))
        if may is not None or time.monotonic() >= deadline:
            print(f"gate: {verb} of cell {cell} {'may' if may else 'may not'} start: {why}", file=sys.stderr)
            return 0 if may else 1
        time.sleep(PAUSE)


if __name__ == "__main__":
    sys.exit(main())
