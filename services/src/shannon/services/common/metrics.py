# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Metrics for Prometheus: each name once in a process, however often it is asked for."""

from __future__ import annotations

import asyncio
import typing as t

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, Counter, Gauge, Histogram, generate_latest

_known: dict[str, t.Any] = {}
_M = t.TypeVar("_M", Counter, Gauge, Histogram)
#: What an endpoint of metrics answers with.
CONTENT_TYPE = CONTENT_TYPE_LATEST


def counter(name: str, doc: str, labels: t.Sequence[str] = ()) -> Counter:
    """A counter; the name may end in C(_total), as it does when it is scraped."""
    return _once(Counter, name, doc, labels)


def gauge(name: str, doc: str, labels: t.Sequence[str] = ()) -> Gauge:
    """A gauge."""
    return _once(Gauge, name, doc, labels)


def histogram(name: str, doc: str, labels: t.Sequence[str] = (), buckets: t.Sequence[float] | None = None) -> Histogram:
    """A histogram, in seconds unless its name says otherwise."""
    if buckets is None:
        return _once(Histogram, name, doc, labels)
    return _once(Histogram, name, doc, labels, buckets=tuple(buckets))


def _once(kind: type[_M], name: str, doc: str, labels: t.Sequence[str], **more: t.Any) -> _M:
    found = _known.get(name)
    if found is None:
        found = _known[name] = kind(name, doc, tuple(labels), **more)
    if not isinstance(found, kind):
        raise ValueError(
            f"the metric {name} is a {type(found).__name__.lower()} already, not a {kind.__name__.lower()}"
        )
    return found


def render() -> bytes:
    """All metrics of the process, in the text format."""
    return generate_latest(REGISTRY)


def value(name: str, /, **labels: str) -> float:
    """What a series stands at now; 0 for one that nothing was counted in. For tests and status pages."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def collect() -> bytes:
    """As :func:`render`, without holding up the event loop while it is put together."""
    return await asyncio.get_running_loop().run_in_executor(None, render)
