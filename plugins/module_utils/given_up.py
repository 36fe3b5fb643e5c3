# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Registries that were given up: a rebuilt one has a new cluster id, and nobody may believe the old one any more.

Members of the old registry may come back together and have a quorum among themselves. Their answers carry the old
cluster id, which is listed in a file on every host and in the new registry itself.
"""

from __future__ import annotations

import os
import pathlib
import threading
import typing as t

#: Written by the playbooks that rebuild the registry; one cluster id a line.
FILE = "/var/lib/shannon/registry-given-up"
#: What the region agent of this host has heard of; the other services on the host read it.
HEARD = "/run/shannon-region-agent/registry-given-up"
#: What the rebuilt registry says of its predecessors: a key for each cluster id.
KEYS = "/shannon/registry/given_up/"


class GivenUp:
    """The cluster ids that are refused.

    :param paths: files to read; one that does not exist is empty. Read again whenever it changes.
    :param learned: a file of one's own for what was heard of members; None: nothing is learned.
    """

    def __init__(
        self, paths: t.Sequence[str | os.PathLike[str]] = (FILE, HEARD), learned: str | os.PathLike[str] | None = None
    ) -> None:
        self._learned = None if learned is None else pathlib.Path(learned)
        self._paths = [*map(pathlib.Path, paths), *([self._learned] if self._learned else [])]
        self._lock = threading.Lock()
        self._read: dict[pathlib.Path, tuple[float, frozenset[str]]] = {}

    def ids(self) -> frozenset[str]:
        """All of them."""
        with self._lock:
            return frozenset().union(*(self._of(path) for path in self._paths))

    def learn(self, ids: t.Iterable[str]) -> list[str]:
        """Add ids to the own file; returns those that were new.

        :raises OSError: the file can't be written; they are refused nevertheless, until the process ends.
        """
        new = sorted(set(ids) - self.ids())
        if not new or self._learned is None:
            return []
        with self._lock:
            known = self._of(self._learned) | frozenset(new)
            # What can't be kept must still count: a file that is not there is not looked at again.
            self._read[self._learned] = (0.0, known)
            fresh = self._learned.with_suffix(".new")
            fresh.write_text("".join(f"{one}\n" for one in sorted(known)), encoding="utf-8")
            os.replace(fresh, self._learned)
        return new

    def _of(self, path: pathlib.Path) -> frozenset[str]:
        before = self._read.get(path, (0.0, frozenset()))
        try:
            changed = path.stat().st_mtime
            if changed != before[0]:
                lines = path.read_text(encoding="utf-8").splitlines()
                found = frozenset(line.split("#")[0].strip() for line in lines) - {""}
                before = self._read[path] = (changed, found)
        except (OSError, ValueError):
            return before[1]
        return before[1]
