# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One cell: a primary with a synchronous replica in region a, and region b following over TLS."""

from __future__ import annotations

import json
import os
import pathlib
import time
import typing as t
from pathlib import Path

import pytest
import testinfra
import yaml

ADDRESSES = {"ma1": "198.18.4.11", "ma2": "198.18.4.12", "mb1": "198.18.4.21"}
PKI = "sslrootcert=/etc/shannon/pki/ca.crt sslcert=/etc/shannon/pki/host.crt sslkey=/etc/shannon/pki/host.key"
ROLE = pathlib.Path(__file__).parents[3] / "roles" / "postgres"
MIGRATIONS = len(list((ROLE / "files" / "migrations").glob("*.sql")))
TABLES = {
    "users", "sessions", "task_executions", "agent_executions", "tool_executions", "session_archives", "event_logs",
    "audit_logs", "prompts", "learning_cases", "token_usage", "usage_daily_aggregates", "vector_log",
    "dr_markers",
}  # fmt: skip


def on(name: str) -> t.Any:
    return testinfra.get_host(f"docker://{name}")


@pytest.fixture(params=sorted(ADDRESSES))
def member(request: pytest.FixtureRequest) -> t.Any:
    return on(request.param)


@pytest.fixture(scope="module")
def secrets() -> dict[str, str]:
    path = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "secrets" / "secrets.yml"
    return yaml.safe_load(path.read_text())


def patroni(name: str, path: str) -> t.Any:
    run = on(name).run(
        "curl -s --max-time 5 --cacert /etc/shannon/pki/ca.crt --cert /etc/shannon/pki/host.crt "
        "--key /etc/shannon/pki/host.key https://%s:8008%s",
        ADDRESSES[name],
        path,
    )
    assert run.rc == 0, run.stderr
    return json.loads(run.stdout)


def members(name: str) -> dict[str, dict[str, t.Any]]:
    return {member["name"]: member for member in patroni(name, "/cluster")["members"]}


def leader(name: str = "ma1") -> str:
    return next(key for key, value in members(name).items() if value["role"] in ("leader", "standby_leader"))


def sql(name: str, query: str, database: str = "shannon") -> str:
    run = on(name).run("cd /tmp && runuser -u postgres -- psql -qAtX -v ON_ERROR_STOP=1 -d %s -c %s", database, query)
    assert run.rc == 0, run.stderr
    return run.stdout.strip()


def connect(source: str, target: str, options: str, password: str, user: str = "shannon") -> t.Any:
    host = on(source)
    conninfo = f"host={target} port=5432 user={user} dbname=shannon connect_timeout=5 {options}"
    return host.run("cd /tmp && PGPASSWORD=%s psql -qAtX -d %s -c %s", password, conninfo, "SELECT 1")


def test_region_a_has_a_primary_with_a_synchronous_replica() -> None:
    seen = members("ma1")
    assert {value["role"] for value in seen.values()} == {"leader", "quorum_standby"}
    assert {value["state"] for value in seen.values()} == {"running", "streaming"}


def test_region_b_is_a_standby_that_streams() -> None:
    seen = members("mb1")
    assert set(seen) == {"mb1"}
    assert (seen["mb1"]["role"], seen["mb1"]["state"]) == ("standby_leader", "streaming")


def test_member_names_are_unique_across_regions() -> None:
    names = [*members("ma1"), *members("mb1")]
    assert sorted(names) == sorted(set(names)) == sorted(ADDRESSES)


def test_the_lease_is_what_the_preset_says() -> None:
    config = patroni("ma1", "/config")
    assert (config["ttl"], config["loop_wait"], config["retry_timeout"]) == (7, 1, 3)
    assert on("ma1").run('journalctl -u patroni@main --no-pager | grep "can\'t be smaller than"').rc != 0


def test_replication_is_encrypted_and_each_peer_shows_a_certificate() -> None:
    rows = sql(
        leader(),
        "SELECT application_name, ssl, version, client_dn FROM pg_stat_replication r JOIN pg_stat_ssl s USING (pid)",
    ).splitlines()
    assert len(rows) == 2
    for row in rows:
        name, ssl, version, subject = row.split("|")
        assert (ssl, version) == ("t", "TLSv1.3")
        assert f"CN={name}" in subject


def test_the_standby_region_holds_a_bounded_slot() -> None:
    assert sql(leader(), "SELECT active, wal_status FROM pg_replication_slots WHERE slot_name = 'region_b'") == (
        "t|reserved"
    )
    assert sql(leader(), "SHOW max_slot_wal_keep_size") == "256MB"


