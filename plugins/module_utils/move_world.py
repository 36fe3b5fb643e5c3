# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a mover sees of a real deployment: stores, agents, gateways and edges, each asked with a bound."""

from __future__ import annotations

import ssl
import threading
import typing as t

from .cell_probe import Probe
from .cell_status import summarise
from .concurrently import gather
from .errors import ResilienceError
from .http_client import JsonEndpoint
from .smoke import Client
from .tls import TlsFiles, client_context

#: Seconds that one endpoint has to answer before a move is refused for what it did not say.
PATIENCE = 3.0


class NoStandby(ResilienceError):
    """No region was seen that a cell could move to."""


class Deployment:
    """A deployment as its topology says it, asked from the host that runs this.

    :param topology: what C(shannon.resilience.topology) derived.
    :param probe: asks the stores.
    :param timeout: seconds that an agent or a gateway may take.
    :param ahead: regions whose agents and gateways are asked together with the stores, since they will be asked for:
        dead hosts cost one timeout then, and not one for each kind of question.
    """

    def __init__(
        self,
        topology: t.Mapping[str, t.Any],
        tls: TlsFiles,
        probe: Probe,
        api_key: str,
        timeout: float,
        ahead: t.Collection[str] = (),
    ) -> None:
        self._topology = topology
        self._ca_file = tls.ca
        self._context = client_context(tls)
        self._probe = probe
        self._api_key = api_key
        self._timeout = timeout
        self._lock = threading.Lock()
        self._info: dict[str, t.Any] | None = None
        self._ahead = tuple(ahead)
        self._agents: dict[str, dict[str, t.Any]] = {}
        self._gateways: dict[str, dict[str, str]] = {}

    def info(self) -> dict[str, t.Any]:
        """The status, looked at once for all cells that are moved together."""
        with self._lock:
            if self._info is None:
                self._info = self._look()
            return self._info

    def be_patient(self) -> None:
        """Have everybody asked once more, and give them PATIENCE to answer; the first mover's word is enough."""
        with self._lock:
            if self._timeout >= PATIENCE:
                return
            self._timeout = PATIENCE
            self._probe.allow(PATIENCE)
            # At once: agents and gateways that were asked together with the stores would still be the old ones.
            self._info = self._look()

    def _look(self) -> dict[str, t.Any]:
        asked: dict[tuple[str, str], t.Callable[[], t.Any]] = {("stores", ""): self._probe.observe}
        for region in self._ahead:
            asked["agents", region] = lambda region=region: self._ask_agents(region)  # type: ignore[misc]
            asked["gateways", region] = lambda region=region: self._ask_gateways(region)  # type: ignore[misc]
        found = gather(asked)
        for answer in found.values():
            if isinstance(answer, ResilienceError):
                raise answer
        self._agents = {region: found["agents", region] for region in self._ahead}
        self._gateways = {region: found["gateways", region] for region in self._ahead}
        return summarise(self._topology, found["stores", ""])

    def agents(self, region: str) -> dict[str, t.Any]:
        """What each region agent says of itself, or its error as a text."""
        return self._agents[region] if region in self._agents else self._ask_agents(region)

    def _ask_agents(self, region: str) -> dict[str, t.Any]:
        components = self._topology["components"]
        hosts = dict.fromkeys([*components["postgres"].get(region, ()), *components["redis"].get(region, ())])
        port = self._topology["ports"]["region_agent"]
        asked = {
            host: lambda host=host: self._endpoint(host, port).expect("GET", "/status")  # type: ignore[misc]
            for host in hosts
        }
        return {host: it if isinstance(it, dict) else str(it) for host, it in gather(asked).items()}

    def gateways(self, region: str) -> dict[str, str]:
        """Why each gateway can't serve; an empty text when it can."""
        return self._gateways[region] if region in self._gateways else self._ask_gateways(region)

    def _ask_gateways(self, region: str) -> dict[str, str]:
        hosts = self._topology["components"].get("gateway", {}).get(region, ())
        port = self._topology["ports"]["gateway"]

        def asker(host: str) -> t.Callable[[], str]:
            def ask() -> str:
                answer = self._endpoint(host, port).request("GET", "/readiness")
                body = answer.body if isinstance(answer.body, dict) else {}
                return "" if answer.status == 200 else f"{host}: {body.get('reason') or answer.status}"

            return ask

        return {host: str(it) for host, it in gather({host: asker(host) for host in hosts}).items()}

    def edges(self) -> list[str]:
        """Hosts that are edges."""
        return [host for hosts in self._topology["components"].get("edge", {}).values() for host in hosts]

    def edge_client(self, edge: str, deadline: float) -> Client:
        """A client that submits through an edge, as somebody from outside does."""
        address = str(self._topology["hosts"][edge]["address"])
        try:
            context = ssl.create_default_context(cafile=self._ca_file)
        except (OSError, ssl.SSLError) as exc:
            raise ResilienceError(f"the CA {self._ca_file} can't be used: {exc}") from exc
        port = self._topology["ports"]["edge_https"]
        name = f"[{address}]" if ":" in address else address
        return Client(f"https://{name}:{port}", self._api_key, context, deadline)

    def _endpoint(self, host: str, port: int) -> JsonEndpoint:
        return JsonEndpoint(str(self._topology["hosts"][host]["address"]), port, self._context, self._timeout)


def best_standby(info: t.Mapping[str, t.Any], home: str, regions: t.Sequence[str]) -> str:
    """The standby region that has most of a cell; of those that have as much, the first in the inventory.

    :raises NoStandby: no standby region has a PostgreSQL that leads it.
    """
    found: list[tuple[int, str]] = []
    for region in regions:
        members = info["postgres"].get(region, {}).get("members", ())
        leaders = [one for one in members if one["role"] == "standby_leader"]
        if region != home and leaders:
            found.append((int(leaders[0].get("received") or 0), region))
    if not found:
        raise NoStandby(
            f"no standby region of home {home} has a PostgreSQL that could take over; look at playbooks/status.yml"
        )
    most = max(received for received, _region in found)
    return next(region for received, region in found if received == most)
