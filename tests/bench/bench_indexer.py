"""Points a second of the indexer's way into Qdrant, beside a plain upload by qdrant-client, in the same run.

    tests/bench/bench_indexer.py --host a1 [--points N] [--dimension N] [--batch N]
    BENCH_QDRANT_URL=https://127.0.0.1:16333 BENCH_QDRANT_API_KEY=... BENCH_QDRANT_TLS=CA,CERTIFICATE,KEY \
        tests/bench/bench_indexer.py

With --host it runs itself on a host of the lab, with the release of the services there and through its data proxy.

The indexer's rows come from memory in the form in which PostgreSQL gives them, so that both sides begin with what they
would have anyway: texts there, lists of floats here. Both wait until each request is applied, and each has a collection
of its own, which is deleted in the end. The target is at least 0.5 of the plain upload. The figures are printed, and
nothing is judged: the machines are noisy.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pathlib
import random
import ssl
import statistics
import sys
import time
import typing as t
import uuid

import httpx
from qdrant_client import QdrantClient, models

from shannon.resilience.circuit_breaker import CircuitBreaker
from shannon.services.common.config import VectorIndexer
from shannon.services.vectors.election import Alone
from shannon.services.vectors.indexer import CellIndexer
from shannon.services.vectors.log_reader import Edges
from shannon.services.vectors.positions import START, Mark, Position
from shannon.services.vectors.rows import Row
from shannon.services.vectors.sink import QdrantSink

TARGET = 0.5


class MemoryLog:
    """vector_log with rows that were read already."""

    generation = 1

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    async def read(self, after: Position, limit: int) -> list[Row]:
        """Rows are numbered from 1 without gaps."""
        return self._rows[after.sequence : after.sequence + limit]

    async def holds(self, mark: Mark) -> bool:
        """All rows are there."""
        return bool(mark.position.sequence)

    async def last_before(self, position: Position, created_at: float) -> Mark:
        """Never asked: all rows are there."""
        return Mark(START)

    async def edges(self) -> Edges:
        """First and last."""
        return Edges(self._rows[0].position, self._rows[-1].position, 2)

    async def collections(self) -> set[str]:
        """The one."""
        return {self._rows[0].collection}

    async def has_points(self, collection: str) -> bool:
        """It should have all."""
        return True

    async def lag(self, position: Position) -> tuple[int, float]:
        """What is left."""
        return len(self._rows) - position.sequence, 0.0

    async def close(self) -> None:
        """Nothing to close."""


class NoLetters:
    """No row is refused here."""

    def add(self, row: Row, reason: str) -> None:
        """One that is ends the benchmark: its figure would be wrong."""
        raise SystemExit(f"Qdrant refuses a row: {reason}")


def plain(client: QdrantClient, name: str, points: list[tuple[str, list[float], t.Any]], batch: int) -> float:
    """Seconds of the upload."""
    started = time.perf_counter()
    for begin in range(0, len(points), batch):
        part = points[begin : begin + batch]
        structs = [models.PointStruct(id=i, vector=vector, payload=payload) for i, vector, payload in part]
        client.upsert(name, structs, wait=True, ordering=models.WriteOrdering.MEDIUM)
    return time.perf_counter() - started


async def indexed(http: httpx.AsyncClient, cell: str, rows: list[Row], batch: int) -> float:
    """Seconds of the indexer, positions included."""
    sink = QdrantSink(http, CircuitBreaker("qdrant", "bench"), cell, 1)
    settings = VectorIndexer(batch=batch, timeout=30)
    indexer = CellIndexer(cell, MemoryLog(rows), sink, Alone(), NoLetters(), settings)
    started = time.perf_counter()
    while await indexer.step():
        pass
    seconds = time.perf_counter() - started
    if indexer.places.cursor != rows[-1].position:
        raise SystemExit(f"the indexer ended at {indexer.places.cursor}, expected {rows[-1].position}")
    return seconds


def forget(client: QdrantClient, cell: str, collections: t.Iterable[str]) -> None:
    """Delete what the benchmark made."""
    for name in collections:
        client.delete_collection(name)
    condition = models.FieldCondition(key="cell", match=models.MatchValue(value=cell))
    if client.collection_exists("indexer_positions"):
        client.delete("indexer_positions", models.Filter(must=[condition]))


def on_the_lab(args: argparse.Namespace) -> int:
    """Run this very file on a host of the lab."""
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
    import lab

    host = lab.Host(args.host)
    remote = "/root/shannon-bench-indexer.py"
    host.sh(f"cat > {remote}", stdin=pathlib.Path(__file__).read_text(encoding="utf-8"))
    pki = "/etc/shannon/pki"
    try:
        print(
            host.sh(
                "BENCH_QDRANT_URL=https://127.0.0.1:16333"
                " BENCH_QDRANT_API_KEY=$(cat /etc/shannon/credentials/vector_indexer/qdrant_api_key)"
                f" BENCH_QDRANT_TLS={pki}/ca.crt,{pki}/host.crt,{pki}/host.key"
                f" /opt/shannon/services/current/bin/python {remote} --points {args.points}"
                f" --dimension {args.dimension} --batch {args.batch} --runs {args.runs}",
                timeout=900,
            ),
            end="",
        )
    finally:
        host.sh(f"rm -f {remote}", check=False)
    return 0


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=5000, help="of each run (default %(default)s)")
    parser.add_argument("--dimension", type=int, default=1536, help="of the vectors (default %(default)s)")
    parser.add_argument("--batch", type=int, default=500, help="points a request (default %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="of each side, in turn (default %(default)s)")
    parser.add_argument("--host", help="run on this host of the lab")
    args = parser.parse_args()
    if args.host:
        return on_the_lab(args)
    url = os.environ.get("BENCH_QDRANT_URL", "")
    if not url:
        print("give --host, or set BENCH_QDRANT_URL (and BENCH_QDRANT_API_KEY, BENCH_QDRANT_TLS)", file=sys.stderr)
        return 2
    key = os.environ.get("BENCH_QDRANT_API_KEY", "")
    verify: ssl.SSLContext | bool = True
    if files := os.environ.get("BENCH_QDRANT_TLS", ""):
        authority, certificate, private = files.split(",")
        verify = ssl.create_default_context(cafile=authority)
        verify.load_cert_chain(certificate, private)
    chance = random.Random(1)
    payload = {"tenant_id": str(uuid.uuid4()), "session_id": str(uuid.uuid4()), "text": "x" * 200}
    points = [
        (str(uuid.uuid4()), [chance.uniform(-1, 1) for _place in range(args.dimension)], payload)
        for _point in range(args.points)
    ]
    texts = [(i, json.dumps([round(value, 7) for value in vector]), json.dumps(p)) for i, vector, p in points]
    client = QdrantClient(url=url, api_key=key or None, timeout=60, verify=verify)
    found: dict[str, list[float]] = {"plain": [], "indexer": []}

    async def run_indexer(cell: str, name: str) -> float:
        rows = [
            Row(Position(1, number), name, i, "upsert", vector, text, 0.0)
            for number, (i, vector, text) in enumerate(texts, 1)
        ]
        async with httpx.AsyncClient(base_url=url, headers={"api-key": key}, verify=verify) as http:
            return await indexed(http, cell, rows, args.batch)

    for _turn in range(args.runs):
        cell = f"bench_{uuid.uuid4().hex[:8]}"
        names = {side: f"{cell}_{side}" for side in found}
        try:
            for name in names.values():
                vectors = models.VectorParams(size=args.dimension, distance=models.Distance.COSINE)
                client.create_collection(name, vectors_config=vectors)
            found["plain"].append(args.points / plain(client, names["plain"], points, args.batch))
            found["indexer"].append(args.points / asyncio.run(run_indexer(cell, names["indexer"])))
        finally:
            forget(client, cell, names.values())
    medians = {side: statistics.median(rates) for side, rates in found.items()}
    for side, rates in found.items():
        print(f"{side:8} median {medians[side]:8.0f} points/s  worst {min(rates):8.0f}  runs {len(rates)}")
    ratio = medians["indexer"] / medians["plain"]
    print(f"indexer / plain upload: {ratio:.2f}, target at least {TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
