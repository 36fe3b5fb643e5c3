# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps a copy of what this host's Redis had as a member of the home, before following a new home discards it.

While the cell is at home here each host notes once a second how far its Redis is, and in which history. When another
region has taken the cell over, what the host's Redis has is compared with where the new home's history left the old
one. Only when the new home is known to have all of it does Redis follow at once. Else a snapshot of it is kept first.
Each host sees to its own: after a power cut nobody knows which of them had been the primary at the end, and the one
that was may never come back.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import shutil
import threading
import time
import typing as t
from dataclasses import asdict

from shannon.resilience.errors import ResilienceError
from shannon.resilience.etcd import EtcdClient
from shannon.resilience.markers import MEASURE_WITHIN, Marker, MarkerBoard, marker_of, redis_lost
from shannon.resilience.redis import RedisClient, Replication
from shannon.resilience.redis_kept import kept_text
from shannon.resilience.region_lease import DIVERGED_REDIS, Serving
from shannon.services.common import logs

from .marker_stores import REDIS_KEY
from .redis import NOBODY
from .settings import CellSettings, Settings, now

_log = logs.get(__name__)
#: Copies of a cell that a host keeps; those of older epochs are removed.
KEPT = 3
#: Seconds for which a copy that can't be made is tried again. Then Redis follows without: a standby whose Redis has
#: nothing is the greater danger.
KEEP_WITHIN = 600.0
#: Seconds that a snapshot may take.
SNAPSHOT_WITHIN = 3600.0
PAUSE = 0.2
FILE = "redis.rdb"
SUMMARY = "redis.json"


