# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""HAProxy's runtime API: what an edge is told without a reload."""

from __future__ import annotations

import csv
import io
import os
import re
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

#: The words of the map that the edge's Lua action reads: requests wait, or wait only for a usable server.
HOLD = "hold"
WAIT = "wait"
_WORD = re.compile(r"[A-Za-z0-9_.-]+")
_TRACKED = re.compile(r"^0x[0-9a-f]+: key=(?P<key>\S+) .*\bconn_cur=(?P<open>\d+)", re.MULTILINE)


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

    # -- held requests -------------------------------------------------------------------------------------------

    def words(self, path: str) -> dict[str, str]:
        """What a map says, by its keys.

        :param path: the map's file, as the configuration names it.
        """
        said = self.command(f"show map {path}")
        found: dict[str, str] = {}
        for line in said.splitlines():
            words = line.split()
            if len(words) != 3 or not words[0].startswith("0x"):
                raise ResilienceError(f"HAProxy on {self.path} does not say what is in the map {path}: {line}")
            found[words[1]] = words[2]
        return found

    def held(self, path: str) -> set[str]:
        """The cells whose requests wait, by the map that says so."""
        return {cell for cell, word in self.words(path).items() if word.startswith(f"{HOLD}-")}

    def hold(self, path: str, cell: str, until: float) -> None:
        """Let a cell's requests wait; said again it sets a new end.

        :param until: seconds since 1970 after which the word is void, so that nobody's death holds a cell for ever.
        """
        self._say(path, cell, f"{HOLD}-{until:.3f}")

    def release(self, path: str, cell: str, until: float | None = None) -> None:
        """Let a cell's requests go; fine when they don't wait.

        :param until: seconds since 1970 up to which requests still wait while their backend has no usable server;
            None: such requests are refused at once.
        """
        if until is not None:
            self._say(path, cell, f"{WAIT}-{until:.3f}")
        elif (said := self.command(f"del map {path} {_word(cell)}")) and "not found" not in said.lower():
            raise ResilienceError(f"HAProxy on {self.path} did not release {cell}: {said}")

    def in_flight(self, backend: str) -> int:
        """Requests that a backend has now, answered or not; an event stream counts while it is open.

        :raises ResilienceError: there is no such backend.
        """
        found = self.sessions().get(backend)
        if found is None:
            raise ResilienceError(f"HAProxy on {self.path} has no backend {backend}")
        return found

    def sessions(self) -> dict[str, int]:
        """For each backend the requests that its servers have now, or that wait for one.

        Not what HAProxy counts for the backend as a whole: a session whose server has closed, and whose client never
        leaves, stays in that number for as long as the client likes.
        """
        said = self.command("show stat -1 6 -1")
        if not said.startswith("# pxname,"):
            raise ResilienceError(f"HAProxy on {self.path} does not say its backends' sessions: {said[:200]}")
        found: dict[str, int] = {}
        for row in csv.DictReader(io.StringIO(said[2:])):
            count = row["qcur"] if row["svname"] == "BACKEND" else row["scur"]
            found[row["pxname"]] = found.get(row["pxname"], 0) + int(count or 0)
        return found

    def tracked(self, table: str) -> dict[str, int]:
        """What a stick table counts as open now (C(conn_cur)), by key."""
        said = self.command(f"show table {_word(table)}")
        if not said.startswith("# table:"):
            raise ResilienceError(f"HAProxy on {self.path} does not say what is in the table {table}: {said[:200]}")
        return {found["key"]: int(found["open"]) for found in _TRACKED.finditer(said)}

    def _say(self, path: str, key: str, word: str) -> None:
        # "set" knows only keys that are there, and "add" would make a second one of the same name.
        said = self.command(f"set map {path} {_word(key)} {word}")
        if "not found" in said.lower():
            said = self.command(f"add map {path} {key} {word}")
        if said:
            raise ResilienceError(f"HAProxy on {self.path} did not take '{word}' for {key} into the map {path}: {said}")

    def _do(self, text: str) -> None:
        said = self.command(text)
        if said:
            raise ResilienceError(f"HAProxy on {self.path} refused '{text}': {said}")


def _word(text: str) -> str:
    if not _WORD.fullmatch(text):
        raise ResilienceError(f"{text!r} is no name for HAProxy's runtime API")
    return text


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
