# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Has the names of a cell follow it, for failovers that no playbook makes: by dynamic updates (RFC 2136).

It runs in a thread of its own, so that a DNS server that is dead never delays the agent, and it does nothing but
while the agent says, again and again, that this host speaks for the home that serves.
"""

from __future__ import annotations

import threading
import typing as t

from shannon.resilience.concurrently import gather
from shannon.resilience.dns_update import Change, DnsServer, Key, describe, parse_server
from shannon.resilience.errors import ResilienceError
from shannon.services.common import logs

from .settings import DnsName, now

_log = logs.get(__name__)
#: Seconds for which the agent's word holds.
HOLDS = 5.0
#: Seconds until a name that says what it should is looked at again.
AGAIN = 15.0
#: Seconds until one that does not is tried again.
RETRY = 2.0
#: Seconds that one question or one update may take.
TIMEOUT = 3.0

Bring = t.Callable[[str, int, str], Change]


class NamesOfCell:
    """The names of one cell.

    :param names: those that are kept by RFC 2136.
    :param bring: has a name say what it should on one of its servers; for tests.
    """

    def __init__(self, cell: str, names: t.Sequence[DnsName], bring: t.Callable[..., Change] | None = None) -> None:
        self._cell = cell
        self._names = names
        self._bring = bring or _bring
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._home = ""
        self._said_at = float("-inf")
        self._told: dict[str, str] = {}
        self.trouble = ""

    def start(self) -> None:
        """Begin, if there is anything to do."""
        if self._names:
            threading.Thread(target=self.run, daemon=True, name=f"dns-{self._cell}").start()

    def want(self, region: str) -> None:
        """This host speaks for the region, which serves: its addresses are the right ones, for a few seconds."""
        with self._lock:
            new = region != self._home
            self._home, self._said_at = region, now()
        if new:
            self._wake.set()

    def rest(self) -> None:
        """This host does not speak for a home."""
        with self._lock:
            self._home = ""

    def stop(self) -> None:
        """End after the present step."""
        self._stopping.set()
        self._wake.set()

    def run(self) -> None:
        """Step until stopped."""
        while not self._stopping.is_set():
            try:
                well = self.step()
            except Exception:  # names are no reason to give the host up
                _log.exception("cell %s: the names in DNS", self._cell)
                well = False
            self._wake.wait(AGAIN if well else RETRY)
            self._wake.clear()

    def step(self) -> bool:
        """Look at each name on each server, and change what is different; whether all is well now."""
        home = self._wanted()
        if not home:
            self.trouble = ""
            return True
        calls: dict[tuple[str, str], t.Callable[[], Change]] = {}
        for name in self._names:
            for server in name.servers:
                calls[name.name, server] = self._call(name, server, home)
        errors = []
        for (name_, server), found in gather(calls).items():
            if isinstance(found, ResilienceError):
                errors.append(str(found))
            elif found.changed:
                _log.info(
                    "cell %s: %s on %s says %s instead of %s, after %.2f s", self._cell, name_, server,
                    describe(found.after), describe(found.before), found.seconds,
                )  # fmt: skip
        if not self._wanted():
            return True  # the home moved meanwhile, and whoever speaks for it now sees to its names
        trouble = "; ".join(errors)
        if trouble and trouble != self.trouble:
            _log.error("cell %s: names in DNS do not follow it: %s", self._cell, trouble)
        elif self.trouble and not trouble:
            _log.info("cell %s: all names in DNS say where it lives", self._cell)
        self.trouble = trouble
        return not errors

    def _call(self, name: DnsName, server: str, home: str) -> t.Callable[[], Change]:
        def bring() -> Change:
            if self._wanted() != home:
                raise ResilienceError(
                    f"{name.name} on {server} is left alone: region {home} is not spoken for any more"
                )
            return self._bring(name, server, home)

        return bring

    def _wanted(self) -> str:
        with self._lock:
            return self._home if now() - self._said_at < HOLDS else ""


def _bring(name: DnsName, server: str, home: str) -> Change:
    host, port = parse_server(server)
    key = Key(name.key_name, name.key_secret, name.key_algorithm)
    return DnsServer(host, port, name.zone, key, TIMEOUT).bring(name.name, name.ttl, name.regions[home])
