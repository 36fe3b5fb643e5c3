# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens before a cell's Redis or Sentinel starts, and when its certificate changed.

    gate.py redis CELL      compose redis.conf: the role's part, and whom to follow
    gate.py sentinel CELL   compose sentinel.conf: the role's part, and what Sentinel had learned
    gate.py reload CELL     have the running Redis read its certificate again

Redis and Sentinel rewrite the file that they were started with. So that Ansible's part always wins, that file is
composed anew at each start, and of what they wrote only what Ansible can't know is kept.

A Redis that was a primary when its host died must not come back as one while another was promoted: the other
Sentinels of the group are asked first, and of those that differ the one with the highest epoch is believed. Only when
none of them answers does it start as what it was; C(min-replicas-to-write) keeps it from taking writes alone.

A primary whose data is gone would wipe its replicas. It does not start while one of them still has data: the Sentinels
then promote that one, and at its next try this instance starts as its replica.
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
from shannon_library.redis import RedisClient, Replication, SentinelView, replication_info
from shannon_library.tls import TlsFiles, client_context

if t.TYPE_CHECKING:
    import ssl

ETC = Path("/etc/shannon/redis")
STATE = Path("/var/lib/shannon")
#: Seconds that each Sentinel or Redis has to answer; all are asked at once.
ANSWER_WITHIN = 1.5
HOME_PRIORITY = 100
LEARNED = ("sentinel myid", "sentinel current-epoch")
LEARNED_OF_CELL = ("leader-epoch", "known-replica", "known-slave", "known-sentinel")

Address = tuple[str, int]
Settings = dict[str, t.Any]


class Refusal(ResilienceError):
    """It is not safe to start now; the unit tries again."""


def views_of_sentinels(settings: Settings, context: ssl.SSLContext) -> list[SentinelView]:
    """What the other Sentinels that answer say of the cell's primary."""

    def asker(host: str) -> t.Callable[[], SentinelView | None]:
        def ask() -> SentinelView | None:
            user, password = settings["sentinel_user"], settings["sentinel_password"]
            with RedisClient(host, settings["sentinel_port"], user, password, context, ANSWER_WITHIN) as client:
                return client.sentinel_view(settings["cell"])

        return ask

    answers = gather({host: asker(host) for host in settings["others"]})
    return [answer for answer in answers.values() if isinstance(answer, SentinelView)]


def best_view(views: t.Sequence[SentinelView]) -> SentinelView | None:
    """The view of the highest epoch, and of those the one that most share; None when there is none."""
    if not views:
        return None
    votes = Counter((view.address, view.port, view.epoch) for view in views)
    return max(views, key=lambda view: (view.epoch, votes[view.address, view.port, view.epoch]))


def holders_of_data(settings: Settings, context: ssl.SSLContext) -> list[str]:
    """The other instances that answer and have keys."""

    def asker(host: str) -> t.Callable[[], Replication]:
        return lambda: replication_info(
            host, settings["port"], "monitor", settings["monitor_password"], context, ANSWER_WITHIN
        )

    answers = gather({host: asker(host) for host in settings["others"]})
    return [host for host, answer in answers.items() if isinstance(answer, Replication) and answer.keys > 0]


def has_data(directory: Path) -> bool:
    """Whether an instance has an append-only file to start from; it ignores everything else at its start."""
    single = directory / "appendonly.aof"  # Redis 6.0, or not upgraded yet
    return single.exists() or any((directory / "appendonlydir").glob("*.manifest"))


def followed(conf: str) -> Address | None:
    """Whom the instance followed when it last ran, from its running configuration."""
    found = None
    for line in conf.splitlines():
        words = line.split()
        if len(words) == 3 and words[0].lower() in ("replicaof", "slaveof"):
            found = None if words[1].lower() == "no" else (words[1].strip('"'), int(words[2].strip('"')))
    return found


def priority_of(settings: Settings, before: str, named: Address | None) -> int:
    """The priority to start with: 0, so never promoted, for an instance whose primary lives in another region.

    When nobody says where the primary is, it is what the instance last had, and at the first start what the role knew.
    """
    if named:
        return HOME_PRIORITY if named[0] in [settings["address"], *settings["neighbours"]] else 0
    for line in reversed(before.splitlines()):
        words = line.split()
        if len(words) == 2 and words[0] in ("replica-priority", "slave-priority") and words[1].isdigit():
            return int(words[1])
    # Redis leaves out of its file what is the default, so a file without the word is one with a priority of 100.
    return HOME_PRIORITY if before.strip() or settings["home"] else 0


def compose_redis(settings: Settings, before: str, named: Address | None) -> str:
    """The configuration to start Redis with.

    :param before: the one it ran with last; empty at the first start.
    :param named: whom the Sentinels name as the primary; None when none answers.
    """
    own = (settings["address"], settings["port"])
    follow = followed(before) if named is None else named
    lines = [f"include {ETC}/{settings['cell']}.conf", f"replica-priority {priority_of(settings, before, named)}"]
    if follow and follow != own:
        lines.append(f"replicaof {follow[0]} {follow[1]}")
    return "\n".join(lines) + "\n"


