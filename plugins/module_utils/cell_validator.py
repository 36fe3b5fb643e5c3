# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks a home for what C(cell_validation) checks: agents for PostgreSQL, Qdrant, and each service's readiness."""

from __future__ import annotations

import threading
import time
import typing as t

from .cell_validation import Answer, Before, Check, Expected, Seen, validate
from .concurrently import gather
from .errors import EndpointError, ResilienceError
from .http_client import JsonEndpoint
from .patroni import Patroni
from .qdrant import Qdrant
from .tls import TlsFiles, client_context

#: Seconds that an agent may take to count its rows; it gives its own PostgreSQL a bit less.
COUNTING = 14.0
#: Seconds between two looks at a home that does not pass yet.
PAUSE = 0.5
#: A service's readiness: the port's name in the topology, and the page.
SERVICES = {
    "gateway": ("gateway", "/readiness"),
    "orchestrator": ("orchestrator_admin", "/health/ready"),
}


class Validator:
    """Validates cells of one deployment.

    :param topology: what C(shannon.resilience.topology) derived.
    :param expected: what should be there.
    :param timeout: seconds that one endpoint may take.
    :param within: seconds in which all checks must have passed; the last look counts.
    """

    def __init__(
        self,
        topology: t.Mapping[str, t.Any],
        tls: TlsFiles,
        qdrant_api_key: str,
        expected: Expected,
        timeout: float = 2.0,
        within: float = 10.0,
    ) -> None:
        self._topology = topology
        self._context = client_context(tls)
        self._qdrant_api_key = qdrant_api_key
        self._expected = expected
        self._timeout = timeout
        self._within = within
        self._notes: dict[str, _Note] = {}

    def note(self, cell: str, host: str, collections: t.Mapping[str, t.Mapping[str, t.Any]]) -> None:
        """Note what a follower has before it is promoted, in the background: nobody waits for it.

        :param host: the standby leader.
        :param collections: what is known of its region's collections.
        """
        points = {name: int(it["points"]) for name, it in collections.items()}
        self._notes[cell] = _Note(lambda: self._ask_facts(cell, host), points)

    def validate(self, cell: str, region: str) -> list[Check]:
        """Look until all checks pass, or the time is up: a service that has just changed sides may need a moment."""
        note = self._notes.get(cell)
        before = note.read() if note else Before()
        deadline = time.monotonic() + self._within
        while True:
            checks = validate(self._expected, self.look(cell, region), before)
            if all(check.passed for check in checks) or time.monotonic() + PAUSE >= deadline:
                return checks
            time.sleep(PAUSE)

    def look(self, cell: str, region: str) -> Seen:
        """One look, everything at once."""
        components = self._topology["components"]
        hosts = list(components["postgres"].get(region, ()))
        asked: dict[tuple[str, str], t.Callable[[], t.Any]] = {
            ("facts", host): lambda host=host: self._ask_primary(cell, host)  # type: ignore[misc]
            for host in hosts
        }
        asked["collections", region] = lambda: self._ask_collections(region)
        for service, (port, path) in SERVICES.items():
            for host in components.get(service, {}).get(region, ()):
                asked[service, host] = self._ask_readiness(host, port, path)
        found = gather(asked)
        return Seen(
            region=region,
            cell=cell,
            facts={host: found["facts", host] for host in hosts if found["facts", host] is not None},
            collections=found["collections", region],
            services={f"{kind} on {host}": str(it) for (kind, host), it in found.items() if kind in SERVICES},
        )

    def _address(self, host: str) -> str:
        return str(self._topology["hosts"][host]["address"])

    def _ask_primary(self, cell: str, host: str) -> dict[str, t.Any] | None:
        """What a primary has; None for a follower, which is spared the counting."""
        port = next(int(one["ports"]["patroni"]) for one in self._topology["cells"] if one["name"] == cell)
        if not Patroni(self._address(host), port, self._context, timeout=self._timeout).is_primary():
            return None
        return self._ask_facts(cell, host)

    def _ask_facts(self, cell: str, host: str) -> dict[str, t.Any]:
        port = int(self._topology["ports"]["region_agent"])
        endpoint = JsonEndpoint(self._address(host), port, self._context, COUNTING)
        # Counting may take a while; whether anybody is there may not.
        endpoint.expect("GET", "/status", timeout=self._timeout)
        said = endpoint.expect("GET", f"/facts/{cell}")
        if not isinstance(said, dict) or not {"in_recovery", "migrations", "indexes", "tables"} <= set(said):
            raise EndpointError(endpoint.host, port, f"the facts of cell {cell}", repr(said)[:200])
        return said

    def _ask_readiness(self, host: str, port: str, path: str) -> t.Callable[[], str]:
        endpoint = JsonEndpoint(self._address(host), self._topology["ports"][port], self._context, self._timeout)

        def ask() -> str:
            answer = endpoint.request("GET", path)
            if answer.status == 200:
                return ""
            body = answer.body if isinstance(answer.body, dict) else {}
            return str(body.get("reason") or body.get("failed") or f"HTTP {answer.status} to GET {path}")

        return ask

    def _ask_collections(self, region: str) -> dict[str, Answer]:
        """The region's collections, from the first of its peers that answers."""
        port = self._topology["ports"]["qdrant_http"]
        errors: list[str] = []
        peers = {
            host: Qdrant(self._address(host), port, self._context, self._qdrant_api_key, self._timeout)
            for host in self._topology["components"]["qdrant"].get(region, ())
        }
        lists = gather({host: peer.collections for host, peer in peers.items()})
        for host, names in lists.items():
            if isinstance(names, ResilienceError):
                errors.append(str(names))
                continue
            return t.cast("dict[str, Answer]", gather({name: _collection(peers[host], name) for name in names}))
        raise ResilienceError(f"no peer of region {region}'s Qdrant answers: {'; '.join(errors) or 'it has none'}")


def _collection(peer: Qdrant, name: str) -> t.Callable[[], dict[str, t.Any]]:
    def ask() -> dict[str, t.Any]:
        shards = peer.shards(name)
        schema = peer.collection(name)["payload_schema"]
        return {
            "points": peer.count(name),
            "schema": {one: str(it.get("data_type", "")) for one, it in schema.items()},
            "replicas": shards.replicas,
            "replicas_active": shards.replicas_active,
        }

    return ask


class _Note:
    """Figures that are asked for in the background."""

    def __init__(self, ask: t.Callable[[], dict[str, t.Any]], points: dict[str, int]) -> None:
        self._ask = ask
        self._points = points
        self._facts: dict[str, t.Any] = {}
        self._thread = threading.Thread(target=self._run, daemon=True, name="note")
        self._thread.start()

    def _run(self) -> None:
        try:
            facts = self._ask()
        except ResilienceError:
            return  # the check says that nobody counted
        # One that was promoted meanwhile says nothing of what was there before.
        if facts["in_recovery"]:
            self._facts = facts

    def read(self) -> Before:
        self._thread.join(COUNTING)
        return Before(self._facts, self._points)
