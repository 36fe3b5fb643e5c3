# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What earlier tasks of a user left behind: found for a new one, and made of one that is done."""

from __future__ import annotations

import typing as t

from shannon.services.common.config import Config
from shannon.services.vectors.chunks import split
from shannon.services.vectors.embeddings import EmbeddingClient
from shannon.services.vectors.search import DEFAULT_COLLECTION, Hit, MemorySearch

from . import ids
from .tasks import Point
from .texts import shorten

#: Earlier answers that a task is given.
RECALLED = 3
#: Characters of an answer that are kept beside its embedding.
_ANSWER = 4000


class Memory:
    """Embeddings and the region's Qdrant."""

    def __init__(self, embeddings: EmbeddingClient, search: MemorySearch, config: Config) -> None:
        self._embeddings = embeddings
        self._search = search
        self._settings = config.embeddings

    async def recall(self, tenant: str, user: str, query: str) -> list[Hit]:
        """What this user asked before that is near.

        :raises EmbeddingError, SearchError: memory is away.
        """
        vector = await self._embeddings.embed(self._chunks(query)[0])
        return await self._search.search(vector, tenant_id=tenant, user_id=user, top_k=RECALLED)

    async def search(
        self,
        query: str,
        vector: t.Sequence[float],
        *,
        tenant: str,
        user: str,
        session: str,
        collection: str,
        top_k: int,
        threshold: float | None,
        mmr: bool | None,
    ) -> list[Hit]:
        """As a caller asks; C(vector) is used instead of the query when there is one.

        :raises EmbeddingError, SearchError: as :meth:`recall`.
        """
        wanted = list(vector) or await self._embeddings.embed(self._chunks(query)[0])
        return await self._search.search(
            wanted,
            tenant_id=tenant,
            user_id=user,
            session_id=session,
            collection=collection or DEFAULT_COLLECTION,
            top_k=top_k,
            threshold=threshold,
            mmr=mmr,
        )

    async def probe(self, timeout: float) -> None:
        """Ask Qdrant whether it is there, through its breaker.

        :raises SearchError: it is not.
        """
        await self._search.probe(timeout)

    async def points(
        self, *, task: str, tenant: str, user: str, session: str, query: str, answer: str, at: float
    ) -> list[Point]:
        """The embeddings of a task that is done; their ids are derived from its own, so doing it again doubles nothing.

        :param at: seconds since 1970.
        :raises EmbeddingError: llm-service is away.
        """
        chunks = self._chunks(query)
        vectors = await self._embeddings.embed_all(chunks)
        shared = {
            "task_id": task,
            "qa_id": task,
            "tenant_id": tenant,
            "user_id": user,
            "session_id": session,
            "agent_id": "orchestrator",
            "answer": shorten(answer, _ANSWER),
            "timestamp": int(at),
            "is_chunked": len(chunks) > 1,
        }
        places: list[dict[str, t.Any]] = [{} for _chunk in chunks]
        if len(chunks) > 1:
            places = [{"chunk_index": index, "chunk_count": len(chunks)} for index in range(len(chunks))]
        return [
            Point(ids.chunk_key(task, index), vector, {**shared, **places[index], "query": chunks[index]})
            for index, vector in enumerate(vectors)
        ]

    def _chunks(self, text: str) -> list[str]:
        settings = self._settings
        return [
            chunk.text for chunk in split(text, settings.chunk_tokens, settings.chunk_overlap, settings.chunk_minimum)
        ]
