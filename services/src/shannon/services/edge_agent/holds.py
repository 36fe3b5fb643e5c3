# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lets a cell's requests wait at an edge while the cell moves, and tells the registry that they do.

A cell is held while its record says C(draining), C(entering) or C(taking_over). HAProxy's word has an end, so it is
void soon after the last fresh record, whether this agent lives or not. For a while after the release a request still
waits while no gateway is up, and goes to the home that the registry names and nowhere else: health checks follow only
when they were asked again.

C(/shannon/edges/<host>/<cell>) says to a mover that nothing new comes and how much still runs. It has a lease, so what
it says is never older than that.
"""

from __future__ import annotations

import json
import time
import typing as t
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial

from shannon.resilience.errors import ResilienceError
from shannon.resilience.etcd import EtcdClient
from shannon.resilience.haproxy import HOLD, WAIT, RuntimeApi, Server
from shannon.resilience.registry import HELD_STATES, CellRecord
from shannon.resilience.registry_keys import EDGES
from shannon.services.common import logs, metrics

_log = logs.get(__name__)
R = t.TypeVar("R")
#: The state of a record whose cell's requests wait.
#: Seconds that the registry keeps what an edge says after the edge fell silent.
LEASE = 10
#: Seconds after a release in which health checks may not have followed yet.
SETTLING = 10.0
#: How old HAProxy's word may get before it is given a later end.
_RENEWAL = 1.0
#: What serves the requests that name no cell, where there are several.
_ANY = "any"
#: Where the edge counts its open event streams.
_STREAMS = "streams"


@dataclass
class _Cell:
    """A cell that is held, or was a moment ago.

    :ivar home: the only region that may get its traffic; None when the registry has not said so for too long.
    :ivar fresh: when the registry last said that it is.
    :ivar until: the end that HAProxy was given.
    """

    epoch: int
    home: str | None
    fresh: float
    until: float = 0.0
    released: float | None = None


class Holds:
    """The cells that one edge holds.

    :param proxy: its runtime API.
    :param records: gives the registry's records by cell.
    :param client: the registry, to tell it.
    :param host: this edge's name.
    :param map_file: the map by which HAProxy knows what is held.
    :param limit: seconds that a cell may be held without a fresh record.
    :param clock: wall-clock time: HAProxy compares it with its own.
    """

    def __init__(
        self,
        proxy: RuntimeApi,
        records: t.Callable[[], dict[str, CellRecord]],
        client: EtcdClient,
        host: str,
        map_file: str,
        limit: float,
        clock: t.Callable[[], float] = time.time,
    ) -> None:
        self._proxy = proxy
        self._records = records
        self._client = client
        self._host = host
        self._map = map_file
        self._limit = limit
        self._clock = clock
        self._cells: dict[str, _Cell] = {}
        self._lease = 0
        self._leased = 0.0
        self._asked = False
        self._failing: set[str] = set()
        self.registry_answers = True
        self._gauge = metrics.gauge("shannon_edge_held", "1 while a cell's requests wait at the edge.", ("cell",))

    def busy(self) -> bool:
        """Whether a cell is held or was a moment ago."""
        return bool(self._cells)

    def held(self) -> list[str]:
        """The cells that are to be held now."""
        return sorted(name for name, cell in list(self._cells.items()) if cell.released is None)

    def home_of(self, server: Server) -> str | None:
        """The only region that may get a server's traffic now; None when health checks decide."""
        cell = self._cells.get(server.backend.removeprefix("cell_")) if server.backend.startswith("cell_") else None
        return None if cell is None else cell.home

    def refresh(self) -> None:
        """Ask the registry which cells move."""
        now = self._clock()
        try:
            records = self._records()
        except ResilienceError as exc:
            if self.registry_answers:
                _log.warning("the registry does not say which cells move: %s", exc)
            self.registry_answers = False
        else:
            self.registry_answers = self._asked = True
            for name, record in records.items():
                self._take(name, record, now)
            for name in self._cells.keys() - records.keys():
                self._end(name, now, None, "the registry does not know it any more")
        for name, cell in list(self._cells.items()):
            if cell.released is None and now >= cell.fresh + self._limit:
                self._end(name, now, None, f"the registry has not been heard for {self._limit:g} s")
            elif cell.released is not None and now >= cell.released + SETTLING:
                del self._cells[name]

    def _take(self, name: str, record: CellRecord, now: float) -> None:
        cell = self._cells.get(name)
        if record.state in HELD_STATES:
            if cell is None or cell.released is not None:
                _log.info("cell %s: its requests wait (%s)", name, record.describe())
                self._cells[name] = cell = _Cell(record.epoch, record.home, now)
            cell.epoch, cell.home, cell.fresh = record.epoch, record.home, now
            self._gauge.labels(name).set(1)
        elif cell is not None:
            cell.epoch = record.epoch
            self._end(name, now, record.home, record.describe())

    def _end(self, name: str, now: float, home: str | None, why: str) -> None:
        cell = self._cells[name]
        cell.home = home
        if cell.released is None:
            _log.info("cell %s: its requests go on (%s)", name, why)
            cell.released = now
            self._gauge.labels(name).set(0)

    def hold(self) -> None:
        """Let HAProxy hold what is to be held, before anything else changes."""
        there = self._guarded("hold", lambda: self._proxy.held(self._map))
        if there is None:
            return
        for name in self.held():
            cell = self._cells[name]
            until = cell.fresh + self._limit
            if name not in there or until - cell.until >= _RENEWAL:
                self._guarded("hold", partial(self._proxy.hold, self._map, name, until))
                cell.until = until

    def release(self) -> None:
        """Let HAProxy release what is held no more, once the servers are told who is home; then tell the registry."""
        words = self._guarded("release", lambda: self._proxy.words(self._map))
        if words is None:
            return
        for name, word in words.items():
            cell = self._cells.get(name)
            if cell is None:
                # What another agent said before this one was started ends by itself while the registry is away.
                if self._asked:
                    self._guarded("release", partial(self._proxy.release, self._map, name))
            elif cell.released is not None and not word.startswith(f"{WAIT}-"):
                self._guarded("release", partial(self._proxy.release, self._map, name, cell.released + SETTLING))
        if self._cells:
            now = self._clock()
            held = {name for name in self.held() if words.get(name, "").startswith(f"{HOLD}-")}
            self._tell({name for name in held if now < self._cells[name].until})

    def _tell(self, held: set[str]) -> None:
        """Say for each cell whether it is held here and what of it still runs, unless HAProxy can't say."""
        sessions = self._guarded("count", self._proxy.sessions)
        streams = self._guarded("count", lambda: self._proxy.tracked(_STREAMS))
        if sessions is None or streams is None:
            return
        # A stream that ends between the two answers counts as a request; a mover then looks once more.
        running = {name: max(count - streams.get(name, 0), 0) for name, count in sessions.items()}
        try:
            lease = self._alive()
            for name, cell in self._cells.items():
                said = {
                    "epoch": cell.epoch,
                    "held": name in held,
                    "in_flight": running.get(f"cell_{name}", 0) + running.get(_ANY, 0),
                    "at": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
                }
                self._client.put(f"{EDGES}{self._host}/{name}", json.dumps(said, sort_keys=True), lease)
        except ResilienceError as exc:
            self._lease = 0
            _log.warning("the registry can't be told which cells are held: %s", exc)

    def _alive(self) -> int:
        """The lease under which this edge speaks."""
        now = self._clock()
        if self._lease and not 0 <= now - self._leased < LEASE / 3:
            if self._client.lease_keepalive(self._lease):
                self._leased = now
            else:
                self._lease = 0
        if not self._lease:
            self._lease = self._client.lease_grant(LEASE).id
            self._leased = now
        return self._lease

    def _guarded(self, what: str, call: t.Callable[[], R]) -> R | None:
        """An edge that can't hold still routes; it says why once."""
        try:
            found = call()
        except ResilienceError as exc:
            if what not in self._failing:
                _log.error("the edge can't %s requests: %s", what, exc)
            self._failing.add(what)
            return None
        self._failing.discard(what)
        return found
