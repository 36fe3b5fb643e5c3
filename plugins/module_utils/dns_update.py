# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Dynamic updates of a DNS server (RFC 2136), signed with a shared key (TSIG), through BIND's C(nsupdate) and C(dig).

The key reaches C(nsupdate) over its standard input, so no process list and no file has it. A record is looked at first,
on the server itself, and changed only when it says something else; afterwards it is looked at again.
"""

from __future__ import annotations

import re
import subprocess
import time
import typing as t
from dataclasses import dataclass

from .errors import ResilienceError

#: Kinds of records that a name of ours may have.
TYPES = ("A", "AAAA", "CNAME")
ALGORITHMS = ("hmac-sha256", "hmac-sha384", "hmac-sha512")
PACKAGE = "bind9-dnsutils"
_STATUS = re.compile(r"^;; ->>HEADER<<- opcode: QUERY, status: (\w+)", re.MULTILINE)
_FLAGS = re.compile(r"^;; flags: ([a-z ]*);", re.MULTILINE)

#: Type to what records of it say.
Values = dict[str, list[str]]
Run = t.Callable[[t.Sequence[str], str, float], "tuple[int, str]"]


@dataclass(frozen=True)
class Key:
    """A key that the server accepts updates with; C(secret) is base64, as DNS servers have it."""

    name: str
    secret: str
    algorithm: str = "hmac-sha256"

    def __repr__(self) -> str:
        return f"Key({self.name}, {self.algorithm})"


@dataclass(frozen=True)
class Found:
    """What a server says of a name."""

    values: Values
    ttl: int = 0


@dataclass(frozen=True)
class Change:
    """What an update did, or would do."""

    server: str
    before: Found
    after: Found
    changed: bool
    seconds: float


class DnsServer:
    """One server that is authoritative for a zone.

    :param timeout: seconds that one question or one update may take.
    :param run: how a command is run; for tests.
    """

    def __init__(self, host: str, port: int, zone: str, key: Key, timeout: float = 3.0, run: Run | None = None) -> None:
        self._host = host
        self._port = port
        self._zone = zone
        self._key = key
        self._timeout = timeout
        self._run = run or run_command

    def __str__(self) -> str:
        return f"{self._host}:{self._port}"

    def read(self, name: str) -> Found:
        """What the server itself says of a name; nothing when it does not have it.

        :raises ResilienceError: it does not answer, or is not the zone's.
        """
        command = ["dig", f"@{self._host}", "-p", str(self._port), "+tcp", "+norecurse", "+tries=1"]
        command += [f"+time={max(1, round(self._timeout))}", "+noall", "+comments", "+answer"]
        for kind in TYPES:
            command += ["-q", f"{name}.", "-t", kind]
        status, said = self._run(command, "", self._timeout + 1.0)
        statuses = _STATUS.findall(said)
        if status != 0 or len(statuses) != len(TYPES):
            raise ResilienceError(
                f"the DNS server {self} gives no answer on {name}: {_short(said)}. Expected is a server that answers "
                "over TCP; look at it, and at the firewalls between"
            )
        bad = sorted(set(statuses) - {"NOERROR", "NXDOMAIN"})
        if bad or any("aa" not in flags.split() for flags in _FLAGS.findall(said)):
            raise ResilienceError(
                f"the DNS server {self} is not the one of the zone {self._zone}: asked for {name} it says "
                f"{', '.join(bad) or 'that others know'}. Give routing_providers the zone's primary server"
            )
        return _found(name, said)

    def bring(self, name: str, ttl: int, values: Values, check: bool = False) -> Change:
        """Have a name say C(values) and nothing else; what it says already is left alone.

        :raises ResilienceError: the server does not answer, refuses the update, or does not say so afterwards.
        """
        began = time.monotonic()
        wanted = Found({kind: sorted(given) for kind, given in sorted(values.items()) if given}, ttl)
        before = self.read(name)
        if before == wanted:
            return Change(str(self), before, before, False, round(time.monotonic() - began, 3))
        if check:
            return Change(str(self), before, wanted, True, round(time.monotonic() - began, 3))
        self._update(name, wanted)
        after = self.read(name)
        if after != wanted:
            raise ResilienceError(
                f"the DNS server {self} took the update of {name}, and still says {describe(after)} instead of "
                f"{describe(wanted)}: somebody else changes this name, or {self} is not the zone's primary server"
            )
        return Change(str(self), before, after, True, round(time.monotonic() - began, 3))

    def _update(self, name: str, wanted: Found) -> None:
        # One message: the server applies all of it or nothing.
        lines = [f"server {self._host} {self._port}", f"zone {self._zone}."]
        lines.append(f"key {self._key.algorithm}:{self._key.name} {self._key.secret}")
        lines += [f"update delete {name}. {kind}" for kind in TYPES]
        lines += [
            f"update add {name}. {wanted.ttl} {kind} {value}{'.' if kind == 'CNAME' else ''}"
            for kind, values in wanted.values.items()
            for value in values
        ]
        script = "\n".join([*lines, "send", ""])
        limit = max(1, round(self._timeout))
        status, said = self._run(["nsupdate", "-v", "-t", str(limit)], script, self._timeout + 1.0)
        if status != 0:
            said = said.replace(self._key.secret, "***")
            raise ResilienceError(f"the DNS server {self} did not update {name}: {_short(said)}. {self._remedy(said)}")

    def _remedy(self, said: str) -> str:
        who = f"the key {self._key.name} ({self._key.algorithm})"
        for word, remedy in (
            ("BADKEY", f"It does not know {who}: key_name or key_algorithm differ from what the server has"),
            ("BADSIG", f"It knows {who} with another secret: compare key_secret with the server's"),
            ("BADTIME", "The clocks of this host and of the server differ by minutes: synchronise them"),
            ("NOTAUTH", f"It does not know {who}, or is not the primary server of the zone {self._zone}"),
            ("NOTZONE", f"The name is not in the zone {self._zone}"),
            ("REFUSED", f"Its policy does not let {who} change A, AAAA and CNAME records of the zone {self._zone}"),
            ("SERVFAIL", f"It could not write the zone {self._zone}: look at its log and at its disk"),
        ):
            if word in said:
                return remedy
        return f"Expected is a server that takes updates over TCP, signed with {who}"


def parse_server(text: str, port: int = 53) -> tuple[str, int]:
    """Host and port of C(host), C(host:port) or C([address]:port).

    :raises ResilienceError: it is none of these.
    """
    match = re.fullmatch(r"\[([0-9a-fA-F:.]+)\](?::(\d{1,5}))?|([^:\s\[\]]+)(?::(\d{1,5}))?", text)
    if match:
        number = int(match.group(2) or match.group(4) or port)
        if 0 < number < 65536:
            return match.group(1) or match.group(3), number
    if re.fullmatch(r"[0-9a-fA-F:.]+", text) and text.count(":") > 1:
        return text, port
    raise ResilienceError(f"{text!r} is no DNS server: expected is host, host:port or [address]:port")


def describe(found: Found) -> str:
    """In words: C(A 192.0.2.1, 192.0.2.2 (30 s))."""
    parts = [f"{kind} {', '.join(values)}" for kind, values in found.values.items()]
    return f"{'; '.join(parts)} ({found.ttl} s)" if parts else "nothing"


def run_command(command: t.Sequence[str], text: str, timeout: float) -> tuple[int, str]:
    """Status and output of a command that is given some text.

    :raises ResilienceError: it is not there, or can't be run.
    """
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=timeout, check=False, env={"PATH": _PATH}
        )
    except FileNotFoundError as exc:
        raise ResilienceError(f"{command[0]} is not on this host: install the package {PACKAGE}") from exc
    except subprocess.TimeoutExpired:
        return 124, f"silence for {timeout:.0f} s"
    except OSError as exc:
        raise ResilienceError(f"{command[0]} can't be run: {exc.strerror or exc}") from exc
    return done.returncode, done.stdout + done.stderr


_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _found(name: str, said: str) -> Found:
    values: dict[str, set[str]] = {}
    ttl = 0
    for line in said.splitlines():
        words = line.split()
        if line.startswith(";") or len(words) != 5 or words[0].rstrip(".").lower() != name.lower():
            continue
        if words[3] in TYPES:
            ttl = int(words[1])
            values.setdefault(words[3], set()).add(words[4].rstrip(".").lower())
    return Found({kind: sorted(found) for kind, found in sorted(values.items())}, ttl)


def _short(said: str) -> str:
    lines = dict.fromkeys(line.strip("; ") for line in said.splitlines() if line.strip("; "))
    return "; ".join(lines)[:300] or "nothing was said"
