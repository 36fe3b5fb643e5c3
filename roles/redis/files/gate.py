#!/usr/bin/env python3
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens before a cell's Redis or Sentinel starts, and when its certificate changed.

    gate.py redis CELL      compose redis.conf: the role's part, and whom to follow
    gate.py sentinel CELL   compose sentinel.conf: the role's part, and what Sentinel had learned
    gate.py reload CELL     have the running Redis read its certificate and users again

Redis and Sentinel rewrite the file that they were started with. So that Ansible's part always wins, that file is composed
anew at each start, and of what they wrote only what Ansible can't know is kept.

A Redis that was a primary when its host died must not come back as one while another was promoted: the other Sentinels
of the group are asked first. Only when none of them answers does it start as what it was; C(min-replicas-to-write) keeps
it from taking writes alone.
"""

from __future__ import annotations

import json
import os
import sys
import typing as t
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from shannon_library.concurrently import gather
from shannon_library.errors import ResilienceError
from shannon_library.redis import RedisClient
from shannon_library.tls import TlsFiles, client_context

ETC = Path("/etc/shannon/redis")
STATE = Path("/var/lib/shannon")
#: Seconds that each Sentinel has to say who is primary; all are asked at once.
ANSWER_WITHIN = 1.5
LEARNED = ("sentinel myid", "sentinel current-epoch")
LEARNED_OF_CELL = ("config-epoch", "leader-epoch", "known-replica", "known-slave", "known-sentinel")

Address = tuple[str, int]


def primary_by_sentinels(settings: dict[str, t.Any]) -> Address | None:
    """Who the other Sentinels take for the primary: the answer of most; None when none answers."""
    context = client_context(TlsFiles())

    def asker(host: str) -> t.Callable[[], t.Any]:
        def ask() -> t.Any:
            port, password = settings["sentinel_port"], settings["sentinel_password"]
            with RedisClient(host, port, "default", password, context, ANSWER_WITHIN) as client:
                return client.command(["SENTINEL", "GET-MASTER-ADDR-BY-NAME", settings["cell"]])

        return ask

    answers = gather({host: asker(host) for host in settings["sentinels"]})
    named = Counter(
        (str(answer[0]), int(answer[1]))
        for answer in answers.values()
        if not isinstance(answer, ResilienceError) and answer
    )
    return named.most_common(1)[0][0] if named else None


def followed(conf: str) -> Address | None:
    """Whom the instance followed when it last ran, from its running configuration."""
    for line in conf.splitlines():
        words = line.split()
        if len(words) == 3 and words[0] in ("replicaof", "slaveof"):
            return words[1].strip('"'), int(words[2])
    return None


def compose_redis(settings: dict[str, t.Any], before: str, primary: Address | None) -> str:
    """The configuration to start Redis with.

    :param before: the one it ran with last; empty at the first start.
    :param primary: whom the Sentinels name.
    """
    own = (settings["address"], settings["port"])
    follow = followed(before) if primary is None else (None if primary == own else primary)
    lines = [f"include {ETC}/{settings['cell']}.conf"]
    if follow:
        lines.append(f"replicaof {follow[0]} {follow[1]}")
    return "\n".join(lines) + "\n"


def compose_sentinel(settings: dict[str, t.Any], static: str, before: str, primary: Address) -> str:
    """The configuration to start Sentinel with; it has to name the primary before it may say more of it."""
    cell = settings["cell"]
    head, _marker, tail = static.partition('# Here goes the line "sentinel monitor".\n')
    learned = [
        line
        for line in before.splitlines()
        if line.startswith(LEARNED)
        or (line.startswith("sentinel ") and line.split()[1:3] in [[word, cell] for word in LEARNED_OF_CELL])
    ]
    monitor = f"sentinel monitor {cell} {primary[0]} {primary[1]} {settings['quorum']}\n"
    return head + monitor + tail + "\n".join(learned) + "\n"


def monitored(conf: str, cell: str) -> Address | None:
    """Whom Sentinel watched when it last ran."""
    for line in conf.splitlines():
        words = line.split()
        if words[:3] == ["sentinel", "monitor", cell] and len(words) == 6:
            return words[3], int(words[4])
    return None


def write(path: Path, text: str) -> None:
    """Replace a file in one step."""
    staged = path.with_suffix(".new")
    staged.write_text(text)
    os.chmod(staged, 0o640)
    staged.replace(path)


def read(path: Path) -> str:
    """A file's text; empty when it is not there."""
    return path.read_text() if path.exists() else ""


def reload(settings: dict[str, t.Any]) -> None:
    """Setting a TLS file to what it is makes Redis read it again."""
    context = client_context(TlsFiles())
    with RedisClient("localhost", settings["port"], "admin", settings["admin_password"], context, 5) as client:
        client.command(["CONFIG", "SET", "tls-ca-cert-file", TlsFiles.ca])
        client.command(["CONFIG", "SET", "tls-cert-file", TlsFiles.cert])
        client.command(["ACL", "LOAD"])


def main() -> int:
    """Command line."""
    what, cell = sys.argv[1:3]
    settings = json.loads((ETC / f"{cell}.json").read_text())
    running = STATE / "redis" / cell / "redis.conf"
    if what == "reload":
        reload(settings)
        return 0
    try:
        primary = primary_by_sentinels(settings)
    except ResilienceError as exc:
        print(f"cannot ask the Sentinels: {exc}", file=sys.stderr)
        return 1
    if what == "redis":
        write(running, compose_redis(settings, read(running), primary))
        print(f"primary of {cell}: {primary or 'no other Sentinel answered'}; {read(running).splitlines()[1:]}")
        return 0
    state = STATE / "sentinel" / cell / "sentinel.conf"
    before = read(state)
    known = primary or monitored(before, cell) or followed(read(running)) or (settings["address"], settings["port"])
    write(state, compose_sentinel(settings, read(ETC / f"{cell}.sentinel.conf"), before, known))
    print(f"primary of {cell}: {known}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
