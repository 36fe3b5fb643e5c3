# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kinds of backups, by name."""

from __future__ import annotations

from ..settings import Settings
from .base import Kind


def kinds(settings: Settings) -> dict[str, Kind]:
    """All kinds, in the order in which they are taken.

    Imported here, so that --help answers where a library of one kind is missing.
    """
    from .config import ConfigKind
    from .dump import DumpKind
    from .files import Repositories
    from .postgres import PostgresKind
    from .qdrant import QdrantKind
    from .redis import RedisKind
    from .registry import RegistryKind

    repositories = Repositories(settings)
    made: list[Kind] = [
        PostgresKind(settings, repositories),
        DumpKind(settings, repositories),
        RedisKind(settings, repositories),
        QdrantKind(settings, repositories),
        RegistryKind(settings, repositories),
        ConfigKind(settings, repositories),
    ]
    return {kind.name: kind for kind in made}
