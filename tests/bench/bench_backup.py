"""Megabytes a second of a PostgreSQL backup and its restore, beside plain pg_basebackup, in the same run.

    tests/bench/bench_backup.py [--megabytes 512] [--rounds 3] [--seconds 20]

The lab has to be up, and at rest. It makes a database shannon_bench of that size on the cell's primary and takes a full
backup on the repository's host of the home region. Then, in turn, it restores that backup beside the live data of a
replica, and copies the primary with pg_basebackup to the same disk. The writers' p99 is measured by pgbench, with and
without a backup. What was made is removed in the end. The target is a restore of at least 0.8 of pg_basebackup, and a
p99 of at most 1.5 times. The figures are printed, and nothing is judged: the machines are noisy.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import backups

import lab

CELL, PORT = "main", 5432
#: Seconds that any one step may take.
BOUND = 1800.0
TARGET = 0.8
LOAD = 1.5
#: pgbench's own table would measure reads; this is one row, committed to a second host.
SCRIPT = "INSERT INTO bench_writes (payload) VALUES (md5(random()::text));"


class Host:
    """Commands on one host, as a user."""

    def __init__(self, name: str) -> None:
        self._host = lab.Host(name)

    def run(self, command: str, user: str = "postgres") -> str:
        """What it prints; it must succeed."""
        return self._host.sh(f"cd / && runuser -u {user} -- sh -c {shlex.quote(command)}", timeout=BOUND)

    def timed(self, command: str, user: str = "postgres") -> float:
        """Seconds that it takes."""
        began = time.monotonic()
        self.run(command, user)
        return time.monotonic() - began


def p99(host: Host, port: int, seconds: int) -> float:
    """Milliseconds of the 99th percentile of a commit, as four writers see it."""
    log = host.run(
        f"cd $(mktemp -d) && printf %s {shlex.quote(SCRIPT)} > w.sql && "
        f"pgbench -n -p {port} -c 4 -T {seconds} -f w.sql -l "
        'shannon_bench >/dev/null 2>&1; cat pgbench_log.*; rm -rf "$PWD"'
    )
    values = sorted(int(line.split()[2]) / 1000 for line in log.splitlines() if line)
    return values[int(len(values) * 0.99)] if values else float("nan")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=20, help="of writing, for the p99")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    primary = backups.leader().name
    home = lab.LAB.host(primary).region
    repo = sorted(backups.REPOSITORY).index(home) + 1
    others = [one.name for one in lab.LAB.hosts.values() if one.region == home and one.name != primary]
    host, repository = Host(primary), Host(backups.REPOSITORY[home])
    replica = Host(min(others))
    psql = f"psql -XAtq -v ON_ERROR_STOP=1 -p {PORT}"
    base = f"/var/lib/shannon/postgres/{CELL}/bench"
    pgbackrest = f"pgbackrest --config=/etc/pgbackrest/repository.conf --stanza={CELL} --repo={repo}"
    # As Patroni clones a member: with the password file that it keeps on replicas, and the host's certificate.
    pki = "/etc/shannon/pki"
    copying = (
        f"PGPASSFILE=/var/lib/shannon/postgres/{CELL}/pgpass PGPORT={PORT} "
        f"PGHOST=$(getent hosts {primary} | cut -d' ' -f1) PGUSER=replicator PGSSLMODE=verify-ca "
        f"PGSSLROOTCERT={pki}/ca.crt PGSSLCERT={pki}/host.crt PGSSLKEY={pki}/host.key "
    )
    host.run(f"{psql} -d postgres -c 'DROP DATABASE IF EXISTS shannon_bench' -c 'CREATE DATABASE shannon_bench'")
    try:
        # Text that compresses about as well as rows do: half of it is random.
        rows = given.megabytes * 1024
        host.run(
            f"{psql} -d shannon_bench -c 'CREATE TABLE bench_writes (id bigserial, payload text)' -c "
            + shlex.quote(
                "CREATE TABLE bench AS SELECT i, (SELECT string_agg(md5(i::text || j), ' some plain words of a row ') "
                f"FROM generate_series(1, 16) j) AS v FROM generate_series(1, {rows}) i"
            )
            + " -c CHECKPOINT"
        )
        quiet = p99(host, PORT, given.seconds)
        loads: list[float] = []
        writer = threading.Thread(target=lambda: loads.append(p99(host, PORT, given.seconds)))
        writer.start()
        backup = repository.timed(f"{pgbackrest} --type=full backup", "shannon-backup")
        writer.join()
        size = int(host.run(f"du -sbx --exclude=pg_wal /var/lib/shannon/postgres/{CELL}/data").split()[0]) / 1e6
        restores, copies = [], []
        for _round in range(given.rounds):
            replica.run(f"rm -rf {base}")
            restores.append(
                replica.timed(
                    f"mkdir -m 700 {base} && pgbackrest --stanza={CELL} --repo={repo} --pg1-path={base} "
                    f"--process-max={given.processes} --type=none restore"
                )
            )
            replica.run(f"rm -rf {base}")
            copies.append(replica.timed(f"{copying} pg_basebackup -D {base} -c fast -X none --no-slot"))
        restore, copy = statistics.median(restores), statistics.median(copies)
        print(f"cluster {size:.0f} MB on {primary}, repository {repo}, medians of {given.rounds}")
        print(f"full backup     {size / backup:8.1f} MB/s ({backup:.1f} s, writers at work)")
        print(f"full restore    {size / restore:8.1f} MB/s ({restore:.1f} s)")
        print(f"pg_basebackup   {size / copy:8.1f} MB/s ({copy:.1f} s)")
        print(f"restore / pg_basebackup: {copy / restore:.2f} (target {TARGET})")
        loaded = loads[0] if loads else float("nan")
        print(f"writers' p99    {quiet:8.1f} ms, while backing up {loaded:.1f} ms")
        print(f"p99 with / without: {loaded / quiet:.2f} (target {LOAD})")
    finally:
        replica.run(f"rm -rf {base}")
        host.run(f"{psql} -d postgres -c 'DROP DATABASE IF EXISTS shannon_bench WITH (FORCE)'")


if __name__ == "__main__":
    main()
