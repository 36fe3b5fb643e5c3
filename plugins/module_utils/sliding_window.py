# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Counts over a sliding window of time, in constant space and time."""

from __future__ import annotations

import typing as t

#: The window moves by a tenth of its length.
BUCKETS = 10
#: A bucket that is kept: its time, calls, failures, slow calls, and seconds.
WIDTH = 5


class SlidingWindow:
    """Calls, failures, slow calls and time spent over the last so many seconds. Its user does the locking.

    :param seconds: length of the window.
    """

    def __init__(self, seconds: float) -> None:
        self._width = seconds / BUCKETS
        self._buckets: dict[int, list[float]] = {}
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._buckets.clear()
        self._sums = [0.0, 0.0, 0.0, 0.0]

    @property
    def calls(self) -> int:
        """Calls in the window, as of the last :meth:`add` or :meth:`move`."""
        return int(self._sums[0])

    @property
    def failure_rate(self) -> float:
        """Share of calls that failed; 0 without calls."""
        return self._sums[1] / self._sums[0] if self.calls else 0.0

    @property
    def slow_rate(self) -> float:
        """Share of calls that were slow; 0 without calls."""
        return self._sums[2] / self._sums[0] if self.calls else 0.0

    @property
    def mean_seconds(self) -> float:
        """Mean duration of a call; 0 without calls."""
        return self._sums[3] / self._sums[0] if self.calls else 0.0

    def add(self, now: float, failed: bool, slow: bool = False, seconds: float = 0.0) -> None:
        """Count one call that ended now."""
        self.move(now)
        bucket = self._buckets.setdefault(int(now // self._width), [0.0, 0.0, 0.0, 0.0])
        for place, value in enumerate((1.0, float(failed), float(slow), seconds)):
            bucket[place] += value
            self._sums[place] += value

    def move(self, now: float) -> None:
        """Forget what is older than the window."""
        oldest = int(now // self._width) - BUCKETS
        gone = [number for number in self._buckets if number <= oldest]
        for number in gone:
            del self._buckets[number]
        if gone:
            # Added up anew rather than subtracted, so that no rounding error stays behind.
            self._sums = [sum(column) for column in zip(*self._buckets.values(), strict=True)] or [0.0] * 4

    def dump(self, shift: float) -> list[list[float]]:
        """Its contents, to be kept: for each bucket its time (moved by so many seconds) and sums."""
        return [[number * self._width + shift, *sums] for number, sums in sorted(self._buckets.items())]

    def load(self, kept: t.Sequence[t.Sequence[float]], shift: float) -> None:
        """Take over what :meth:`dump` gave."""
        self.clear()
        for at, *sums in kept:
            # The middle of a bucket falls into one bucket however the times were rounded on the way.
            number = int((at + shift + self._width / 2) // self._width)
            bucket = self._buckets.setdefault(number, [0.0] * 4)
            for place, value in enumerate(sums[:4]):
                bucket[place] += value
                self._sums[place] += value
