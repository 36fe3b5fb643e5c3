# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what each endpoint said to one statement per cell: who is what, how far behind, and what is amiss.

Pure: it takes observations and the derived topology, and asks nobody. C(cell_probe) makes the observations.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field
from datetime import datetime, timezone

from .backup_records import judge, warnings
from .component_versions import of_observations
from .errors import ResilienceError
from .registry import RESTORING

Answer: t.TypeAlias = "dict[str, t.Any] | ResilienceError"

#: Patroni's words for a replica that receives WAL.
STREAMING_STATES = ("streaming", "in archive recovery")


@dataclass
class Observations:
    """What was seen, by whom it was asked.

    :ivar records: cell to its registry record, or the error that the registry gave.
    :ivar registry: registry member to C({leader: bool, version: str}), or its error.
    :ivar patroni: (cell, host) to the body of Patroni's C(GET /patroni), or the error.
    :ivar redis: (cell, host) to C({role, offset, link, primary_address, primary_port, replicas}), or the error.
    :ivar peers: (region, host) to C({peer_id, leader, peers}), or the error.
    :ivar collections: region to collection to C({points, shards, replicas, replicas_active}).
    :ivar qdrant_versions: host to its Qdrant's version, of the peers that were asked for it.
    :ivar indexers: (region, host) to what a vector indexer says of itself (its C(GET /status)), or the error.
    :ivar history: cell to the changes of its home, the oldest first.
    :ivar backups: what C(backup_records) found, by C(<cell>/<kind>/<region>), or the error that the registry gave.
    :ivar endpoints: cell to what its home published for service discovery.
    :ivar certificates: host to the end of its certificate.
    :ivar at: when it was asked.
    :ivar seconds: how long asking took.
    :ivar probed_from: the host that asked.
    """

    records: dict[str, dict[str, t.Any]] | ResilienceError = field(default_factory=dict)
    registry: dict[str, Answer] = field(default_factory=dict)
    patroni: dict[tuple[str, str], Answer] = field(default_factory=dict)
    redis: dict[tuple[str, str], Answer] = field(default_factory=dict)
    peers: dict[tuple[str, str], Answer] = field(default_factory=dict)
    collections: dict[str, dict[str, dict[str, t.Any]]] = field(default_factory=dict)
    qdrant_versions: dict[str, str] = field(default_factory=dict)
    indexers: dict[tuple[str, str], Answer] = field(default_factory=dict)
    history: dict[str, list[dict[str, t.Any]]] = field(default_factory=dict)
    backups: dict[str, dict[str, t.Any]] | ResilienceError = field(default_factory=dict)
    endpoints: dict[str, dict[str, t.Any]] = field(default_factory=dict)
    certificates: dict[str, datetime] = field(default_factory=dict)
    at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    seconds: float = 0.0
    probed_from: str = ""


def summarise(
    topology: t.Mapping[str, t.Any], seen: Observations, objectives: t.Mapping[str, t.Any] | None = None
) -> dict[str, t.Any]:
    """One statement per cell, and what all cells share.

    :param topology: what C(shannon.resilience.topology) derived.
    :param objectives: the part C(backups) of C(config/objectives.yml).
    :returns: the shape that C(cell_info) documents in its RETURN section.
    """
    records = seen.records if isinstance(seen.records, dict) else {}
    cells = {}
    for cell in topology["cells"]:
        record = records.get(cell["name"])
        cells[cell["name"]] = _cell(topology, seen, cell, record)
    registry = _registry(seen)
    for cell_status in cells.values():
        if not registry["quorum"]:
            cell_status["problems"].append("the registry has no quorum: homes and epochs are the inventory's, not its")
        cell_status["healthy"] = not cell_status["problems"]
    return {
        "at": seen.at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "seconds": round(seen.seconds, 2),
        "probed_from": seen.probed_from,
        "cells": cells,
        "registry": registry,
        "backups": _backups(topology, seen, objectives or {}),
        "certificate": _certificate(seen),
        "versions": of_observations(seen.patroni, seen.redis, seen.registry, seen.qdrant_versions),
    }


def _backups(
    topology: t.Mapping[str, t.Any], seen: Observations, objectives: t.Mapping[str, t.Any]
) -> dict[str, t.Any]:
    """How old the backups are. An overdue one is a warning of its own: the cell serves as well as it did."""
    regions = list(topology["components"].get("backup_repository", {}))
    if not regions:
        return {"enabled": False, "error": "", "kinds": [], "warnings": []}
    if isinstance(seen.backups, ResilienceError):
        return {"enabled": True, "error": str(seen.backups), "kinds": [], "warnings": []}
    cells = [str(cell["name"]) for cell in topology["cells"]]
    lines = judge(seen.backups, objectives, cells, regions, seen.at)
    return {"enabled": True, "error": "", "kinds": lines, "warnings": warnings(lines)}


