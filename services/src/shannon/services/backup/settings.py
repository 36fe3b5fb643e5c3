# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role C(backup) tells the runner: one JSON file, and a folder with a file per secret."""

from __future__ import annotations

import json
import pathlib
import typing as t

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shannon.resilience.errors import ResilienceError
from shannon.resilience.tls import TlsFiles

DEFAULT_PATH = "/etc/shannon/backup/backup.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Instance(_Part):
    """One instance of a store."""

    host: str
    address: str
    port: int
    patroni: int = 0


class Repository(_Part):
    """A region's repository host, and where its restic server listens."""

    host: str
    address: str
    restic: str


class Cell(_Part):
    """A cell and, per region, its instances."""

    name: str
    home: str
    postgres: dict[str, list[Instance]]
    redis: dict[str, list[Instance]]


class Settings(_Part):
    """Where this runner is, what it backs up, and whereto.

    :ivar objectives: the part C(backups) of C(config/objectives.yml).
    :ivar home_delay: seconds that a scheduled run waits in the home region, so that the standby region goes first.
    :ivar config_paths: folders of this host that the kind C(config) takes.
    """

    host: str
    region: str
    regions: list[str]
    repositories: dict[str, Repository]
    cells: list[Cell]
    qdrant: dict[str, list[Instance]] = {}
    registry: list[str]
    state: str = "/var/lib/shannon/backup"
    runtime: str = "/run/shannon-backup"
    credentials: str = "/etc/shannon/credentials/backup"
    pgbackrest_config: str = "/etc/pgbackrest/repository.conf"
    postgres_bin: str = ""
    postgres_user: str = "backup"
    databases: list[str] = ["shannon"]
    restic_program: str = "restic"
    restic_user: str = "backup"
    redis_server: str = "redis-server"
    redis_user: str = "backup"
    qdrant_program: str = "/opt/shannon/qdrant/qdrant"
    objectives: dict[str, dict[str, t.Any]] = Field(default_factory=dict)
    min_free_percent: float = 10
    home_delay: float = 900
    lock_wait: float = 7200
    jobs: int = 2
    config_paths: list[str] = ["/etc/shannon"]
    ca_file: str = TlsFiles.ca
    cert_file: str = TlsFiles.cert
    key_file: str = TlsFiles.key

    @property
    def tls(self) -> TlsFiles:
        """The certificate to present."""
        return TlsFiles(self.ca_file, self.cert_file, self.key_file)

    def cell(self, name: str) -> Cell:
        """A cell by its name."""
        for one in self.cells:
            if one.name == name:
                return one
        known = ", ".join(one.name for one in self.cells)
        raise ResilienceError(f"there is no cell {name!r}; the inventory has {known}")

    def secret(self, name: str) -> str:
        """A secret that the role wrote for the runner."""
        path = pathlib.Path(self.credentials) / name
        try:
            return path.read_text(encoding="utf-8").rstrip("\n")
        except OSError as exc:
            raise ResilienceError(
                f"the secret {path} can't be read: {exc.strerror}. Run the runner as the user shannon-backup; "
                "site.yml with --tags backup writes the file."
            ) from exc

    def folder(self, name: str) -> pathlib.Path:
        """A folder of the runner's own, made when it is missing."""
        path = pathlib.Path(self.state) / name
        path.mkdir(mode=0o750, parents=True, exist_ok=True)
        return path


def load(path: str | pathlib.Path) -> Settings:
    """Read and check the file.

    :raises ResilienceError: it is missing or wrong; the text says what.
    """
    try:
        return Settings.model_validate(json.loads(pathlib.Path(path).read_text(encoding="utf-8")))
    except OSError as exc:
        raise ResilienceError(f"{path}: {exc.strerror}; site.yml with --tags backup writes it") from exc
    except ValueError as exc:
        said = str(exc)
        if isinstance(exc, ValidationError):
            said = "; ".join(
                f"{'.'.join(map(str, error['loc']))}: {error['msg']}"
                for error in exc.errors(include_url=False, include_input=False)
            )
        raise ResilienceError(f"{path}: {said}; site.yml with --tags backup writes it anew") from exc
