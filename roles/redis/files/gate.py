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

Where a region agent runs, its word comes first: it has asked the registry which region is the cell's home. Only the
home's Sentinels are believed then, and outside the home nothing starts as a primary. Without a word in time an instance
starts as a follower of nobody, which takes no writes; the agent promotes it if it must.

A primary whose data is gone would wipe its replicas. It does not start while one of them still has data: the Sentinels
then promote that one, and at its next try this instance starts as its replica.
"""

from __future__ import annotations

import json
import os
import sys
import time
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
#: Where the region agent leaves its word, and how old that may be. Its unit says whether there is an agent.
WORDS = Path("/run/shannon-region-agent")
AGENT_UNIT = Path("/etc/systemd/system/shannon-region-agent.service")
FRESH = 10.0
WORD_WITHIN = 20.0
#: Whom an instance follows that must take no writes: nobody listens there.
NOBODY = ("127.0.0.1", 1)
LEARNED = ("sentinel myid", "sentinel current-epoch")
LEARNED_OF_CELL = ("leader-epoch", "known-replica", "known-slave", "known-sentinel")

Address = tuple[str, int]
Settings = dict[str, t.Any]


class Refusal(ResilienceError):
    """It is not safe to start now; the unit tries again."""


def agents_word(cell: str, seconds: float = WORD_WITHIN) -> Settings | None:
    """What the region agent says of the cell; None when it says nothing new in time."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            word = json.loads((WORDS / f"{cell}.json").read_text())
            if 0 <= time.clock_gettime(time.CLOCK_BOOTTIME) - word["at"] <= FRESH and word["duty"] != "waiting":
                return t.cast(Settings, word)
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not written yet, or cut off by a full disk: asked again below
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.2)


def views_of_sentinels(
    settings: Settings, context: ssl.SSLContext, hosts: t.Sequence[str] | None = None
) -> list[SentinelView]:
    """What the other Sentinels that answer say of the cell's primary.

    :param hosts: whom to ask; all others when it is left out.
    """

    def asker(host: str) -> t.Callable[[], SentinelView | None]:
        def ask() -> SentinelView | None:
            user, password = settings["sentinel_user"], settings["sentinel_password"]
            with RedisClient(host, settings["sentinel_port"], user, password, context, ANSWER_WITHIN) as client:
                return client.sentinel_view(settings["cell"])

        return ask

    answers = gather({host: asker(host) for host in (settings["others"] if hosts is None else hosts)})
    return [answer for answer in answers.values() if isinstance(answer, SentinelView)]


def compose_by_word(settings: Settings, before: str, word: Settings | None, context: ssl.SSLContext) -> str:
    """The configuration to start Redis with where a region agent runs."""
    record = (word or {}).get("record")
    if word is None or word["duty"] == "fenced" or not record:
        return compose_follower(settings, NOBODY)
    if word["duty"] == "standby" and word.get("redis_waits"):
        # What it has is not kept yet; the agent says whom to follow as soon as it is.
        return compose_follower(settings, NOBODY)
    if word["duty"] == "home":
        view = best_view(views_of_sentinels(settings, context, settings["neighbours"]))
        composed = compose_redis(settings, before, (view.address, view.port) if view else None)
        here = [settings["address"], *settings["neighbours"]]
        whom = followed(composed)
        # Whom it followed may be in a region that was the home; the agent says whom to follow as soon as it knows.
        return composed if whom is None or whom[0] in here else compose_follower(settings, whom)
    view = best_view(views_of_sentinels(settings, context, settings["regions"].get(record["home"], [])))
    return compose_follower(settings, (view.address, view.port) if view else followed(before) or NOBODY)


def compose_follower(settings: Settings, whom: Address) -> str:
    """The configuration of an instance that is never promoted by Sentinel."""
    own = (settings["address"], settings["port"])
    host, port = NOBODY if whom == own else whom
    return f"include {ETC}/{settings['cell']}.conf\nreplica-priority 0\nreplicaof {host} {port}\n"


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


def of_this_stay(path: Path, before: str, word: Settings | None) -> str:
    """What Sentinel learned, if that was while the cell was at home here without a break since; else its name alone."""
    stay = str(((word or {}).get("record") or {}).get("epoch", ""))
    if not stay or read(path).strip() == stay:
        return before
    write(path, stay + "\n")
    return "".join(line + "\n" for line in before.splitlines() if line.startswith("sentinel myid"))


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
    before = read(directory / "redis.conf")
    if AGENT_UNIT.exists():
        composed = compose_by_word(settings, before, agents_word(settings["cell"]), context)
    else:
        view = best_view(views_of_sentinels(settings, context))
        composed = compose_redis(settings, before, (view.address, view.port) if view else None)
    if followed(composed) is None and not has_data(directory):
        holders = holders_of_data(settings, context)
        if holders:
            raise Refusal(
                f"{directory} has no append-only file, but {', '.join(holders)} has data: as a primary this instance "
                "would wipe it. Sentinel promotes a replica while this one stays down; without Sentinel, restore "
                "the append-only file, or make one that has data the primary (REPLICAOF NO ONE)"
            )
    write(directory / "redis.conf", composed)
    print(f"{settings['cell']} starts with: {'; '.join(composed.splitlines()[1:])}")


def start_sentinel(settings: Settings, context: ssl.SSLContext) -> None:
    """Compose sentinel.conf."""
    cell = settings["cell"]
    path = STATE / "sentinel" / cell / "sentinel.conf"
    before = read(path)
    neighbours = None
    if AGENT_UNIT.exists():
        # Another region's Sentinels know of another home, at an epoch that may be higher than this region's. And what
        # this one learned when the region was the home before is worth nothing now.
        neighbours = settings["neighbours"]
        before = of_this_stay(path.with_name("stay"), before, agents_word(cell))
    view = best_view(views_of_sentinels(settings, context, neighbours))
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
