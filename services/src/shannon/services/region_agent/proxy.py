# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells this host's data proxy who takes writes, the moment the registry says so.

The proxy's own health checks decide, and find the same out; but only when their turn comes, seconds later, while
clients wait. So it is told once for each change, and what its checks see afterwards holds: in a move first that nobody
takes writes any more, then who does.
"""

from __future__ import annotations

import os
import typing as t

from shannon.resilience.errors import ResilienceError
from shannon.resilience.haproxy import RuntimeApi
from shannon.resilience.registry import ENTERING, TAKING_OVER, CellRecord
from shannon.services.common import logs

from .keeper import Standing
from .settings import CellSettings, Settings

_log = logs.get(__name__)


class ProxyOfHost:
    """What one cell's part of the proxy was told.

    :param command: has the proxy carry out a command, and gives its answer; for tests.
    """

    def __init__(self, settings: Settings, cell: CellSettings, command: t.Callable[[str], str] | None = None) -> None:
        self._settings = settings
        self._cell = cell
        self._command = command or self._ask
        self._postgres: tuple[int, str] | None = None
        self._redis: tuple[int, str] | None = None
        self._left = 0

    def _ask(self, text: str) -> str:
        # A host that has no data proxy has nobody to tell.
        if not os.path.exists(self._settings.data_proxy):
            return ""
        return RuntimeApi(self._settings.data_proxy).command(text)

    def tell(self, standing: Standing) -> None:
        """Tell it what is new. What was so when the agent started its checks have found out long ago."""
        record, serving = standing.record, standing.view.serving
        if record is None:
            return
        if serving is None or (serving.region, serving.epoch) != (record.home, record.epoch):
            self._leave(record)
            return
        position = standing.view.position
        host = serving.host
        # Within the home Patroni may have made another one the primary since; that one says where it is each second.
        if position and not position.final and (position.region, position.epoch) == (record.home, record.epoch):
            host = position.host
        self.lead(record.epoch, host, serving.redis_primary)

    def lead(self, epoch: int, host: str, redis_primary: str) -> None:
        """Tell it who takes writes in an epoch.

        :param host: of PostgreSQL's primary.
        :param redis_primary: address of Redis' primary; may be empty.
        """
        postgres, redis = (epoch, host), (epoch, redis_primary)
        if self._postgres not in (None, postgres):
            self._push("postgres_primary", _hosts(self._settings.postgres), host)
        self._postgres = postgres
        if self._redis not in (None, redis) and redis_primary:
            known = _hosts(self._settings.redis)
            self._push("redis_primary", known, next((one for one in known if known[one] == redis_primary), ""))
        self._redis = redis

    def _leave(self, record: CellRecord) -> None:
        """A region was left, and the next one does not serve yet: nobody need try the old one.

        A connection that is refused there is tried again a second later, when the new one may have been there for long.
        """
        known = self._postgres[0] if self._postgres else record.epoch
        if record.state not in (ENTERING, TAKING_OVER) or record.epoch <= max(known, self._left):
            return
        self._left = record.epoch
        for proxy, regions in (("postgres_primary", self._settings.postgres), ("redis_primary", self._settings.redis)):
            former = [host for region, hosts in regions.items() if region != record.home for host in hosts]
            if self._say(proxy, [(host, "down") for host in former]):
                _log.info("cell %s: the data proxy was told that nobody is its %s", self._cell.name, proxy)

    def _push(self, proxy: str, hosts: t.Collection[str], primary: str) -> None:
        if primary not in hosts:
            return
        # First the new one: there should be no moment without any.
        if self._say(proxy, [(primary, "up"), *((host, "down") for host in hosts if host != primary)]):
            _log.info("cell %s: the data proxy was told that %s is its %s", self._cell.name, primary, proxy)

    def _say(self, proxy: str, words: t.Iterable[tuple[str, str]]) -> bool:
        try:
            answers = [
                self._command(f"set server {self._cell.name}_{proxy}/{host} health {word}").strip()
                for host, word in words
            ]
        except ResilienceError as exc:
            answers = [str(exc)]
        wrong = next((answer for answer in answers if answer), "")
        if wrong:
            _log.warning("cell %s: the data proxy finds its %s out by itself: %s", self._cell.name, proxy, wrong)
        return not wrong


def _hosts(regions: t.Mapping[str, t.Mapping[str, str]]) -> dict[str, str]:
    return {host: address for hosts in regions.values() for host, address in hosts.items()}
