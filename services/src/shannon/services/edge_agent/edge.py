# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the servers of an edge's HAProxy match the registry's routing controls.

Servers are named C(<region>_<host>). The last controls that the registry gave are kept in a file, and hold while it is
away. A new HAProxy process, after a restart or a reload, is found by its process id and told again. While a cell moves
(see :mod:`.holds`) its traffic may go to the servers of its home only.
"""

from __future__ import annotations

import json
import os
import pathlib
import typing as t
from dataclasses import asdict

from shannon.resilience.errors import ResilienceError
from shannon.resilience.haproxy import DRAIN as SERVER_DRAIN
from shannon.resilience.haproxy import MAINTENANCE, READY, RuntimeApi, Server
from shannon.resilience.routing import AUTO, DRAIN, OFF, ON, Control
from shannon.services.common import logs, metrics

from .holds import Holds

_log = logs.get(__name__)
#: What a control means for a server: its admin state, and whether its health check has a say.
_MEANING = {AUTO: (READY, True), ON: (READY, False), DRAIN: (SERVER_DRAIN, True), OFF: (MAINTENANCE, True)}


class Edge:
    """One HAProxy and the controls that hold for it.

    :param proxy: its runtime API.
    :param fetch: gives the registry's controls by region.
    :param kept: the file that keeps the last controls.
    :param server_states: the file that HAProxy reads at its start.
    :param holds: the cells whose requests wait; None: none ever do.
    """

    def __init__(
        self,
        proxy: RuntimeApi,
        fetch: t.Callable[[], dict[str, Control]],
        kept: str,
        server_states: str,
        holds: Holds | None = None,
    ) -> None:
        self._proxy = proxy
        self._fetch = fetch
        self._kept = pathlib.Path(kept)
        self._server_states = server_states
        self._holds = holds
        self._process: int | None = None
        self.controls: dict[str, Control] = self._remembered()
        self.registry_answers = False
        self.proxy_answers = False
        self._state = metrics.gauge(
            "shannon_edge_routing", "1 for the routing control that holds for a region.", ("region", "state")
        )
        self._applied = metrics.counter("shannon_edge_changes_total", "Servers that were told something new.")

    def busy(self) -> bool:
        """Whether the registry should be asked again at once: a cell moves."""
        return self._holds is not None and self._holds.busy()

    def held(self) -> list[str]:
        """The cells whose requests wait."""
        return [] if self._holds is None else self._holds.held()

    def step(self) -> int:
        """Ask the registry, and tell HAProxy what it does not know yet.

        :returns: how many servers were told something.
        """
        if self._holds is not None:
            self._holds.refresh()
            self._holds.hold()
        self._refresh()
        try:
            told = self._apply()
        except ResilienceError as exc:
            if self.proxy_answers:
                _log.error("%s", exc)
            self.proxy_answers = False
            return 0
        self.proxy_answers = True
        if self._holds is not None:
            self._holds.release()
        return told

    def _refresh(self) -> None:
        try:
            controls = self._fetch()
        except ResilienceError as exc:
            if self.registry_answers:
                _log.warning("the registry does not answer, the last routing controls hold: %s", exc)
            self.registry_answers = False
            return
        self.registry_answers = True
        if controls != self.controls:
            for region, control in sorted(controls.items()):
                if control != self.controls.get(region):
                    _log.info("region %s: %s (%s, %s)", region, control.state, control.operator, control.reason)
            self.controls = controls
            self._remember()

    def _apply(self) -> int:
        process = self._proxy.process()
        if process != self._process:
            _log.info("HAProxy has process %d", process)
        told = 0
        for server in self._proxy.servers():
            region, separator, _host = server.name.partition("_")
            if not separator:
                continue
            control = self.controls.get(region, Control(region))
            admin, checked = _MEANING[control.state]
            home = None if self._holds is None else self._holds.home_of(server)
            if control.state == AUTO and home not in (None, region):
                # Its check may still say that it is the home. What it runs ends in peace.
                admin = SERVER_DRAIN
            if server.admin != admin:
                self._proxy.set_admin(server, admin)
                if control.state == OFF:
                    self._proxy.shut_sessions(server)
                told += 1
            if server.checked != checked and not self._is_unchecked_by_nature(server, checked):
                self._proxy.check_health(server, checked)
                told += 1
            for state in _MEANING:
                self._state.labels(region, state).set(1 if state == control.state else 0)
        if told or process != self._process:
            self._proxy.save(self._server_states)
            self._applied.inc(told)
        self._process = process
        return told

    @staticmethod
    def _is_unchecked_by_nature(server: Server, wanted: bool) -> bool:
        # While a server is in maintenance its check is paused, and comes back with it.
        return wanted and server.admin == MAINTENANCE

    def _remembered(self) -> dict[str, Control]:
        try:
            return {name: Control(**it) for name, it in json.loads(self._kept.read_text(encoding="utf-8")).items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as exc:
            _log.warning("the last routing controls can't be read from %s: %s", self._kept, exc)
            return {}

    def _remember(self) -> None:
        fresh = self._kept.with_name(f"{self._kept.name}.new")
        try:
            fresh.write_text(json.dumps({name: asdict(it) for name, it in self.controls.items()}, sort_keys=True))
            os.replace(fresh, self._kept)
        except OSError as exc:
            _log.error("the routing controls can't be kept in %s: %s", self._kept, exc)
