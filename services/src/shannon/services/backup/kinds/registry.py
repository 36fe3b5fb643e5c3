# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The registry: a snapshot from a member, checked."""

from __future__ import annotations

import contextlib
import typing as t
from pathlib import Path

from shannon.resilience import registry_snapshot

from ..settings import Cell
from .base import Sandbox
from .files import FilesKind


class RegistryKind(FilesKind):
    """A snapshot of the registry's etcd with its revision, keys, and the record of each cell."""

    name = "registry"

    def fill(self, cell: Cell | None, folder: Path) -> dict[str, t.Any]:
        return registry_snapshot.take(self.settings.registry, self.settings.tls, str(folder))

    @contextlib.contextmanager
    def prove(self, cell: Cell | None, folder: Path) -> t.Iterator[Sandbox]:
        yield Sandbox(registry_snapshot.verify_folder(str(folder)), {})
