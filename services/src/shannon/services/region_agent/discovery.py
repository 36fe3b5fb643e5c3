# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Publishes where a cell's stores and doors are, as long as this host speaks for the home that serves."""

from __future__ import annotations

import typing as t
from dataclasses import replace
from datetime import datetime, timezone

from shannon.resilience.endpoints import ENDPOINTS, Endpoints
from shannon.resilience.region_lease import RegionLease, RegionLeases
from shannon.services.common import logs

from .settings import CellSettings, Settings, now

_log = logs.get(__name__)
#: Seconds until what did not change is published again.
AGAIN = 60.0


class EndpointsOfCell:
    """What one cell's home publishes."""

    def __init__(self, settings: Settings, cell: CellSettings, leases: RegionLeases) -> None:
        self._settings = settings
        self._cell = cell
        self._leases = leases
        self._published: Endpoints | None = None
        self._at = float("-inf")

    def forget(self) -> None:
        """Another host may publish from now on."""
        self._published = None

    def publish(self, lease: RegionLease, redis_primary: str) -> None:
        """Publish what is new, under the lease: who lost it must not overwrite what came after.

        :param redis_primary: address of Redis' primary.
        :raises ResilienceError: the registry can't answer.
        """
        wanted = self._endpoints(lease, redis_primary)
        if wanted == self._published and now() - self._at < AGAIN:
            return
        at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        if self._leases.publish(lease, ENDPOINTS, replace(wanted, updated_at=at)):
            if wanted != self._published:
                _log.info("cell %s: published the endpoints of epoch %d", self._cell.name, lease.epoch)
            self._published, self._at = wanted, now()

    def _endpoints(self, lease: RegionLease, redis_primary: str) -> Endpoints:
        settings, cell = self._settings, self._cell
        return Endpoints(
            cell=cell.name,
            epoch=lease.epoch,
            home=lease.region,
            edges=[f"https://{place}" for place in settings.edges],
            gateways=dict(settings.gateways),
            postgres=_store(settings.postgres, lease.region, settings.address, cell.postgres),
            redis=_store(settings.redis, lease.region, redis_primary, cell.redis),
        )


def _store(hosts: t.Mapping[str, t.Mapping[str, str]], home: str, primary: str, port: int) -> dict[str, list[str]]:
    def places(addresses: t.Iterable[str]) -> list[str]:
        return [f"[{address}]:{port}" if ":" in address else f"{address}:{port}" for address in addresses]

    others = [address for address in hosts.get(home, {}).values() if address != primary]
    away = [address for region, members in hosts.items() if region != home for address in members.values()]
    return {"primary": places([primary]), "replicas": places(others), "standby": places(away)}
