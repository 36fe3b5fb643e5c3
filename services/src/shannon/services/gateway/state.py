# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What handlers use: one of it in a gateway."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from fastapi import Request

from shannon.services.common.config import Config

from .auth import Authenticator
from .forward import Forwarder
from .limits import Limiter
from .live import Hub
from .principal import Principal
from .readiness import Readiness
from .streams import Streams


class Cells(t.Protocol):
    """Which cell a tenant has, and where it is (:class:`shannon.services.common.cells.CellDirectory`)."""

    def cell_of(self, tenant: str) -> str: ...
    def home_of(self, cell: str) -> str | None: ...
    def is_home(self, cell: str) -> bool: ...
    def epoch(self, cell: str) -> int: ...
    def names(self) -> list[str]: ...
    def age(self) -> float: ...


class Orchestrators(t.Protocol):
    """Calls orchestrators (:class:`shannon.services.common.grpc_client.Pool`)."""

    async def call(self, method: str, request: t.Any, *, timeout: float, retry_safe: bool = False) -> t.Any: ...


@dataclass
class Services:
    """All of it.

    :ivar limiters: per cell; likewise C(hubs).
    """

    config: Config
    auth: Authenticator
    cells: Cells
    orchestrators: Orchestrators
    limiters: t.Mapping[str, Limiter]
    hubs: t.Mapping[str, Hub]
    streams: Streams
    forwarder: Forwarder
    readiness: Readiness

    async def ask(self, method: str, request: t.Any) -> t.Any:
        """Call an orchestrator; everything here may be repeated with another one.

        Reads may anyway; a submission has an idempotency key, and the rest does the same thing again.
        """
        timeout = self.config.gateway.request_timeout
        return await self.orchestrators.call(method, request, timeout=timeout, retry_safe=True)


def services(request: Request) -> Services:
    """Of the application that handles a request."""
    return t.cast(Services, request.app.state.services)


def principal(request: Request) -> Principal:
    """Who asks; set by the route before its handler runs."""
    return t.cast(Principal, request.state.principal)


def cell(request: Request) -> str:
    """The caller's cell; set likewise."""
    return str(request.state.cell)
