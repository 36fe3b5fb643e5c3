# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Brings this host, and where it speaks for its region the region, to what the registry says."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import threading
import time
import typing as t
from dataclasses import asdict, replace

from shannon.resilience.errors import ResilienceError
from shannon.resilience.etcd import EtcdClient
from shannon.resilience.markers import exactly, marker_of
from shannon.resilience.region_lease import DIVERGED, POSITIONS, REJOIN, SERVING, Position, RegionLease, Serving
from shannon.resilience.registry import ACTIVE, DRAINING, ENTERING, RESTORING, TAKING_OVER, CellRecord
from shannon.resilience.registry_keys import MOVES
from shannon.services.common import logs

from .closing import Closing
from .discovery import EndpointsOfCell
from .diverged import Diverged, Notes
from .diverged_redis import KeptRedis
from .dns import NamesOfCell
from .keeper import Keeper, Standing
from .marker_stores import StoresOfRegion
from .markers import Markers
from .postgres import NOBODY as NO_UPSTREAM
from .postgres import ORPHANED, PRIMARY, PostgresOfRegion, follows
from .promotion import Promotion
from .proxy import ProxyOfHost
from .redis import RedisOfRegion
from .settings import CellSettings, Settings, now
from .sql import ask

_log = logs.get(__name__)
HOME = "home"
STANDBY = "standby"
FENCED = "fenced"
WAITING = "waiting"
#: Seconds without authority after which a home region steps down. It is closed already; this keeps what runs from
#: coming back as it was.
STEP_DOWN = 3.0
#: Seconds between two steps of who was the primary until it has given the cell back: clients wait.
GIVING_BACK = 0.1
#: Seconds for which a switchover's last bytes are waited for after the old home has fallen silent.
SILENT_SOURCE = 15.0
#: Seconds for which PostgreSQL's followers may fetch the rest from a primary that is closed to clients: on a busy host
#: its stop may take that long.
REST = 60.0
#: Seconds that a switchover's last bytes may take before they are fetched in another way.
STREAMING = 3.0
#: Seconds for which one step waits for PostgreSQL to become the primary; the next one goes on waiting.
PROMOTED = 2.0
#: Seconds after which a C(draining) that no mover looks after is taken back.
ABANDONED = 15.0