def _cell(
    topology: t.Mapping[str, t.Any],
    seen: Observations,
    cell: t.Mapping[str, t.Any],
    record: t.Mapping[str, t.Any] | None,
) -> dict[str, t.Any]:
    home = str(record["home"]) if record else str(cell["home"])
    postgres = _postgres(topology, seen, cell["name"], home)
    redis = _redis(topology, seen, cell, home)
    qdrant = _qdrant(topology, seen, cell["name"])
    problems = []
    if record is None and isinstance(seen.records, dict):
        problems.append(f"the registry does not know the cell {cell['name']}: run site.yml")
    if record is not None and record["state"] == RESTORING:
        problems.append("a backup is being put in place: it serves nobody until restore.yml has ended")
    for component, regions in (("postgres", postgres), ("redis", redis), ("qdrant", qdrant)):
        problems += _problems(component, regions, home)
    return {
        "home": home,
        "epoch": int(record["epoch"]) if record else int(cell["epoch"]),
        "state": str(record["state"]) if record else str(cell["state"]),
        "in_registry": record is not None,
        "moves": seen.history.get(str(cell["name"]), []),
        "endpoints": seen.endpoints.get(str(cell["name"]), {}),
        "postgres": postgres,
        "redis": redis,
        "qdrant": qdrant,
        "problems": problems,
        "healthy": False,
    }


def _postgres(topology: t.Mapping[str, t.Any], seen: Observations, cell: str, home: str) -> dict[str, dict[str, t.Any]]:
    by_region = topology["components"]["postgres"]
    written = max(
        (
            int(answer["xlog"]["location"])
            for host in by_region.get(home, ())
            if isinstance(answer := seen.patroni.get((cell, host)), dict) and "location" in answer.get("xlog", {})
        ),
        default=None,
    )
    return {
        region: {
            "members": [_postgres_member(host, seen.patroni.get((cell, host)), written, seen.at) for host in hosts]
        }
        for region, hosts in by_region.items()
    }


def _postgres_member(host: str, answer: Answer | None, written: int | None, now: datetime) -> dict[str, t.Any]:
    if not isinstance(answer, dict):
        return _dead(host, answer)
    role = str(answer.get("role", ""))
    wal = answer.get("xlog", {})
    lag_bytes = lag_seconds = None
    if "location" in wal:
        lag_bytes, lag_seconds = 0, 0.0
    elif written is not None and wal.get("replayed_location") is not None:
        lag_bytes = max(0, written - int(wal["replayed_location"]))
        lag_seconds = 0.0 if lag_bytes == 0 else _seconds_since(wal.get("replayed_timestamp"), now)
    state = str(answer.get("replication_state") or answer.get("state", ""))
    running = answer.get("state") == "running"
    return {
        "name": host,
        "role": role,
        "state": state,
        "timeline": answer.get("timeline"),
        "lag_bytes": lag_bytes,
        "lag_seconds": lag_seconds,
        "received": max(int(wal.get("received_location") or 0), int(wal.get("replayed_location") or 0)) or None,
        "replayed_at": _timestamp(wal.get("replayed_timestamp")),
        "healthy": running and (role == "primary" or state in STREAMING_STATES),
        "synchronous": bool(answer.get("sync_standby") or answer.get("quorum_standby")),
        "pending_restart": bool(answer.get("pending_restart")),
        "error": "" if running else f"PostgreSQL is not running: {answer.get('state')}",
    }


def _redis(
    topology: t.Mapping[str, t.Any], seen: Observations, cell: t.Mapping[str, t.Any], home: str
) -> dict[str, dict[str, t.Any]]:
    by_region = topology["components"]["redis"]
    written = max(
        (
            int(answer["offset"])
            for host in by_region.get(home, ())
            if isinstance(answer := seen.redis.get((cell["name"], host)), dict) and answer["role"] == "primary"
        ),
        default=None,
    )
    return {
        region: {"members": [_redis_member(host, seen.redis.get((cell["name"], host)), written) for host in hosts]}
        for region, hosts in by_region.items()
    }


def _redis_member(host: str, answer: Answer | None, written: int | None) -> dict[str, t.Any]:
    if not isinstance(answer, dict):
        return _dead(host, answer)
    role = str(answer["role"])
    streaming = role == "primary" or answer["link"] == "up"
    lag_bytes = None if written is None else 0 if role == "primary" else max(0, written - int(answer["offset"]))
    return {
        "name": host,
        "role": role,
        "state": "running" if role == "primary" else ("streaming" if streaming else f"link {answer['link']}"),
        "timeline": None,
        "offset": int(answer["offset"]),
        "lag_bytes": lag_bytes,
        "lag_seconds": 0.0 if lag_bytes == 0 else None,
        "healthy": streaming,
        "error": "" if streaming else f"no link to its primary {answer.get('primary_address') or ''}".rstrip(),
    }


def _qdrant(topology: t.Mapping[str, t.Any], seen: Observations, cell: str) -> dict[str, dict[str, t.Any]]:
    regions = {}
    for region, hosts in topology["components"]["qdrant"].items():
        answers = {host: seen.peers.get((region, host)) for host in hosts}
        leader = next(
            (int(answer["leader"]) for answer in answers.values() if isinstance(answer, dict) and answer["leader"]),
            None,
        )
        regions[region] = {
            "members": [_qdrant_member(host, answer, leader) for host, answer in answers.items()],
            "collections": seen.collections.get(region, {}),
            "indexer": _indexer(topology, seen, cell, region),
        }
    return regions


