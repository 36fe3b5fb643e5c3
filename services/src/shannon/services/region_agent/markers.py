# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes markers into every store while this host speaks for the home, and says which of the old home's arrived.

It has a thread of its own: a store that hangs must never keep the worker from what it has to do. Whatever goes wrong
here costs a figure in a report, and nothing else.
"""

from __future__ import annotations

import threading
import time
import typing as t
from dataclasses import dataclass, field, replace

from shannon.resilience.concurrently import gather
from shannon.resilience.errors import ResilienceError
from shannon.resilience.etcd import EtcdClient
from shannon.resilience.markers import VECTOR_EVERY, Arrival, Marker, MarkerBoard, Written
from shannon.resilience.region_lease import RegionLease
from shannon.services.common import logs

from .keeper import Keeper, Standing
from .marker_stores import Stores
from .postgres import PRIMARY
from .settings import CellSettings, Settings

_log = logs.get(__name__)
#: Seconds between two markers, and between two looks at whether this host speaks for the home.
INTERVAL = 1.0
LOOK = 0.25
#: Authority that must be left to begin with a marker.
SPARE = 1.0
#: Seconds for which a store that does not answer is asked what arrived, before it is said that it did not.
READ_WITHIN = 8.0
#: Seconds that Qdrant is given to have what PostgreSQL has.
SETTLE_WITHIN = 20.0
#: Seconds without PostgreSQL after a failure: each try may leave a session behind.
AGAIN = 5.0

R = t.TypeVar("R")


@dataclass
class _Arriving:
    """A new epoch, until all is known of what arrived."""

    epoch: int
    since: float
    last: Written | None
    found: dict[str, Marker | None] = field(default_factory=dict)
    trouble: dict[str, str] = field(default_factory=dict)
    awaited: Marker | None = None
    settled: bool = False


class Markers:
    """Of one cell on one host.

    :param clock: seconds that never go back.
    """

    def __init__(
        self,
        settings: Settings,
        cell: CellSettings,
        keeper: Keeper,
        client: EtcdClient,
        stores: Stores,
        clock: t.Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._cell = cell
        self._keeper = keeper
        self._board = MarkerBoard(client)
        self._stores = stores
        self._clock = clock
        self._stopping = threading.Event()
        #: The epoch for which markers are written; 0: none are.
        self._epoch = 0
        self._seq = 0
        self._next = 0.0
        self._postgres_again = 0.0
        self._written: dict[str, Marker | None] = {}
        self._arriving: _Arriving | None = None
        self._said: dict[str, str] = {}

    def stop(self) -> None:
        """End after the present step."""
        self._stopping.set()

    def run(self) -> None:
        """Step until stopped."""
        while not self._stopping.wait(LOOK):
            try:
                if self.step(self._keeper.standing()):
                    self._say("markers", "")
            except ResilienceError as exc:
                self._say("markers", str(exc))
            except Exception:
                # The agent guards who may write; it does not end because its yardstick broke.
                _log.exception("cell %s: no markers for a minute", self._cell.name)
                self._stopping.wait(60.0)
        self._stores.close()

    def step(self, standing: Standing) -> bool:
        """One look, and a marker when it is time for one; whether it was."""
        record, lease = standing.record, standing.view.lease
        if record is None or lease is None or not self._speaks(standing):
            if self._epoch:
                self._stores.close()
            self._epoch = 0
            return False
        if self._epoch != record.epoch and not self._arrive(record.epoch, lease):
            return False
        if self._clock() < self._next:
            return False
        self._next = self._clock() + INTERVAL
        self._write(record.epoch)
        if not standing.registry_error:
            self._board.tell(lease, self._now_written(record.epoch))
            self._settle(lease)
        return True

    def _speaks(self, standing: Standing) -> bool:
        record, serving = standing.record, standing.view.serving
        return (
            record is not None
            and record.home == self._settings.region
            and standing.local.role == PRIMARY
            and standing.authority() > SPARE
            and serving is not None
            and (serving.region, serving.epoch) == (record.home, record.epoch)
        )

    # -- what arrived --------------------------------------------------------------------------------------------

    def _arrive(self, epoch: int, lease: RegionLease) -> bool:
        """Look what the old home left, once for each epoch; whether markers may be written now.

        Redis has one marker, and Qdrant one for each epoch: so nothing is written before this is known and told.
        """
        if self._arriving is None or self._arriving.epoch != epoch:
            last = self._board.written(self._cell.name)
            told = self._board.arrived(self._cell.name, epoch) is not None or (last is not None and last.epoch >= epoch)
            # Another host of this region said it already, or this one before it was started anew.
            self._arriving = _Arriving(epoch, self._clock(), last, settled=told)
            if told:
                return self._begin(epoch)
        arriving = self._arriving
        asked: dict[str, t.Callable[[], Marker | None]] = {
            "postgres": lambda: self._stores.postgres(epoch),
            "redis": self._stores.redis,
        }
        self._ask(arriving, {name: call for name, call in asked.items() if name not in arriving.found})
        if len(arriving.found) < len(asked) and self._clock() - arriving.since < READ_WITHIN:
            return False
        if arriving.last is not None or any(arriving.found.values()):
            if self._stores.has_qdrant():
                self._await_qdrant(arriving, epoch)
            else:
                arriving.settled = True
            if not self._board.tell(lease, self._arrival(arriving)):
                return False
            _log.info("cell %s: newest markers of the old home here: %s", self._cell.name, arriving.found)
        else:
            arriving.settled = True  # nobody ever wrote any
        return self._begin(epoch)

    def _begin(self, epoch: int) -> bool:
        """Go on with the numbers, whoever counted before: this host, another one of the region, or the old home."""
        found = self._arriving.found if self._arriving else {}
        own = gather({"postgres": lambda: self._stores.postgres(epoch + 1)})["postgres"]
        written = self._board.written(self._cell.name)
        stores = written.stores if written else {}
        known = [one for one in [*found.values(), *stores.values(), own] if isinstance(one, Marker)]
        self._seq = max([self._seq, *(one.seq for one in known)])
        # What was acknowledged to another host of this region stays the last word until this one has its own.
        self._written = dict(stores) if written and written.epoch == epoch else {}
        self._epoch = epoch
        return True

    def _await_qdrant(self, arriving: _Arriving, epoch: int) -> None:
        try:
            arriving.awaited = self._stores.vector_log(epoch)
        except ResilienceError as exc:
            arriving.trouble["qdrant"] = str(exc)
        self._ask(arriving, {"qdrant": lambda: self._stores.qdrant(epoch)})
        self._look_settled(arriving)

    def _settle(self, lease: RegionLease) -> None:
        """Qdrant follows PostgreSQL a moment later: look until it has what PostgreSQL has, and say it then."""
        arriving = self._arriving
        if arriving is None or arriving.settled:
            return
        self._ask(arriving, {"qdrant": lambda: self._stores.qdrant(arriving.epoch)})
        self._look_settled(arriving)
        if arriving.settled or self._clock() - arriving.since > SETTLE_WITHIN:
            self._board.tell(lease, self._arrival(arriving))
            arriving.settled = True  # what it has not by now is a matter for the alarms

    @staticmethod
    def _look_settled(arriving: _Arriving) -> None:
        awaited, there = arriving.awaited, arriving.found.get("qdrant")
        asked = "qdrant" not in arriving.trouble
        arriving.settled = asked and (awaited is None or (there is not None and there >= awaited))

    @staticmethod
    def _ask(arriving: _Arriving, calls: dict[str, t.Callable[[], Marker | None]]) -> None:
        for name, answer in gather(calls).items():
            if isinstance(answer, ResilienceError):
                arriving.trouble[name] = str(answer)
            else:
                arriving.trouble.pop(name, None)
                # A marker of the epoch itself is no news of the old home.
                arriving.found[name] = answer if answer is None or answer.epoch < arriving.epoch else None

    def _arrival(self, arriving: _Arriving) -> Arrival:
        return Arrival(
            self._settings.region, arriving.epoch, self._settings.host, round(time.time(), 3), arriving.last,
            dict(arriving.found), arriving.settled, dict(arriving.trouble),
        )  # fmt: skip

    # -- writing -------------------------------------------------------------------------------------------------

    def _write(self, epoch: int) -> None:
        self._seq += 1
        marker = Marker(epoch, self._seq, round(time.time(), 3))
        vector = None
        if self._stores.has_qdrant() and self._seq % VECTOR_EVERY == 0:
            vector = replace(marker, seq=self._seq // VECTOR_EVERY)
        calls: dict[str, t.Callable[[], None]] = {"redis": lambda: self._stores.write_redis(marker)}
        if self._clock() >= self._postgres_again:
            calls["postgres"] = lambda: self._stores.write_postgres(marker, vector)
        for name, answer in gather(calls).items():
            if isinstance(answer, ResilienceError):
                self._say(name, f"no marker in {name}: {answer}")
                if name == "postgres":
                    self._postgres_again = self._clock() + AGAIN
                continue
            self._say(name, "")
            self._written[name] = marker
            if name == "postgres" and vector is not None:
                self._written["qdrant"] = vector

    def _now_written(self, epoch: int) -> Written:
        return Written(self._settings.region, epoch, self._settings.host, round(time.time(), 3), dict(self._written))

    def _say(self, topic: str, text: str) -> None:
        """Log what is new."""
        if self._said.get(topic, "") != text:
            self._said[topic] = text
            _log.warning("cell %s: %s", self._cell.name, text or f"{topic}: well again")