def test_a_write_reaches_every_member() -> None:
    primary = leader()
    sql(
        primary,
        "INSERT INTO users (external_id) VALUES ('molecule') ON CONFLICT (external_id) DO UPDATE SET email = ''",
    )
    wanted = sql(primary, "SELECT pg_current_wal_lsn()")
    deadline = time.monotonic() + 10
    behind = set(ADDRESSES) - {primary}
    while behind and time.monotonic() < deadline:
        query = f"SELECT pg_last_wal_replay_lsn() >= '{wanted}'"
        behind = {name for name in behind if sql(name, query) != "t"}
        time.sleep(0.2)
    assert not behind
    assert sql("mb1", "SELECT count(*) FROM users WHERE external_id = 'molecule'") == "1"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("data_checksums", "on"),
        ("wal_log_hints", "on"),
        ("password_encryption", "scram-sha-256"),
        ("track_commit_timestamp", "on"),
        ("hot_standby_feedback", "on"),
        ("ssl_min_protocol_version", "TLSv1.2"),
    ],
)
def test_settings(member: t.Any, setting: str, value: str) -> None:
    assert sql(member.backend.name, f"SHOW {setting}") == value


def test_all_passwords_are_stored_as_scram() -> None:
    assert sql(leader(), "SELECT count(*) FROM pg_authid WHERE rolpassword NOT LIKE 'SCRAM-SHA-256$%'") == "0"
    assert sql(leader(), "SELECT string_agg(rolname, ',' ORDER BY rolname) FROM pg_roles WHERE rolsuper") == "postgres"


@pytest.mark.parametrize("source", ["ma2", "mb1", "ma1"])
def test_certificate_and_password_get_in(source: str, secrets: dict[str, str]) -> None:
    run = connect(source, ADDRESSES["ma1"], f"sslmode=verify-ca {PKI}", secrets["postgres_app"])
    assert run.rc == 0, run.stderr


@pytest.mark.parametrize("source", ["ma2", "ma1"])
@pytest.mark.parametrize("target", [ADDRESSES["ma1"], "127.0.0.1"])
@pytest.mark.parametrize(
    ("options", "password", "user", "reason"),
    [
        ("sslmode=disable", "right", "shannon", "pg_hba.conf rejects connection"),
        ("sslmode=require sslcert=/none sslkey=/none", "right", "shannon", "requires a valid client certificate"),
        (f"sslmode=verify-ca {PKI}", "wrong", "shannon", "password authentication failed"),
        (f"sslmode=verify-ca {PKI}", "right", "postgres", "pg_hba.conf rejects connection"),
    ],
)
def test_nothing_less_gets_in(
    source: str, target: str, options: str, password: str, user: str, reason: str, secrets: dict[str, str]
) -> None:
    secret = secrets["postgres_superuser" if user == "postgres" else "postgres_app"] if password == "right" else "no"
    run = connect(source, target, options, secret, user)
    assert run.rc != 0
    assert reason in run.stderr


def test_another_user_of_the_host_does_not_get_in_by_the_socket(member: t.Any) -> None:
    run = member.run("cd /tmp && runuser -u nobody -- psql -h /var/run/postgresql -U postgres -c 'SELECT 1'")
    assert run.rc != 0
    assert "Peer authentication failed" in run.stderr or "Permission denied" in run.stderr


def test_the_rest_api_wants_a_certificate_and_a_password_for_changes(member: t.Any) -> None:
    url = f"https://{ADDRESSES[member.backend.name]}:8008"
    pki = "--cert /etc/shannon/pki/host.crt --key /etc/shannon/pki/host.key"
    base = "curl -s -o /dev/null -w %{http_code} --max-time 5 --cacert /etc/shannon/pki/ca.crt"
    assert member.run(f"{base} {url}/cluster").stdout == "000"
    assert member.run(f"{base} {pki} {url}/cluster").stdout == "200"
    assert member.run(f"{base} {pki} -X PATCH -d '{{}}' {url}/config").stdout == "401"


