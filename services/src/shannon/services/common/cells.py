# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where cells are: the registry's answer, kept, so that the registry may be away without anybody noticing.

The registry is asked every other second, unless this host's region agent has asked it within that time and left the
same word as is known here. When the agent, who watches it, leaves another, that is taken over; or the registry is asked
at once, where it may be older than what is known here. The last answer outlives a restart in a file; before the first
answer ever, a cell's home is unknown, unless there is no registry at all (tests), where the configuration's word holds.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import pathlib
import time
import typing as t
from dataclasses import asdict, dataclass

from shannon.resilience.errors import ResilienceError
from shannon.resilience.registry import Registry
from shannon.resilience.tls import TlsFiles

from . import logs, metrics
from .deployment import Deployment
from .lifecycle import Lifecycle

_log = logs.get(__name__)


#: Where the region agent of this host leaves its word about each cell.
WORDS = pathlib.Path("/run/shannon-region-agent")
#: Seconds between two looks at it.
GLANCE = 0.1


@dataclass(frozen=True)
class CellState:
    """What the registry said of a cell."""

    home: str
    epoch: int
    state: str


class CellDirectory:
    """The cells and their homes.

    :param deployment: where this service is.
    :param overrides: tenants that were put into a cell by hand.
    :param fetch: asks the registry; for tests.
    """

    def __init__(
        self,
        deployment: Deployment,
        overrides: t.Mapping[str, str] | None = None,
        fetch: t.Callable[[], dict[str, CellState]] | None = None,
        interval: float = 2.0,
    ) -> None:
        self._deployment = deployment
        self._overrides = dict(overrides or {})
        self._names = sorted(cell.name for cell in deployment.cells)
        self._interval = interval
        self._fetch = fetch or self._ask
        self._client: Registry | None = None
        self._answered: float | None = None
        #: As of when what is known here was so, at least, by the clock that the region agent notes its questions by.
        self._as_of = 0.0
        self._read: dict[str, int] = {}
        self._cells: dict[str, CellState] = {}
        if not deployment.registry and fetch is None:
            self._cells = {cell.name: CellState(cell.home, 0, "active") for cell in deployment.cells}
            self._answered = time.monotonic()
        else:
            self._cells = self._remembered()
        self._age = metrics.gauge("shannon_registry_answer_age_seconds", "Seconds since the registry answered last.")
        self._age.set_function(self.age)
        self._epoch = metrics.gauge("shannon_cell_epoch", "Epoch of a cell, as the registry last said.", ("cell",))
        self._home = metrics.gauge("shannon_cell_is_home", "1 when the cell's home is this region.", ("cell",))
        self._publish()

    def cell_of(self, tenant: str) -> str:
        """The cell that a tenant lives in: a stable hash over the cells, unless the configuration says otherwise."""
        if tenant in self._overrides:
            return self._overrides[tenant]
        # Rendezvous hashing: a new cell takes its share of the tenants, and moves no other.
        return max(self._names, key=lambda name: hashlib.sha256(f"{name}\0{tenant}".encode()).digest())

    def names(self) -> list[str]:
        """All cells."""
        return list(self._names)

    def home_of(self, cell: str) -> str | None:
        """The region that takes the cell's writes; None while that is not known."""
        found = self._cells.get(cell)
        return found.home if found else None

    def is_home(self, cell: str) -> bool:
        """Whether that is the own region."""
        return self.home_of(cell) == self._deployment.region

    def works(self, cell: str) -> bool:
        """Whether the own region is to take up tasks of the cell: not while it leaves or enters."""
        return self.is_home(cell) and self.state(cell) == "active"

    def epoch(self, cell: str) -> int:
        """The cell's epoch; 0 while it is not known."""
        found = self._cells.get(cell)
        return found.epoch if found else 0

    def state(self, cell: str) -> str:
        """The cell's state in the registry; C(unknown) while it is not known."""
        found = self._cells.get(cell)
        return found.state if found else "unknown"

    def age(self) -> float:
        """Seconds since the registry answered; infinity when it never did in this process."""
        return float("inf") if self._answered is None else time.monotonic() - self._answered

    async def start(self, lifecycle: Lifecycle) -> None:
        """Ask once, then go on in the background."""
        if not self._deployment.registry and self._fetch == self._ask:
            return
        await self.refresh()
        lifecycle.spawn(self._follow(lifecycle), "registry watcher")

    async def refresh(self) -> bool:
        """Ask the registry now.

        :returns: whether it answered; if not, its last answer still holds.
        """
        loop = asyncio.get_running_loop()
        try:
            cells = await loop.run_in_executor(None, self._fetch)
        except ResilienceError as exc:
            _log.warning("the registry does not answer, its last word holds: %s", exc)
            return False
        self._answered = time.monotonic()
        self._as_of = _boottime()
        await self._believe(cells)
        return True

    async def _believe(self, cells: dict[str, CellState]) -> None:
        if cells != self._cells:
            for name, cell in sorted(cells.items()):
                if cell != self._cells.get(name):
                    _log.info("cell %s: home %s, epoch %d, state %s", name, cell.home, cell.epoch, cell.state)
            self._cells = cells
            self._publish()
            await asyncio.get_running_loop().run_in_executor(None, self._remember)

    async def _follow(self, lifecycle: Lifecycle) -> None:
        asked = time.monotonic()
        while await lifecycle.pause(min(GLANCE, self._interval)):
            if news := self._news():
                asked = time.monotonic()
                # A question that began after ours had ended saw what is newer.
                if all(at > self._as_of for _state, at in news.values()):
                    self._as_of = max(at for _state, at in news.values())
                    await self._believe({**self._cells, **{name: state for name, (state, _at) in news.items()}})
                else:
                    await self.refresh()
            elif time.monotonic() - asked >= self._interval:
                asked = time.monotonic()
                if not self._agent_vouches():
                    await self.refresh()

    def _news(self) -> dict[str, tuple[CellState, float]]:
        """What the region agent's word, looked at only when it is new, says else than what is known.

        :returns: with the time at which the agent began to ask the registry.
        """
        found = {}
        for name in self._names:
            path = WORDS / f"{name}.json"
            try:
                written = path.stat().st_mtime_ns
                if written == self._read.get(name):
                    continue
                self._read[name] = written
                told = json.loads(path.read_text(encoding="utf-8"))
                record, at = told["record"], float(told["answered"])
                word = CellState(record["home"], record["epoch"], record["state"])
            except (OSError, ValueError, TypeError, KeyError):
                continue  # no agent here, or it knows nothing yet: the registry is asked in its time
            known = self._cells.get(name)
            if word != known and (known is None or word.epoch >= known.epoch):
                found[name] = (word, at)
        return found

    def _agent_vouches(self) -> bool:
        """Whether the region agent asked the registry just now and heard what is known here of every cell.

        On a host with an agent a dozen processes need not ask what one of them knows.
        """
        ages = []
        for name in self._names:
            try:
                word = json.loads((WORDS / f"{name}.json").read_text(encoding="utf-8"))
                record = word["record"]
                heard = CellState(record["home"], record["epoch"], record["state"])
                ages.append(_boottime() - word["answered"])
            except (OSError, ValueError, TypeError, KeyError):
                return False
            if word.get("registry_error") != "" or heard != self._cells.get(name):
                return False
        oldest = max(ages, default=float("inf"))
        if oldest > self._interval:
            return False
        self._answered = time.monotonic() - max(0.0, oldest)
        return True

    def _ask(self) -> dict[str, CellState]:
        if self._client is None:
            tls = self._deployment.tls
            files = TlsFiles(ca=tls.ca, cert=tls.cert, key=tls.key)
            self._client = Registry.connect(self._deployment.registry, files)
        return {name: CellState(it.home, it.epoch, it.state) for name, it in self._client.records().items()}

    def _publish(self) -> None:
        for name in self._names:
            self._epoch.labels(name).set(self.epoch(name))
            self._home.labels(name).set(1 if self.is_home(name) else 0)

    def _path(self) -> pathlib.Path:
        # Services run as users of their own; systemd says which folder each may keep its state in.
        folder = os.environ.get("STATE_DIRECTORY")
        return pathlib.Path(folder) / "registry.json" if folder else pathlib.Path(self._deployment.registry_cache)

    def _remembered(self) -> dict[str, CellState]:
        path = self._path()
        try:
            return {name: CellState(**cell) for name, cell in json.loads(path.read_text(encoding="utf-8")).items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as exc:
            _log.warning("what the registry last said can't be read from %s: %s", path, exc)
            return {}

    def _remember(self) -> None:
        path = self._path()
        written = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            written.write_text(
                json.dumps({name: asdict(cell) for name, cell in self._cells.items()}, sort_keys=True), encoding="utf-8"
            )
            os.replace(written, path)
        except OSError as exc:
            _log.warning("what the registry said can't be kept in %s: %s", path, exc)


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
