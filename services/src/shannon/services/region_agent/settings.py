# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role C(region_agent) tells an agent: one JSON file, checked when the agent starts."""

from __future__ import annotations

import json
import pathlib
import time
import typing as t

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shannon.resilience.tls import TlsFiles
from shannon.services.common.config import ConfigError
from shannon.services.common.deployment import HostPort, Port

DEFAULT_PATH = "/etc/shannon/region-agent.json"


class _Part(BaseModel):
    # A key that is not known is passed over: during an upgrade the settings may be newer than the agent that reads
    # them, and one that refused to start would leave its host closed.
    model_config = ConfigDict(frozen=True, extra="ignore")


class CellSettings(_Part):
    """A cell and its ports."""

    name: str
    postgres: Port
    patroni: Port
    redis: Port
    sentinel: Port


class DnsName(_Part):
    """A name of a cell that is kept by RFC 2136.

    :ivar servers: the zone's primary servers.
    :ivar regions: region to type (C(A), say) to what the name says while the cell lives there.
    """

    cell: str
    zone: str
    name: str
    ttl: t.Annotated[int, Field(ge=1)]
    servers: list[str]
    key_name: str
    key_secret: str = Field(repr=False)
    key_algorithm: str
    regions: dict[str, dict[str, list[str]]]


class Settings(_Part):
    """Where this agent is, and whom it talks to.

    :ivar postgres: per region, name and address of the hosts with PostgreSQL; C(redis) and C(agents) likewise.
    :ivar qdrant: likewise; empty where there is none, and then no markers are written for it.
    :ivar edges: where clients come in, and C(gateways) per region; both are published for service discovery.
    :ivar dns: the names that the agents have follow the cells.
    :ivar redis_kept_bytes: the largest snapshot of Redis that is kept before it follows a new home.
    :ivar data_proxy: the admin socket of this host's data proxy.
    :ivar failover: C(automatic): take a cell over when its home's lease has ended; C(manual): never.
    """

    region: str
    host: str
    address: str
    port: Port
    failover: t.Literal["manual", "automatic"] = "manual"
    cells: list[CellSettings]
    postgres: dict[str, dict[str, str]]
    redis: dict[str, dict[str, str]]
    agents: dict[str, dict[str, str]]
    qdrant: dict[str, dict[str, str]] = Field(default_factory=dict)
    qdrant_port: Port = 6333
    registry: list[HostPort]
    etcd: list[HostPort]
    edges: list[HostPort] = []
    gateways: dict[str, list[HostPort]] = {}
    dns: list[DnsName] = []
    namespace: str = "/shannon/"
    database: str = "shannon"
    redis_kept_bytes: t.Annotated[int, Field(ge=0)] = 4 * 2**30
    patroni_password: str = Field(repr=False)
    redis_password: str = Field(repr=False)
    qdrant_api_key: str = Field("", repr=False)
    ca_file: str = TlsFiles.ca
    cert_file: str = TlsFiles.cert
    key_file: str = TlsFiles.key
    fence_file: str = "/etc/shannon/fence.nft"
    data_proxy: str = "/run/data-proxy/admin.sock"
    runtime_directory: str = "/run/shannon-region-agent"
    state_directory: str = "/var/lib/shannon/region-agent"
    postgres_directory: str = "/var/lib/shannon/postgres"

    @property
    def tls(self) -> TlsFiles:
        """The certificate to present."""
        return TlsFiles(self.ca_file, self.cert_file, self.key_file)

    def other_regions(self) -> list[str]:
        """Regions that have agents, without the own one."""
        return [region for region in self.agents if region != self.region]


def load(path: str | pathlib.Path) -> Settings:
    """Read and check the file.

    :raises ConfigError: it is missing or wrong; the text says what.
    """
    try:
        return Settings(**json.loads(pathlib.Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as exc:
        problems = [str(exc)]
        if isinstance(exc, ValidationError):
            problems = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in exc.errors()]
        raise ConfigError(str(path), problems) from exc


def now() -> float:
    """Seconds since the host started, sleep included: a host that was suspended must not believe an old lease."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
