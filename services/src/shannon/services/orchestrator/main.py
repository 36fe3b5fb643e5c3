# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Console script C(shannon-orchestrator)."""

from __future__ import annotations

import asyncio
import os
import pathlib
import socket
import typing as t
import uuid
from dataclasses import dataclass

import httpx
import redis.asyncio
from grpc import aio

from shannon.resilience.degradation import DegradationManager, Thresholds
from shannon.resilience.errors import ResilienceError
from shannon.services.common import breakers, degradation_metrics, grpc_server, http_server, lifecycle, logs, tls
from shannon.services.common.cells import CellDirectory
from shannon.services.common.config import Config
from shannon.services.common.deployment import Cell as Place
from shannon.services.common.redis_client import redis_client
from shannon.services.common.secrets import secret
from shannon.services.database.client import Database
from shannon.services.database.connection import conninfo
from shannon.services.database.spool import Spool
from shannon.services.database.store import PostgresStore
from shannon.services.database.write_queue import WriteQueue
from shannon.services.proto import shannon_pb2_grpc as stubs
from shannon.services.vectors.embeddings import EmbeddingClient
from shannon.services.vectors.search import MemorySearch, qdrant_client

from . import health
from .chores import Chores
from .dependencies import Dependency, Monitor
from .engine import Engine
from .events import Events
from .llm import LlmClient
from .memory import Memory
from .service import NAME, Cell, OrchestratorService
from .sessions import Sessions
from .tasks import TaskStore
from .tools import AgentCores, Toolbox
from .worker import Worker

SERVICE = "orchestrator"
_log = logs.get(__name__)


def main(arguments: t.Sequence[str] | None = None) -> int:
    """Run the service; returns its exit status."""
    return lifecycle.run(SERVICE, start, arguments)


@dataclass
class _Shared:
    """What all cells use."""

    config: Config
    life: lifecycle.Lifecycle
    manager: DegradationManager
    observer: degradation_metrics.PrometheusObserver
    directory: CellDirectory
    llm: LlmClient
    cores: AgentCores
    memory: Memory
    owner: str


@dataclass
class _Parts:
    """What a cell is made of, for whoever looks after it."""

    cell: Cell
    database: Database
    cache: redis.asyncio.Redis
    queue: WriteQueue
    spool: Spool


async def start(config: Config, life: lifecycle.Lifecycle) -> None:
    """Start the service; dependencies that are away do not keep it from starting.

    :raises SecretError: a password is missing.
    """
    deployment, settings = config.deployment, config.orchestrator
    observer = degradation_metrics.PrometheusObserver()
    manager = DegradationManager(Thresholds.of(config.degradation.thresholds), (observer,))
    directory = CellDirectory(deployment, config.routing.tenants)
    await directory.start(life)
    cores = AgentCores(deployment.agent_cores, deployment.tls, SERVICE)
    life.on_stop(cores.close, "calls of agent-core")
    # What is cached belongs to no cell; the first cell's Redis has it.
    cache = redis_client(config, deployment.cells[0], secret("redis_app"))
    cache_breaker = breakers.breaker("redis", f"redis@{deployment.cells[0].name}", SERVICE)
    life.on_stop(cache.aclose, "connections to Redis")
    llm, embeddings = _models(config, cache, cache_breaker)
    life.on_stop(llm.close, "calls of llm-service")
    search = MemorySearch(
        qdrant_client(config, secret("qdrant_api_key"), config.vector.timeout),
        breakers.breaker("http", "qdrant", SERVICE),
        config.vector,
    )
    life.on_stop(search.close, "connections to Qdrant")
    owner = f"{deployment.host or socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:12]}"
    shared = _Shared(config, life, manager, observer, directory, llm, cores, Memory(embeddings, search, config), owner)
    parts = [await _cell(shared, place) for place in deployment.cells]
    monitor = Monitor(
        manager, _dependencies(shared, parts), config.degradation.degraded_check_interval, config.health.slow
    )
    await monitor.look()
    life.spawn(monitor.run(life.stopping), "dependencies")
    life.spawn(_assess(config, manager, life), "degradation")
    cells = {one.cell.name: one.cell for one in parts}
    await _serve(shared, OrchestratorService(config, directory, cells, shared.memory), parts)
    for one in parts:
        _work(shared, one.cell.worker)
    _log.info("tasks are taken on port %d", settings.port)


def _models(config: Config, cache: redis.asyncio.Redis, cache_breaker: t.Any) -> tuple[LlmClient, EmbeddingClient]:
    deployment = config.deployment
    scheme = "https" if deployment.tls.enabled else "http"
    context = tls.client_context(deployment.tls) if deployment.tls.enabled else False
    clients = [
        httpx.AsyncClient(base_url=f"{scheme}://{place}", verify=context, trust_env=False, timeout=5)
        for place in deployment.llm_services
    ]
    guards = [breakers.breaker("http", f"llm-service@{place}", SERVICE) for place in deployment.llm_services]
    llm = LlmClient(clients, guards, cache, cache_breaker, config.llm_service.cache_ttl)
    embeddings = EmbeddingClient(
        clients, guards, config.embeddings, config.llm_service.embedding_model, cache, cache_breaker
    )
    return llm, embeddings


