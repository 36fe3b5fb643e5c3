# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Console script C(shannon-llm-service)."""

from __future__ import annotations

import typing as t

from shannon.services.common import breakers, lifecycle, secrets
from shannon.services.common.config import Config
from shannon.services.common.http_server import run_app
from shannon.services.common.redis_client import redis_client

from .app import build
from .caches import Shared
from .embedded import EmbeddedProvider
from .llm import Llm
from .openai import OpenAiProvider
from .provider import Provider

SERVICE = "llm-service"


def main(arguments: t.Sequence[str] | None = None) -> int:
    """Run the service; returns its exit status."""
    return lifecycle.run(SERVICE, start, arguments)


async def start(config: Config, life: lifecycle.Lifecycle) -> None:
    """Start the service; it needs nothing else to be there."""
    settings, deployment = config.llm_service, config.deployment
    provider = provider_of(config)
    life.on_stop(provider.close, "connections to the provider")
    password = secrets.optional("redis_app")
    client = redis_client(config, deployment.cells[0], password) if password and deployment.cells else None
    if client is not None:
        life.on_stop(client.aclose, "connections to Redis")
    shared = Shared(client, breakers.breaker("redis", "redis", SERVICE), settings.cache_ttl, settings.redis_timeout)
    llm = Llm(provider, settings, shared)
    # Only the topology's hosts ask it: their certificates are what it asks for.
    await run_app(build(llm, settings), deployment.listen, settings.port, deployment.tls, life, deployment.tls.enabled)


def provider_of(config: Config) -> Provider:
    """The provider that the configuration names."""
    settings = config.llm_service
    if settings.provider == "embedded":
        return EmbeddedProvider(config.embeddings.dimension)
    guard = breakers.breaker("http", "llm-provider", SERVICE)
    key = secrets.optional("llm_upstream_key")
    return OpenAiProvider(settings.upstream, key, config.embeddings.dimension, guard)
