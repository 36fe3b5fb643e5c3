# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Console script C(shannon-edge-agent)."""

from __future__ import annotations

import asyncio
import typing as t

from shannon.resilience.etcd import EtcdClient
from shannon.resilience.haproxy import RuntimeApi
from shannon.resilience.routing import RoutingControls
from shannon.resilience.tls import TlsFiles, client_context
from shannon.services.common import http_server
from shannon.services.common.config import Config
from shannon.services.common.deployment import Tls
from shannon.services.common.lifecycle import Lifecycle, run

from .edge import Edge


async def start(config: Config, lifecycle: Lifecycle) -> None:
    """Follow the registry until the service ends."""
    deployment = config.deployment
    tls = TlsFiles(ca=deployment.tls.ca, cert=deployment.tls.cert, key=deployment.tls.key)
    client = EtcdClient(deployment.registry, client_context(tls), 2.0, name="the registry")
    settings = config.edge_agent
    edge = Edge(RuntimeApi(settings.socket), RoutingControls(client).read, settings.state_file, settings.server_states)
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, edge.step)

    async def follow() -> None:
        while await lifecycle.pause(settings.interval):
            await loop.run_in_executor(None, edge.step)

    lifecycle.spawn(follow(), "registry watcher")

    async def health() -> tuple[int, dict[str, t.Any]]:
        document = {
            "ready": edge.proxy_answers,
            "registry": edge.registry_answers,
            "regions": {name: control.state for name, control in edge.controls.items()},
        }
        return (200 if edge.proxy_answers else 503), document

    app = http_server.admin_app({"/health": health})
    await http_server.run_app(app, "127.0.0.1", settings.metrics_port, Tls(), lifecycle)


def main() -> int:
    """Command line."""
    return run("edge-agent", start)