async def _cell(shared: _Shared, place: Place) -> _Parts:
    config, life = shared.config, shared.life
    guard = breakers.breaker("database", f"postgresql@{place.name}", SERVICE)
    database = Database(
        place.name,
        conninfo(config, place, secret("postgres_app"), f"shannon-{SERVICE}"),
        config.database,
        guard,
        shared.manager.observe_operation,
    )
    if not await database.open():
        _log.warning("PostgreSQL of %s is away; tasks are taken once it is there", place.name)
    life.on_stop(database.close, f"connections to PostgreSQL of {place.name}")
    cache = redis_client(config, place, secret("redis_app"))
    cache_breaker = breakers.breaker("redis", f"redis@{place.name}", SERVICE)
    life.on_stop(cache.aclose, f"connections to Redis of {place.name}")
    folder = pathlib.Path(config.database.spool_directory) / place.name
    spool = Spool(folder / "segments", config.database.spool_size)
    settings = config.database
    queue = WriteQueue(
        PostgresStore(database),
        spool,
        folder / "dead_letters.jsonl",
        size=settings.queue_size,
        workers=settings.queue_workers,
        batch=settings.batch_size,
        flush_interval=settings.flush_interval,
    )
    await queue.start()

    async def drain() -> None:
        await queue.stop(settings.drain_timeout)

    life.on_stop(drain, f"the write queue of {place.name}")
    store = TaskStore(database, place.name)
    sessions = Sessions(database, cache, cache_breaker, config.session)
    toolbox = Toolbox(database, shared.cores)
    events = Events(cache, cache_breaker, queue, config.streaming)
    engine = Engine(config, shared.llm, toolbox, sessions, shared.memory, shared.manager, (shared.observer,))

    def is_home() -> bool:
        return shared.directory.works(place.name)

    worker = Worker(store, engine, events, config.orchestrator, shared.owner, is_home)
    chores = Chores(store, database, shared.memory, config.orchestrator.embedding_retry, is_home)
    life.spawn(chores.embeddings(life.stopping), f"late embeddings of {place.name}")
    life.spawn(chores.sessions(life.stopping), f"expired sessions of {place.name}")
    return _Parts(Cell(place.name, store, sessions, toolbox, events, worker), database, cache, queue, spool)


def _work(shared: _Shared, worker: Worker) -> None:
    shared.life.spawn(worker.run(), "worker")
    shared.life.spawn(worker.watch(), "leases")

    async def stop() -> None:
        await worker.stop(shared.config.service.graceful_timeout / 2)

    shared.life.on_stop(stop, "running tasks")


async def _serve(shared: _Shared, service: OrchestratorService, parts: t.Sequence[_Parts]) -> None:
    config, life = shared.config, shared.life
    settings, deployment = config.orchestrator, config.deployment

    def figures() -> dict[str, t.Any]:
        return {
            "running": sum(one.cell.worker.running for one in parts),
            "spool": {
                "waiting": sum(one.spool.waiting for one in parts),
                "bytes": sum(one.spool.size for one in parts),
            },
            "cells": {
                one.cell.name: {
                    "home": shared.directory.home_of(one.cell.name),
                    "epoch": shared.directory.epoch(one.cell.name),
                    "active": shared.directory.is_home(one.cell.name),
                }
                for one in parts
            },
        }

    app = http_server.admin_app(health.pages(shared.manager, figures))
    await http_server.run_app(app, deployment.listen, settings.admin_port, deployment.tls, life)
    scrape = http_server.admin_app({})
    await http_server.run_app(scrape, deployment.listen, settings.metrics_port, deployment.tls, life)

    def add(server: aio.Server) -> None:
        stubs.add_OrchestratorServicer_to_server(service, server)

    await grpc_server.serve(
        add,
        [NAME],
        deployment.listen,
        settings.port,
        deployment.tls,
        life,
        metric_prefix="orchestrator",
        longest=config.service.write_timeout,
        grace=config.service.graceful_timeout / 4,
    )


def _dependencies(shared: _Shared, parts: t.Sequence[_Parts]) -> list[Dependency]:
    checks = shared.config.health.checks

    async def database(timeout: float) -> None:
        del timeout  # the pool has its own
        answers = await asyncio.gather(*(one.database.ping() for one in parts))
        if not all(answers):
            raise ResilienceError("; ".join(one.database.error for one in parts if one.database.error))

    async def cache(timeout: float) -> None:
        async def ping(one: _Parts) -> None:
            guard = breakers.breaker("redis", f"redis@{one.cell.name}", SERVICE)
            await asyncio.wait_for(guard.call_async(one.cache.ping), timeout)

        await asyncio.gather(*map(ping, parts))

    async def qdrant(timeout: float) -> None:
        await shared.memory.probe(timeout)

    return [
        Dependency("database", checks.database, database, lambda: [one.database.breaker for one in parts]),
        Dependency(
            "redis",
            checks.redis,
            cache,
            lambda: [breakers.breaker("redis", f"redis@{one.cell.name}", SERVICE) for one in parts],
        ),
        Dependency("qdrant", checks.qdrant, qdrant, lambda: [breakers.breaker("http", "qdrant", SERVICE)]),
        Dependency("llm-service", checks.llm_service, shared.llm.probe, lambda: shared.llm.breakers),
        Dependency("agent-core", checks.agent_core, shared.cores.probe, lambda: shared.cores.breakers),
    ]


async def _assess(config: Config, manager: DegradationManager, life: lifecycle.Lifecycle) -> None:
    """Operations age although nothing is reported."""
    while await life.pause(config.degradation.degraded_check_interval):
        manager.assess()