class KeptRedis:
    """Of one cell on one host. C(note) and C(settle) are the worker's; the copy is made by a thread of its own.

    :param client: of the registry.
    """

    def __init__(self, settings: Settings, cell: CellSettings, client: EtcdClient, context: t.Any) -> None:
        self._settings = settings
        self._cell = cell
        self._client = client
        self._context = context
        self._path = pathlib.Path(settings.state_directory) / f"redis-{cell.name}.json"
        self._noted = self._read()
        self._keeping: _Keeping | None = None
        self._failing_since: float | None = None
        self._error = ""

    @property
    def owed(self) -> bool:
        """Whether this host's Redis may have what a new home has not; it must follow nobody then."""
        return self._noted is not None

    def note(self, epoch: int, seen: Replication) -> None:
        """Write down how far Redis is, at home; what did not change is not written again."""
        said = {"epoch": epoch, "role": seen.role, "id": seen.id, "offset": seen.offset}
        if said == self._noted:
            return
        # That this was the home must survive a power cut; how far it was a second ago need not.
        durable = self._noted is None
        try:
            fresh = self._path.with_suffix(".new")
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as handle:
                json.dump(said, handle)
                if durable:
                    handle.flush()
                    os.fsync(handle.fileno())
            os.replace(fresh, self._path)
        except OSError as exc:
            _log.error("how far Redis is can't be noted in %s: %s", self._path, exc)
        self._noted = said

    def settle(self, seen: Replication, serving: Serving) -> bool:
        """Whether this host's Redis may follow the new home now; it must be a replica that has read its data.

        :param serving: what the new home said when it began to serve, of the present epoch.
        :raises ResilienceError: the copy can't be made, or the registry does not take what there is to say.
        """
        noted = self._noted
        if noted is None:
            return True
        if seen.id and seen.id == serving.redis_id and seen.offset <= serving.redis_end:
            if noted.get("role") == "primary":
                self._tell(serving.epoch, {**self._facts(seen, noted, serving), "same": True})
            self._forget()
            return True
        if seen.primary_address != NOBODY[0]:
            return False  # it must not move while it is looked at
        if self._keeping is None or self._keeping.epoch != serving.epoch:
            self._keeping = _Keeping(serving.epoch, lambda: self._keep(seen, noted, serving))
        if not self._keeping.done.is_set():
            if self._error:
                raise ResilienceError(self._error)  # it is being tried again
            return False
        facts, error, self._keeping = self._keeping.facts, self._keeping.error, None
        if facts is None:
            if self._failing_since is None:
                self._failing_since = now()
            if now() - self._failing_since < KEEP_WITHIN:
                self._error = (
                    f"{error}. Redis of this host follows nobody until what it has is kept; it is tried for "
                    f"{KEEP_WITHIN:.0f} s, and then Redis goes on without a copy"
                )
                raise ResilienceError(self._error)
            facts = {**self._facts(seen, noted, serving), "not_kept": error}
        self._tell(serving.epoch, facts)
        _log.warning("cell %s: Redis of this host: %s", self._cell.name, kept_text(facts))
        self._forget()
        return True

    # -- what is said --------------------------------------------------------------------------------------------

    def _facts(self, seen: Replication, noted: t.Mapping[str, t.Any], serving: Serving) -> dict[str, t.Any]:
        """How far this Redis and the new home diverged. C(stream_bytes) is None when that is not known; else it is
        exact when the process is the one that ran at home, and a least figure when it is only from the last note."""
        lives = bool(seen.id) and seen.id == noted.get("id")
        offset, history = (seen.offset, seen.id) if lives else (int(noted.get("offset") or 0), noted.get("id"))
        known = bool(history) and history == serving.redis_id
        return {
            "host": self._settings.host,
            "epoch": serving.epoch,
            "at": time.time(),
            "role": noted.get("role", ""),
            "exact": lives and noted.get("role") == "primary",
            "offset": offset,
            "new_home_from": serving.redis_end if known else None,
            "stream_bytes": max(0, offset - serving.redis_end) if known else None,
            "keys": seen.keys,
            "path": "",
            "bytes": 0,
        }

    def _tell(self, epoch: int, facts: dict[str, t.Any]) -> None:
        key = f"{self._cell.name}/{epoch:010d}/{self._settings.region}/{self._settings.host}"
        self._client.put(DIVERGED_REDIS + key, json.dumps(facts, sort_keys=True))

    # -- the copy ------------------------------------------------------------------------------------------------

    def _keep(self, seen: Replication, noted: t.Mapping[str, t.Any], serving: Serving) -> dict[str, t.Any]:
        """Make the copy, and find out what was lost. Runs in a thread of its own.

        :raises ResilienceError: there is no copy; it may be tried again.
        """
        facts = self._facts(seen, noted, serving)
        with RedisClient(
            "localhost", self._cell.redis, "admin", self._settings.redis_password, self._context, 5.0
        ) as client:
            own = marker_of(client.command(["GET", REDIS_KEY]))
            if seen.keys:
                facts.update(self._copy(client, serving.epoch))
            else:
                facts["not_kept"] = "it came back without any key"
        facts["marker"] = asdict(own) if own else None
        facts.update(self._lost(serving.epoch, own))
        if facts["path"]:
            try:
                summary = pathlib.Path(facts["path"]).with_name(SUMMARY)
                summary.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            except OSError as exc:
                raise ResilienceError(f"{summary} can't be written: {exc}") from exc
        return facts

    def _copy(self, client: RedisClient, epoch: int) -> dict[str, t.Any]:
        """Have Redis write a snapshot, and copy it beside the saved rows: the next resynchronisation overwrites the
        original."""
        original = _snapshot(client)
        folder = pathlib.Path(self._settings.state_directory) / "diverged" / f"{self._cell.name}-epoch{epoch}"
        path, fresh = folder / FILE, folder / f"{FILE}.new"
        try:
            size = original.stat().st_size
            limit = self._settings.redis_kept_bytes
            if size > limit:
                return {"not_kept": f"its snapshot has {size} bytes, more than region_agent_redis_kept_bytes ({limit})"}
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # As much again is what the resynchronisation needs.
            if shutil.disk_usage(folder).free < 2 * size:
                raise ResilienceError(f"{folder} has no room for a copy of Redis of {size} bytes and as much again")
            with (
                original.open("rb") as source,
                open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as copy,
            ):
                shutil.copyfileobj(source, copy, 1 << 20)
                copy.flush()
                os.fsync(copy.fileno())
            os.replace(fresh, path)
        except OSError as exc:
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise ResilienceError(f"what Redis has can't be kept in {path}: {exc}") from exc
        self._drop_old(folder.parent)
        return {"path": str(path), "bytes": size}

    def _drop_old(self, parent: pathlib.Path) -> None:
        """Remove the copies of all but the newest epochs; rows and summaries stay."""
        name = re.compile(re.escape(self._cell.name) + r"-epoch(\d+)")
        found = {int(match[1]): one for one in parent.glob(f"*/{FILE}") if (match := name.fullmatch(one.parent.name))}
        for epoch in sorted(found)[:-KEPT]:
            try:
                found[epoch].unlink()
                _log.info("cell %s: removed %s; the newest %d are kept", self._cell.name, found[epoch], KEPT)
            except OSError as exc:
                _log.error("%s can't be removed: %s", found[epoch], exc)

    def _lost(self, epoch: int, own: Marker | None) -> dict[str, t.Any]:
        """By the markers; empty when the new home does not say in time which of them arrived."""
        board, deadline = MarkerBoard(self._client), time.monotonic() + MEASURE_WITHIN
        while True:
            with contextlib.suppress(ResilienceError):
                arrival = board.arrived(self._cell.name, epoch)
                if arrival is not None:
                    return redis_lost(arrival, self._settings.region, own)
            if time.monotonic() >= deadline:
                return {}
            time.sleep(PAUSE)

    # -- the note ------------------------------------------------------------------------------------------------

    def _read(self) -> dict[str, t.Any] | None:
        """The note; empty when it is there and says nothing: this was the home all the same."""
        try:
            found = json.loads(self._path.read_text(encoding="ascii"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _forget(self) -> None:
        """What this Redis had is kept or known to be in the new home.

        :raises ResilienceError: the note can't be removed, so a restart would keep the new home's data as if it were
            this one's.
        """
        try:
            self._path.unlink(missing_ok=True)
        except OSError as exc:
            raise ResilienceError(f"{self._path} can't be removed: {exc}") from exc
        self._noted, self._failing_since, self._error = None, None, ""


class _Keeping:
    """A copy that is being made: its facts or the error, once it is done."""

    def __init__(self, epoch: int, keep: t.Callable[[], dict[str, t.Any]]) -> None:
        self.epoch = epoch
        self.facts: dict[str, t.Any] | None = None
        self.error = ""
        self.done = threading.Event()
        self._make = keep
        threading.Thread(target=self._run, daemon=True, name="keep-redis").start()

    def _run(self) -> None:
        try:
            self.facts = self._make()
        except ResilienceError as exc:
            self.error = str(exc)
        except Exception as exc:  # whatever it is, the worker must hear of it instead of waiting for ever
            _log.exception("crashed")
            self.error = f"{type(exc).__name__}: {exc}"
        finally:
            self.done.set()


def _snapshot(client: RedisClient) -> pathlib.Path:
    """Have Redis write all that it has to its RDB file, which it does not read itself, since it has an AOF.

    :raises ResilienceError: it did not.
    """
    folder, name = (client.command(["CONFIG", "GET", word])[1] for word in ("dir", "dbfilename"))
    path = pathlib.Path(folder) / name
    before = _stamp(path)
    client.command(["BGSAVE"])
    deadline = time.monotonic() + SNAPSHOT_WITHIN
    while client.info("persistence").get("rdb_bgsave_in_progress") != "0":
        if time.monotonic() >= deadline:
            raise ResilienceError(f"Redis of this host did not write {path} within {SNAPSHOT_WITHIN:.0f} s")
        time.sleep(PAUSE)
    if _stamp(path) in (None, before):
        raise ResilienceError(f"Redis of this host could not write {path}; its journal says why")
    return path


def _stamp(path: pathlib.Path) -> tuple[int, int] | None:
    """What tells one file from the one that takes its place."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
