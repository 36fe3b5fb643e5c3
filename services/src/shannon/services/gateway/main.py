# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Console script shannon-gateway."""

from __future__ import annotations

import asyncio
import typing as t

import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shannon.resilience.circuit_breaker import CircuitBreaker
from shannon.resilience.errors import ResilienceError
from shannon.services.common import breakers, lifecycle, tls
from shannon.services.common.cells import CellDirectory
from shannon.services.common.config import Config
from shannon.services.common.grpc_client import Pool
from shannon.services.common.http_server import run_app
from shannon.services.common.redis_client import redis_client
from shannon.services.common.secrets import secret
from shannon.services.proto import shannon_pb2_grpc as grpc_stubs

from . import app as application
from .auth import authenticator
from .forward import Forwarder
from .limits import Limiter
from .live import Hub
from .readiness import Readiness
from .state import Services
from .streams import Streams

SERVICE = "gateway"


def main(arguments: t.Sequence[str] | None = None) -> int:
    """Run the service; returns its exit status."""
    return lifecycle.run(SERVICE, start, arguments)


async def start(config: Config, life: lifecycle.Lifecycle) -> None:
    """Start the gateway.

    :raises SecretError: nobody could log in, or the password of Redis is missing.
    """
    auth = authenticator(config)
    deployment, settings = config.deployment, config.gateway
    cells = CellDirectory(deployment, config.routing.tenants)
    await cells.start(life)
    pool = Pool(deployment.orchestrators, deployment.tls, "orchestrator", SERVICE, grpc_stubs.OrchestratorStub)
    probes = Pool(deployment.orchestrators, deployment.tls, "orchestrator", SERVICE, health_pb2_grpc.HealthStub)
    life.on_stop(pool.close, "calls of orchestrators")
    life.on_stop(probes.close, "probes of orchestrators")
    readiness = Readiness(deployment.region, cells, _probe(probes), settings.readiness_interval)
    password = secret("redis_app")
    breaker = {cell.name: breakers.breaker("redis", f"redis@{cell.name}", SERVICE) for cell in deployment.cells}
    clients = {cell.name: redis_client(config, cell, password) for cell in deployment.cells}
    gateways = len(deployment.gateways.get(deployment.region, ()))
    limiters = {name: Limiter(client, breaker[name], config.rate_limits, gateways) for name, client in clients.items()}
    hubs = {name: Hub(client, breaker[name]) for name, client in clients.items()}
    forwarder = Forwarder(deployment.region, _gateways(config), settings.forward_timeout, 3 * settings.stream_ping)
    streams = Streams(settings)
    services = Services(config, auth, cells, pool, limiters, hubs, streams, forwarder, readiness)
    for name, client in clients.items():
        life.on_stop(client.aclose, f"connections to Redis of {name}")
        life.spawn(hubs[name].run(life.stopping), f"live events of {name}")
    life.on_stop(forwarder.close, "connections to other regions")
    await readiness.probe()
    life.spawn(readiness.run(life.stopping), "readiness")
    await run_app(application.build(services), deployment.listen, settings.port, deployment.tls, life)

    async def leave() -> None:
        # First nobody sends anything new, which takes the edge a probe or two to hear of; then open streams end.
        readiness.draining = True
        await asyncio.sleep(2 * settings.readiness_interval)
        streams.end()

    life.on_stop(leave, "readiness")


def _gateways(config: Config) -> dict[str, list[tuple[httpx.AsyncClient, CircuitBreaker]]]:
    deployment = config.deployment
    scheme = "https" if deployment.tls.enabled else "http"
    context = tls.client_context(deployment.tls) if deployment.tls.enabled else False
    return {
        region: [
            (
                httpx.AsyncClient(base_url=f"{scheme}://{place}", verify=context, trust_env=False),
                breakers.breaker("http", f"gateway@{place}", SERVICE),
            )
            for place in places
        ]
        for region, places in deployment.gateways.items()
        if region != deployment.region
    }


def _probe(pool: Pool) -> t.Callable[[], t.Awaitable[None]]:
    async def probe() -> None:
        answer = await pool.call("Check", health_pb2.HealthCheckRequest(), timeout=2, retry_safe=True)
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise ResilienceError("the orchestrator that was asked is not serving")

    return probe
