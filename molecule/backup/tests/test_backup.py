"""Backups go into the repositories of both regions, restore to what they were taken from, and say so when not."""

from __future__ import annotations

import json
import time

import pytest
import testinfra

testinfra_hosts = ["mb1"]
REPOSITORIES = {"a": "ma2", "b": "mb1"}
RUNNER = "/usr/local/sbin/shannon-backup"
PKI = "/etc/shannon/pki"
TLS = f"--cacert {PKI}/ca.crt --cert {PKI}/host.crt --key {PKI}/host.key"
ETCDCTL = f"ETCDCTL_API=3 etcdctl --endpoints https://127.0.0.1:12379 --command-timeout 5s {TLS}"


def member(name):
    return testinfra.get_host(f"docker://{name}")


def runner(name, *words):
    """What the runner prints as JSON, and its exit status."""
    done = member(name).run(" ".join([RUNNER, *words, "--json"]))
    assert done.rc in (0, 1), done.stderr
    return json.loads(done.stdout), done.rc


def good(name, *words):
    """A run that must succeed."""
    found, status = runner(name, *words)
    assert status == 0, found
    return found


@pytest.mark.parametrize("name", REPOSITORIES.values())
@pytest.mark.parametrize(
    "unit", ["shannon-restic.service", "shannon-pgbackrest-repository.service", "shannon-backup-redis.timer"]
)
def test_a_repository_runs_and_starts_at_boot(name, unit):
    assert member(name).service(unit).is_running
    assert member(name).service(unit).is_enabled


@pytest.mark.parametrize("name", REPOSITORIES.values())
def test_secrets_are_the_runners_alone(name):
    folder = member(name).file("/etc/shannon/credentials/backup")
    assert (folder.user, folder.group, folder.mode) == ("root", "shannon-backup", 0o750)
    for path in folder.listdir():
        found = member(name).file(f"{folder.path}/{path}")
        assert (found.user, found.group, found.mode) == ("root", "shannon-backup", 0o640), path


def test_the_runner_explains_itself(host):
    said = host.check_output(f"{RUNNER} --help")
    assert all(verb in said for verb in ("run", "verify", "list", "status", "sandbox", "fetch"))


@pytest.mark.parametrize("name", REPOSITORIES.values())
def test_postgres_restores_to_what_it_was_taken_from(name):
    (run,) = good(name, "run", "postgres", "--type", "full")
    assert run["ok"] and run["id"].endswith("F") and not run["error"]
    (verified,) = good(name, "verify", "postgres")
    assert verified["ok"] and verified["differences"] == [] and verified["id"] == run["id"]
    assert verified["summary"]["tables"] > 0


def test_redis_goes_into_both_regions_and_restores():
    (run,) = good("mb1", "run", "redis")
    assert sorted(run["regions"]) == ["a", "b"]
    for name in REPOSITORIES.values():
        (verified,) = good(name, "verify", "redis")
        assert verified["ok"] and verified["differences"] == []


def test_a_scheduled_run_skips_what_the_other_region_stored():
    good("mb1", "run", "redis")
    (skipped,) = good("ma2", "run", "redis", "--scheduled")
    assert skipped["skipped"] and "region b" in skipped["reason"]


def test_the_configuration_is_read_although_it_is_roots():
    (run,) = good("mb1", "run", "config")
    manifest = json.loads(member("mb1").check_output(f"{RUNNER} manifest config"))
    assert "host/etc/shannon/pki/host.key" in manifest["files"] and manifest["left_out"] == []
    assert run["ok"]


def test_the_registry_holds_the_runs(host):
    good("mb1", "run", "registry")
    found = json.loads(host.check_output(f"{ETCDCTL} get /shannon/backups/_/registry/b --print-value-only"))
    assert found["ok"] and found["region"] == "b" and found["good"]["id"] == found["id"]
    assert host.run(f"{ETCDCTL} get /shannon/backup-lock --print-value-only").stdout == ""


def test_nobody_deletes_through_the_server(host):
    good("mb1", "run", "redis")
    secret = host.check_output("cat /etc/shannon/credentials/backup/restic_http_b")
    address = host.check_output("hostname -I").split()[0]
    listed = json.loads(host.check_output(f"{RUNNER} list --kind redis --json"))
    url = f"https://backup:{secret}@{address}:8433/snapshots/{listed[0]['id']}"
    host.run(f"curl -sS -m 5 {TLS} -X DELETE {url}")
    assert listed[0] in json.loads(host.check_output(f"{RUNNER} list --kind redis --json"))


def test_a_backup_that_was_changed_is_found_out():
    """What a run added to the repository is damaged on the disk: its verification fails, and says what it is about.

    All of it, since the runner may have the packs of folders in its cache.
    """
    disk = member("ma2")
    disk.check_output("touch /root/before")
    good("ma2", "run", "dump")
    packs = disk.check_output("find /var/lib/shannon/backup/restic/data -type f -newer /root/before").split()
    assert packs
    disk.check_output(f"mkdir /root/packs && cp -a {' '.join(packs)} /root/packs")
    for pack in packs:
        disk.check_output(f"chmod u+w {pack} && printf x | dd of={pack} bs=1 seek=60 conv=notrunc")
    try:
        (verified,), status = runner("ma2", "verify", "dump")
        assert status == 1 and not verified["ok"] and verified["error"]
    finally:
        for pack in packs:
            disk.check_output(f"cp -a /root/packs/{pack.rpartition('/')[2]} {pack}")
        disk.check_output("rm -r /root/packs")
    (verified,) = good("ma2", "verify", "dump")
    assert verified["ok"]


