# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was lost in a move, by markers: numbered rows that the home writes to every store all the time.

The home's agent says in the registry, once a second, which marker each store acknowledged last. When another region
begins to serve, its agent looks which one of them is the newest that each of its stores has. The difference is what the
store lost: the true age of the newest lost write, where a lag is only what somebody believed about it.
"""

from __future__ import annotations

import json
import time
import typing as t
import uuid
from dataclasses import asdict, dataclass, field

from .errors import ResilienceError
from .etcd import EtcdClient, put_op, when_mod_revision
from .region_lease import LEASES, RegionLease

#: C(<cell>): what the home's stores acknowledged last. C(<cell>/<epoch, 10 digits>): what of it arrived in the home of
#: that epoch.
MARKERS = "/shannon/markers/"
STORES = ("postgres", "redis", "qdrant")
#: The collection of Qdrant, and of vector_log, that holds markers and nothing else.
COLLECTION = "dr_markers"
#: A marker for vectors is written with every so many of PostgreSQL's. Each costs the indexers of all regions a request.
VECTOR_EVERY = 2
#: Seconds that a mover waits for the new home to say what arrived; it serves already.
MEASURE_WITHIN = 10.0
_NAMESPACE = uuid.UUID("0d9f0a52-3d4e-5b0e-8f57-6f3c1c0a7be4")


@dataclass(frozen=True, order=True)
class Marker:
    """One marker. Those of a cell are numbered through, over all epochs; C(at) is by the clock of who wrote it."""

    epoch: int
    seq: int
    at: float


@dataclass(frozen=True)
class Written:
    """What a home's stores acknowledged last."""

    region: str
    epoch: int
    host: str
    at: float
    stores: dict[str, Marker | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Arrival:
    """What a new home has of its predecessor's markers.

    :ivar last: what the predecessor had said last.
    :ivar stores: the newest marker of an earlier epoch in each of the own stores; None when there is none.
    :ivar settled: whether Qdrant has all markers that PostgreSQL has; it follows a moment later.
    :ivar trouble: by store, why it could not be asked.
    """

    region: str
    epoch: int
    host: str
    at: float
    last: Written | None
    stores: dict[str, Marker | None] = field(default_factory=dict)
    settled: bool = True
    trouble: dict[str, str] = field(default_factory=dict)


def point_of(cell: str, epoch: int) -> str:
    """Id of the point for an epoch's markers: one for each, so that a new home leaves the old one's as it was."""
    return str(uuid.uuid5(_NAMESPACE, f"{cell}/{epoch}"))


def marker_of(value: t.Any) -> Marker | None:
    """A marker from a mapping or its JSON text; None when it is none."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
        return Marker(int(found["epoch"]), int(found["seq"]), float(found["at"]))
    except (ValueError, KeyError, TypeError):
        return None


def text_of(marker: Marker) -> str:
    """The marker as JSON."""
    return json.dumps(asdict(marker), sort_keys=True)


class MarkerBoard:
    """The markers' keys in the registry. Every method raises ResilienceError when it can't answer."""

    def __init__(self, client: EtcdClient) -> None:
        self._client = client

    def written(self, cell: str) -> Written | None:
        """What the home said last; None when no home ever did."""
        found = self._client.get(MARKERS + cell)
        return _written(_mapping(found.value)) if found else None

    def arrived(self, cell: str, epoch: int) -> Arrival | None:
        """What the home of an epoch found when it began; None when it has not said so."""
        found = self._client.get(_arrival_key(cell, epoch))
        return _arrival(_mapping(found.value)) if found else None

    def tell(self, lease: RegionLease, what: Written | Arrival) -> bool:
        """Write either one, if the lease still is what it was."""
        key = MARKERS + lease.cell if isinstance(what, Written) else _arrival_key(lease.cell, what.epoch)
        change = put_op(key, json.dumps(asdict(what), sort_keys=True))
        return self._client.txn([when_mod_revision(LEASES + lease.cell, lease.revision)], [change]).succeeded


def loss(last: Marker | None, newest: Marker | None) -> dict[str, t.Any]:
    """What lies between two markers: C(seconds) and C(markers), both None when either marker is not known."""
    if last is None or newest is None:
        return {"seconds": None, "markers": None}
    # What arrived may be newer than what the registry knows: it hears of a marker a moment after the store has it.
    return {"seconds": round(max(0.0, last.at - newest.at), 3), "markers": max(0, last.seq - newest.seq)}


def losses(arrival: Arrival) -> dict[str, dict[str, t.Any]]:
    """By store, what was lost, with C(last_at) and C(arrived_at), and a C(note) where something is amiss."""
    found: dict[str, dict[str, t.Any]] = {}
    for store in STORES:
        last = arrival.last.stores.get(store) if arrival.last else None
        newest = arrival.stores.get(store)
        if last is None and newest is None and store not in arrival.trouble:
            continue  # a deployment without this store
        one = loss(last, newest)
        one.update(last_at=last.at if last else None, arrived_at=newest.at if newest else None, note="")
        if store in arrival.trouble:
            one["note"] = arrival.trouble[store]
        elif newest is None:
            one["note"] = "no marker of the old home arrived"
        elif last is None:
            one["note"] = "the old home did not say what it wrote last"
        elif store == "qdrant" and not arrival.settled:
            one["note"] = "the indexer had not caught up with PostgreSQL yet"
        found[store] = one
    return found


def measure(client: EtcdClient, cell: str, epoch: int, within: float = MEASURE_WITHIN) -> dict[str, t.Any]:
    """Wait until the home of an epoch said what arrived, and compare.

    :returns: C(stores) as :func:`losses` gives it, C(seconds), the longest of them, and C(text).
    :raises ResilienceError: the registry can't answer.
    """
    board = MarkerBoard(client)
    deadline = time.monotonic() + within
    while True:
        arrival = board.arrived(cell, epoch)
        if (arrival and arrival.settled) or time.monotonic() >= deadline:
            break
        time.sleep(0.1)
    if arrival is None:
        return {"text": f"the new home did not say within {within:.0f} s which markers arrived"}
    stores = losses(arrival)
    known = [one["seconds"] for one in stores.values() if one["seconds"] is not None]
    found: dict[str, t.Any] = {"stores": stores, "text": "by the markers that arrived; known to a second"}
    if known:
        found["seconds"] = max(known)
    return found


def together(bytes_said: t.Mapping[str, t.Any], measured: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """What the end of the old home's WAL says, and what the markers say: the worse of the two counts."""
    seconds = [one["seconds"] for one in (bytes_said, measured) if one.get("seconds") is not None]
    texts = [one["text"] for one in (bytes_said, measured) if one.get("text")]
    found = {**measured, **bytes_said, "text": "; ".join(texts)}
    if seconds:
        found["seconds"] = max(seconds)
    return found


def exactly(client: EtcdClient, cell: str, epoch: int, own: Marker | None) -> dict[str, t.Any]:
    """What PostgreSQL lost when the home of an epoch took over, by the last marker that the old one has on its disk.

    :param own: that marker.
    :returns: C(lost_seconds) and C(lost_markers); empty when it can't be said.
    """
    if own is None:
        return {}
    try:
        arrival = MarkerBoard(client).arrived(cell, epoch)
    except ResilienceError:
        return {}
    newest = arrival.stores.get("postgres") if arrival else None
    if newest is not None and newest.epoch > own.epoch:
        return {}  # the region missed more than one move
    found = loss(own, newest)
    if found["seconds"] is None:
        return {}
    return {"lost_seconds": found["seconds"], "lost_markers": found["markers"]}


def redis_lost(arrival: Arrival, region: str, own: Marker | None) -> dict[str, t.Any]:
    """What Redis lost when another home took over, by the last marker that a region had had acknowledged.

    :param arrival: what that home found when it began.
    :param region: the region that came back.
    :param own: the marker in its Redis. After a power cut it may be older than what was acknowledged, so what the
        region told the registry counts as well.
    :returns: C(lost_seconds) and C(lost_markers); empty when it can't be said.
    """
    last, newest = arrival.last, arrival.stores.get("redis")
    told = last.stores.get("redis") if last and last.region == region else None
    known = max((one for one in (own, told) if one is not None), default=None)
    if known is None or newest is None or newest.epoch > known.epoch:
        return {}  # nothing to compare, or the region missed more than one move
    found = loss(known, newest)
    return {"lost_seconds": found["seconds"], "lost_markers": found["markers"]}


def _arrival_key(cell: str, epoch: int) -> str:
    return f"{MARKERS}{cell}/{epoch:010d}"


def _written(value: t.Mapping[str, t.Any]) -> Written | None:
    try:
        return Written(
            str(value["region"]), int(value["epoch"]), str(value["host"]), float(value["at"]), _stores(value)
        )
    except (KeyError, TypeError, ValueError):
        return None


def _arrival(value: t.Mapping[str, t.Any]) -> Arrival | None:
    try:
        last, trouble = value.get("last"), value.get("trouble")
        return Arrival(
            str(value["region"]),
            int(value["epoch"]),
            str(value["host"]),
            float(value["at"]),
            _written(last) if isinstance(last, dict) else None,
            _stores(value),
            bool(value.get("settled", True)),
            {str(name): str(text) for name, text in trouble.items()} if isinstance(trouble, dict) else {},
        )
    except (KeyError, TypeError, ValueError):
        return None


def _stores(value: t.Mapping[str, t.Any]) -> dict[str, Marker | None]:
    stores = value.get("stores")
    return {str(name): marker_of(one) for name, one in stores.items()} if isinstance(stores, dict) else {}


def _mapping(text: str) -> dict[str, t.Any]:
    """A JSON object; empty when it is none: somebody wrote the key by hand, and it says nothing."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
