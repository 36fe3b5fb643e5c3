# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Console script C(shannon-agent-core)."""

from __future__ import annotations

import asyncio
import typing as t

from grpc import aio

from shannon.resilience.circuit_breaker import CircuitBreaker, Settings
from shannon.services.common import grpc_server, http_server, lifecycle, logs
from shannon.services.common.breaker_metrics import PrometheusListener
from shannon.services.common.config import AgentCore, Config
from shannon.services.proto import shannon_pb2_grpc as stubs

from .modules import Modules
from .sandbox import Sandbox, supported
from .service import NAME, AgentCoreService, is_own_failure

SERVICE = "agent-core"
_log = logs.get(__name__)


def main(arguments: t.Sequence[str] | None = None) -> int:
    """Run the service; returns its exit status."""
    return lifecycle.run(SERVICE, start, arguments)


async def start(config: Config, life: lifecycle.Lifecycle) -> None:
    """Start the service; it needs nothing else to be there."""
    settings, deployment = config.agent_core, config.deployment
    loop = asyncio.get_running_loop()
    sandbox = Sandbox()
    modules = await loop.run_in_executor(None, Modules, sandbox, settings.state_directory, settings.cached_modules)
    service = AgentCoreService(sandbox, modules, settings, breaker_of(settings))
    _log.info("tools run in %s", supported())

    async def close() -> None:
        await loop.run_in_executor(None, service.close)

    life.on_stop(close, "runs of tools")

    async def health() -> tuple[int, dict[str, t.Any]]:
        return 200, {"status": "alive"}

    app = http_server.admin_app({"/health": health})
    await http_server.run_app(app, deployment.listen, settings.metrics_port, deployment.tls, life)

    def add(server: aio.Server) -> None:
        stubs.add_AgentCoreServicer_to_server(service, server)

    await grpc_server.serve(
        add,
        [NAME],
        deployment.listen,
        settings.port,
        deployment.tls,
        life,
        metric_prefix="agent_core",
        longest=settings.max_timeout + 30,
        grace=config.service.graceful_timeout / 2,
    )


def breaker_of(settings: AgentCore) -> CircuitBreaker:
    """Opens by the rate of failures over a window (seed facts 7)."""
    rules = Settings(
        failure_threshold=settings.breaker_requests,
        failure_rate=settings.breaker_error_rate,
        rate_window=settings.breaker_window,
        minimum_calls=settings.breaker_requests,
    )
    return CircuitBreaker("tools", SERVICE, rules, is_failure=is_own_failure, listeners=(PrometheusListener(),))