def test_a_killed_run_is_told_of_and_the_next_goes_on(host):
    host.check_output("systemd-run --quiet --collect --unit=molecule-backup /usr/local/sbin/shannon-backup run dump")
    deadline = time.monotonic() + 30
    while not host.file("/var/lib/shannon/backup/running.json").exists:
        assert time.monotonic() < deadline, "waited 30 s for the run to begin"
        time.sleep(0.1)
    host.check_output("systemctl kill --signal=KILL molecule-backup")
    (run,) = good("mb1", "run", "redis")
    assert run["ok"]
    killed = json.loads(host.check_output(f"{ETCDCTL} get /shannon/backups/main/dump/b --print-value-only"))
    assert not killed["ok"] and "killed" in killed["error"]
    assert host.check_output("ls /var/lib/shannon/backup/scratch") == ""


def test_a_full_disk_is_refused_before_anything_is_written(host):
    script = r's/"min_free_percent": [0-9.]*/"min_free_percent": 99.99/'
    host.check_output(f"sed '{script}' /etc/shannon/backup/backup.json > /run/full.json && chmod 644 /run/full.json")
    done = host.run(f"{RUNNER} --config /run/full.json run redis --json")
    (run,) = json.loads(done.stdout)
    assert done.rc == 1 and "must stay free" in run["error"]
    assert good("mb1", "run", "redis")[0]["ok"]


def test_a_repository_that_breaks_off_does_not_keep_wal_from_the_other():
    """Region a's has no room for a segment. pgBackRest then ends as a whole, so nothing would come into region b's."""
    archive = "/var/lib/shannon/backup/pgbackrest/archive/main"
    server = "systemctl restart shannon-pgbackrest-repository"
    disk = member("ma2")
    (primary,) = (name for name in ("ma1", "ma2") if psql(name, "SELECT pg_is_in_recovery()") == "f")
    system = disk.check_output(f"ls -d {archive}/*-*").split()[-1]
    disk.check_output(f"mount -t tmpfs -o size=64k e2e {system} && chown shannon-backup: {system} && {server}")
    try:
        # Two, so that one has to go past another that waits.
        for _turn in range(2):
            segment = write_segment(primary)
            wait_until_archived("mb1", f"{archive}/*/*/{segment}-*")
        assert not disk.check_output(f"find {system} -name '{segment}-*.lz4'")
        refused = psql(primary, "SELECT failed_count > 0 AND last_failed_wal IS NOT NULL FROM pg_stat_archiver")
        assert refused == "t"
    finally:
        disk.check_output(f"umount --lazy {system}; {server}")
    last = write_segment(primary)
    for name in REPOSITORIES.values():
        wait_until_archived(name, f"{archive}/*/*/{segment}-*")
        wait_until_archived(name, f"{archive}/*/*/{last}-*")
    psql(primary, "DROP TABLE molecule_wal")


def psql(name, query):
    """The value that a query has on a host's member, as its owner."""
    return member(name).check_output(f'runuser -u postgres -- psql -XAtq -p 5432 -c "{query}"').strip()


def write_segment(primary):
    """Close a WAL segment that has 200 KB which can't be compressed, and give its name."""
    psql(primary, "CREATE TABLE IF NOT EXISTS molecule_wal (word text)")
    psql(primary, "COPY molecule_wal FROM PROGRAM 'head -c 150000 /dev/urandom | base64 -w 1000'")
    return psql(primary, "SELECT pg_walfile_name(pg_switch_wal())")


def wait_until_archived(name, pattern, within=90):
    """Wait until a repository has a file; what PostgreSQL's archiver gives up is tried again after a minute."""
    deadline = time.monotonic() + within
    while member(name).run(f"ls {pattern}").rc:
        assert time.monotonic() < deadline, f"{name} has no {pattern} after {within} s"
        time.sleep(0.5)


def test_metrics_are_written_for_everybody(host):
    """The runner reads the repository and asks the primary, with no more than it may do."""
    # Tests that take the host come first, whatever their place here: there is no backup yet that WAL goes on from.
    good("mb1", "run", "redis")
    good("mb1", "run", "postgres", "--type", "full")
    done = host.run(f"{RUNNER} metrics")
    assert done.rc == 0, done.stderr
    found = host.file("/var/lib/shannon/backup/metrics/shannon_backup.prom")
    text = found.content_string
    assert found.mode & 0o004 and 'shannon_backup_age_seconds{kind="redis",cell="main",region="b"}' in text
    # Nothing is written here, so the archive is as old as PostgreSQL leaves a segment open.
    assert 'shannon_backup_overdue{kind="wal",cell="main",region="b"} 0' in text, done.stderr
    assert 'shannon_backup_behind_bytes{kind="wal",cell="main",region="b"}' in text, done.stderr
