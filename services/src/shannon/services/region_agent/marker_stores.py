# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How markers get into the region's stores, and how the newest is found there. Every call is bounded."""

from __future__ import annotations

import json
import typing as t

from shannon.resilience.concurrently import gather
from shannon.resilience.errors import ResilienceError
from shannon.resilience.markers import COLLECTION, Marker, marker_of, point_of, text_of
from shannon.resilience.qdrant import Qdrant
from shannon.resilience.redis import RedisClient

from .settings import CellSettings, Settings
from .sql import ask
from .sql_session import Session, psql

#: Slots of the ring: ten minutes of markers.
SLOTS = 600
#: Hours for which a vector's markers stay in vector_log. An indexer's position is at one of them most of the time; one
#: that was away for longer goes back a few minutes further than it had to.
KEPT_HOURS = 12
#: After so many markers the old ones are removed from vector_log.
PRUNE_EVERY = 300
REDIS_KEY = "shannon:dr:marker"

_NEWEST = "SELECT json_build_object('seq', seq, 'epoch', epoch, 'at', extract(epoch FROM at)) FROM dr_markers"
_ORDER = "ORDER BY epoch DESC, seq DESC LIMIT 1"


class Stores(t.Protocol):
    """The stores as :class:`.markers.Markers` uses them; a test fakes it. Every method raises ResilienceError."""

    def write_postgres(self, marker: Marker, vector: Marker | None) -> None:
        """One transaction: the marker, and with C(vector) one that the indexers bring to Qdrant."""

    def write_redis(self, marker: Marker) -> None:
        """The primary has it."""

    def postgres(self, before: int) -> Marker | None:
        """The newest of an epoch before this one."""

    def redis(self) -> Marker | None:
        """The one that is there."""

    def qdrant(self, before: int) -> Marker | None:
        """The newest of an epoch before this one that Qdrant has."""

    def vector_log(self, before: int) -> Marker | None:
        """The newest of an epoch before this one that Qdrant is to get."""

    def has_qdrant(self) -> bool:
        """Whether the region has a Qdrant."""

    def close(self) -> None:
        """Let go of what stands open."""


class StoresOfRegion:
    """The stores of one cell in the own region."""

    def __init__(self, settings: Settings, cell: CellSettings, context: t.Any) -> None:
        self._cell = cell
        self._region = settings.region
        self._session = Session(psql(settings.database, cell.postgres))
        addresses = settings.redis.get(settings.region, {}).values()
        self._redis = {
            address: RedisClient(address, cell.redis, "admin", settings.redis_password, context, 1.0)
            for address in addresses
        }
        self._primary = ""
        self._qdrant = [
            Qdrant(address, settings.qdrant_port, context, settings.qdrant_api_key, 1.0)
            for address in settings.qdrant.get(settings.region, {}).values()
        ]

    def write_postgres(self, marker: Marker, vector: Marker | None) -> None:
        # One statement, so one transaction; psql answers when it is committed, on a second host too.
        statement = (
            "WITH marker AS (INSERT INTO dr_markers (slot, seq, epoch, at)"
            f" VALUES ({marker.seq % SLOTS}, {marker.seq}, {marker.epoch}, to_timestamp({marker.at:.3f}))"
            " ON CONFLICT (slot) DO UPDATE SET seq = excluded.seq, epoch = excluded.epoch, at = excluded.at"
            " RETURNING seq)"
        )
        if vector is not None:
            point = point_of(self._cell.name, vector.epoch)
            payload = json.dumps({"cell": self._cell.name, **json.loads(text_of(vector))}).replace("'", "''")
            statement += (
                ", vector AS (INSERT INTO vector_log (collection, point_id, operation, vector, payload)"
                f" VALUES ('{COLLECTION}', '{point}', 'upsert', '{{1}}', '{payload}'))"
            )
        if self._session.ask(f"{statement} SELECT seq FROM marker") != [str(marker.seq)]:
            raise ResilienceError("PostgreSQL of this host did not take the marker")
        if marker.seq % PRUNE_EVERY == 0:
            self._session.ask(
                "DELETE FROM vector_log WHERE sequence IN (SELECT sequence FROM vector_log"
                f" WHERE collection = '{COLLECTION}' AND created_at < now() - interval '{KEPT_HOURS} hours' LIMIT 1000)"
            )

    def write_redis(self, marker: Marker) -> None:
        address = self._primary_address()
        try:
            self._redis[address].command(["SET", REDIS_KEY, text_of(marker)])
        except ResilienceError:
            self._primary = ""
            raise

    def postgres(self, before: int) -> Marker | None:
        return _first(self._session.ask(f"{_NEWEST} WHERE epoch < {before} {_ORDER}"))

    def redis(self) -> Marker | None:
        return marker_of(self._redis[self._primary_address()].command(["GET", REDIS_KEY]))

    def qdrant(self, before: int) -> Marker | None:
        last = ResilienceError(f"region {self._region} has no Qdrant")
        for peer in self._qdrant:
            try:
                found = [marker_of(one) for one in peer.payloads(COLLECTION, "cell", self._cell.name)]
                return max((one for one in found if one and one.epoch < before), default=None)
            except ResilienceError as exc:
                last = exc
        raise last

    def vector_log(self, before: int) -> Marker | None:
        return _first(
            self._session.ask(
                f"SELECT payload FROM vector_log WHERE collection = '{COLLECTION}'"
                f" AND (payload ->> 'epoch')::bigint < {before} ORDER BY sequence DESC LIMIT 1"
            )
        )

    def has_qdrant(self) -> bool:
        return bool(self._qdrant)

    def close(self) -> None:
        self._session.close()
        self._primary = ""
        for client in self._redis.values():
            client.close()

    def _primary_address(self) -> str:
        if not self._primary:
            answers = gather({address: client.role for address, client in self._redis.items()})
            found = [address for address, role in answers.items() if isinstance(role, list) and role[0] == "primary"]
            if len(found) != 1:
                raise ResilienceError(f"Redis of region {self._region} has {len(found)} primaries that answer")
            self._primary = found[0]
        return self._primary


def newest_here(settings: Settings, cell: CellSettings) -> Marker | None:
    """The newest marker in this host's PostgreSQL, whatever it is; None when it has none, or can't be asked."""
    try:
        return _first(ask(f"{_NEWEST} {_ORDER}", settings.database, cell.postgres, 5.0))
    except ResilienceError:
        return None


def _first(lines: t.Sequence[str]) -> Marker | None:
    return marker_of(lines[0]) if lines else None
