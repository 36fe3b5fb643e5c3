# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast Redis and Qdrant are backed up, proven and restored, and what restic makes of the files.

Everything runs on this machine, in instances of its own on loopback. Redis is compared with a plain C(redis-cli --rdb)
of the same data in the same run, the floor for any backup over replication.

    python tests/bench/bench_backup_stores.py [--megabytes 200] [--points 20000] [--qdrant .cache/qdrant/qdrant]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import typing as t

from ansible_collections.shannon.resilience.plugins.module_utils import qdrant_snapshot, redis_backup
from ansible_collections.shannon.resilience.plugins.module_utils.concurrently import wait_until
from ansible_collections.shannon.resilience.plugins.module_utils.qdrant import Qdrant
from ansible_collections.shannon.resilience.plugins.module_utils.qdrant_scratch import scratch
from ansible_collections.shannon.resilience.plugins.module_utils.redis import RedisClient
from ansible_collections.shannon.resilience.plugins.module_utils.redis_restore import LiveRestore
from ansible_collections.shannon.resilience.plugins.module_utils.redis_scratch import Listener
from ansible_collections.shannon.resilience.plugins.module_utils.restic import Repository, Restic, restored_path

VALUE = 1000
DIMENSION = 256
R = t.TypeVar("R")


def timed(call: t.Callable[[], R]) -> tuple[R, float]:
    begun = time.monotonic()
    return call(), time.monotonic() - begun


def row(what: str, seconds: float, size: int, note: str = "") -> None:
    print(f"{what:<44}{seconds:>8.2f} s{size / 1e6 / max(seconds, 1e-9):>10.1f} MB/s  {note}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def redis(folder: str) -> t.Iterator[tuple[t.Callable[[], RedisClient], redis_backup.Source]]:
    """A Redis of one's own, with an append-only file."""
    os.makedirs(folder)
    port = free_port()
    words = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--appendonly", "yes"]
    words += ["--save", "", "--repl-diskless-sync-delay", "0"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)

    def client() -> RedisClient:
        return RedisClient("127.0.0.1", port, "", "", None, 60.0)

    def answers() -> tuple[bool, str]:
        with client() as one:
            return one.command(["PING"]) == "PONG", "no answer"

    try:
        wait_until(answers, "Redis to answer", 20, 0.05)
        yield client, redis_backup.Source("127.0.0.1", port, "", "", None)
    finally:
        process.terminate()
        process.wait(30)


def bench_redis(folder: str, megabytes: int) -> str:
    with redis(os.path.join(folder, "redis")) as (client, source):
        with client() as one:
            for first in range(0, megabytes * 1000, 1000):
                # Random text, so that neither Redis nor restic can make it small.
                one.pipeline([["SET", f"key:{first + n}", secrets.token_hex(VALUE // 2)] for n in range(1000)])
        plain = os.path.join(folder, "plain.rdb")
        _none, floor = timed(lambda: redis_backup.pull(source, plain))
        size = os.path.getsize(plain)
        row("redis: plain redis-cli --rdb", floor, size)
        backup = os.path.join(folder, "redis-backup")
        manifest, seconds = timed(lambda: redis_backup.take(source, backup))
        row(
            "redis: backup, checked and loaded",
            seconds,
            size,
            f"of it pulled and read: {manifest['pull_seconds']:.2f} s",
        )
        problems, seconds = timed(lambda: redis_backup.verify(backup))
        row("redis: proof", seconds, size, "; ".join(problems))
        with client() as one:
            one.command(["FLUSHALL"])
        os.makedirs(os.path.join(folder, "restore"))
        scratch_folder = os.path.join(folder, "restore", "instance")
        live = LiveRestore(client, source, Listener(free_port(), None), scratch_folder, ("", ""))
        _done, seconds = timed(lambda: live.run(backup, manifest))
        row("redis: live restore, read back, file rewritten", seconds, size)
    return backup


def fill_qdrant(peer: Qdrant, points: int) -> None:
    peer.create_collection("cases", DIMENSION, 2, 1)
    peer.create_index("cases", "user_id", "keyword")
    for first in range(0, points, 1000):
        batch = [
            {
                "id": n,
                "vector": [random.gauss(0, 1) for _number in range(DIMENSION)],
                "payload": {"user_id": f"u{n % 50}"},
            }
            for n in range(first, min(first + 1000, points))
        ]
        peer._result("PUT", "/collections/cases/points?wait=true", {"points": batch}, timeout=120)


def bench_qdrant(folder: str, binary: str, points: int) -> str:
    backup = os.path.join(folder, "qdrant-backup")
    with scratch(os.path.join(folder, "qdrant"), binary) as peers:
        fill_qdrant(peers["scratch"], points)
        manifest, seconds = timed(lambda: qdrant_snapshot.take(peers, backup))
        row("qdrant: backup", seconds, manifest["bytes"], f"{points / seconds:.0f} points/s")
        peers["scratch"].delete_collection("cases")
        _done, seconds = timed(lambda: qdrant_snapshot.restore(peers, backup))
        row("qdrant: restore and comparison", seconds, manifest["bytes"], f"{points / seconds:.0f} points/s")
    return backup


def bench_restic(folder: str, backup: str, what: str) -> None:
    restic = Restic(Repository("bench", os.path.join(folder, "repository"), "a-password-of-a-bench"))
    restic.init()
    first, seconds = timed(lambda: restic.backup([backup], [f"kind={what}"]))
    row(f"restic: {what}", seconds, first.bytes, f"{first.added / 1e6:.1f} MB added")
    again, seconds = timed(lambda: restic.backup([backup], [f"kind={what}"]))
    row(f"restic: {what}, the same again", seconds, again.bytes, f"{again.added / 1e6:.1f} MB added")
    into = os.path.join(folder, f"restored-{what}")
    _done, seconds = timed(lambda: restic.restore(again.id, into))
    row(f"restic: {what}, restored", seconds, again.bytes)
    if subprocess.run(["diff", "-r", backup, restored_path(into, backup)], check=False).returncode:
        sys.exit(f"bench_backup_stores: what restic restored of {what} is not what was backed up")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200, help="data in Redis")
    parser.add_argument("--points", type=int, default=20000, help="points in Qdrant")
    parser.add_argument("--qdrant", default="", help="Qdrant's server; left out, Qdrant is")
    options = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="bench-stores-")
    try:
        print(f"{'':<44}{'time':>10}{'rate':>15}")
        bench_restic(folder, bench_redis(folder, options.megabytes), "redis")
        if options.qdrant:
            bench_restic(folder, bench_qdrant(folder, options.qdrant, options.points), "qdrant")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
