# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a cell's stores and doors are now, for service discovery: C(/shannon/endpoints/<cell>) of the registry.

Only the home that holds the lease writes it, so whoever watches the key follows the cell, and what it says is never
older than the epoch beside it.
"""

from __future__ import annotations

import json
import typing as t
from dataclasses import dataclass, field, fields

from .errors import ResilienceError
from .etcd import EtcdClient

ENDPOINTS = "/shannon/endpoints/"


@dataclass(frozen=True)
class Endpoints:
    """Of one cell.

    :ivar edges: URLs for clients.
    :ivar gateways: region to C(host:port).
    :ivar postgres: C(primary), C(replicas) (of the home) and C(standby) to lists of C(host:port); C(redis) likewise.
    :ivar updated_at: when the home last looked, by its clock.
    """

    cell: str
    epoch: int
    home: str
    edges: list[str] = field(default_factory=list)
    gateways: dict[str, list[str]] = field(default_factory=dict)
    postgres: dict[str, list[str]] = field(default_factory=dict)
    redis: dict[str, list[str]] = field(default_factory=dict)
    updated_at: str = ""


def read_endpoints(client: EtcdClient) -> dict[str, Endpoints]:
    """What was published, by cell.

    :raises ResilienceError: the registry can't answer, or a key of its can't be read.
    """
    return {(one := endpoints_of(found.key, found.value)).cell: one for found in client.range(ENDPOINTS)}


def endpoints_of(key: str, text: str) -> Endpoints:
    """What a key says; what a newer version adds is left out.

    :raises ResilienceError: it can't be read.
    """
    try:
        value: t.Any = json.loads(text)
        known = {one.name: value[one.name] for one in fields(Endpoints) if one.name in value}
        found = Endpoints(**{**known, "epoch": int(known["epoch"])})
    except (ValueError, TypeError, KeyError) as exc:
        raise ResilienceError(f"the registry's key {key} says nothing about endpoints: {text[:200]!r}") from exc
    if ENDPOINTS + found.cell != key:
        raise ResilienceError(f"the registry's key {key} is of another cell: {text[:200]!r}")
    return found
