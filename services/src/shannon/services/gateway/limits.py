# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rate limits: fixed windows in Redis, and a local bucket while Redis is away (seed facts 5)."""

from __future__ import annotations

import asyncio
import collections
import time
import typing as t
from dataclasses import dataclass

import redis.asyncio
import redis.exceptions

from shannon.resilience.circuit_breaker import BreakerError, CircuitBreaker
from shannon.services.common import metrics
from shannon.services.common.config import RateLimits, Tier

from .errors import ApiError
from .principal import Principal

WINDOWS = (("minute", 60), ("hour", 3600), ("day", 86400))
#: Keys that the local buckets remember; the one longest unused is forgotten first.
_BUCKETS = 10_000
# One round trip, one step: no window is counted without its end being set.
_COUNT = """
local counts = {}
for i, key in ipairs(KEYS) do
  counts[i] = redis.call('INCR', key)
  if counts[i] == 1 then redis.call('EXPIRE', key, ARGV[i]) end
end
return counts
"""
_AWAY = (redis.exceptions.RedisError, OSError, asyncio.TimeoutError, BreakerError)


@dataclass
class _Bucket:
    tokens: float
    at: float


class Limiter:
    """Counts a caller's requests in one cell's Redis.

    :param client: the cell's Redis.
    :param breaker: of kind redis.
    :param gateways: how many share the load; each allows its part while Redis can't be asked.
    :param clock: seconds since 1970.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        breaker: CircuitBreaker,
        settings: RateLimits,
        gateways: int,
        clock: t.Callable[[], float] = time.time,
    ) -> None:
        self._breaker = breaker
        self._settings = settings
        self._gateways = max(gateways, 1)
        self._clock = clock
        self._script = client.register_script(_COUNT)
        self._buckets: collections.OrderedDict[str, _Bucket] = collections.OrderedDict()
        self._refused = metrics.counter(
            "shannon_gateway_rate_limited_total", "Requests beyond a limit.", ("tier", "window")
        )
        self._local = metrics.counter(
            "shannon_gateway_rate_limit_local_total", "Requests that were counted without Redis."
        )

    async def check(self, principal: Principal) -> dict[str, str]:
        """Count a request.

        :returns: headers for the answer.
        :raises ApiError: 429.
        """
        if not self._settings.enabled:
            return {}
        # Tiers that the file does not name keep the built-in limits.
        tier = self._settings.tiers.get(principal.tier) or RateLimits().tiers[principal.tier]
        now = self._clock()
        try:
            counts = await self._breaker.call_async(self._count, principal.identity, now)
        except _AWAY:
            return self._check_locally(principal, tier, now)
        headers = _headers(tier, counts, now)
        for (window, length), count in zip(WINDOWS, counts, strict=True):
            if count > getattr(tier, window):
                raise self._refusal(principal.tier, window, getattr(tier, window), length - now % length, headers)
        return headers

    async def _count(self, identity: str, now: float) -> list[int]:
        keys = [f"ratelimit:{identity}:{window}:{int(now // length * length)}" for window, length in WINDOWS]
        ends = [length + 1 for _window, length in WINDOWS]
        return await asyncio.wait_for(self._script(keys=keys, args=ends), self._settings.redis_timeout)

    def _check_locally(self, principal: Principal, tier: Tier, now: float) -> dict[str, str]:
        self._local.inc()
        size = max(1.0, tier.minute / self._gateways)
        bucket = self._buckets.pop(principal.identity, None) or _Bucket(size, now)
        self._buckets[principal.identity] = bucket
        while len(self._buckets) > _BUCKETS:
            self._buckets.popitem(last=False)
        bucket.tokens = min(size, bucket.tokens + max(0.0, now - bucket.at) * size / 60)
        bucket.at = now
        if bucket.tokens < 1:
            raise self._refusal(principal.tier, "minute", int(size), (1 - bucket.tokens) * 60 / size, {})
        bucket.tokens -= 1
        return {"X-RateLimit-Limit-Minute": str(int(size)), "X-RateLimit-Remaining-Minute": str(int(bucket.tokens))}

    def _refusal(self, tier: str, window: str, limit: int, wait: float, headers: dict[str, str]) -> ApiError:
        self._refused.labels(tier, window).inc()
        return ApiError(
            429, "rate_limited", f"more than {limit} requests in this {window}; try again later", wait, headers
        )


def _headers(tier: Tier, counts: t.Sequence[int], now: float) -> dict[str, str]:
    headers = {}
    for (window, _length), count in zip(WINDOWS, counts, strict=True):
        limit = getattr(tier, window)
        headers[f"X-RateLimit-Limit-{window.title()}"] = str(limit)
        headers[f"X-RateLimit-Remaining-{window.title()}"] = str(max(0, limit - count))
    headers["X-RateLimit-Reset"] = str(int(now // 60 * 60 + 60))
    return headers