def start_if_skipped(unit: str) -> None:
    """Start a unit whose start its gate had skipped; one that an operator stopped stays stopped.

    :raises ResilienceError: systemctl can't be run.
    """
    try:
        shown = subprocess.run(
            ["/usr/bin/systemctl", "show", "--property=Result", "--value", unit],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
        if shown.stdout.strip() == "exec-condition":
            _log.info("%s may start now", unit)
            subprocess.run(["/usr/bin/systemctl", "--no-block", "start", unit], timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise ResilienceError(f"systemctl can't be asked about {unit}: {exc}") from exc


class Worker:
    """Of one cell on one host."""

    def __init__(
        self,
        settings: Settings,
        cell: CellSettings,
        keeper: Keeper,
        client: EtcdClient,
        dcs: EtcdClient,
        context: t.Any,
    ) -> None:
        self._settings = settings
        self._cell = cell
        self._keeper = keeper
        self._client = client
        self.postgres = PostgresOfRegion(settings, cell, dcs, context)
        self.redis = RedisOfRegion(settings, cell, context)
        state = pathlib.Path(settings.state_directory)
        self._proxy = ProxyOfHost(settings, cell)
        self._notes = Notes(state / f"positions-{cell.name}")
        self._diverged = Diverged(settings, cell, self._notes)
        self._kept = KeptRedis(settings, cell, client, context)
        self.markers = Markers(settings, cell, keeper, client, StoresOfRegion(settings, cell, context))
        self._endpoints = EndpointsOfCell(settings, cell, keeper.leases)
        self._names = NamesOfCell(cell.name, [name for name in settings.dns if name.cell == cell.name])
        self._word = pathlib.Path(settings.runtime_directory) / f"{cell.name}.json"
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._powerless_since: float | None = None
        self._draining_since: float | None = None
        self._source_silent_since: float | None = None
        self._catching_up_since: float | None = None
        #: The epoch in which this host's PostgreSQL was last seen to be the home's primary.
        self._led = 0
        self._giving_back = False
        #: The epoch for which this host's primary was closed to its clients before it stopped, and where that was.
        self._closed: tuple[int, int] = (0, 0)
        self._closing = Closing(cell.postgres)
        self._promotion = Promotion(cell.postgres)
        self._began: dict[str, float] = {}
        self._served = 0
        self._said: dict[str, str] = {}
        self.trouble = ""

    def wake(self) -> None:
        """Something changed: look at once."""
        self._wake.set()

    def stop(self) -> None:
        """End after the present step."""
        self._names.stop()
        self._stopping.set()
        self._wake.set()
        self.markers.stop()

    def run(self) -> None:
        """Step until stopped."""
        self._names.start()
        while not self._stopping.is_set():
            self._wake.wait(GIVING_BACK if self._giving_back else 1.0)
            self._wake.clear()
            standing = self._keeper.standing()
            if not standing.at:
                continue
            # Before anything that takes time: clients wait for it.
            self._proxy.tell(standing)
            trouble = ""
            for act in (self.step, self.tell):
                # Gates wait for the word, and an operator reads there what is amiss: it is told whatever failed before.
                try:
                    act(standing)
                except ResilienceError as exc:
                    trouble = trouble or str(exc)
                    if str(exc) not in (self.trouble, ""):
                        _log.error("cell %s: %s", self._cell.name, exc)
                self.trouble = trouble
                standing = self._keeper.standing()  # the step may have changed the record

    def duty(self, standing: Standing) -> str:
        """What this region is to be, as far as this host knows."""
        record = standing.record
        if record is not None and record.home != self._settings.region:
            self._powerless_since = None
            return STANDBY
        if record is not None and standing.authority() > 0:
            self._powerless_since = None
            return HOME
        if self._powerless_since is None:
            self._powerless_since = now()
        return FENCED if now() - self._powerless_since > STEP_DOWN else WAITING

    def step(self, standing: Standing) -> None:
        """One look, and what follows from it."""
        duty = self.duty(standing)
        if duty != self._said.get("duty"):
            _log.info("cell %s: this host's duty is %s", self._cell.name, duty)
            self._said["duty"] = duty
        if duty != HOME:
            self._withdraw()
        if duty != STANDBY:
            self._giving_back = False
        wal = (standing.local.postgres or {}).get("xlog") or {}
        if duty == HOME:
            # With the time of the look: on a busy host that is seconds ago, and what was committed since is newer.
            seen_at = time.time() - max(0.0, now() - standing.at)
            self._notes.add(int(wal.get("location") or wal.get("replayed_location") or 0), seen_at)
            redis = standing.local.redis
            if redis is not None and not redis.loading and standing.record is not None:
                self._kept.note(standing.record.epoch, redis)
        # Redis first: it is quick, and a primary that is to step down must hand over while PostgreSQL still runs.
        if duty == HOME:
            self._be_home(standing)
        elif duty == STANDBY:
            self._stand_by(standing)
        elif duty == FENCED:
            self._step_down(standing)

    # -- home ----------------------------------------------------------------------------------------------------

    def _be_home(self, standing: Standing) -> None:
        record, lease = standing.record, standing.view.lease
        if record is None:
            return
        conducts = self.postgres.conducts(standing)
        leads = standing.local.role == PRIMARY
        if leads:
            self._led = record.epoch
        promoted = conducts and not leads and self._promote(standing)
        primary = ""
        if record.state == RESTORING:
            # Redis' primary follows the restored copy for a while: nobody may take it for dead, or make it a primary.
            if standing.local.redis is not None:
                self.redis.watch(False)
        elif conducts:
            primary = self.redis.be_home()
        serving = standing.view.serving
        serves = serving is not None and serving.epoch == record.epoch
        open_to_all = serves and record.state != RESTORING
        if open_to_all and standing.local.redis is not None and self.redis.primary_of(self._settings.region):
            self.redis.watch(True)
        if not conducts or lease is None:
            self._withdraw()
            return
        try:
            if promoted and primary and not serves:
                leads = self._promotion.seen(min(PROMOTED, standing.authority() - 1.0), self._stopping)
            if leads and primary:
                self._led = record.epoch
                if not serves:
                    self._serve(standing, primary)
                elif record.state in (ENTERING, TAKING_OVER):
                    self._let_in(record)  # whoever was about to do it died
        finally:
            self._promotion.rest()
        wal = (standing.local.postgres or {}).get("xlog") or {}
        # Not before it serves: until then the last position is the old home's, and says where that one ended.
        if serves and standing.local.role == PRIMARY and not standing.registry_error:
            position = Position(
                record.home, record.epoch, int(wal.get("location") or 0), time.time(), self._settings.host
            )
            self._keeper.leases.publish(lease, POSITIONS, position)
            self._announce(lease, primary)
        self._take_back_draining(standing)

    def _promote(self, standing: Standing) -> bool:
        """Have PostgreSQL become the primary as soon as it has all that it can get; whether it was told to."""
        record = standing.record
        if record is None:
            return False
        key = f"promote {record.epoch}"
        configuration = self.postgres.configuration() or {}
        if not configuration.get("standby_cluster"):
            return key in self._began
        self._began.setdefault(key, time.monotonic())
        position, held = standing.view.position, standing.view.held
        ended = bool(position and position.final and position.epoch == record.epoch - 1)
        if not ended and record.state == ENTERING and held and position and position.region != record.home:
            # A switchover: the old home says where it ended, as long as it lives.
            if self._source_lives(position.region):
                self._say("catching up", f"region {position.region} has not said yet where it ended")
                return False
            _log.error("cell %s: region %s fell silent during a switchover", self._cell.name, position.region)
        if position and ended and position.region != record.home:
            missing = self.postgres.behind(standing, position)
            if missing and self._source_lives(position.region):
                self._say("catching up", f"{missing} bytes of the old home are still to come")
                self._catch_up(position, configuration.get("standby_cluster"))
                return False
            if missing:
                _log.error("cell %s: %d bytes never came from region %s", self._cell.name, missing, position.region)
        if standing.authority() <= 1.0:
            return False
        _log.warning("cell %s: PostgreSQL of region %s becomes the primary", self._cell.name, record.home)
        self.postgres.set_standby(None)
        self._catching_up_since = None
        return True

    def _catch_up(self, position: Position, present: t.Any) -> None:
        """Have what does not come fetched from the host that ended as the primary: nobody there is one any more, so a
        stream that broke in the very moment of the demotion does not come back by itself."""
        if self._catching_up_since is None:
            self._catching_up_since = now()
        source = self.postgres.sources(position.region).get(position.host)
        if now() - self._catching_up_since < STREAMING or source is None or source.get("state") != "running":
            return
        wanted = self.postgres.catch_up_from(position.region, position.host)
        if not follows(present, wanted):
            _log.warning("cell %s: what is missing is fetched from %s", self._cell.name, position.host)
            self.postgres.set_standby(wanted)

    def _source_lives(self, region: str) -> bool:
        if self.postgres.sources(region):
            self._source_silent_since = None
            return True
        if self._source_silent_since is None:
            self._source_silent_since = now()
        return now() - self._source_silent_since < SILENT_SOURCE

    def _serve(self, standing: Standing, redis_primary: str) -> None:
        record, lease = standing.record, standing.view.lease
        if record is None or lease is None or self._served == record.epoch:
            return
        began = self._began.pop(f"promote {record.epoch}", None)
        seconds = {} if began is None else {"promote": round(time.monotonic() - began, 3)}
        try:
            switch = self._promotion.switch_point() if began is not None or record.epoch > 1 else 0
        except ResilienceError as exc:
            _log.warning("cell %s: where the old home was left is not known: %s", self._cell.name, exc)
            switch = 0
        position = standing.view.position
        ended = position.lsn if position and position.final and position.epoch == record.epoch - 1 else 0
        serving = Serving(
            record.home, record.epoch, time.time(), self._settings.host, switch, ended, seconds,
            *self.redis.branch(redis_primary), redis_primary,
        )  # fmt: skip
        # Before anybody is let in: what comes then goes through it.
        self._proxy.lead(record.epoch, serving.host, serving.redis_primary)
        if self._keeper.leases.publish(lease, SERVING, serving):
            self._served = record.epoch
            self._let_in(record)
            _log.info("cell %s: region %s serves at epoch %d %s", self._cell.name, record.home, record.epoch, seconds)

    def _let_in(self, record: CellRecord) -> None:
        """Have the edges let go of the requests that wait for this region."""
        if record.state not in (ACTIVE, RESTORING):
            operator = f"region agent of {self._settings.host}"
            new = replace(record, state=ACTIVE)
            begun = now()
            written = self._keeper.registry.compare_and_swap(record, new, f"region {record.home} serves", operator)
            self._keeper.wrote(written, begun)

    def _announce(self, lease: RegionLease, redis_primary: str) -> None:
        """Say where the cell is: in DNS, which sees to itself, and in the registry."""
        self._names.want(lease.region)
        if redis_primary:
            self._endpoints.publish(lease, redis_primary)

    def _withdraw(self) -> None:
        self._names.rest()
        self._endpoints.forget()

    def _take_back_draining(self, standing: Standing) -> None:
        """A mover that died left the cell draining: clients must not wait for nobody."""
        record = standing.record
        if record is None or record.state != DRAINING:
            if self._draining_since is not None:
                self._closing.rest()  # it was given up
            self._draining_since = None
            return
        if self._draining_since is None:
            self._draining_since = now()
            for prepare in (self._checkpoint, self._prepare):
                threading.Thread(target=prepare, daemon=True, name="prepare").start()
        if now() - self._draining_since < ABANDONED or self._client.get(MOVES + self._cell.name) is not None:
            return
        self._keeper.registry.compare_and_swap(
            record, replace(record, state=ACTIVE), "nobody looks after the switchover any more",
            f"region agent of {self._settings.host}",
        )  # fmt: skip

    def _prepare(self) -> None:
        """Open the session that closes PostgreSQL to its clients."""
        try:
            self._closing.prepare()
        except ResilienceError as exc:
            _log.warning("cell %s: nothing is prepared for the switchover: %s", self._cell.name, exc)

    def _checkpoint(self) -> None:
        """Write out what is dirty while clients still run: a primary's end then has little left to write."""
        try:
            ask("CHECKPOINT", "postgres", self._cell.postgres, ABANDONED)
        except ResilienceError as exc:
            _log.warning("cell %s: no checkpoint before the switchover: %s", self._cell.name, exc)

    # -- standby -------------------------------------------------------------------------------------------------

    def _stand_by(self, standing: Standing) -> None:
        record = standing.record
        if record is None:
            return
        self._draining_since = None
        self.redis.watch(False)
        redis_error: ResilienceError | None = None  # PostgreSQL must not wait for Redis to be well
        hold = True
        try:
            hold = not self._redis_may_follow(standing, record)
        except ResilienceError as exc:
            redis_error = exc
        try:
            self.redis.stand_by(standing, record.home, hold)
        except ResilienceError as exc:
            redis_error = redis_error or exc
        self._close(standing, record)
        self._follow(standing)
        self._give_back(standing, record)
        if redis_error:
            raise redis_error

    def _redis_may_follow(self, standing: Standing, record: CellRecord) -> bool:
        """Whether nothing that this host's Redis has would be lost for good by following the home.

        :raises ResilienceError: it could not be kept.
        """
        if not self._kept.owed:
            return True
        seen, serving = standing.local.redis, standing.view.serving
        if seen is None or seen.loading or seen.role != "replica":
            return False
        if serving is None or (serving.region, serving.epoch) != (record.home, record.epoch):
            return False  # where the new home's history left this one is not known yet
        return self._kept.settle(seen, serving)

    def _close(self, standing: Standing, record: CellRecord) -> None:
        """In a switchover: close the primary to its clients before it stops, which takes seconds, and note its end.

        Redis has handed over by now. When it can't be done, PostgreSQL's own end is what the new home waits for.
        """
        lease = standing.view.lease
        if (
            record.state != ENTERING
            or standing.local.role != PRIMARY
            or lease is None
            or (lease.region, lease.epoch) != (self._settings.region, record.epoch - 1)
            or self._closed[0] == record.epoch
        ):
            return
        try:
            self._keeper.leave(record, self._closing.streams(), REST)
            self._closed = (record.epoch, self._closing.end_of_clients())
        except ResilienceError as exc:
            _log.warning("cell %s: clients wait until PostgreSQL has stopped: %s", self._cell.name, exc)
            return
        finally:
            self._closing.rest()
        _log.info("cell %s: PostgreSQL is closed to clients, at %d bytes", self._cell.name, self._closed[1])

    def _closed_here(self, record: CellRecord) -> int:
        """Where this host's primary was closed to its clients; 0 when it was not, or another might come after it."""
        epoch, end = self._closed
        return end if epoch == record.epoch and self.postgres.last_primary() else 0

    def _give_back(self, standing: Standing, record: CellRecord) -> None:
        """Once nothing of a former home takes writes, say where it ended, and let go of the lease."""
        view, region = standing.view, self._settings.region
        lease, position, serving = view.lease, view.position, view.serving
        holds = lease is not None and lease.region == region
        awaited = (
            position is not None
            and (position.region, position.epoch) == (region, record.epoch - 1)
            and not position.final
            and (serving is None or serving.epoch < record.epoch)
        )
        self._giving_back = (holds or awaited) and self._led == record.epoch - 1
        if not (holds or awaited):
            return
        # Who was the primary itself knows at once, from its own disk, that it was stopped in order, and need not wait
        # until the region has a leader again.
        closed = self._closed_here(record)
        end = closed or (self._ended_here() if self._led == record.epoch - 1 else 0)
        quiet = bool(closed) or (bool(end) and self.postgres.no_other_primary())
        if not end and self.postgres.conducts(standing):
            quiet, end = self.postgres.end()
        # Without the lease no host of the region has authority any more, so a Redis that does not answer is no matter.
        if not quiet or (holds and not self.redis.quiet()):
            return
        if lease is not None and holds:
            final = Position(region, lease.epoch, end, time.time(), self._settings.host, final=True)
            written = self._keeper.leases.release(lease, final)
        else:
            final = Position(region, record.epoch - 1, end, time.time(), self._settings.host, final=True)
            written = self._keeper.leases.publish_end(record, final)
        if written:
            self._giving_back = False
            _log.info("cell %s: gave the cell back in order, at %d bytes", self._cell.name, end)

    def _ended_here(self) -> int:
        """Where this host ended as the primary; 0 when it has not, or when its disk does not say."""
        try:
            return self.postgres.ended_here()
        except ResilienceError as exc:
            self._say("end", f"{exc}; the region's leader will say where it ended")
            return 0

    def _follow(self, standing: Standing) -> None:
        record, serving = standing.record, standing.view.serving
        local = standing.local
        if record is None:
            return
        conducts = self.postgres.conducts(standing)
        if local.postgres is not None and not conducts:
            return
        configuration = self.postgres.configuration()
        if configuration is None:
            return
        present = configuration.get("standby_cluster")
        if not present:
            _log.warning(
                "cell %s: PostgreSQL of region %s takes no writes any more", self._cell.name, self._settings.region
            )
            self.postgres.set_standby(NO_UPSTREAM)
            return
        wanted = self.postgres.following(record.home)
        orphaned = standing.view.lease is None and not standing.registry_error
        if follows(present, NO_UPSTREAM):
            if serving is None or (serving.region, serving.epoch) != (record.home, record.epoch) or not conducts:
                return
            if local.role != "standby_leader" or (local.postgres or {}).get("state") != "running":
                return
            self._save_diverged(standing, serving)
            _log.info(
                "cell %s: PostgreSQL of region %s follows %s", self._cell.name, self._settings.region, record.home
            )
            self.postgres.set_standby(wanted)
        elif orphaned and not follows(present, ORPHANED):
            _log.warning("cell %s: nobody holds the lease: PostgreSQL stops looking for region %s",
                         self._cell.name, record.home)  # fmt: skip
            self.postgres.set_standby(ORPHANED)
        elif not orphaned and not follows(present, wanted):
            self.postgres.set_standby(wanted)

    def _save_diverged(self, standing: Standing, serving: Serving) -> None:
        """Save what the rewind would discard.

        :raises ResilienceError: it could not be saved, and no human has said that it may be lost.
        """
        _quiet, end = self.postgres.end()
        if serving.old_end and serving.switch_lsn >= serving.old_end:
            end = serving.old_end  # it left in order: what it wrote after that is no client's
        key = f"{self._cell.name}/{serving.epoch}/{self._settings.region}"
        permission = f"{REJOIN}{self._cell.name}/{self._settings.region}"
        try:
            facts = self._diverged.save(serving.epoch, serving.switch_lsn, end)
            facts.update(exactly(self._client, self._cell.name, serving.epoch, marker_of(facts.get("marker"))))
        except ResilienceError as exc:
            allowed = self._client.get(permission)
            if allowed is None or allowed.value != "discard":
                raise ResilienceError(
                    f"{exc}. Region {self._settings.region} does not rejoin until its rows are saved, or until "
                    "playbooks/rejoin.yml says that they may be lost"
                ) from exc
            facts = {"host": self._settings.host, "epoch": serving.epoch, "discarded": str(exc), "rows": 0}
        # A permission that was not needed must not hold for the next time.
        self._client.delete(permission)
        if facts["rows"] or facts.get("discarded"):
            _log.warning("cell %s: rows that the new home does not have: %s", self._cell.name, facts)
        self._client.put(DIVERGED + key, json.dumps(facts, sort_keys=True))

    # -- fenced --------------------------------------------------------------------------------------------------

    def _step_down(self, standing: Standing) -> None:
        self.redis.watch(False)
        self.redis.stand_by(standing, "")
        if standing.local.postgres is None or self.postgres.conducts(standing):
            configuration = self.postgres.configuration()
            if configuration is not None and not configuration.get("standby_cluster"):
                _log.warning("cell %s: no authority: PostgreSQL is demoted", self._cell.name)
                self.postgres.set_standby(NO_UPSTREAM)

    # -- the word ------------------------------------------------------------------------------------------------

    def tell(self, standing: Standing) -> None:
        """Leave word for the gates of Patroni, Redis and Sentinel on this host."""
        record = standing.record
        duty = self._said.get("duty", WAITING)
        problem: ResilienceError | None = None
        may_start = duty == HOME or standing.local.postgres is not None
        if not may_start:
            try:
                configuration = self.postgres.configuration()
                may_start = bool(configuration.get("standby_cluster")) if configuration is not None else duty == STANDBY
            except ResilienceError as exc:
                problem = exc  # Redis' gate needs the word nevertheless
        word = {
            "at": now(),
            "cell": self._cell.name,
            "region": self._settings.region,
            "record": asdict(record) if record else None,
            "duty": duty,
            "postgres_may_start": may_start,
            "redis_waits": duty == STANDBY and self._kept.owed,
            "registry_error": standing.registry_error,
            "answered": round(max(0.0, standing.answered), 3),
            "failsafe": standing.failsafe,
            "authority": round(standing.authority(), 1),
            "trouble": self.trouble,
        }
        fresh = self._word.with_suffix(".new")
        try:
            fresh.write_text(json.dumps(word, sort_keys=True), encoding="utf-8")
            os.chmod(fresh, 0o644)
            os.replace(fresh, self._word)
        except OSError as exc:
            raise ResilienceError(f"the agent's word can't be written to {self._word}: {exc}") from exc
        if problem is not None:
            raise problem
        if may_start and standing.local.postgres is None:
            start_if_skipped(f"patroni@{self._cell.name}.service")

    def word(self) -> dict[str, t.Any]:
        """What it last told."""
        try:
            return t.cast("dict[str, t.Any]", json.loads(self._word.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return {}

    def _say(self, topic: str, text: str) -> None:
        """Log what is new."""
        if self._said.get(topic) != text:
            _log.info("cell %s: %s", self._cell.name, text)
            self._said[topic] = text
