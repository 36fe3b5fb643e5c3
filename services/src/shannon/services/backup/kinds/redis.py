# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Redis: the data of a cell, pulled over replication from a replica of the own region."""

from __future__ import annotations

import contextlib
import typing as t
from pathlib import Path

from shannon.resilience import redis_backup
from shannon.resilience.errors import ResilienceError

from ..settings import Cell
from .base import Sandbox
from .files import FilesKind


class RedisKind(FilesKind):
    """A checked RDB file with the number of keys and the digest that it must give."""

    name = "redis"
    per_cell = True

    def fill(self, cell: Cell | None, folder: Path) -> dict[str, t.Any]:
        if cell is None:
            raise ResilienceError("Redis belongs to a cell: say which with --cell")
        password = self.settings.secret("redis_backup")
        sources = [
            redis_backup.Source(one.address, one.port, self.settings.redis_user, password, self.settings.tls)
            for one in cell.redis.get(self.settings.region, [])
        ]
        source = redis_backup.newest_replica(sources)
        return redis_backup.take(source, str(folder), server=self.settings.redis_server)

    @contextlib.contextmanager
    def prove(self, cell: Cell | None, folder: Path) -> t.Iterator[Sandbox]:
        yield Sandbox(redis_backup.verify(str(folder), server=self.settings.redis_server), {})
