# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The application: routes, errors, documents."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.routing import APIRoute

from . import errors, models, openapi, routes_health, routes_memory, routes_sessions, routes_tasks, routes_tools
from .middleware import Envelope
from .state import Services


def build(services: Services) -> FastAPI:
    """The gateway's application."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url="/openapi.json", redirect_slashes=False)
    app.state.services = services
    errors.install(app)
    app.state.methods = []
    for routes in (routes_tasks, routes_sessions, routes_memory, routes_tools, routes_health):
        app.include_router(routes.router)
        found = [route for route in routes.router.routes if isinstance(route, APIRoute)]
        app.state.methods += [(route.path_regex, sorted(route.methods)) for route in found]
    openapi.install(app, (models.Submit, models.Cancel, models.Search, models.Upload))
    app.add_middleware(Envelope, settings=services.config.gateway, large=routes_tools.PATH)
    return app
