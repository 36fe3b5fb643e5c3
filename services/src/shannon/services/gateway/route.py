# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Before a handler runs: who asks, in which cell, is that cell's home here, and is it not too often."""

from __future__ import annotations

import typing as t

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from .state import services

Handler = t.Callable[[Request], t.Coroutine[t.Any, t.Any, Response]]
F = t.TypeVar("F", bound=t.Callable[..., t.Any])


def policy(
    *,
    limited: bool = True,
    key_in_query: bool = False,
    may_stay: t.Callable[[Request], t.Awaitable[bool]] | None = None,
) -> t.Callable[[F], F]:
    """Set how a handler's route works.

    :param limited: whether requests count for the rate limits; reads of one thing, which clients poll, don't.
    :param key_in_query: whether the query parameter C(api_key) counts: only where a browser can't send headers.
    :param may_stay: whether a region that is not the cell's home may answer this request itself.
    """

    def mark(handler: F) -> F:
        handler.policy = (limited, key_in_query, may_stay)  # type: ignore[attr-defined]
        return handler

    return mark


class TenantRoute(APIRoute):
    """A route of the API."""

    def get_route_handler(self) -> Handler:
        """Wrap the handler."""
        inner = super().get_route_handler()
        limited, key_in_query, may_stay = getattr(self.endpoint, "policy", (True, False, None))

        async def handle(request: Request) -> Response:
            known = services(request)
            query_key = request.query_params.get("api_key", "") if key_in_query else ""
            who = request.state.principal = known.auth.authenticate(request.headers, query_key)
            cell = request.state.cell = known.cells.cell_of(who.tenant_id)
            if not known.cells.is_home(cell) and not (may_stay and await may_stay(request)):
                return await known.forwarder.forward(request, cell, known.cells.home_of(cell), request.headers)
            # Only the region that answers counts; what it gets from another has not been counted there.
            headers = await known.limiters[cell].check(who) if limited else {}
            response = await inner(request)
            response.headers.update(headers)
            return response

        return handle
