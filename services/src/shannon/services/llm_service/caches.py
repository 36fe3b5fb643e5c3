# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers that were given before: in the process, in Redis, and by nearness of the question.

Redis is only ever a cache. Each use of it is bounded in time and goes through a breaker, so that a Redis that is away
costs a completion nothing (facts in full, 10.1, item 6: the original fails without it).
"""

from __future__ import annotations

import asyncio
import collections
import hashlib
import json
import time
import typing as t
from dataclasses import asdict

import redis.asyncio
import redis.exceptions

from shannon.resilience.circuit_breaker import BreakerError, CircuitBreaker

from .embedder import cosine
from .provider import Completion, Question

_ERRORS = (redis.exceptions.RedisError, OSError, asyncio.TimeoutError, BreakerError, ValueError, TypeError)
V = t.TypeVar("V")


def key_of(tenant: str, question: Question) -> str:
    """What an answer depends on; another tenant's answers are never given."""
    text = json.dumps([tenant, asdict(question)], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Recent(t.Generic[V]):
    """The values that were used last, none older than it may be.

    :param size: how many are kept; 0 keeps none.
    :param ttl: seconds.
    """

    def __init__(self, size: int, ttl: float, clock: t.Callable[[], float] = time.monotonic) -> None:
        self._size = size
        self._ttl = ttl
        self._clock = clock
        self._values: collections.OrderedDict[str, tuple[float, V]] = collections.OrderedDict()

    def get(self, key: str, stale: bool = False) -> V | None:
        """A value.

        :param stale: whether one that is too old will do, since there is nothing better.
        """
        found = self._values.get(key)
        if found is None or (not stale and self._clock() - found[0] > self._ttl):
            return None
        self._values.move_to_end(key)
        return found[1]

    def put(self, key: str, value: V) -> None:
        """Keep a value, and forget the one that was not used for longest."""
        self._values[key] = (self._clock(), value)
        self._values.move_to_end(key)
        while len(self._values) > self._size:
            self._values.popitem(last=False)

    def __len__(self) -> int:
        return len(self._values)


class Shared:
    """Answers in Redis, at C(llm:cache:{hash}).

    :param client: None: there is no Redis.
    :param timeout: seconds that a completion waits for Redis at most.
    """

    def __init__(
        self, client: redis.asyncio.Redis | None, guard: CircuitBreaker | None, ttl: float, timeout: float
    ) -> None:
        self._client = client
        self._guard = guard
        self._ttl = ttl
        self._timeout = timeout

    async def get(self, key: str) -> Completion | None:
        """An answer; None when there is none, or Redis is away."""
        if self._client is None or self._guard is None:
            return None
        try:
            raw = await self._guard.call_async(self._bounded, self._client.get, f"llm:cache:{key}")
            return None if raw is None else Completion(**json.loads(raw))
        except _ERRORS:
            return None

    async def put(self, key: str, completion: Completion) -> None:
        """Keep an answer, if Redis is there."""
        if self._client is None or self._guard is None or self._ttl <= 0:
            return
        text = json.dumps(asdict(completion), ensure_ascii=False)
        try:
            await self._guard.call_async(
                self._bounded, self._client.set, f"llm:cache:{key}", text, px=round(self._ttl * 1000)
            )
        except _ERRORS:
            return

    async def _bounded(self, call: t.Callable[..., t.Awaitable[V]], *args: t.Any, **kwargs: t.Any) -> V:
        return await asyncio.wait_for(call(*args, **kwargs), self._timeout)


class Near:
    """Answers to questions that are almost the same, by the cosine of their vectors.

    :param size: how many questions are kept for each set of parameters.
    :param threshold: how near a question must be.
    :param ttl: seconds.
    """

    #: Sets of parameters that are kept.
    SETS = 64

    def __init__(self, size: int, threshold: float, ttl: float, clock: t.Callable[[], float] = time.monotonic) -> None:
        self._size = size
        self._threshold = threshold
        self._ttl = ttl
        self._clock = clock
        self._sets: collections.OrderedDict[str, collections.deque[tuple[float, t.Sequence[float], Completion]]] = (
            collections.OrderedDict()
        )

    def get(self, parameters: str, vector: t.Sequence[float]) -> Completion | None:
        """The answer to the nearest question, if it is near enough."""
        now = self._clock()
        best, nearest = self._threshold, None
        for at, known, completion in self._sets.get(parameters, ()):
            if now - at <= self._ttl and (near := cosine(known, vector)) >= best:
                best, nearest = near, completion
        return nearest

    def put(self, parameters: str, vector: t.Sequence[float], completion: Completion) -> None:
        """Keep a question and its answer."""
        kept = self._sets.setdefault(parameters, collections.deque(maxlen=self._size))
        kept.append((self._clock(), vector, completion))
        self._sets.move_to_end(parameters)
        while len(self._sets) > self.SETS:
            self._sets.popitem(last=False)
