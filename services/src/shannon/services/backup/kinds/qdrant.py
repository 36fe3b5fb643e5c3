# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Qdrant: a snapshot of each collection from each peer of the own region."""

from __future__ import annotations

import contextlib
import typing as t
from pathlib import Path

from shannon.resilience import qdrant_scratch, qdrant_snapshot
from shannon.resilience.qdrant import Qdrant
from shannon.resilience.tls import client_context

from ..settings import Cell
from .base import Sandbox
from .files import FilesKind


class QdrantKind(FilesKind):
    """Snapshots, with the indexer's position, counts, payload indexes and the answers of sample searches."""

    name = "qdrant"

    def fill(self, cell: Cell | None, folder: Path) -> dict[str, t.Any]:
        context = client_context(self.settings.tls)
        key = self.settings.secret("qdrant_api_key")
        peers = {
            one.host: Qdrant(one.address, one.port, context, key, 60.0)
            for one in self.settings.qdrant.get(self.settings.region, [])
        }
        return qdrant_snapshot.take(peers, str(folder))

    def summary(self, manifest: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        collections = manifest.get("collections") or {}
        return {
            "collections": len(collections),
            "points": sum(_most(one.get("points")) for one in collections.values()),
            "position": manifest.get("position"),
        }

    @contextlib.contextmanager
    def prove(self, cell: Cell | None, folder: Path) -> t.Iterator[Sandbox]:
        differences = qdrant_snapshot.verify(str(folder))
        if differences:
            # A damaged file proves nothing by being loaded.
            yield Sandbox(differences, {})
            return
        with qdrant_scratch.scratch(str(folder.parent / "instance"), self.settings.qdrant_program) as peers:
            qdrant_snapshot.restore(peers, str(folder))
            yield Sandbox(qdrant_snapshot.compare(qdrant_snapshot.read_manifest(str(folder)), peers), {})


def _most(points: t.Any) -> int:
    """A count, or the larger of the two that bracket one."""
    if isinstance(points, (list, tuple)):
        return max((int(one) for one in points), default=0)
    return int(points or 0)
