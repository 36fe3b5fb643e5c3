# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a request is answered: from a cache, by the provider, and, when that is away, from a cache again."""

from __future__ import annotations

import hashlib
import json
import time
import typing as t
from dataclasses import asdict, dataclass, replace

from shannon.services.common import logs, metrics
from shannon.services.common.config import LlmService

from .caches import Near, Recent, Shared, key_of
from .embedder import embed
from .provider import Completion, Provider, ProviderError, Question, Vectors

_log = logs.get(__name__)
#: Axes of the vectors that the semantic cache compares; fewer than those that are stored, since it looks at many.
_AXES = 256


@dataclass(frozen=True)
class Answer:
    """A completion and where it came from.

    :ivar source: provider, cache, semantic, or fallback: a cached answer, since the provider is away.
    """

    completion: Completion
    source: str

    @property
    def cache_hit(self) -> bool:
        """Whether the provider was not needed."""
        return self.source != "provider"

    @property
    def degraded(self) -> bool:
        """Whether a better answer might have been had if all was well."""
        return self.source == "fallback"


class Llm:
    """The service's work, without HTTP.

    :param shared: the cache in Redis.
    """

    def __init__(self, provider: Provider, settings: LlmService, shared: Shared) -> None:
        self.provider = provider
        self._settings = settings
        self._shared = shared
        self._recent: Recent[Completion] = Recent(settings.cache_size, settings.cache_ttl)
        self._near = Near(settings.semantic_size, settings.semantic_threshold, settings.cache_ttl)
        #: Why the provider did not answer last time; empty when it did.
        self.trouble = ""
        self._requests = metrics.counter(
            "llm_requests_total", "Completions.", ("provider", "model", "tier", "cache_status")
        )
        self._seconds = metrics.histogram("llm_request_duration_seconds", "Seconds that completions took.")
        self._tokens = metrics.counter("llm_tokens_total", "Tokens.", ("provider", "direction"))
        self._cost = metrics.counter("llm_cost_total", "Dollars.", ("provider",))
        self._errors = metrics.counter(
            "llm_service_errors_total", "Requests that were not answered.", ("error_type", "component")
        )

    async def complete(self, tenant: str, question: Question, tier: str = "") -> Answer:
        """Answer a question.

        :param tenant: whose answers may be given again.
        :raises ProviderError: the provider is away, and no cache knows an answer.
        :raises RefusedError: the provider refuses the request.
        """
        started = time.perf_counter()
        try:
            answer = await self._answer(tenant, question)
        except ProviderError:
            self._errors.labels("unavailable", "provider").inc()
            raise
        finally:
            self._seconds.observe(time.perf_counter() - started)
        done = answer.completion
        self._requests.labels(done.provider, done.model, tier or "default", answer.source).inc()
        if not answer.cache_hit:
            self._tokens.labels(done.provider, "input").inc(done.input_tokens)
            self._tokens.labels(done.provider, "output").inc(done.output_tokens)
            self._cost.labels(done.provider).inc(done.cost_usd)
        return answer

    async def embed(self, texts: t.Sequence[str], model: str) -> Vectors:
        """Embed texts.

        :raises ProviderError: the provider is away.
        """
        try:
            vectors = await self.provider.embed(texts, model)
        except ProviderError as exc:
            self._note(str(exc))
            self._errors.labels("unavailable", "embeddings").inc()
            raise
        self._note("")
        return vectors

    async def _answer(self, tenant: str, question: Question) -> Answer:
        key = key_of(tenant, question)
        # What is random is not given twice.
        reusable = question.temperature == 0
        if reusable:
            if (known := self._recent.get(key)) is not None:
                return Answer(known, "cache")
            if (known := await self._shared.get(key)) is not None:
                self._recent.put(key, known)
                return Answer(known, "cache")
        semantic = reusable and self._settings.semantic_cache
        parameters, vector = (_parameters(tenant, question), embed(question.prompt, _AXES)) if semantic else ("", [])
        if semantic and (near := self._near.get(parameters, vector)) is not None:
            return Answer(near, "semantic")
        try:
            completion = await self.provider.complete(question)
        except ProviderError as exc:
            self._note(str(exc))
            stale = self._recent.get(key, stale=True)
            if stale is None:
                raise
            return Answer(stale, "fallback")
        self._note("")
        if completion.finish_reason == "stop":
            self._recent.put(key, completion)
            await self._shared.put(key, completion)
            if semantic:
                self._near.put(parameters, vector, completion)
        return Answer(completion, "provider")

    def _note(self, trouble: str) -> None:
        if bool(trouble) != bool(self.trouble):
            if trouble:
                _log.warning("the provider %s is away: %s", self.provider.name, trouble)
            else:
                _log.info("the provider %s answers again", self.provider.name)
        self.trouble = trouble


def _parameters(tenant: str, question: Question) -> str:
    """All that must be the same for a near question's answer to do: everything but what the user said last."""
    others = [message for message in question.messages if message.role != "user" or message.content != question.prompt]
    rest = asdict(replace(question, messages=tuple(others)))
    return hashlib.sha256(json.dumps([tenant, rest], sort_keys=True).encode()).hexdigest()
