# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes into the region's Qdrant what the log says, and keeps the positions there."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import typing as t
import urllib.parse

import httpx

from shannon.resilience.circuit_breaker import CircuitBreaker
from shannon.resilience.errors import ResilienceError
from shannon.services.common import logs

from .positions import COLLECTION, Mark, point_of
from .rows import Row

_log: logging.Logger = logs.get(__name__)


class Unavailable(ResilienceError):
    """Qdrant can't do it now: it will be asked again."""


class Refused(ResilienceError):
    """Qdrant will never do it: the request itself is wrong, such as a vector of the wrong dimension."""


class CollectionMissing(ResilienceError):
    """The collection does not exist (yet)."""


class QdrantSink:
    """Points and positions over Qdrant's REST API.

    Bodies are put together from the JSON texts that PostgreSQL wrote, so that no number is parsed or printed here.
    Every method raises Unavailable (or BreakerError while the breaker is open), Refused or CollectionMissing.

    :param client: with base URL, API key and TLS.
    :param breaker: of kind http.
    :param replication: copies of the collection of positions.
    """

    def __init__(self, client: httpx.AsyncClient, breaker: CircuitBreaker, cell: str, replication: int) -> None:
        self._client = client
        self._breaker = breaker
        self._cell = cell
        self._replication = replication

    async def upsert(self, collection: str, rows: t.Sequence[Row], timeout: float) -> None:
        """Write points, and wait until they are in."""
        points = (f'{{"id":"{row.point_id}","vector":{row.vector},"payload":{row.payload}}}' for row in rows)
        # medium: all writes go through one peer, which is chosen anew when it dies, so they stay in order.
        path = f"{_path(collection)}/points?wait=true&ordering=medium"
        await self._send("PUT", path, f'{{"points":[{",".join(points)}]}}', timeout)

    async def delete(self, collection: str, rows: t.Sequence[Row], timeout: float) -> None:
        """Delete points, and wait until they are gone; those that are not there are fine."""
        path = f"{_path(collection)}/points/delete?wait=true&ordering=medium"
        await self._send("POST", path, json.dumps({"points": [row.point_id for row in rows]}), timeout)

    async def count(self, collection: str, timeout: float) -> int:
        """Points of a collection; exact for zero."""
        answer = await self._send("POST", f"{_path(collection)}/points/count", '{"exact":false}', timeout)
        return int(answer["result"]["count"])

    async def positions(self, timeout: float) -> dict[str, Mark]:
        """What each collection has already. Makes the collection of positions if it is missing."""
        condition = {"must": [{"key": "cell", "match": {"value": self._cell}}]}
        body = json.dumps({"limit": 1000, "with_payload": True, "filter": condition})
        try:
            answer = await self._send("POST", f"{_path(COLLECTION)}/points/scroll", body, timeout)
        except CollectionMissing:
            await self._create(timeout)
            return {}
        marks: dict[str, Mark] = {}
        for point in answer["result"]["points"]:
            try:
                marks[str(point["payload"]["collection"])] = Mark.of(point["payload"])
            except (ValueError, KeyError, TypeError) as exc:
                # Without a position the collection is applied from the log's beginning, which is slow, and right.
                _log.error(
                    "a stored position can't be read", extra={"fields": {"point": str(point), "error": str(exc)}}
                )
        return marks

    async def save(self, marks: t.Mapping[str, Mark], timeout: float) -> None:
        """Keep positions; called after their data is in, so a crash between the two repeats work, and loses none."""
        now = time.time()
        points = [
            {"id": point_of(self._cell, name), "vector": [1.0], "payload": mark.payload(self._cell, name, now)}
            for name, mark in marks.items()
        ]
        path = f"{_path(COLLECTION)}/points?wait=true&ordering=medium"
        try:
            await self._send("PUT", path, json.dumps({"points": points}), timeout)
        except CollectionMissing:
            await self._create(timeout)
            await self._send("PUT", path, json.dumps({"points": points}), timeout)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _create(self, timeout: float) -> None:
        body = {
            "vectors": {"size": 1, "distance": "Dot"},
            "shard_number": 1,
            "replication_factor": self._replication,
            "write_consistency_factor": 1,
        }
        try:
            await self._send("PUT", _path(COLLECTION), json.dumps(body), timeout)
        except Refused as exc:
            if "already exists" not in str(exc):  # another cell's indexer was faster
                raise

    async def _send(self, method: str, path: str, body: str, timeout: float) -> t.Any:
        try:
            response = await self._breaker.call_async(self._ask, method, path, body, timeout)
            if response.is_success:
                return response.json()
        except (httpx.HTTPError, ValueError) as exc:
            raise Unavailable(
                f"{self._client.base_url}: expected an answer to {method} {path}, got {type(exc).__name__}: {exc}. "
                "Does Qdrant run in this region, and the data proxy on this host?"
            ) from exc
        text = f"{self._client.base_url}: {method} {path} gave HTTP {response.status_code}: {_reason(response)}"
        if response.status_code == 404:
            raise CollectionMissing(text)
        if response.status_code in (400, 409, 413, 422):
            raise Refused(text)
        # Wrong credentials and too many requests are no fault of the row; it has to wait for whoever mends them.
        raise Unavailable(text)

    async def _ask(self, method: str, path: str, body: str, timeout: float) -> httpx.Response:
        headers = {"content-type": "application/json"}
        # The whole request within its time, not each of its parts: the lease counts on it.
        sent = self._client.request(method, path, content=body.encode(), headers=headers, timeout=timeout)
        try:
            response = await asyncio.wait_for(sent, timeout)
        except asyncio.TimeoutError as exc:
            raise httpx.ReadTimeout(f"no answer within {timeout:.3g} s") from exc
        if response.status_code >= 500:
            response.raise_for_status()  # inside the breaker: this is what opens it
        return response


def _path(collection: str) -> str:
    return f"/collections/{urllib.parse.quote(collection, safe='')}"


def _reason(response: httpx.Response) -> str:
    try:
        return str(response.json()["status"]["error"])[:500]
    except (ValueError, KeyError, TypeError):
        return response.text[:500]
