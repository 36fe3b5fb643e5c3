# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""HAProxy's runtime API: what an edge is told without a reload."""

from __future__ import annotations

import csv
import io
import os
import socket
import time
import typing as t
from dataclasses import dataclass

from .errors import ResilienceError

#: Bytes of the longest answer that is read; a thousand servers fit in it several times.
MAX_ANSWER = 8 * 2**20
#: What HAProxy's C(srv_admin_state) says when an operator, or this library, set maintenance or drain (bits 0x01, 0x08).
_FORCED_MAINTENANCE = 0x01
_FORCED_DRAIN = 0x08

READY = "ready"
DRAIN = "drain"
MAINTENANCE = "maint"


@dataclass(frozen=True)
class Server:
    """A server of a backend as HAProxy sees it.

    :ivar admin: ready, drain or maint: what it was told.
    :ivar operational: whether its health check finds it up.
    :ivar checked: whether its health check runs; an operator may have switched it off.
    """

    backend: str
    name: str
    admin: str
    operational: bool
    checked: bool


class RuntimeApi:
    """The admin socket of one HAProxy.

    :param path: its path on this host.
    :param timeout: seconds that one command may take altogether.
    """

    def __init__(self, path: str, timeout: float = 2.0) -> None:
        self.path = path
        self._timeout = timeout

    def command(self, text: str) -> str:
        """Send one command.

        :returns: the answer without the empty line at its end.
        :raises ResilienceError: the socket can't be reached in time, or the answer has no end.
        """
        if "\n" in text or ";" in text:
            raise ValueError("one command at a time")
        deadline = time.monotonic() + self._timeout
        answer = bytearray()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as talker:
                talker.settimeout(self._timeout)
                talker.connect(self.path)
                talker.sendall(text.encode() + b"\n")
                while True:
                    talker.settimeout(max(deadline - time.monotonic(), 0.001))
                    part = talker.recv(65536)
                    if not part:
                        break
                    answer += part
                    if len(answer) > MAX_ANSWER:
                        raise ResilienceError(f"HAProxy's answer to '{text}' is longer than {MAX_ANSWER} bytes")
        except OSError as exc:
            raise ResilienceError(
                f"HAProxy does not answer '{text}' on {self.path} within {self._timeout:g} s: {exc}. "
                "Is it running, and may this user use its admin socket?"
            ) from exc
        return answer.decode(errors="replace").rstrip("\n")

    def process(self) -> int:
        """Process id of the HAProxy that answers; another one after a restart or a reload."""
        for line in self.command("show info").splitlines():
            name, _colon, value = line.partition(": ")
            if name == "Pid":
                return int(value)
        raise ResilienceError(f"HAProxy on {self.path} does not say its process id")

    def servers(self) -> list[Server]:
        """All servers of all backends."""
        lines = self.command("show servers state").splitlines()
        head = next((number for number, line in enumerate(lines) if line.startswith("# ")), None)
        if head is None:
            raise ResilienceError(f"HAProxy on {self.path} does not say its servers' states: {lines[:2]}")
        text = "\n".join([lines[head][2:], *lines[head + 1 :]])
        found = []
        for row in csv.DictReader(io.StringIO(text), delimiter=" "):
            if row.get("srv_name"):
                found.append(
                    Server(
                        backend=row["be_name"],
                        name=row["srv_name"],
                        admin=_admin(int(row["srv_admin_state"])),
                        operational=row["srv_op_state"] in ("2", "3"),
                        checked=bool(int(row["srv_check_state"]) & 0x04),
                    )
                )
        return found

    def set_admin(self, server: Server, admin: str) -> None:
        """Tell a server to be ready, to drain or to be in maintenance.

        :raises ResilienceError: HAProxy did not take it.
        """
        if admin not in (READY, DRAIN, MAINTENANCE):
            raise ValueError(f"{admin} is none of {READY}, {DRAIN}, {MAINTENANCE}")
        self._do(f"set server {server.backend}/{server.name} state {admin}")

    def shut_sessions(self, server: Server) -> None:
        """End all sessions of a server at once."""
        self._do(f"shutdown sessions server {server.backend}/{server.name}")

    def check_health(self, server: Server, wanted: bool) -> None:
        """Switch a server's health check on or off; with the check off the server counts as up."""
        name = f"{server.backend}/{server.name}"
        if wanted:
            self._do(f"enable health {name}")
        else:
            self._do(f"disable health {name}")
            self._do(f"set server {name} health up")

    def save(self, path: str) -> None:
        """Keep all servers' states in a file that HAProxy reads when it starts (C(server-state-file))."""
        text = self.command("show servers state")
        fresh = f"{path}.new"
        with open(fresh, "w", encoding="ascii") as handle:
            handle.write(text + "\n")
        os.replace(fresh, path)

    def _do(self, text: str) -> None:
        said = self.command(text)
        if said:
            raise ResilienceError(f"HAProxy on {self.path} refused '{text}': {said}")


def _admin(state: int) -> str:
    if state & _FORCED_MAINTENANCE:
        return MAINTENANCE
    return DRAIN if state & _FORCED_DRAIN else READY


def by_backend(servers: t.Iterable[Server]) -> dict[str, list[Server]]:
    """Servers by their backend."""
    found: dict[str, list[Server]] = {}
    for server in servers:
        found.setdefault(server.backend, []).append(server)
    return found
