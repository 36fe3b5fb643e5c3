# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""HTTP listeners: a FastAPI application in the service's own event loop, and the small one for metrics and health."""

from __future__ import annotations

import asyncio
import contextlib
import typing as t

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

from . import logs, metrics
from .deployment import Tls
from .lifecycle import Lifecycle

_log = logs.get(__name__)
#: Seconds that clients have to close idle connections when the service ends.
_GOODBYE = 0.5
Answer = t.Callable[[], t.Awaitable[tuple[int, t.Any]]]


class _Server(uvicorn.Server):
    # Signals are the lifecycle's: the order of draining is its business.
    @contextlib.contextmanager
    def capture_signals(self) -> t.Iterator[None]:
        yield


async def run_app(
    app: FastAPI, host: str, port: int, tls: Tls, lifecycle: Lifecycle, client_certificates: bool = False
) -> None:
    """Listen, and return once connections are taken; ends with the service, after open requests have ended.

    :param client_certificates: whether clients must show a certificate of our authority.
    :raises OSError: the address can't be bound: it is taken, or not this host's.
    """
    options: dict[str, t.Any] = {}
    if tls.enabled:
        options = {"ssl_certfile": tls.cert, "ssl_keyfile": tls.key}
        if client_certificates:
            import ssl

            options |= {"ssl_ca_certs": tls.ca, "ssl_cert_reqs": ssl.CERT_REQUIRED}
    server = _Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_keep_alive=75,
            timeout_graceful_shutdown=None,
            **options,
        )
    )
    serving = lifecycle.spawn(_serve(server, host, port), f"http {port}")
    while not server.started:
        if serving.done():
            raise OSError(
                f"nothing can listen on {host}:{port}; is another process there? (ss -ltnp 'sport = :{port}')"
            )
        await asyncio.sleep(0.01)
    _log.info("listening on %s:%s", host, port)

    async def stop() -> None:
        server.should_exit = True
        # Open requests end first. Idle connections are closed by then; but over TLS that takes half a minute when the
        # client, which keeps it for later, does not answer the goodbye.
        await asyncio.wait({serving}, timeout=_GOODBYE)
        while not serving.done():
            for connection in list(server.server_state.connections):
                transport = getattr(connection, "transport", None)
                if not server.server_state.tasks and transport and not transport.get_write_buffer_size():
                    transport.abort()
            await asyncio.wait({serving}, timeout=0.1)

    lifecycle.on_stop(stop, f"the HTTP listener on port {port}")


async def _serve(server: uvicorn.Server, host: str, port: int) -> None:
    try:
        await server.serve()
    except SystemExit as exc:
        # uvicorn's way of saying that it could not bind.
        raise OSError(f"nothing can listen on {host}:{port}") from exc


def admin_app(health: t.Mapping[str, Answer]) -> FastAPI:
    """An application with C(/metrics) and the given health pages.

    :param health: path to a function that gives a status code and a JSON document.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    async def scrape() -> Response:
        return Response(await metrics.collect(), media_type=metrics.CONTENT_TYPE)

    app.add_api_route("/metrics", scrape, methods=["GET"])
    for path, answer in health.items():
        app.add_api_route(path, _page(answer), methods=["GET"])
    return app


def _page(answer: Answer) -> t.Callable[[], t.Awaitable[Response]]:
    async def page() -> Response:
        status, document = await answer()
        return JSONResponse(document, status_code=status)

    return page
