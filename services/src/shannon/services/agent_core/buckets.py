# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How often a tenant may run tools: a bucket of tokens for each."""

from __future__ import annotations

import collections
import time
import typing as t


class Buckets:
    """Token buckets (seed facts 7: 20 runs in a second).

    :param rate: tokens that come in a second; as many fit into a bucket, and at least one.
    :param keys: buckets that are kept; those that were used longest ago are forgotten, full as they are by then.
    """

    def __init__(self, rate: float, keys: int = 10000, clock: t.Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._size = max(rate, 1.0)
        self._keys = keys
        self._clock = clock
        self._buckets: collections.OrderedDict[str, tuple[float, float]] = collections.OrderedDict()

    def take(self, key: str) -> float:
        """Take a token.

        :returns: 0, or the seconds until there is one.
        """
        now = self._clock()
        tokens, at = self._buckets.pop(key, (self._size, now))
        tokens = min(self._size, tokens + (now - at) * self._rate)
        wait = 0.0
        if tokens >= 1:
            tokens -= 1
        else:
            wait = (1 - tokens) / self._rate
        self._buckets[key] = (tokens, now)
        while len(self._buckets) > self._keys:
            self._buckets.popitem(last=False)
        return wait
