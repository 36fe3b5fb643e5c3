# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether this gateway, and its region, should get requests; found out in the background, so that asking is free."""

from __future__ import annotations

import asyncio
import math
import time
import typing as t

from grpc import aio

from shannon.resilience.errors import ResilienceError
from shannon.services.common import metrics


class Cells(t.Protocol):
    """What of the cell directory is used."""

    def names(self) -> list[str]: ...
    def home_of(self, cell: str) -> str | None: ...
    def is_home(self, cell: str) -> bool: ...
    def epoch(self, cell: str) -> int: ...
    def age(self) -> float: ...


class Readiness:
    """Probes an orchestrator every C(interval) seconds.

    :param probe: asks one whether it is well; raises when none is.
    """

    def __init__(
        self,
        region: str,
        cells: Cells,
        probe: t.Callable[[], t.Awaitable[None]],
        interval: float,
        clock: t.Callable[[], float] = time.monotonic,
    ) -> None:
        self._region = region
        self._cells = cells
        self._probe = probe
        self._interval = interval
        self._clock = clock
        self._reason = "no orchestrator was asked yet"
        self._at = float("-inf")
        self._gauge = metrics.gauge("shannon_gateway_ready", "1 when this gateway is ready.")
        #: Set when the gateway is to end: no new requests should come.
        self.draining = False

    async def run(self, stopping: asyncio.Event) -> None:
        """Probe until stopping."""
        while not stopping.is_set():
            await self.probe()
            try:
                await asyncio.wait_for(stopping.wait(), self._interval)
            except asyncio.TimeoutError:
                continue

    async def probe(self) -> None:
        """Probe once."""
        try:
            await self._probe()
            self._reason = ""
        except (ResilienceError, aio.AioRpcError) as exc:
            self._reason = (
                str(exc) if isinstance(exc, ResilienceError) else f"an orchestrator answers {exc.code().name}"
            )
        self._at = self._clock()
        self._gauge.set(1 if self.answer()[0] else 0)

    def answer(self, cell: str = "", role: str = "") -> tuple[bool, dict[str, t.Any]]:
        """Whether it is ready, and the document.

        :param cell: ready only if this region has the role for this cell.
        :param role: active or standby; empty: any.
        """
        cells = {name: self._cell(name) for name in self._cells.names()}
        reason = self._reason
        # A probe that hangs must not leave its predecessor's word standing.
        if not reason and self._clock() - self._at > 3 * self._interval + 5:
            reason = "the last probe is too old"
        orchestrator = not reason
        if self.draining:
            reason = "this gateway is being stopped"
        if not reason and cell:
            found = cells.get(cell, {"role": "unknown"})["role"]
            if found == "unknown" or (role and found != role):
                reason = f"this region is {found} for cell {cell}"
        age = self._cells.age()
        return not reason, {
            "ready": not reason,
            "region": self._region,
            "draining": self.draining,
            "orchestrator": orchestrator,
            "cells": cells,
            "registry_age_seconds": round(age, 3) if math.isfinite(age) else None,
            "reason": reason,
        }

    def _cell(self, name: str) -> dict[str, t.Any]:
        home = self._cells.home_of(name)
        role = "unknown" if home is None else "active" if self._cells.is_home(name) else "standby"
        return {"role": role, "home": home, "epoch": self._cells.epoch(name)}