def test_the_schema_is_there() -> None:
    for name in ADDRESSES:
        tables = sql(name, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'").splitlines()
        assert set(tables) >= TABLES
    extensions = sql(leader(), "SELECT extname FROM pg_extension").splitlines()
    assert {"uuid-ossp", "pg_trgm", "btree_gin"} <= set(extensions)
    assert sql(leader(), "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'") == "shannon"
    assert sql(leader(), "SELECT count(*) FROM schema_migrations") == str(MIGRATIONS)


def test_updated_at_is_kept_and_a_status_is_checked() -> None:
    primary = leader()
    sql(primary, "INSERT INTO users (external_id, updated_at) VALUES ('t', '2000-01-01') ON CONFLICT DO NOTHING")
    sql(primary, "UPDATE users SET email = 'a', updated_at = '2000-01-01' WHERE external_id = 't'")
    assert sql(primary, "SELECT updated_at > now() - interval '1 minute' FROM users WHERE external_id = 't'") == "t"
    run = on(primary).run(
        "cd /tmp && runuser -u postgres -- psql -d shannon -c %s",
        "INSERT INTO task_executions (workflow_id, query, status) VALUES ('w', 'q', 'sleeping')",
    )
    assert "task_executions_status_known" in run.stderr


def test_a_reader_of_the_vector_log_skips_no_late_commit() -> None:
    """Given a transaction that wrote first and commits last, a reader on the standby waits for it."""
    primary = leader()
    sql(primary, "TRUNCATE vector_log")
    columns = "collection, point_id, operation, vector"
    row = f"INSERT INTO vector_log ({columns}) VALUES ('c', uuid_generate_v4(), 'upsert', '{{1}}')"
    host = on(primary)
    script = f"BEGIN; {row}; SELECT pg_sleep(4); COMMIT;"
    host.run("cd /tmp && (runuser -u postgres -- psql -d shannon -c %s >/dev/null 2>&1 &)", script)
    time.sleep(1.5)
    sql(primary, row)
    time.sleep(0.5)
    read = (
        "SELECT count(*) FROM vector_log WHERE (txid, sequence) > ('0'::xid8, 0) "
        "AND txid < pg_snapshot_xmin(pg_current_snapshot())"
    )
    assert sql("mb1", "SELECT count(*) FROM vector_log") == "1"
    assert sql("mb1", read) == "0"
    deadline = time.monotonic() + 10
    while sql("mb1", read) != "2" and time.monotonic() < deadline:
        time.sleep(0.3)
    assert sql("mb1", read) == "2"


def test_secrets_are_not_for_everyone(member: t.Any) -> None:
    config = member.file("/etc/shannon/postgres/main.yml")
    assert (config.user, config.group, config.mode) == ("root", "postgres", 0o640)
    assert member.file("/var/lib/shannon/postgres/main").mode == 0o700
    assert member.file("/var/lib/shannon/postgres/main/data").mode == 0o700


def test_no_secret_is_in_a_process_list_or_the_journal(member: t.Any, secrets: dict[str, str]) -> None:
    text = member.run("ps -eo args; journalctl --no-pager -u patroni@main").stdout
    for name in ("postgres_superuser", "postgres_app", "postgres_replication", "postgres_rewind", "patroni_api"):
        assert secrets[name] not in text, name


def test_the_unit_is_hardened(member: t.Any) -> None:
    unit = member.service("patroni@main")
    assert unit.is_running
    assert unit.is_enabled
    shown = member.run("systemctl show patroni@main -p NoNewPrivileges,ProtectSystem,ProtectHome,PrivateTmp").stdout
    assert set(shown.split()) == {"NoNewPrivileges=yes", "ProtectSystem=strict", "ProtectHome=yes", "PrivateTmp=yes"}


def test_a_connection_to_a_dead_host_is_given_up_soon(member: t.Any) -> None:
    # TCP_USER_TIMEOUT, in milliseconds, is what ends a connection's first packets; only libpq's service file sets it.
    pid = member.file("/var/lib/shannon/postgres/main/data/postmaster.pid").content_string.split()[0]
    assert "PGSERVICE=shannon" in member.file(f"/proc/{pid}/environ").content_string.split("\0")
    wait = member.file("/etc/shannon/postgres/pg_service.conf").content_string
    assert "[shannon]" in wait
    assert "tcp_user_timeout=3000" in wait


def test_the_distribution_has_no_cluster_of_its_own(member: t.Any) -> None:
    assert member.run("pg_lsclusters --no-header").stdout == ""
    assert not member.service("postgresql").is_running


def test_a_certificate_is_reread_on_reload(member: t.Any) -> None:
    before = member.run("systemctl show patroni@main -p MainPID").stdout
    assert member.run("systemctl reload shannon-tls.service").rc == 0
    time.sleep(1)
    assert member.run("systemctl show patroni@main -p MainPID").stdout == before
    assert "received SIGHUP" in member.run("journalctl -u patroni@main --no-pager --since -20s").stdout
