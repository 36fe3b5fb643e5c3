# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Promises between regions' agents, for the time in which the registry has no quorum.

A home that can't renew its lease may go on only if nobody else can become the home meanwhile. So it asks the agents of
every other region. One that can't ask the registry either promises not to help its region take the cell over before the
promise ends. A majority of each region must promise; and a region that takes over must first hear from a majority of
its own agents that none is bound. Two majorities share an agent, so one of the two learns of the other.
"""

from __future__ import annotations

import json
import os
import pathlib
import threading
import typing as t

from shannon.resilience.concurrently import gather
from shannon.resilience.errors import ResilienceError
from shannon.resilience.http_client import JsonEndpoint
from shannon.resilience.region_lease import PROMISE
from shannon.services.common import logs

from .settings import Settings, now

_log = logs.get(__name__)
#: Seconds that one agent has to answer; all are asked at once.
ANSWER_WITHIN = 1.0


class Promises:
    """What this agent promised. It outlives a restart of the agent, not one of the host, which takes longer."""

    def __init__(self, path: str | pathlib.Path, clock: t.Callable[[], float] = now) -> None:
        self._path = pathlib.Path(path)
        self._clock = clock
        self._lock = threading.Lock()
        #: Until then it is not known what was promised, so nothing may be done that a promise forbids.
        self._unknown_until = 0.0
        self._until: dict[str, tuple[str, float]] = self._remembered()

    def give(self, cell: str, region: str) -> float:
        """Promise the cell to a region; returns for how many seconds.

        :raises ResilienceError: another region has an unexpired promise, or this one can't be kept over a restart.
        """
        with self._lock:
            holder, until = self._until.get(cell, ("", 0.0))
            if holder not in ("", region) and until > self._clock():
                raise ResilienceError(f"cell {cell} is promised to region {holder}")
            self._until[cell] = (region, self._clock() + PROMISE)
            self._remember()
        return PROMISE

    def bound(self, cell: str, region: str) -> float:
        """Seconds for which this agent must not help C(region) to take the cell; 0 when it may."""
        with self._lock:
            holder, until = self._until.get(cell, ("", 0.0))
        mine = until if holder and holder != region else 0.0
        return max(0.0, max(mine, self._unknown_until) - self._clock())

    def _remembered(self) -> dict[str, tuple[str, float]]:
        try:
            return {cell: (str(a), float(b)) for cell, (a, b) in json.loads(self._path.read_text()).items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as exc:
            _log.error("promises can't be read from %s, so this agent is bound for %g s: %s", self._path, PROMISE, exc)
            self._unknown_until = self._clock() + PROMISE
            return {}

    def _remember(self) -> None:
        fresh = self._path.with_suffix(".new")
        try:
            fresh.write_text(json.dumps(self._until))
            os.replace(fresh, self._path)
        except OSError as exc:
            raise ResilienceError(f"a promise can't be kept in {self._path}: {exc}") from exc


class Peers:
    """The other agents."""

    def __init__(self, settings: Settings, context: t.Any) -> None:
        self._settings = settings
        self._context = context

    def promised(self, cell: str, epoch: int) -> tuple[bool, str]:
        """Ask every other region for its promise.

        :returns: whether a majority of each gave it, and what was said.
        """
        body = {"cell": cell, "epoch": epoch, "region": self._settings.region}
        said = []
        kept = True
        regions = {region: self._settings.agents[region] for region in self._settings.other_regions()}
        # All regions at once: a host's authority must not end while they are asked one after the other.
        everybody = gather(
            {
                (region, host): self._asker(address, "/promise", body)
                for region, hosts in regions.items()
                for host, address in hosts.items()
            }
        )
        for region, hosts in regions.items():
            answers = [everybody[region, host] for host in hosts]
            given = [it for it in answers if isinstance(it, dict) and it.get("promised")]
            refused = [str(it.get("reason")) for it in answers if isinstance(it, dict) and not it.get("promised")]
            kept = kept and len(given) > len(hosts) // 2
            said.append(f"{region}: {len(given)} of {len(hosts)} promised{'; ' + refused[0] if refused else ''}")
        return kept, "; ".join(said)

    def unbound(self, cell: str, own: float) -> tuple[bool, str]:
        """Whether a majority of the own region's agents, this one included, says that it is bound by no promise.

        :param own: seconds for which this agent is bound.
        """
        region, me = self._settings.region, self._settings.host
        hosts = self._settings.agents[region]
        body = {"cell": cell, "region": region}
        asked = {host: self._asker(address, "/bound", body) for host, address in hosts.items() if host != me}
        answers = gather(asked)
        bound = [float(it["seconds"]) for it in answers.values() if isinstance(it, dict) and "seconds" in it]
        longest = max([own, *bound])
        if longest > 0:
            return False, f"an agent of this region has promised the cell away for another {longest:.1f} s"
        if len(bound) + 1 <= len(hosts) // 2:
            return False, f"only {len(bound) + 1} of {len(hosts)} agents of this region answer"
        return True, ""

    def _asker(self, address: str, path: str, body: dict[str, t.Any]) -> t.Callable[[], t.Any]:
        endpoint = JsonEndpoint(address, self._settings.port, self._context, ANSWER_WITHIN)
        return lambda: endpoint.expect("POST", path, body)
