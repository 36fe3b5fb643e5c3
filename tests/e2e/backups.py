"""Backups as an operator takes and restores them: the runner, restore.yml, and a table to look at."""

from __future__ import annotations

import json
import subprocess
import typing as t

import shannon_api as services

import lab

REPOSITORY = {"a": "a3", "b": "b3"}
RUNNER = "/usr/local/sbin/shannon-backup"
STATE = "/var/lib/shannon/backup"
TABLE = "public.e2e_backups"
STOP = ("-e", "restore_stop_writes=true", "-e", "reason=e2e")


def make_table() -> None:
    """A table of our own, filled."""
    psql(f"DROP TABLE IF EXISTS {TABLE}")
    psql(f"CREATE TABLE {TABLE} (id int PRIMARY KEY, word text NOT NULL)")
    psql(f"INSERT INTO {TABLE} SELECT n, md5(n::text) FROM generate_series(1, 5000) n")


def leader() -> lab.Host:
    """The host of PostgreSQL's primary."""
    info = lab.status()
    return lab.Host(lab.member_with(info, "postgres", info["cells"]["main"]["home"], "primary"))


def psql(statement: str, host: lab.Host | None = None, timeout: float = 60) -> str:
    """Run a statement as PostgreSQL's superuser on the primary's host."""
    command = "runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 -p 5432 -d shannon"
    return (host or leader()).sh(command, stdin=statement, timeout=timeout).strip()


def table() -> str:
    """Rows and checksum of our table."""
    return psql(f"SELECT count(*), md5(string_agg(id || word, ',' ORDER BY id)) FROM {TABLE}")


def runner(host: str, *words: str, check: bool = True, timeout: float = 300) -> t.Any:
    """What the runner on a repository's host prints as JSON."""
    said = lab.Host(host).sh(f"{RUNNER} {' '.join(words)} --json", check=check, timeout=timeout)
    return json.loads(said) if said.strip() else None


def known(host: str, kind: str) -> list[dict[str, t.Any]]:
    """The backups of a kind that a repository's host lists, the oldest first."""
    return t.cast("list[dict[str, t.Any]]", runner(host, "list", "--kind", kind))


def line(kind: str, region: str) -> dict[str, t.Any]:
    """What the status says of the backups of a kind in a region."""
    lines = lab.status()["backups"]["kinds"]
    return next(one for one in lines if (one["kind"], one["region"]) == (kind, region))


def restore(*options: str, check: bool = True, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    return lab.playbook("restore", "-e", "cell=main", *options, check=check, timeout=timeout)


def seconds_of(done: subprocess.CompletedProcess[str]) -> str:
    """The phases that restore.yml printed, in a line."""
    lines = [line.strip(" -'\",") for line in done.stdout.splitlines()]
    names = ("close", "postgres", "redis", "qdrant", "start", "validate")
    phases = [line.split() for line in lines if line.startswith(names) and " s " in f"{line} "]
    return ", ".join(f"{words[0]} {words[1]} s" for words in phases if len(words) > 1)


def close_segment() -> str:
    """Have the primary close its WAL segment; the segment's name. Markers are written all the time, so there is one."""
    return psql("SELECT pg_walfile_name(pg_switch_wal())")


def archived(region: str, segment: str) -> bool:
    """Whether a WAL segment is whole in a region's repository."""
    found = f"find {STATE}/pgbackrest/archive/main -name '{segment}-*.lz4'"
    return bool(lab.Host(REPOSITORY[region]).sh(found).strip())


_REDIS = """
import json, redis
client = redis.Redis(
    host="localhost", port=16379, username="app", password={password!r}, decode_responses=True, socket_timeout=10,
    ssl=True, ssl_ca_certs="{pki}/ca.crt", ssl_certfile="{pki}/host.crt", ssl_keyfile="{pki}/host.key",
)
{work}
"""


def redis(work: str) -> str:
    """Run some lines with a client of the cell's Redis."""
    source = _REDIS.format(password=lab.secret("redis_app"), pki=services.PKI, work=work)
    return services.service_python("a1", source).strip()
