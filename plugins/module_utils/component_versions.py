# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which version of each component runs where, from what the components said of themselves."""

from __future__ import annotations

import typing as t


def of_observations(
    patroni: t.Mapping[tuple[str, str], t.Any],
    redis: t.Mapping[tuple[str, str], t.Any],
    registry: t.Mapping[str, t.Any],
    qdrant: t.Mapping[str, str],
) -> dict[str, str]:
    """Component to version; with the hosts, when they differ. What is not known is left out.

    The arguments are those of C(cell_status.Observations).
    """
    found: dict[str, dict[str, str]] = {}

    def note(component: str, host: str, version: t.Any) -> None:
        if version:
            found.setdefault(component, {})[host] = str(version)

    for (_cell, host), answer in patroni.items():
        if isinstance(answer, dict):
            note("postgresql", host, postgresql(answer.get("server_version")))
            inner = answer.get("patroni")
            note("patroni", host, inner.get("version") if isinstance(inner, dict) else None)
    for (_cell, host), answer in redis.items():
        note("redis", host, answer.get("version") if isinstance(answer, dict) else None)
    for host, answer in registry.items():
        note("etcd (registry)", host, answer.get("version") if isinstance(answer, dict) else None)
    for host, version in qdrant.items():
        note("qdrant", host, version)
    return {component: text(hosts) for component, hosts in sorted(found.items())}


def postgresql(number: t.Any) -> str:
    """C(150018), as PostgreSQL says it, as 15.18."""
    try:
        version = int(number)
    except (TypeError, ValueError):
        return ""
    return f"{version // 10000}.{version % 10000}" if version >= 100000 else ""


def text(hosts: t.Mapping[str, str]) -> str:
    """The version that all hosts have, or each with its hosts."""
    versions: dict[str, list[str]] = {}
    for host, version in sorted(hosts.items()):
        versions.setdefault(version, []).append(host)
    if len(versions) == 1:
        return next(iter(versions))
    return "; ".join(f"{version} ({', '.join(names)})" for version, names in sorted(versions.items()))
