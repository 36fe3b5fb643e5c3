# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Console script shannon-vector-indexer: one indexer for each cell, of which one in the region applies."""

from __future__ import annotations

import asyncio
import os
import socket
import typing as t
import uuid

import httpx
import psycopg.conninfo

from shannon.resilience.etcd import EtcdClient
from shannon.services.common import breakers, lifecycle, logs, tls
from shannon.services.common.config import Config
from shannon.services.common.deployment import Cell
from shannon.services.common.http_server import admin_app, run_app
from shannon.services.common.secrets import secret

from .dead_letters import DeadLetters
from .election import Alone, Election
from .indexer import CellIndexer, Leadership
from .log_reader import PostgresLog
from .sink import QdrantSink

SERVICE = "vector-indexer"
_log = logs.get(__name__)


def main(arguments: t.Sequence[str] | None = None) -> int:
    """Run the service; returns its exit status."""
    return lifecycle.run(SERVICE, start, arguments)


async def start(config: Config, life: lifecycle.Lifecycle) -> None:
    """Start all indexers and the listener for metrics and status."""
    os.makedirs(config.vector_indexer.state_directory, exist_ok=True)
    indexers = []
    for cell in config.deployment.cells:
        leadership = _leadership(config, cell)
        indexer = _indexer(config, cell, leadership)
        indexers.append(indexer)
        _spawn(life, cell, indexer, leadership)

    async def status() -> tuple[int, t.Any]:
        return 200, {"region": config.deployment.region, "cells": [indexer.status() for indexer in indexers]}

    async def alive() -> tuple[int, t.Any]:
        return 200, {"status": "healthy"}

    app = admin_app({"/status": status, "/health": alive, "/health/live": alive, "/health/ready": alive})
    await run_app(app, config.deployment.listen, config.vector_indexer.metrics_port, config.deployment.tls, life)


def _spawn(life: lifecycle.Lifecycle, cell: Cell, indexer: CellIndexer, leadership: Leadership) -> None:
    done = asyncio.Event()
    election = life.spawn(leadership.run(done), f"election of {cell.name}")
    work = [
        life.spawn(indexer.run(life.stopping), f"indexer of {cell.name}"),
        life.spawn(indexer.measure(life.stopping), f"lag of {cell.name}"),
    ]

    async def stop() -> None:
        # The lease goes last: whoever takes over must not meet a request that is still on its way.
        await asyncio.wait(work)
        done.set()
        await asyncio.wait([election])
        await indexer.close()

    life.on_stop(stop, f"the indexer of {cell.name}")


def _indexer(config: Config, cell: Cell, leadership: Leadership) -> CellIndexer:
    settings = config.vector_indexer
    log = PostgresLog(
        conninfo(config, cell), breakers.breaker("database", f"vector_log@{cell.name}", SERVICE), settings.timeout
    )
    deployment = config.deployment
    scheme = "https" if deployment.tls.enabled else "http"
    client = httpx.AsyncClient(
        base_url=f"{scheme}://{deployment.data_proxy}:{deployment.qdrant_port}",
        headers={"api-key": secret("qdrant_api_key")},
        verify=tls.client_context(deployment.tls) if deployment.tls.enabled else False,
        timeout=settings.timeout,
        trust_env=False,
    )
    breaker = breakers.breaker("http", "qdrant", SERVICE)
    sink = QdrantSink(client, breaker, cell.name, deployment.qdrant_replication_factor)
    return CellIndexer(cell.name, log, sink, leadership, DeadLetters(settings.state_directory, cell.name), settings)


def _leadership(config: Config, cell: Cell) -> Election | Alone:
    deployment, ttl = config.deployment, config.vector_indexer.lease
    if not deployment.etcd:
        _log.warning("deployment.etcd is empty: this indexer applies without an election; run only one in the region")
        return Alone()
    context = tls.client_context(deployment.tls) if deployment.tls.enabled else None
    client = EtcdClient(deployment.etcd, context, timeout=ttl / 5, name="the region's etcd")
    name = f"{deployment.host or socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
    return Election(client, cell.name, name, ttl)


def conninfo(config: Config, cell: Cell) -> str:
    """libpq's connection string for reads of a cell, through the local data proxy."""
    deployment, database = config.deployment, config.database
    parts: dict[str, t.Any] = {
        "host": deployment.data_proxy,
        "port": cell.ports.postgres_replicas,
        "dbname": database.name,
        "user": database.user,
        "password": secret("postgres_app"),
        "connect_timeout": max(2, round(database.connect_timeout)),
        "application_name": f"shannon-{SERVICE}",
        "options": "-c default_transaction_read_only=on "
        f"-c statement_timeout={round(config.vector_indexer.timeout * 1000)}",
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "sslmode": "prefer",
    }
    if deployment.tls.enabled:
        files = {"sslrootcert": deployment.tls.ca, "sslcert": deployment.tls.cert, "sslkey": deployment.tls.key}
        parts |= {"sslmode": "verify-full", **files}
    return psycopg.conninfo.make_conninfo("", **parts)
