# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows that Qdrant will never take: counted, logged, and kept in a file for whoever mends them."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import time

from shannon.services.common import logs, metrics

from .rows import Row

#: A file that reaches this many bytes becomes the previous one; the one before that is dropped.
MAX_BYTES = 16 * 2**20

_log: logging.Logger = logs.get(__name__)


class DeadLetters:
    """A file of JSON lines, C(dead-letters-<cell>.jsonl). The row itself stays in vector_log; its position is here.

    Delivery is at least once, so a row may be named twice.

    :param directory: the indexer's state directory; it must exist.
    """

    def __init__(self, directory: str, cell: str) -> None:
        self.path = pathlib.Path(directory) / f"dead-letters-{cell}.jsonl"
        self._cell = cell
        self._count = metrics.counter(
            "shannon_vector_indexer_dead_letters_total", "Rows that Qdrant refused for good.", ("cell", "collection")
        )

    def add(self, row: Row, reason: str) -> None:
        """Record a row. When the file can't be written the log has it, and the indexer goes on."""
        self._count.labels(self._cell, row.collection).inc()
        fields = {
            "cell": self._cell,
            "txid": str(row.position.txid),
            "sequence": row.position.sequence,
            "collection": row.collection,
            "point_id": row.point_id,
            "operation": row.operation,
            "reason": reason,
            "at": time.time(),
        }
        _log.error("Qdrant refuses a row for good; it is skipped", extra={"fields": fields})
        try:
            if self.path.exists() and self.path.stat().st_size >= MAX_BYTES:
                self.path.replace(self.path.with_suffix(".jsonl.1"))
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(fields) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as exc:
            _log.error("the file of dead letters can't be written", extra={"fields": {"error": str(exc)}})
