"""Megabytes a second of a PostgreSQL backup and its restore, beside plain pg_basebackup, in the same run.

    tests/bench/bench_backup.py --primary a1 --replica a2 --repository a3 [--cell main] [--megabytes 512] [--repo 1]

Runs on hosts as root, over ssh or whatever --ssh names. It makes a database shannon_bench of that size on the cell's
primary and takes a full backup on the repository's host. Then, in turn, it restores that backup beside the live data of
the replica, and copies the primary with pg_basebackup to the same disk. The writers' p99 is measured by pgbench, with
and without a backup. What was made is removed in the end. The target is a restore of at least 0.8 of pg_basebackup, and
a p99 of at most 1.5 times. The figures are printed, and nothing is judged: the machines are noisy.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import subprocess
import sys
import threading
import time

TARGET = 0.8
LOAD = 1.5
#: pgbench's own table would measure reads; this is one row, committed to a second host.
SCRIPT = "INSERT INTO bench_writes (payload) VALUES (md5(random()::text));"


class Host:
    """Commands on one host, as a user."""

    def __init__(self, ssh: list[str], name: str) -> None:
        self._ssh = [*ssh, name]
        self.name = name

    def run(self, command: str, user: str = "postgres", timeout: float = 3600.0) -> str:
        """What it prints; it must succeed."""
        remote = f"cd / && runuser -u {user} -- sh -c {shlex.quote(command)}"
        done = subprocess.run([*self._ssh, remote], capture_output=True, text=True, timeout=timeout, check=False)
        if done.returncode:
            sys.exit(f"{self.name}: {command}: {done.stderr.strip()[-600:]}")
        return done.stdout

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
    parser.add_argument("--primary", required=True, help="the host of the cell's primary")
    parser.add_argument(
        "--replica", required=True, help="a replica's host in the home region: it is copied and restored to"
    )
    parser.add_argument("--repository", required=True, help="the repository's host")
    parser.add_argument("--cell", default="main")
    parser.add_argument("--port", type=int, default=5432)
    parser.add_argument("--repo", type=int, default=1, help="number of the repository")
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=20, help="of writing, for the p99")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--ssh",
        default="ssh",
        help="a command that runs the rest of its words as root on the host that the first one names",
    )
    given = parser.parse_args()
    ssh = shlex.split(given.ssh)
    host, repository = Host(ssh, given.primary), Host(ssh, given.repository)
    replica = Host(ssh, given.replica)
    psql = f"psql -XAtq -v ON_ERROR_STOP=1 -p {given.port}"
    base = f"/var/lib/shannon/postgres/{given.cell}/bench"
    pgbackrest = f"pgbackrest --config=/etc/pgbackrest/repository.conf --stanza={given.cell} --repo={given.repo}"
    # As Patroni clones a member: with the password file that it keeps on replicas, and the host's certificate.
    pki = "/etc/shannon/pki"
    copying = (
        f"PGPASSFILE=/var/lib/shannon/postgres/{given.cell}/pgpass PGPORT={given.port} "
        f"PGHOST=$(getent hosts {given.primary} | cut -d' ' -f1) PGUSER=replicator PGSSLMODE=verify-ca "
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
        quiet = p99(host, given.port, given.seconds)
        loads: list[float] = []
        writer = threading.Thread(target=lambda: loads.append(p99(host, given.port, given.seconds)))
        writer.start()
        backup = repository.timed(f"{pgbackrest} --type=full backup", "shannon-backup")
        writer.join()
        size = int(host.run(f"du -sbx --exclude=pg_wal /var/lib/shannon/postgres/{given.cell}/data").split()[0]) / 1e6
        restores, copies = [], []
        for _round in range(given.rounds):
            replica.run(f"rm -rf {base}")
            restores.append(
                replica.timed(
                    f"mkdir -m 700 {base} && pgbackrest --stanza={given.cell} --repo={given.repo} --pg1-path={base} "
                    f"--process-max={given.processes} --type=none restore"
                )
            )
            replica.run(f"rm -rf {base}")
            copies.append(replica.timed(f"{copying} pg_basebackup -D {base} -c fast -X none --no-slot"))
        restore, copy = statistics.median(restores), statistics.median(copies)
        print(f"cluster {size:.0f} MB, medians of {given.rounds}")
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
