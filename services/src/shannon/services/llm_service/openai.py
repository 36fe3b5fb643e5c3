# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Any provider that speaks OpenAI's protocol, behind a circuit breaker."""

from __future__ import annotations

import math
import typing as t

import httpx

from shannon.resilience.circuit_breaker import BreakerError, CircuitBreaker
from shannon.services.common.config import Upstream

from .provider import Completion, ProviderError, Question, RefusedError, Vectors, tokens_of

_PLAN = (
    "Answer with one JSON object and nothing else: "
    '{"steps": [{"id": "1", "task": "...", "tool": null, "depends_on": []}]}. '
    "Use a tool only from this list: "
)


class OpenAiProvider:
    """An upstream.

    :param settings: where it is, and how long it may take.
    :param key: what it is asked with; an empty text sends none.
    :param dimension: how many numbers its embeddings must have.
    :param guard: the breaker of kind http that counts its failures.
    :param transport: for tests.
    """

    name = "openai"

    def __init__(
        self,
        settings: Upstream,
        key: str,
        dimension: int,
        guard: CircuitBreaker,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._dimension = dimension
        self._guard = guard
        self._client = httpx.AsyncClient(
            base_url=settings.base_url.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(settings.timeout, connect=settings.connect_timeout),
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=16),
            transport=transport,
        )

    async def complete(self, question: Question) -> Completion:
        """Ask it.

        :raises ProviderError: it is away, or its breaker is open.
        :raises RefusedError: it answers that the request is wrong.
        """
        messages = [{"role": message.role, "content": message.content} for message in question.messages]
        if question.purpose == "plan":
            messages.insert(0, {"role": "system", "content": _PLAN + (", ".join(question.tools) or "none")})
        body = {
            "model": question.model,
            "messages": messages,
            "temperature": question.temperature,
            "max_tokens": question.max_tokens,
        }
        said = await self._ask("chat/completions", body)
        try:
            choice = said["choices"][0]
            text = str(choice["message"]["content"] or "")
            usage = said.get("usage") or {}
            return Completion(
                text=text,
                model=str(said.get("model") or question.model),
                provider=self.name,
                input_tokens=int(usage.get("prompt_tokens") or sum(tokens_of(item["content"]) for item in messages)),
                output_tokens=int(usage.get("completion_tokens") or tokens_of(text)),
                finish_reason=str(choice.get("finish_reason") or "stop"),
            )
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as exc:
            raise ProviderError(f"the provider's completion is none: {type(exc).__name__}: {exc}") from exc

    async def embed(self, texts: t.Sequence[str], model: str) -> Vectors:
        """Ask it.

        :raises ProviderError: as :meth:`complete`, or its vectors have another dimension.
        """
        said = await self._ask("embeddings", {"model": model, "input": list(texts)})
        try:
            rows = sorted(said["data"], key=lambda row: row["index"])
            vectors = tuple(_unit([float(value) for value in row["embedding"]]) for row in rows)
            tokens = int((said.get("usage") or {}).get("total_tokens") or sum(map(tokens_of, texts)))
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise ProviderError(f"the provider's embeddings are none: {type(exc).__name__}: {exc}") from exc
        wrong = {len(vector) for vector in vectors} - {self._dimension}
        if len(vectors) != len(texts) or wrong:
            found = f"{len(vectors)} of {len(texts)} vectors, dimensions {sorted({len(vector) for vector in vectors})}"
            raise ProviderError(
                f"the provider's model {model} gives {found}; embeddings.dimension is {self._dimension}. "
                "Choose a model of that dimension, or change the setting and make the collections anew"
            )
        return Vectors(vectors, model, self.name, tokens)

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def _ask(self, path: str, body: t.Any) -> t.Any:
        try:
            return await self._guard.call_async(self._post, path, body)
        except BreakerError as exc:
            raise ProviderError(f"the provider is not asked: {exc}", exc.retry_after) from exc
        except httpx.HTTPStatusError as exc:
            status = exc.response.status_code
            text = f"the provider answers {status} to POST {exc.request.url}: {exc.response.text[:200]}"
            if status == 429:
                raise ProviderError(text, _retry_after(exc.response)) from exc
            raise (ProviderError(text) if status >= 500 else RefusedError(text)) from exc
        except (httpx.HTTPError, ValueError) as exc:
            raise ProviderError(f"the provider does not answer POST {path}: {type(exc).__name__}: {exc}") from exc

    async def _post(self, path: str, body: t.Any) -> t.Any:
        answer = await self._client.post(path, json=body)
        answer.raise_for_status()
        return answer.json()


def _unit(vector: list[float]) -> tuple[float, ...]:
    length = math.sqrt(math.fsum(value * value for value in vector))
    return tuple(value / length for value in vector) if length else tuple(vector)


def _retry_after(answer: httpx.Response) -> float:
    try:
        return min(max(float(answer.headers.get("Retry-After", "5")), 0.0), 300.0)
    except ValueError:
        return 5.0