def choose_monitored(settings: Settings, before: str, running: str, view: SentinelView | None) -> tuple[Address, int]:
    """Whom Sentinel should watch, and the epoch of that knowledge.

    The other Sentinels' word counts unless this one knew better. Alone, it believes its own Redis, which was told when
    the primary changed, and then what it watched before.
    """
    cell = settings["cell"]
    known, epoch = monitored(before, cell)
    if view and view.epoch >= epoch:
        return (view.address, view.port), view.epoch
    own = (settings["address"], settings["port"])
    of_redis = (followed(running) or own) if running.strip() else None
    if view:
        return known or of_redis or own, epoch
    return of_redis or known or own, epoch


def compose_sentinel(settings: Settings, static: str, before: str, primary: Address, epoch: int) -> str:
    """The configuration to start Sentinel with; it has to name the primary before it may say more of it."""
    cell = settings["cell"]
    head, _marker, tail = static.partition('# Here goes the line "sentinel monitor".\n')
    learned = []
    for line in before.splitlines():
        words = line.split()
        of_cell = len(words) > 2 and words[0] == "sentinel" and words[1] in LEARNED_OF_CELL and words[2] == cell
        if not of_cell and not line.startswith(LEARNED):
            continue
        if of_cell and words[1] in ("known-replica", "known-slave") and words[3:5] == [primary[0], str(primary[1])]:
            continue  # Sentinel would order the primary to follow itself
        learned.append(line)
    monitor = f"sentinel monitor {cell} {primary[0]} {primary[1]} {settings['quorum']}\n"
    return head + monitor + tail + "\n".join([f"sentinel config-epoch {cell} {epoch}", *learned]) + "\n"


def monitored(conf: str, cell: str) -> tuple[Address | None, int]:
    """Whom Sentinel watched when it last ran, and at which epoch."""
    found: Address | None = None
    epoch = 0
    for line in conf.splitlines():
        words = line.split()
        if words[:3] == ["sentinel", "monitor", cell] and len(words) == 6:
            found = (words[3], int(words[4]))
        elif words[:3] == ["sentinel", "config-epoch", cell] and len(words) == 4:
            epoch = int(words[3])
    return found, epoch


def write(path: Path, text: str) -> None:
    """Replace a file in one step that survives a power cut."""
    staged = path.with_suffix(".new")
    with open(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640), "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    staged.replace(path)


def read(path: Path) -> str:
    """A file's text; empty when it is not there."""
    return path.read_text() if path.exists() else ""


def start_redis(settings: Settings, context: ssl.SSLContext) -> None:
    """Compose redis.conf.

    :raises Refusal: this instance would wipe its replicas.
    """
    directory = STATE / "redis" / settings["cell"]
    view = best_view(views_of_sentinels(settings, context))
    composed = compose_redis(settings, read(directory / "redis.conf"), (view.address, view.port) if view else None)
    if followed(composed) is None and not has_data(directory):
        holders = holders_of_data(settings, context)
        if holders:
            raise Refusal(
                f"{directory} has no append-only file, but {', '.join(holders)} has data: as a primary this instance "
                "would wipe it. Sentinel promotes a replica while this one stays down; without Sentinel, restore "
                "the append-only file, or make one that has data the primary (REPLICAOF NO ONE)"
            )
    write(directory / "redis.conf", composed)
    print(f"primary of {settings['cell']}: {view or 'no other Sentinel answered'}; {composed.splitlines()[1:]}")


def start_sentinel(settings: Settings, context: ssl.SSLContext) -> None:
    """Compose sentinel.conf."""
    cell = settings["cell"]
    path = STATE / "sentinel" / cell / "sentinel.conf"
    before = read(path)
    view = best_view(views_of_sentinels(settings, context))
    primary, epoch = choose_monitored(settings, before, read(STATE / "redis" / cell / "redis.conf"), view)
    write(path, compose_sentinel(settings, read(ETC / f"{cell}.sentinel.conf"), before, primary, epoch))
    print(f"primary of {cell}: {primary}, epoch {epoch}")


def reload(settings: Settings, context: ssl.SSLContext) -> None:
    """Setting a TLS file to what it is makes Redis read it, and its key, again."""
    password = json.loads((ETC / f"{settings['cell']}.admin.json").read_text())["password"]
    with RedisClient("localhost", settings["port"], "admin", password, context, 5) as client:
        client.command(["CONFIG", "SET", "tls-ca-cert-file", TlsFiles.ca])
        client.command(["CONFIG", "SET", "tls-cert-file", TlsFiles.cert])


VERBS: dict[str, t.Callable[[Settings, ssl.SSLContext], None]] = {
    "redis": start_redis,
    "sentinel": start_sentinel,
    "reload": reload,
}


def main() -> int:
    """Command line."""
    if len(sys.argv) != 3 or sys.argv[1] not in VERBS:
        print(f"usage: gate.py {'|'.join(VERBS)} CELL", file=sys.stderr)
        return 2
    settings = json.loads((ETC / f"{sys.argv[2]}.json").read_text())
    try:
        VERBS[sys.argv[1]](settings, client_context(TlsFiles()))
    except ResilienceError as exc:
        print(f"gate.py {sys.argv[1]} {sys.argv[2]}: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
