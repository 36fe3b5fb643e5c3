# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A region's Redis: who is its primary, whom the others follow, and whether Sentinel watches.

Inside the home Sentinel decides. The agent acts only where the region changes its part: it promotes an instance when
none of the region is a primary and none follows one of the region's, and it has the instances of a standby follow the
home's primary, wherever Sentinel has put it.
"""

from __future__ import annotations

import subprocess
import time
import typing as t

from shannon.resilience.concurrently import gather
from shannon.resilience.errors import ResilienceError
from shannon.resilience.redis import RedisClient, RedisReplyError, Replication
from shannon.services.common import logs

from .keeper import Standing, listens
from .settings import CellSettings, Settings, now

_log = logs.get(__name__)
#: Priorities as the role redis gives them: 0 is never promoted by Sentinel.
HOME_PRIORITY, STANDBY_PRIORITY = 100, 0
#: Whom an instance follows that must take no writes: nobody listens there.
NOBODY = ("127.0.0.1", 1)
#: Seconds that writes wait while the standby region's instances receive the last bytes.
HANDOVER = 2.0
#: Seconds that Sentinel has to start or stop before it is told again.
TELL_AGAIN = 5.0


class RedisOfRegion:
    """The instances of one cell."""

    def __init__(self, settings: Settings, cell: CellSettings, context: t.Any) -> None:
        self._settings = settings
        self._cell = cell
        self._context = context
        self._addresses = dict(settings.redis.get(settings.region, {}))
        #: Connections stay open: they are asked every second, and a handshake costs both ends more than the question.
        self._clients: dict[str, RedisClient] = {}
        #: What Sentinel of this host was last told, and when.
        self._told: bool | None = None
        self._told_at = 0.0

    def instances(self, region: str, timeout: float = 1.0) -> dict[str, Replication]:
        """Of the instances of a region, those that answer, by address."""

        own = self._settings.redis.get(self._settings.region, {}).get(self._settings.host)

        def asker(address: str) -> t.Callable[[], Replication]:
            # The own one over loopback, which the fence lets through: a host that was closed still has to say that its
            # Redis takes no writes.
            there = "localhost" if address == own else address
            client = self._clients.setdefault(address, self._client(there, timeout))

            def ask() -> Replication:
                return client.replication()

            return ask

        addresses = self._settings.redis.get(region, {}).values()
        answers = gather({address: asker(address) for address in addresses})
        return {address: it for address, it in answers.items() if isinstance(it, Replication)}

    def primary_of(self, region: str) -> str:
        """Address of a region's primary; empty when it has none that answers."""
        found = [address for address, it in self.instances(region).items() if it.role == "primary"]
        return found[0] if len(found) == 1 else ""

    def quiet(self) -> bool:
        """Whether all instances of the region answer and none takes writes."""
        found = self.instances(self._settings.region)
        return len(found) == len(self._addresses) and all(it.role == "replica" for it in found.values())

    # -- home ----------------------------------------------------------------------------------------------------

    def be_home(self) -> str:
        """Give the region a primary if it has none; its address, or nothing when Sentinel has to decide."""
        found = self.instances(self._settings.region)
        primaries = [address for address, it in found.items() if it.role == "primary"]
        if len(primaries) == 1:
            self._gather(primaries[0], found)
            return primaries[0]
        followed = {it.primary_address for it in found.values()} & set(self._addresses.values())
        if primaries or not found or (followed and not self._nobody_leads(followed, found)):
            return ""
        best = max(sorted(found), key=lambda address: (not found[address].loading, found[address].offset))
        _log.warning("cell %s: Redis on %s becomes the primary", self._cell.name, best)
        self._tell(best, [["CONFIG", "SET", "replica-priority", HOME_PRIORITY], ["REPLICAOF", "NO", "ONE"]])
        self._gather(best, found)
        return best

    def _nobody_leads(self, followed: set[str], found: t.Mapping[str, Replication]) -> bool:
        """Whether those whom others of the region follow are all there and follow somebody themselves, and no Sentinel
        of the region is about to change that.

        So it is when a home has stepped down and is the home again before another region took over. Sentinel is started
        once there is a primary, so it would not give the region one.
        """
        if not followed <= set(found):
            return False
        port, addresses = self._cell.sentinel, self._addresses.values()
        running = gather({address: lambda address=address: listens(port, address) for address in addresses})  # type: ignore[misc]
        return not any(running.values())

    def _gather(self, primary: str, found: t.Mapping[str, Replication]) -> None:
        """Have the region's other instances follow its primary, unless they follow one of the region's already."""
        own = set(self._addresses.values())
        for address, it in found.items():
            if address == primary:
                continue
            words: list[list[str | int]] = []
            if it.priority != HOME_PRIORITY:
                words.append(["CONFIG", "SET", "replica-priority", HOME_PRIORITY])
            if it.role == "replica" and it.primary_address not in own:
                words.append(["REPLICAOF", primary, self._cell.redis])
            if words:
                self._tell(address, words)

    def branch(self, primary: str) -> tuple[str, int]:
        """The history that a primary went on from, and how many bytes of it it has; no id when it does not say."""
        try:
            # It alone: clients wait, and a dead neighbour would cost them a second.
            seen = self._clients.setdefault(primary, self._client(primary, 1.0)).replication()
        except ResilienceError as exc:
            _log.warning("cell %s: where Redis went on from is not known: %s", self._cell.name, exc)
            return "", 0
        return seen.former_id, seen.former_end

    # -- standby -------------------------------------------------------------------------------------------------

    def stand_by(self, standing: Standing, home: str, hold: bool = False) -> None:
        """Have this host's instance follow the home's primary; a primary first hands over in order.

        :param hold: have it follow nobody, since what it has is not kept yet.
        """
        local = standing.local.redis
        if local is None:
            return
        if local.role == "primary":
            if home and standing.authority() > 1.0:
                self._hand_over(home, min(HANDOVER, standing.authority() - 1.0))
            _log.warning("cell %s: Redis of this host takes no writes any more", self._cell.name)
            self._tell("localhost", [["CONFIG", "SET", "replica-priority", STANDBY_PRIORITY], ["REPLICAOF", *NOBODY]])
            return
        if not home:
            return
        if hold and local.primary_address == NOBODY[0]:
            return
        primary = NOBODY[0] if hold else self.primary_of(home)
        words: list[list[str | int]] = []
        if local.priority != STANDBY_PRIORITY:
            words.append(["CONFIG", "SET", "replica-priority", STANDBY_PRIORITY])
        if primary and local.primary_address != primary:
            words.append(["REPLICAOF", primary, NOBODY[1] if hold else self._cell.redis])
        if words:
            _log.info(
                "cell %s: Redis of this host follows %s",
                self._cell.name,
                "nobody" if hold else primary or "whom it followed",
            )
            self._tell("localhost", words)

    def _hand_over(self, home: str, seconds: float) -> None:
        """Hold writes until the new home has all that was written, as far as time allows."""
        deadline = time.monotonic() + seconds
        with self._client("localhost", 1.0) as client:
            try:
                client.command(["CLIENT", "PAUSE", int(seconds * 1000) + 500, "WRITE"])
            except RedisReplyError:
                client.command(["CLIENT", "PAUSE", int(seconds * 1000) + 500])  # before Redis 6.2
            while time.monotonic() < deadline:
                written = client.replication().offset
                if any(it.offset >= written for it in self.instances(home, 0.5).values()):
                    return
                time.sleep(0.02)
        _log.warning("cell %s: region %s did not receive all of Redis within %.1f s", self._cell.name, home, seconds)

    # -- Sentinel ------------------------------------------------------------------------------------------------

    def watch(self, wanted: bool) -> None:
        """Have this host's Sentinel run, or not; whether it starts at boot is asked of the agent then."""
        if listens(self._cell.sentinel) == wanted:
            return
        # It takes a moment to do so, and to be told again at each look is work for a host that has enough of it.
        if self._told == wanted and now() - self._told_at < TELL_AGAIN:
            return
        self._told, self._told_at = wanted, now()
        verb = "start" if wanted else "stop"
        unit = f"sentinel@{self._cell.name}.service"
        try:
            done = subprocess.run(
                ["/usr/bin/systemctl", "--no-block", verb, unit],
                capture_output=True,
                text=True,
                timeout=15,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise ResilienceError(f"systemctl {verb} {unit}: {exc}") from exc
        if done.returncode:
            raise ResilienceError(f"systemctl {verb} {unit} failed: {done.stderr.strip()[:300]}")
        _log.info("cell %s: Sentinel of this host was told to %s", self._cell.name, verb)

    # -- connections ---------------------------------------------------------------------------------------------

    def _client(self, address: str, timeout: float) -> RedisClient:
        return RedisClient(address, self._cell.redis, "admin", self._settings.redis_password, self._context, timeout)

    def _tell(self, address: str, commands: t.Sequence[t.Sequence[str | int]]) -> None:
        """Send commands, and have the instance remember their effect.

        :raises ResilienceError: it refused one.
        """
        with self._client(address, 2.0) as client:
            for reply in client.pipeline([*commands, ["CONFIG", "REWRITE"]]):
                if isinstance(reply, RedisReplyError):
                    raise reply
