# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run of a backup or of its verification is made of, whatever the kind: guards, lock, record."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
import typing as t
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from shannon.resilience.backup_records import NO_CELL, BackupRecords, Look, Run, seconds_since, stamp
from shannon.resilience.errors import ResilienceError
from shannon.resilience.etcd import EtcdClient
from shannon.resilience.registry import ACTIVE, Registry
from shannon.services.common import logs

from .kinds.base import Found, Kind, Sandbox
from .lock import Lock
from .settings import Cell, Settings

_log = logs.get(__name__)
SCRATCH = "scratch"
#: Scratch folders that an operator asked to keep; nobody but the operator removes them.
KEPT = "kept-"
_MARK = "running.json"


class Stopped(Exception):
    """The runner was told to stop."""


class Spaces(t.NamedTuple):
    """Room on the disk of the repositories, in bytes."""

    total: int
    free: int


@dataclass
class Skipped:
    """Nothing was done, and why."""

    kind: str
    cell: str
    reason: str


def space_of(path: str) -> Spaces:
    """Room on the disk that holds a folder."""
    found = shutil.disk_usage(path)
    return Spaces(found.total, found.free)


class Runner:
    """One host's runner.

    :param client: the registry's etcd.
    :param kinds: the kinds by name.
    :param clock: gives the time.
    :param space: tells the room on a folder's disk.
    :param sleep: waits; a test need not.
    """

    def __init__(
        self,
        settings: Settings,
        client: EtcdClient,
        kinds: t.Mapping[str, Kind],
        clock: t.Callable[[], datetime] = lambda: datetime.now(timezone.utc),
        space: t.Callable[[str], Spaces] = space_of,
        sleep: t.Callable[[float], None] = time.sleep,
    ) -> None:
        self.settings = settings
        self.kinds = kinds
        self.records = BackupRecords(client)
        self._client = client
        self._registry = Registry(client)
        self._clock = clock
        self._space = space
        self._sleep = sleep

    # -- what an operator or a timer asks for --------------------------------------------------------------------

    def run(
        self, kind: Kind, cell: Cell | None, type_: str = "", scheduled: bool = False, since: float | None = None
    ) -> Run | Skipped:
        """Take one backup, and tell the registry.

        A scheduled run lets the standby region go first, and skips what that one has stored in both regions.

        :param since: skip what another region's host has stored here after this time (seconds since 1970).
        :raises ResilienceError: nothing could be told to the registry, or the lock is not to be had.
        """
        name = cell.name if cell else NO_CELL
        if scheduled and self._home(cell) == self.settings.region and self.settings.home_delay:
            _log.info("this is the home region: waiting %.0f s for the standby's runner", self.settings.home_delay)
            self._sleep(self.settings.home_delay)
        with self._locked(f"backup of {kind.name}", name) as lock:
            self._tell_of_killed()
            if cell and (state := self._state(cell)) == "restoring":
                return Skipped(kind.name, name, f"the cell is {state}: what it has now is not worth keeping")
            if (scheduled or since is not None) and not kind.each_region:
                limit = self._fresh_for(kind) if since is None else self._clock().timestamp() - since
                if other := self._fresh_elsewhere(kind, name, limit):
                    return Skipped(kind.name, name, other)
            return self._record(kind, name, type_, lock, lambda run: self._backup(kind, cell, type_, run))

    def verify(self, kind: Kind, cell: Cell | None, region: str = "") -> Run:
        """Restore the newest backup for a test, compare it with its manifest, and tell the registry."""
        name = cell.name if cell else NO_CELL
        region = region or self.settings.region
        with self._locked(f"verification of {kind.name}", name) as lock:
            self._tell_of_killed()
            return self._record(
                kind, name, "verify", lock, lambda run: self._verify(kind, cell, region, run), verification=True
            )

    def look(self) -> None:
        """Tell the registry how far the WAL in this region's repository goes, of each cell; it needs no lock.

        :raises ResilienceError: the registry could not be told.
        """
        archived = getattr(self.kinds.get("postgres"), "archived", None)
        for cell in self.settings.cells if archived else ():
            at = stamp(self._clock())
            look = Look(cell.name, self.settings.region, self.settings.host, at, known_at=at)
            try:
                found = archived(cell, self._clock().timestamp)
                if found is not None:
                    reached, age = found
                    look = replace(look, age=round(age.seconds, 1), behind=age.behind, segment=reached.segment)
            except ResilienceError as exc:
                look = replace(look, error=str(exc))
                _log.warning("the archive of WAL of cell %s could not be looked at: %s", cell.name, exc)
            self.records.looked(look)

    def sandbox(
        self, kind: Kind, cell: Cell | None, to: str = "", region: str = "", keep: bool = False
    ) -> t.ContextManager[tuple[Found, Sandbox]]:
        """A backup, restored into a scratch instance that runs inside the context."""
        return self._sandbox(kind, cell, to, region or self.settings.region, keep)

    def fetch(self, kind: Kind, cell: Cell | None, to: str, region: str, into: Path) -> dict[str, t.Any]:
        """Bring the newest backup that is not younger than C(to) into a folder."""
        found = self.choose(kind, cell, region or self.settings.region, to)
        self._refuse_full_disk(found.bytes)
        manifest = kind.fetch(cell, found, into)
        return {
            "kind": kind.name,
            "cell": cell.name if cell else NO_CELL,
            "id": found.id,
            "region": found.region,
            "made_at": stamp(datetime.fromtimestamp(found.made_at, timezone.utc)),
            "folder": str(into),
            "manifest": manifest,
        }

    def plan(self, kind: Kind, cell: Cell | None, region: str, to: str) -> Found:
        """From which backup a restore to a target would come.

        :raises ResilienceError: the target can't be reached from what the repository has.
        """
        region = region or self.settings.region
        reach = getattr(kind, "reach", None)
        if reach is not None:
            return t.cast(Found, reach(cell, region, to))
        return self.choose(kind, cell, region, to)

    def choose(self, kind: Kind, cell: Cell | None, region: str, to: str = "latest") -> Found:
        """The newest backup in a region's repository that was there at a time, or the one of that id.

        :raises ResilienceError: there is none.
        """
        known = kind.found(cell, region)
        if not known:
            raise ResilienceError(
                f"region {region}'s repository has no backup of {kind.name}"
                f"{f' of cell {cell.name}' if cell else ''}: take one with shannon-backup run {kind.name}"
            )
        if to in ("", "latest"):
            return known[-1]
        if to.startswith("backup:"):
            wanted = to.removeprefix("backup:")
            for one in known:
                if one.id.startswith(wanted):
                    return one
            raise ResilienceError(
                f"region {region}'s repository has no backup {wanted} of {kind.name}: shannon-backup list"
            )
        limit = moment(to)
        old_enough = [one for one in known if one.made_at <= limit]
        if not old_enough:
            first = stamp(datetime.fromtimestamp(known[0].made_at, timezone.utc))
            raise ResilienceError(
                f"no backup of {kind.name} in region {region}'s repository is as old as {to}; "
                f"the first was made at {first}"
            )
        return old_enough[-1]

    # -- inside --------------------------------------------------------------------------------------------------

    def _backup(self, kind: Kind, cell: Cell | None, type_: str, run: dict[str, t.Any]) -> None:
        before = self.records.get(kind.name, run["cell"], run["region"])
        self._refuse_full_disk(int((before.good if before else {}).get("bytes") or 0))
        with self._staging(kind, cell) as staging:
            made = kind.backup(cell, type_, staging)
        run.update(
            id=made.id, bytes=made.bytes, regions=made.regions, summary=made.summary, error="; ".join(made.notes)
        )

    def _verify(self, kind: Kind, cell: Cell | None, region: str, run: dict[str, t.Any]) -> None:
        with self._sandbox(kind, cell, "", region, False) as (found, sandbox):
            run.update(
                id=found.id,
                bytes=found.bytes,
                regions=[region],
                differences=sandbox.differences,
                summary={
                    **sandbox.facts,
                    "made_at": stamp(datetime.fromtimestamp(found.made_at, timezone.utc)),
                },
            )
            if sandbox.differences:
                count = len(sandbox.differences)
                run["error"] = (
                    f"the backup {found.id} does not restore to what it was taken from ({count} differences): "
                    f"{'; '.join(sandbox.differences[:3])}"
                )
                run["ok"] = False

    @contextlib.contextmanager
    def _sandbox(
        self, kind: Kind, cell: Cell | None, to: str, region: str, keep: bool
    ) -> t.Iterator[tuple[Found, Sandbox]]:
        at = to if kind.name != "postgres" and to else "latest"
        found = self.choose(kind, cell, region, at)
        self._refuse_full_disk(found.bytes)
        with (
            self._staging(kind, cell, KEPT if keep else "") as folder,
            kind.sandbox(cell, found, folder, to) as sandbox,
        ):
            yield found, sandbox

    def _record(
        self,
        kind: Kind,
        cell: str,
        type_: str,
        lock: Lock,
        work: t.Callable[[dict[str, t.Any]], None],
        verification: bool = False,
    ) -> Run:
        began = time.monotonic()
        run: dict[str, t.Any] = {
            "kind": kind.name,
            "cell": cell,
            "region": self.settings.region,
            "host": self.settings.host,
            "type": type_,
            "started_at": stamp(self._clock()),
            "ok": True,
        }
        self._mark({**run, "verification": verification})
        stopped: BaseException | None = None
        try:
            work(run)
            lock.check()
        except ResilienceError as exc:
            run.update(ok=False, error=str(exc))
        except Stopped as exc:
            run.update(ok=False, error="it was told to stop before it was done; the next run starts anew")
            stopped = exc
        except Exception as exc:
            # A fault of the runner's own: the timer's next run may do better, and somebody must hear of this one.
            _log.exception("%s failed", kind.name)
            run.update(ok=False, error=f"{type(exc).__name__}: {exc}")
        run.update(ended_at=stamp(self._clock()), seconds=round(time.monotonic() - began, 3))
        done = Run(**run)
        what = f"{'verification' if verification else 'backup'} of {kind.name}"
        level = _log.info if done.ok else _log.error
        level("%s: %s", what, done.error or "good")
        try:
            done = self._tell(done, verification)
        except ResilienceError as exc:
            # Cut off, most of all: why the run failed must not be lost over that, neither here nor in the status.
            self._mark({**asdict(done), "verification": verification, "ended": True})
            raise ResilienceError(
                f"{what}: {(done.error or 'good').rstrip('.')}. The registry could not be told; the next run on this "
                "host does it: "
                f"{exc}"
            ) from exc
        self._marked().unlink(missing_ok=True)
        if stopped:
            raise stopped
        return done

    def _tell(self, run: Run, verification: bool) -> Run:
        """Write a run into the registry."""
        if verification:
            self.records.verified(run)
            return run
        return self.records.put(run)

    def _marked(self) -> Path:
        return Path(self.settings.state) / _MARK

    def _mark(self, run: t.Mapping[str, t.Any]) -> None:
        """Leave a note of a run for the next one, in case that this one can't tell the registry itself."""
        try:
            self._marked().write_text(json.dumps(run), encoding="utf-8")
        except OSError as exc:
            # A full disk: what refuses it, and tells the registry so, comes after this.
            _log.warning("no note of the run can be left: %s", exc)

    def _tell_of_killed(self) -> None:
        """A run that was killed or cut off could tell nobody itself; what it left is removed."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            left = json.loads(self._marked().read_text(encoding="utf-8"))
            verification = left.pop("verification", False)
            if not left.pop("ended", False):
                left.update(
                    ok=False,
                    ended_at=stamp(self._clock()),
                    error=f"it was killed before it was done: look at the journal of {left.get('host')}",
                )
            untold = Run(**left)
            self._tell(untold, verification)
            _log.warning("the last run of %s could not tell how it ended: %s", untold.kind, untold.error or "good")
            self._marked().unlink()
        for folder in self.settings.folder(SCRATCH).iterdir():
            if not folder.name.startswith(KEPT):
                shutil.rmtree(folder, ignore_errors=True)

    def _locked(self, what: str, cell: str) -> Lock:
        holder = {"host": self.settings.host, "doing": what if cell == NO_CELL else f"{what} of cell {cell}"}
        return Lock(self._client, holder, self.settings.lock_wait)

    @contextlib.contextmanager
    def _staging(self, kind: Kind, cell: Cell | None, prefix: str = "") -> t.Iterator[Path]:
        name = f"{prefix}{kind.name}-{cell.name if cell else NO_CELL}-"
        folder = Path(tempfile.mkdtemp(prefix=name, dir=self.settings.folder(SCRATCH)))
        try:
            yield folder
        finally:
            if not prefix:
                shutil.rmtree(folder, ignore_errors=True)

    def _refuse_full_disk(self, size: int) -> None:
        """A full disk takes no backup, and stops a database beside it: say so before it comes to that."""
        room = self._space(self.settings.state)
        least = room.total * self.settings.min_free_percent / 100
        if room.free - size < least:
            raise ResilienceError(
                f"{self.settings.host}:{self.settings.state}: {room.free / 1e9:.1f} GB of {room.total / 1e9:.1f} GB "
                f"are free, about {size / 1e9:.1f} GB are needed, and {least / 1e9:.1f} GB must stay free "
                f"(backup_min_free_percent). Nothing was written. Make room or keep fewer backups (docs/backups.md)."
            )

    def _fresh_for(self, kind: Kind) -> float:
        """Seconds for which a copy that another region's host stored here makes one's own unnecessary."""
        rpo = self.settings.objectives.get(kind.name, {}).get("rpo")
        # Half of what was promised, so that a copy which is skipped for is not overdue before the next run.
        return float(rpo) / 2 if isinstance(rpo, (int, float)) else 1800.0

    def _fresh_elsewhere(self, kind: Kind, cell: str, limit: float) -> str:
        """Why a run has nothing to do: another region's host stored a fresh copy here, too."""
        for region in self.settings.regions:
            if region == self.settings.region:
                continue
            run = self.records.get(kind.name, cell, region)
            good = run.good if run else {}
            age = seconds_since(good.get("started_at"), self._clock())
            if age is not None and age < limit and self.settings.region in (good.get("regions") or []):
                return f"region {region} stored one in this region's repository {age:.0f} s ago"
        return ""

    def _home(self, cell: Cell | None) -> str:
        """Where a cell lives; of what belongs to no cell, where the first one does."""
        cell = cell or (self.settings.cells[0] if self.settings.cells else None)
        if cell is None:
            return ""
        try:
            record = self._registry.get(cell.name)
        except ResilienceError as exc:
            _log.warning("the registry does not say where cell %s lives: %s", cell.name, exc)
            return cell.home
        return record.home if record else cell.home

    def _state(self, cell: Cell) -> str:
        record = self._registry.get(cell.name)
        return record.state if record else ACTIVE


def moment(text: str) -> float:
    """A time that an operator wrote, in seconds since 1970; without a zone it is UTC."""
    text = text.removeprefix("time:").strip()
    try:
        then = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        # PostgreSQL takes zones of two digits, Python 3.10 does not.
        try:
            then = datetime.fromisoformat(f"{text}:00")
        except ValueError:
            raise ResilienceError(
                f"{text!r} is no time: write 2026-01-31 13:05:00+00:00, 'latest', or backup:ID"
            ) from None
    return (then if then.tzinfo else then.replace(tzinfo=timezone.utc)).timestamp()