def _indexer(topology: t.Mapping[str, t.Any], seen: Observations, cell: str, region: str) -> dict[str, t.Any] | None:
    """What the region's vector indexer says; of several the one that applies. None where there is none."""
    hosts = topology["components"].get("orchestrator", {}).get(region, ())
    if not hosts:
        return None
    errors = []
    for host in hosts:
        answer = seen.indexers.get((region, host))
        if not isinstance(answer, dict):
            errors.append(str(answer) if answer is not None else f"{host} was not asked")
            continue
        for one in answer.get("cells", ()):
            if one["cell"] == cell and one["leader"]:
                trouble = str(one["trouble"] or "")
                return {
                    "host": host,
                    "lag_rows": one["lag_rows"],
                    "lag_seconds": one["lag_seconds"],
                    "healthy": not trouble,
                    "error": trouble,
                }
    error = "; ".join(errors) or "nobody applies"
    return {"host": "", "lag_rows": None, "lag_seconds": None, "healthy": False, "error": error}


def _qdrant_member(host: str, answer: Answer | None, leader: int | None) -> dict[str, t.Any]:
    if not isinstance(answer, dict):
        return _dead(host, answer)
    return {
        "name": host,
        "role": "raft leader" if leader is not None and answer["peer_id"] == leader else "peer",
        "state": "running",
        "timeline": None,
        "peer_id": answer["peer_id"],
        "peers": answer["peers"],
        "lag_bytes": None,
        "lag_seconds": None,
        "healthy": True,
        "error": "",
    }


def _dead(host: str, answer: Answer | None) -> dict[str, t.Any]:
    return {
        "name": host,
        "role": "",
        "state": "",
        "timeline": None,
        "lag_bytes": None,
        "lag_seconds": None,
        "healthy": False,
        "error": str(answer) if answer is not None else "was not asked",
    }


def _problems(component: str, regions: t.Mapping[str, t.Mapping[str, t.Any]], home: str) -> list[str]:
    found = []
    for region, part in regions.items():
        silent = [member["name"] for member in part["members"] if not member["healthy"]]
        if silent:
            found.append(f"{component} in {region}: not healthy: {', '.join(silent)}")
        if component in ("postgres", "redis"):
            primaries = [member["name"] for member in part["members"] if member["role"] == "primary"]
            if region == home and not primaries:
                found.append(f"{component} in {region}: no primary")
            if region == home and len(primaries) > 1:
                found.append(f"{component} in {region}: {len(primaries)} primaries: {', '.join(primaries)}")
            if region != home and primaries:
                found.append(
                    f"{component} in {region}: a primary outside the home region {home}: {', '.join(primaries)}"
                )
        indexer = part.get("indexer")
        if indexer and not indexer["healthy"]:
            found.append(f"vector indexer in {region}: {indexer['error']}")
        for name, collection in part.get("collections", {}).items():
            if collection["replicas_active"] < collection["replicas"]:
                found.append(
                    f"qdrant in {region}: {name} has {collection['replicas_active']} of {collection['replicas']} "
                    "replicas active"
                )
    leaders = {
        member["timeline"]
        for part in regions.values()
        for member in part["members"]
        if component == "postgres" and member["role"] in ("primary", "standby_leader") and member["timeline"]
    }
    if len(leaders) > 1:
        found.append(f"postgres: the regions are on different timelines: {', '.join(map(str, sorted(leaders)))}")
    return found


def _registry(seen: Observations) -> dict[str, t.Any]:
    members = [
        {"name": host, "healthy": isinstance(answer, dict), "error": "" if isinstance(answer, dict) else str(answer)}
        for host, answer in seen.registry.items()
    ]
    leader = next(
        (host for host, answer in seen.registry.items() if isinstance(answer, dict) and answer["leader"]), None
    )
    return {"quorum": isinstance(seen.records, dict), "leader": leader, "members": members}


def _certificate(seen: Observations) -> dict[str, t.Any] | None:
    if not seen.certificates:
        return None
    host, end = min(seen.certificates.items(), key=lambda pair: pair[1])
    return {"host": host, "not_after": end.strftime("%Y-%m-%dT%H:%M:%SZ"), "days": (end - seen.at).days}


def _timestamp(stamp: str | None) -> float | None:
    """Seconds since 1970."""
    try:
        then = datetime.fromisoformat(stamp) if stamp else None
    except ValueError:
        return None
    if then is None:
        return None
    return (then if then.tzinfo else then.replace(tzinfo=timezone.utc)).timestamp()


def _seconds_since(stamp: str | None, now: datetime) -> float | None:
    if not stamp:
        return None
    try:
        then = datetime.fromisoformat(stamp)
    except ValueError:
        return None
    if then.tzinfo is None:
        then = then.replace(tzinfo=timezone.utc)
    return max(0.0, round((now - then).total_seconds(), 1))
