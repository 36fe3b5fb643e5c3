# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The process's circuit breakers: one for each dependency, made once, so that failures add up across calls.

Settings come from the environment over the file over the built-in defaults (seed facts 1); which value came from where
is logged when a breaker is made.
"""

from __future__ import annotations

import os
import threading
import typing as t

from shannon.resilience.circuit_breaker import CircuitBreaker
from shannon.resilience.circuit_breaker_failures import is_failure
from shannon.resilience.circuit_breaker_settings import resolve

from . import logs
from .breaker_metrics import PrometheusListener
from .config import Breakers

_log = logs.get(__name__)
_lock = threading.Lock()
_breakers: dict[tuple[str, str], CircuitBreaker] = {}
_sections: dict[str, dict[str, t.Any]] = {}


def configure(section: Breakers) -> None:
    """Take the file's settings; call it before the first breaker is made."""
    with _lock:
        _sections.clear()
        _sections.update(
            {kind: {k: v for k, v in values.items() if v is not None} for kind, values in section.model_dump().items()}
        )


def breaker(kind: str, name: str, service: str) -> CircuitBreaker:
    """The breaker of a dependency.

    :param kind: redis, database, grpc, grpc_connection, http or generic: which settings and failures are its.
    :param name: the dependency, the label C(name) of its metrics.
    :param service: who uses it, the label C(service).
    """
    with _lock:
        found = _breakers.get((service, name))
        if found is None:
            settings, origins = resolve(kind, os.environ, _sections.get(kind, {}))
            found = _breakers[(service, name)] = CircuitBreaker(
                name, service, settings, is_failure=is_failure(kind), listeners=(PrometheusListener(),)
            )
            _log.info(
                "circuit breaker %s of %s is ready",
                name,
                service,
                extra={"fields": {"kind": kind, "settings": {key: str(origin) for key, origin in origins.items()}}},
            )
        return found


def every() -> list[CircuitBreaker]:
    """All breakers of the process."""
    with _lock:
        return list(_breakers.values())


def forget() -> None:
    """Drop all breakers, for tests."""
    with _lock:
        _breakers.clear()
        _sections.clear()
