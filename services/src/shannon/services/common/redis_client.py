# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cell's Redis, as all services reach it."""

from __future__ import annotations

import typing as t

import redis.asyncio
import redis.backoff
import redis.retry

from .config import Config
from .deployment import Cell


def redis_client(config: Config, cell: Cell, password: str) -> redis.asyncio.Redis:
    """A client of the cell's primary, through the local data proxy; it connects when it is first used."""
    deployment, settings = config.deployment, config.redis
    files: dict[str, t.Any] = {}
    if deployment.tls.enabled:
        files = {
            "ssl": True,
            "ssl_ca_certs": deployment.tls.ca,
            "ssl_certfile": deployment.tls.cert,
            "ssl_keyfile": deployment.tls.key,
        }
    return redis.asyncio.Redis(
        host=deployment.data_proxy,
        port=cell.ports.redis,
        username=settings.user,
        password=password,
        socket_connect_timeout=settings.connect_timeout,
        socket_timeout=settings.timeout,
        max_connections=settings.max_connections,
        protocol=2,  # the shape of what XREAD answers depends on it
        # The breaker decides how often is tried; a retry here would only be slower than its caller's patience.
        retry=redis.asyncio.retry.Retry(redis.backoff.NoBackoff(), 0),
        **files,
    )
