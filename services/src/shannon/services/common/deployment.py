# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a service is and whom it talks to: what the role C(services) derives from the topology of the inventory."""

from __future__ import annotations

import typing as t

from pydantic import BaseModel, ConfigDict, Field

Port = t.Annotated[int, Field(ge=1, le=65535)]
HostPort = t.Annotated[str, Field(pattern=r"^(\[[0-9a-fA-F:]+\]|[^:\s]+):[0-9]{1,5}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tls(_Part):
    """This host's certificate, and the authority that all others are checked against. Empty paths: no TLS (tests)."""

    ca: str = ""
    cert: str = ""
    key: str = ""

    @property
    def enabled(self) -> bool:
        """Whether listeners and connections use TLS."""
        return bool(self.ca and self.cert and self.key)


class CellPorts(_Part):
    """The data proxy's local ports of a cell."""

    postgres_primary: Port = 15432
    postgres_replicas: Port = 15433
    redis: Port = 16379


class Cell(_Part):
    """A cell and where the inventory saw it first; from then on the registry rules."""

    name: t.Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")]
    home: str
    ports: CellPorts = CellPorts()


class Deployment(_Part):
    """This host among the others.

    :ivar listen: the address that services listen on.
    :ivar data_proxy: the address of the local data proxy; its certificate name is C(localhost).
    :ivar gateways: per region, the gateways' C(host:port).
    :ivar orchestrators: those of the own region, and likewise C(llm_services) and C(agent_cores).
    :ivar registry: the registry's endpoints; empty: there is none, and every cell's home is what C(cells) says.
    :ivar etcd: the endpoints of the own region's etcd.
    """

    region: str = "local"
    host: str = "localhost"
    listen: str = "127.0.0.1"
    data_proxy: str = "127.0.0.1"
    tls: Tls = Tls()
    cells: list[Cell] = [Cell(name="main", home="local")]
    regions: list[str] = ["local"]
    gateways: dict[str, list[HostPort]] = {}
    orchestrators: list[HostPort] = ["127.0.0.1:50052"]
    llm_services: list[HostPort] = ["127.0.0.1:8000"]
    agent_cores: list[HostPort] = ["127.0.0.1:50051"]
    registry: list[HostPort] = []
    etcd: list[HostPort] = []
    qdrant_port: Port = 16333
    qdrant_replication_factor: t.Annotated[int, Field(ge=1, le=10)] = 2
    registry_cache: str = "/var/lib/shannon/registry.json"
