"""A log of vectors, and a Qdrant, as the indexer sees them; in memory, and able to fail at any point."""

from __future__ import annotations

import typing as t

from shannon.services.vectors.log_reader import Edges
from shannon.services.vectors.positions import START, Mark, Position
from shannon.services.vectors.rows import Row
from shannon.services.vectors.sink import CollectionMissing, Refused, Unavailable


class FakeLog:
    """vector_log with transactions: rows of open ones are not visible, and hold the horizon down."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.open: set[int] = set()
        self.next_txid = 100
        self.next_sequence = 1
        self.now = 1000.0
        self.generation = 1
        self.down = False
        self.reads = 0

    def begin(self) -> int:
        self.next_txid += 1
        self.open.add(self.next_txid)
        return self.next_txid

    def commit(self, txid: int) -> None:
        self.open.discard(txid)

    def add(
        self,
        point: str,
        vector: str | None = "[1]",
        collection: str = "c",
        txid: int | None = None,
        payload: str = "{}",
    ) -> Row:
        """Write a row, in its own transaction unless one is given."""
        self.now += 1
        own = txid is None
        if own:
            txid = self.begin()
        operation = "delete" if vector is None else "upsert"
        row = Row(Position(txid, self.next_sequence), collection, point, operation, vector, payload, self.now)  # type: ignore[arg-type]
        self.next_sequence += 1
        self.rows.append(row)
        if own:
            self.commit(txid)  # type: ignore[arg-type]
        return row

    def _visible(self) -> list[Row]:
        if self.down:
            raise OSError("the log is away")
        return sorted((row for row in self.rows if row.position.txid not in self.open), key=lambda row: row.position)

    @property
    def horizon(self) -> int:
        return min(self.open, default=self.next_txid + 1)

    async def read(self, after: Position, limit: int) -> list[Row]:
        self.reads += 1
        rows = [row for row in self._visible() if row.position > after and row.position.txid < self.horizon]
        return rows[:limit]

    async def holds(self, mark: Mark) -> bool:
        return any(row.mark == mark for row in self._visible())

    async def last_before(self, position: Position, created_at: float) -> Mark:
        found = [row for row in self._visible() if row.position <= position and row.created_at <= created_at]
        return found[-1].mark if found else Mark(START)

    async def edges(self) -> Edges:
        rows = self._visible()
        return Edges(rows[0].position if rows else None, rows[-1].position if rows else None, self.horizon)

    async def collections(self) -> set[str]:
        return {row.collection for row in self._visible()}

    async def has_points(self, collection: str) -> bool:
        last = {row.point_id: row.operation for row in self._visible() if row.collection == collection}
        return "upsert" in last.values()

    async def lag(self, position: Position) -> tuple[int, float]:
        rest = [row for row in self._visible() if row.position > position]
        return len(rest), self.now - rest[0].created_at if rest else 0.0

    async def close(self) -> None:
        """Nothing to close."""

    def state(self, collection: str = "c") -> dict[str, str]:
        """What Qdrant should hold."""
        found: dict[str, str] = {}
        for row in self._visible():
            if row.collection == collection:
                found.pop(row.point_id, None)
                if row.vector is not None:
                    found[row.point_id] = row.vector
        return found


class FakeSink:
    """Qdrant. C(fail_at) counts requests down to one that fails: before it is done, or after."""

    def __init__(self, *collections: str) -> None:
        self.data: dict[str, dict[str, str]] = {name: {} for name in collections or ("c",)}
        self.marks: dict[str, Mark] = {}
        self.requests: list[str] = []
        self.fail_at = 0
        self.fail_after = False
        self.down = False

    def _ask(self, what: str) -> t.Callable[[], None]:
        if self.down:
            raise Unavailable("Qdrant is away")
        self.requests.append(what)
        self.fail_at -= 1
        if self.fail_at == 0 and not self.fail_after:
            raise Unavailable(f"{what} failed")

        def done() -> None:
            if self.fail_at == 0:
                raise Unavailable(f"the answer to {what} got lost")

        return done

    async def upsert(self, collection: str, rows: t.Sequence[Row], timeout: float) -> None:
        done = self._ask(f"upsert {collection} {len(rows)}")
        if collection not in self.data:
            raise CollectionMissing(collection)
        if any(row.vector == "[wrong]" for row in rows):
            raise Refused("Vector dimension error")
        self.data[collection].update({row.point_id: str(row.vector) for row in rows})
        done()

    async def delete(self, collection: str, rows: t.Sequence[Row], timeout: float) -> None:
        done = self._ask(f"delete {collection} {len(rows)}")
        if collection not in self.data:
            raise CollectionMissing(collection)
        for row in rows:
            self.data[collection].pop(row.point_id, None)
        done()

    async def count(self, collection: str, timeout: float) -> int:
        if self.down:
            raise Unavailable("Qdrant is away")
        if collection not in self.data:
            raise CollectionMissing(collection)
        return len(self.data[collection])

    async def positions(self, timeout: float) -> dict[str, Mark]:
        if self.down:
            raise Unavailable("Qdrant is away")
        return dict(self.marks)

    async def save(self, marks: t.Mapping[str, Mark], timeout: float) -> None:
        done = self._ask("save")
        self.marks.update(marks)
        done()

    async def close(self) -> None:
        """Nothing to close."""
