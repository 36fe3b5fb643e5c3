# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the state of circuit breakers is kept: in memory, or in a file that outlives the process.

A storage maps a breaker's key to its record, which is what :meth:`CircuitBreaker.snapshot` gives.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import threading
import time
import typing as t

from . import files
from .errors import ResilienceError, WaitTimeout

Record = dict[str, t.Any]

_log = logging.getLogger(__name__)
_log.addHandler(logging.NullHandler())  # in modules nobody sets logging up, and nothing may go to stderr
VERSION = 1
#: Records that nothing changed for so many seconds are dropped, unless an operator said something about the breaker.
FORGET_AFTER = 30 * 86400.0
#: A file beyond this was not written by us.
MAX_SIZE = 16 * 2**20


class StorageError(ResilienceError):
    """The storage can't be read or written; the text names the path and what to do."""


class Storage(t.Protocol):
    """Where records are kept."""

    def transaction(self) -> t.ContextManager[dict[str, Record]]:
        """All records, for this caller alone; what it leaves in the mapping is kept when the block ends well."""


class MemoryStorage:
    """Records in this process, for breakers that share them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: dict[str, Record] = {}

    @contextlib.contextmanager
    def transaction(self) -> t.Iterator[dict[str, Record]]:
        """See :class:`Storage`."""
        with self._lock:
            records = copy.deepcopy(self._records)
            yield records
            self._records = records


class FileStorage:
    """Records in a JSON file, for programs that come and go: C({"version": 1, "breakers": {key: record}}).

    A lock file beside it lets one process at a time at it, and it is replaced as a whole. A file that is damaged is
    set aside, named in a warning, and a new one begun: what is lost is only what the next calls find out again.

    :param path: the file; its folder must be there.
    :param read_only: keep nothing; a missing folder is fine then, and no lock is taken.
    :param timeout: seconds to wait for the lock.
    :param wall: seconds since 1970.
    """

    def __init__(
        self,
        path: str,
        *,
        read_only: bool = False,
        timeout: float = 5.0,
        wall: t.Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self.read_only = read_only
        self.timeout = timeout
        self._wall = wall
        self._lock = threading.Lock()
        #: What went wrong without being fatal, a sentence each.
        self.warnings: list[str] = []

    @contextlib.contextmanager
    def transaction(self) -> t.Iterator[dict[str, Record]]:
        """See :class:`Storage`.

        :raises StorageError: the file or its folder can't be used, or another process keeps the lock.
        """
        if self.read_only:
            yield self._read()
            return
        with self._held():
            records = self._read()
            before = copy.deepcopy(records)
            yield records
            self._keep(before, records)

    @contextlib.contextmanager
    def _held(self) -> t.Iterator[None]:
        # Threads wait for each other here: the file's lock is polled, and they would lose time over it.
        if not self._lock.acquire(timeout=self.timeout):
            raise StorageError(f"{self.path}: another thread has kept it for {self.timeout:g} s")
        try:
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(files.locked(f"{self.path}.lock", self.timeout))
                except WaitTimeout as exc:
                    raise StorageError(f"{exc}. Does another run hang? fuser {self.path}.lock names it") from exc
                except OSError as exc:
                    raise self._unusable(exc) from exc
                yield
        finally:
            self._lock.release()

    def _read(self) -> dict[str, Record]:
        try:
            with open(self.path, "rb") as handle:
                raw = handle.read(MAX_SIZE + 1)
        except FileNotFoundError:
            return {}
        except OSError as exc:
            raise self._unusable(exc) from exc
        try:
            if len(raw) > MAX_SIZE:
                raise ValueError(f"it is larger than {MAX_SIZE} bytes")
            content = json.loads(raw)
            records = content["breakers"]
            if content["version"] != VERSION or not isinstance(records, dict):
                raise ValueError(f"it is not of version {VERSION}")
            if not all(isinstance(record, dict) for record in records.values()):
                raise ValueError("it has records that are none")
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            self._set_aside(exc)
            return {}
        return t.cast("dict[str, Record]", records)

    def _set_aside(self, reason: Exception) -> None:
        said = f"{self.path} is damaged ({type(reason).__name__}: {reason})"
        aside = f"{self.path}.damaged"
        if self.read_only:
            self._warn(f"{said} and is not used")
            return
        try:
            os.replace(self.path, aside)
        except OSError as exc:
            raise self._unusable(exc) from exc
        self._warn(f"{said} and was set aside as {aside}; circuit breakers begin anew")

    def _keep(self, before: dict[str, Record], records: dict[str, Record]) -> None:
        changed = [key for key, record in records.items() if record != before.get(key)]
        if not changed and len(before) == len(records):
            return
        now = self._wall()
        for key in changed:
            records[key]["updated"] = round(now, 3)
        kept = {key: record for key, record in records.items() if not _forgotten(record, now)}
        content = json.dumps({"version": VERSION, "breakers": kept}, indent=1, sort_keys=True, allow_nan=False)
        try:
            files.write(self.path, content.encode() + b"\n", 0o600)
        except OSError as exc:
            raise self._unusable(exc) from exc

    def _warn(self, text: str) -> None:
        _log.warning("%s", text)
        self.warnings.append(text)

    def _unusable(self, exc: OSError) -> StorageError:
        folder = os.path.dirname(self.path) or "."
        return StorageError(
            f"{self.path}: circuit breakers can't be kept there: {exc.strerror or exc}. It needs a folder ({folder}) "
            f"that user {os.geteuid()} may write to: make it, run this as root, or name another path"
        )


def _forgotten(record: Record, now: float) -> bool:
    updated = record.get("updated")
    if record.get("control", "none") != "none" or not isinstance(updated, (int, float)):
        return False
    return now - updated > FORGET_AFTER
