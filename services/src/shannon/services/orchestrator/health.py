# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The orchestrator's health pages (seed facts 2: ready means that no critical dependency is down)."""

from __future__ import annotations

import typing as t

from shannon.resilience.degradation import DegradationManager, Status
from shannon.services.common.http_server import Answer

#: More figures for the detailed page.
Figures = t.Callable[[], dict[str, t.Any]]


def pages(manager: DegradationManager, figures: Figures) -> dict[str, Answer]:
    """Path to page."""

    async def live() -> tuple[int, t.Any]:
        return 200, {"status": "alive"}

    async def ready() -> tuple[int, t.Any]:
        found = manager.assessment
        is_ready = found.status is not Status.UNHEALTHY
        document = {"ready": is_ready, "status": found.status.value, "failed": list(found.failed)}
        return (200 if is_ready else 503), document

    async def overall() -> tuple[int, t.Any]:
        found = manager.assessment
        return (503 if found.status is Status.UNHEALTHY else 200), {"status": found.status.value}

    async def detailed() -> tuple[int, t.Any]:
        found = manager.assessment
        return 200, {
            "status": found.status.value,
            "level": found.level.label,
            "reason": found.reason,
            "failed": list(found.failed),
            "dependencies": {
                one.name: {
                    "healthy": not one.down,
                    "degraded": one.degraded,
                    "critical": one.critical,
                    "breaker": one.breaker.label if one.breaker is not None else "",
                    "latency": one.latency,
                    "error": one.error,
                }
                for one in manager.dependencies()
            },
            **figures(),
        }

    return {
        "/health": overall,
        "/health/live": live,
        "/health/ready": ready,
        "/health/detailed": detailed,
        "/status": detailed,
    }
