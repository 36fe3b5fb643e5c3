# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host's Redis had that the new home perhaps has not, in words."""

from __future__ import annotations

import typing as t


def kept_text(facts: t.Mapping[str, t.Any]) -> str:
    """Where a copy is, and what is known of how much diverged.

    :param facts: what a region agent wrote below C(DIVERGED_REDIS).
    :returns: one sentence; it says C(exactly) only of what was read from the process that had acknowledged the writes.
    """
    if facts.get("same"):
        return "nothing diverged"
    if facts.get("path"):
        parts = [f"{facts.get('keys', 0)} keys in {facts['path']} ({facts.get('bytes', 0)} bytes)"]
    else:
        parts = [f"not kept: {facts.get('not_kept') or 'nobody said why'}"]
    word = "exactly" if facts.get("exact") else "at least"
    seconds, stream = facts.get("lost_seconds"), facts.get("stream_bytes")
    if seconds is None:
        parts.append("how many seconds were lost is not known")
    else:
        parts.append(f"lost {word} {seconds:.1f} s, {facts.get('lost_markers', 0)} markers")
    if stream is None:
        parts.append("how far the histories diverged is not known")
    else:
        parts.append(f"{word} {stream} bytes of its replication stream diverged")
    return "; ".join(parts)
