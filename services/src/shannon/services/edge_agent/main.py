# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Console script C(shannon-edge-agent)."""

from __future__ import annotations

import asyncio
import typing as t

from shannon.resilience.etcd import EtcdClient
from shannon.resilience.given_up import GivenUp
from shannon.resilience.haproxy import RuntimeApi
from shannon.resilience.registry import CELLS, Registry
from shannon.resilience.routing import ROUTING, RoutingControls
from shannon.resilience.tls import TlsFiles, client_context
from shannon.services.common import http_server
from shannon.services.common.config import Config
from shannon.services.common.deployment import Tls
from shannon.services.common.lifecycle import Lifecycle, run

from .changes import Changes
from .edge import Edge
from .holds import Holds

#: Seconds between two steps while a cell moves, and for a moment after each change: another may follow unheard.
_SHORT = 0.1
_MOMENT = 1.0


async def start(config: Config, lifecycle: Lifecycle) -> None:
    """Follow the registry until the service ends."""
    deployment = config.deployment
    tls = TlsFiles(ca=deployment.tls.ca, cert=deployment.tls.cert, key=deployment.tls.key)
    context = client_context(tls)
    client = EtcdClient(deployment.registry, context, 2.0, name="the registry", given_up=GivenUp())
    settings = config.edge_agent
    proxy = RuntimeApi(settings.socket)
    holds = Holds(
        proxy, Registry(client).records, client, deployment.host, settings.hold_map, float(settings.hold_limit)
    )
    edge = Edge(proxy, RoutingControls(client).read, settings.state_file, settings.server_states, holds)
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, edge.step)
    watcher = EtcdClient(deployment.registry, context, 2.0, name="the registry", given_up=GivenUp())
    changes = Changes(watcher, (CELLS, ROUTING), settings.interval)

    async def follow() -> None:
        alert_until = loop.time() + _MOMENT
        while not lifecycle.stopping.is_set():
            short = edge.busy() or loop.time() < alert_until
            if await changes.wait(min(_SHORT, settings.interval) if short else settings.interval):
                alert_until = loop.time() + _MOMENT
            await loop.run_in_executor(None, edge.step)

    lifecycle.spawn(follow(), "registry watcher")

    async def health() -> tuple[int, dict[str, t.Any]]:
        document = {
            "ready": edge.proxy_answers,
            "registry": edge.registry_answers,
            "held": edge.held(),
            "regions": {name: control.state for name, control in edge.controls.items()},
        }
        return (200 if edge.proxy_answers else 503), document

    app = http_server.admin_app({"/health": health})
    await http_server.run_app(app, "127.0.0.1", settings.metrics_port, Tls(), lifecycle)


def main() -> int:
    """Command line."""
    return run("edge-agent", start)
