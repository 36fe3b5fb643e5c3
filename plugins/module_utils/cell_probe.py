# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks everything that C(cell_status) summarises, in two rounds of concurrent questions."""

from __future__ import annotations

import socket
import ssl
import time
import typing as t
from dataclasses import asdict
from datetime import datetime, timezone

from .backup_records import BackupRecords
from .cell_status import Answer, Observations
from .concurrently import gather
from .endpoints import read_endpoints
from .errors import EndpointError, ResilienceError
from .etcd import Endpoint
from .http_client import JsonEndpoint, describe
from .patroni import Patroni
from .qdrant import Qdrant
from .redis import RedisClient
from .registry import Registry
from .tls import TlsFiles, client_context

Question = tuple[str, str, str]


class Probe:
    """One look at the whole topology from the host that runs it.

    :param topology: what C(shannon.resilience.topology) derived.
    :param tls: certificate to present.
    :param redis_username: a user that may C(INFO).
    :param qdrant_api_key: a key that may read.
    :param timeout: seconds for one endpoint; the whole takes two of these at the most, whatever is dead.
    """

    def __init__(
        self,
        topology: t.Mapping[str, t.Any],
        tls: TlsFiles,
        redis_username: str,
        redis_password: str,
        qdrant_api_key: str,
        timeout: float,
    ) -> None:
        self._topology = topology
        self._tls = tls
        self._context = client_context(tls)
        self._redis = (redis_username, redis_password)
        self._qdrant_api_key = qdrant_api_key
        self._timeout = timeout

    def allow(self, timeout: float) -> None:
        """Give each endpoint so many seconds from now on."""
        self._timeout = timeout

    def observe(self) -> Observations:
        """Ask everyone, and then each region's Qdrant about its collections through a peer that answered."""
        started = time.monotonic()
        seen = Observations(probed_from=socket.gethostname(), at=datetime.now(timezone.utc))
        questions: dict[Question, t.Callable[[], t.Any]] = {("registry", "", ""): self._registry}
        for cell in self._topology["cells"]:
            for host in self._hosts("postgres"):
                questions["postgres", cell["name"], host] = self._ask_patroni(host, cell["ports"]["patroni"])
            for host in self._hosts("redis"):
                questions["redis", cell["name"], host] = self._ask_redis(host, cell["ports"]["redis"])
        for region, hosts in self._topology["components"]["qdrant"].items():
            for host in hosts:
                questions["qdrant", region, host] = self._ask_peer(host)
        for region, hosts in self._topology["components"].get("orchestrator", {}).items():
            for host in hosts:
                questions["indexer", region, host] = self._ask_indexer(host)
        certificate_port = self._certificate_ports()
        for host, port in certificate_port.items():
            questions["certificate", host, str(port)] = self._ask_certificate(host, port)
        answers = gather(questions)
        self._sort(answers, seen)
        seen.collections = self._collections(seen)
        seen.seconds = time.monotonic() - started
        return seen

    def _sort(self, answers: t.Mapping[Question, t.Any], seen: Observations) -> None:
        for (kind, where, host), answer in answers.items():
            if kind == "registry":
                if isinstance(answer, ResilienceError):
                    seen.records = answer
                else:
                    seen.records, seen.registry, seen.history, seen.endpoints, seen.backups = answer
            elif kind == "postgres":
                seen.patroni[where, host] = answer
            elif kind == "redis":
                seen.redis[where, host] = answer
            elif kind == "qdrant":
                seen.peers[where, host] = answer
            elif kind == "indexer":
                seen.indexers[where, host] = answer
            elif not isinstance(answer, ResilienceError):
                seen.certificates[where] = answer

    def _hosts(self, component: str) -> list[str]:
        return [host for hosts in self._topology["components"][component].values() for host in hosts]

    def _address(self, host: str) -> str:
        return str(self._topology["hosts"][host]["address"])

    def _registry(self) -> tuple[t.Any, dict[str, Answer], dict[str, list[dict[str, t.Any]]], dict[str, t.Any], t.Any]:
        """The records (or their error), each member's answer, each cell's moves and endpoints, and the backups."""
        port = self._topology["ports"]["registry_client"]
        names = {Endpoint(self._address(host), port): host for host in self._hosts("registry")}
        registry = Registry.connect(list(names), self._tls, self._timeout)
        questions: dict[str, t.Callable[[], t.Any]] = {
            "records": registry.records,
            "statuses": registry.client.statuses,
            "moves": registry.moves,
            "backups": BackupRecords(registry.client).everything,
            "endpoints": lambda: read_endpoints(registry.client),
        }
        parts = gather(questions)
        statuses = t.cast(dict[Endpoint, t.Any], parts["statuses"])
        members: dict[str, Answer] = {
            names[endpoint]: status
            if isinstance(status, ResilienceError)
            else {"leader": status.is_leader, "version": status.version}
            for endpoint, status in statuses.items()
        }
        records = parts["records"]
        moves = parts["moves"]
        found = {} if isinstance(moves, ResilienceError) else t.cast("dict[str, list[t.Any]]", moves)
        history = {cell: [asdict(entry) for entry in entries] for cell, entries in found.items()}
        published = parts["endpoints"]
        known = {} if isinstance(published, ResilienceError) else t.cast("dict[str, t.Any]", published)
        endpoints = {cell: asdict(one) for cell, one in known.items()}
        if not isinstance(records, ResilienceError):
            records = {name: asdict(record) for name, record in t.cast("dict[str, t.Any]", records).items()}
        return records, members, history, endpoints, parts["backups"]

    def _ask_patroni(self, host: str, port: int) -> t.Callable[[], Answer]:
        return Patroni(self._address(host), port, self._context, timeout=self._timeout).status

    def _ask_redis(self, host: str, port: int) -> t.Callable[[], Answer]:
        def ask() -> Answer:
            with RedisClient(self._address(host), port, *self._redis, self._context, self._timeout) as client:
                return asdict(client.replication())

        return ask

    def _qdrant(self, host: str) -> Qdrant:
        port = self._topology["ports"]["qdrant_http"]
        return Qdrant(self._address(host), port, self._context, self._qdrant_api_key, self._timeout)

    def _ask_peer(self, host: str) -> t.Callable[[], Answer]:
        return lambda: asdict(self._qdrant(host).peer_status())

    def _ask_indexer(self, host: str) -> t.Callable[[], Answer]:
        port = self._topology["ports"]["vector_indexer_metrics"]
        endpoint = JsonEndpoint(self._address(host), port, self._context, timeout=self._timeout)

        def ask() -> Answer:
            return t.cast("dict[str, t.Any]", endpoint.expect("GET", "/status"))

        return ask

    def _collections(self, seen: Observations) -> dict[str, dict[str, dict[str, t.Any]]]:
        """Each region's collections, from the first of its peers that answered."""
        spokesmen = {
            region: host for (region, host), answer in reversed(seen.peers.items()) if isinstance(answer, dict)
        }

        asked: dict[tuple[str, str], t.Callable[[], t.Any]] = {}
        for region, host in spokesmen.items():
            asked["names", region] = self._qdrant(host).collections
            asked["version", region] = self._qdrant(host).version
        answers = gather(asked)
        names = {region: answers["names", region] for region in spokesmen}
        seen.qdrant_versions = {
            spokesmen[region]: str(it)
            for (kind, region), it in answers.items()
            if kind == "version" and not isinstance(it, ResilienceError)
        }
        questions = {
            (region, name): self._ask_collection(spokesmen[region], name)
            for region, found in names.items()
            if not isinstance(found, ResilienceError)
            for name in found
        }
        collections: dict[str, dict[str, dict[str, t.Any]]] = {}
        for (region, name), answer in gather(questions).items():
            if not isinstance(answer, ResilienceError):
                collections.setdefault(region, {})[name] = answer
        return collections

    def _ask_collection(self, host: str, name: str) -> t.Callable[[], dict[str, t.Any]]:
        def ask() -> dict[str, t.Any]:
            qdrant = self._qdrant(host)
            return {"points": qdrant.count(name), **asdict(qdrant.shards(name))}

        return ask

    def _certificate_ports(self) -> dict[str, int]:
        """A TLS port of each host that presents the host's certificate."""
        ports = dict.fromkeys(self._hosts("registry"), self._topology["ports"]["registry_client"])
        for component, port in (("qdrant", "qdrant_http"), ("etcd", "etcd_client")):
            ports.update(dict.fromkeys(self._hosts(component), self._topology["ports"][port]))
        return ports

    def _ask_certificate(self, host: str, port: int) -> t.Callable[[], datetime]:
        address = self._address(host)

        def ask() -> datetime:
            try:
                with (
                    socket.create_connection((address, port), timeout=self._timeout) as raw,
                    self._context.wrap_socket(raw, server_hostname=address) as tls,
                ):
                    certificate = tls.getpeercert()
            except OSError as exc:
                raise EndpointError(address, port, "a certificate", describe(exc)) from exc
            if not certificate:
                raise EndpointError(address, port, "a certificate", "none")
            return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(certificate["notAfter"])), timezone.utc)

        return ask
