"""The disasters that backups are for: a full disk, a cut in the middle of one, a lost registry, all lost but one disk.

They take hosts and disks away; each puts back what it took, whatever becomes of it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
import typing as t
from dataclasses import dataclass
from pathlib import Path

import backups
import moves
import pytest
import shannon_api as services
from backups import REPOSITORY, STATE, STOP, TABLE, archived, close_segment, psql, redis, runner, table
from shannon_api import Load

import lab

pytestmark = pytest.mark.soak
LARGE = "public.e2e_large"
#: What a repository's host serves its repositories with.
SERVERS = "shannon-restic.service shannon-pgbackrest-repository.service"
SNAPSHOTS = "/var/lib/shannon/registry-snapshots"
#: restic's and rclone's ways to say it, in the product's words.
FULL = re.compile(r"disk (is )?full")
KEYS = 500


@pytest.fixture(scope="module")
def backed_up(deployed: dict[str, float]) -> t.Iterator[None]:
    """A table of our own, and a backup of everything."""
    moves.bring_home()
    psql(f"DROP TABLE IF EXISTS {LARGE}")
    backups.make_table()
    lab.playbook("backup", "-e", "type=full", timeout=600)
    yield
    moves.bring_home()
    psql(f"DROP TABLE IF EXISTS {TABLE}")


@pytest.fixture(scope="module")
def large(backed_up: None) -> t.Iterator[None]:
    """200 MB that can't be compressed, so that a backup takes its time and its room; their WAL is in both archives."""
    psql(f"DROP TABLE IF EXISTS {LARGE}")
    psql(f"CREATE TABLE {LARGE} (word text NOT NULL)")
    # Not all at once: the lab's seven hosts share one disk, and etcd, whose writes wait behind these, would lose
    # Patroni its lock. What follows waits for the archives anyway.
    for _part in range(10):
        psql(f"COPY {LARGE} FROM PROGRAM 'head -c 15000000 /dev/urandom | base64 -w 1500'", timeout=120)
        segment = close_segment()
        for region in ("a", "b"):
            wait_until_archived(region, segment, 120)
    yield
    psql(f"DROP TABLE IF EXISTS {LARGE}")


def wait_until_archived(region: str, segment: str, timeout: float = 180) -> None:
    lab.wait_for(
        lambda: archived(region, segment),
        f"the WAL segment {segment} in region {region}'s repository",
        timeout,
        lambda: psql("SELECT failed_count, last_failed_wal, last_archived_wal FROM pg_stat_archiver"),
        2,
    )


# -- a full disk ---------------------------------------------------------------------------------------------------

DISK = "/run/e2e-disk"
_SWAP_IN = f"""set -e
systemctl stop {SERVERS}
mkdir {DISK}
mount -t tmpfs -o size=8g,mode=0755 e2e {DISK}
cp -a {STATE}/. {DISK}/
chown --reference={STATE} {DISK}
chmod --reference={STATE} {DISK}
used=$(df --block-size=1M --output=used {DISK} | tail -n 1 | tr -d ' ')
mount -o remount,size=$((used + SPARE))m {DISK}
mount --bind {DISK} {STATE}
systemctl start {SERVERS}
"""
# What came meanwhile is kept: without it the archive had a gap.
_SWAP_OUT = f"""set -e
systemctl stop {SERVERS}
rm -f {STATE}/filler
if mountpoint -q {STATE}; then
  umount --lazy {STATE}
  rm -rf {STATE}.new
  cp -a {DISK} {STATE}.new
  mv {STATE} {STATE}.before
  mv {STATE}.new {STATE}
  rm -rf {STATE}.before
fi
if mountpoint -q {DISK}; then umount --lazy {DISK}; fi
rm -rf {DISK}
systemctl start {SERVERS}
"""


@contextlib.contextmanager
def small_disk(name: str, spare: int) -> t.Iterator[lab.Host]:
    """The repositories of a host are on a disk of their own, which has so many MB left.

    The container's root is no shared mount, so what runs does not see the new disk before it is started anew.
    """
    host = lab.Host(name)
    listed = (
        "systemctl list-units --plain --no-legend --state=active 'shannon-backup-*.timer' shannon-restic-prune.timer"
    )
    timers = " ".join(found.split()[0] for found in host.sh(listed).splitlines())
    # A run of a timer would keep the old disk, and the lock.
    host.sh(f"systemctl stop {timers}; systemctl stop 'shannon-backup-*.service' shannon-restic-prune.service || true")
    try:
        host.sh(_SWAP_IN.replace("SPARE", str(spare)), timeout=300)
        yield host
    finally:
        try:
            host.sh(_SWAP_OUT, timeout=300)
        finally:
            host.sh(f"systemctl start {SERVERS} {timers}")


def test_a_repositorys_disk_becomes_full_and_the_other_region_goes_on(
    large: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Region a's fills up in the middle of a backup, then to the last byte, then it is given room."""
    before = {one["id"]: one["bytes"] for one in backups.known("a3", "postgres")}
    spare = max(before.values()) // 10**6 + 60
    with small_disk("a3", spare) as host:
        # Without the guard that looks before a run: a disk that fills up while one is under way is what is meant.
        settings = "/run/e2e-backup.json"
        script = r's/"min_free_percent": [0-9.]*/"min_free_percent": 0/'
        host.sh(f"sed '{script}' /etc/shannon/backup/backup.json > {settings} && chmod 644 {settings}")
        began = time.time()
        full = ("--config", settings, "run", "postgres", "--type", "full")
        (run,) = runner("a3", *full, check=False, timeout=600)
        took = time.time() - began
        assert not run["ok"] and "disk is full" in run["error"], run
        assert "a3: stanza main, repository 1" in run["error"] and run["region"] == "a", run
        assert {one["id"] for one in backups.known("a3", "postgres")} == set(before)
        said = backups.line("postgres", "a")
        assert said["state"] == "failed" and "disk is full" in said["error"], said

        fill = f"dd if=/dev/zero of={STATE}/filler bs=64k oflag=append conv=notrunc 2>/dev/null; "
        fill += f"df --output=avail {STATE} | tail -n 1"
        lab.wait_for(lambda: host.sh(fill).strip() == "0", "the disk to be full to the last byte", 60)
        primary = backups.leader()
        began = time.time()
        psql(f"INSERT INTO {TABLE} SELECT n, md5(n::text) FROM generate_series(5001, 6000) n", primary)
        assert time.time() - began < 10, "the primary waits for the archive of region a"
        segment = psql("SELECT pg_walfile_name(pg_switch_wal())", primary)
        wait_until_archived("b", segment)
        waited = time.time() - began
        assert not archived("a", segment)
        (run,) = runner("b3", "run", "redis", timeout=400)
        assert run["ok"] and run["regions"] == ["b"], run
        assert "region a did not take it" in run["error"] and FULL.search(run["error"]), run
        (run,) = runner("b3", "run", "postgres", "--type", "incr", timeout=600)
        assert run["ok"] and run["regions"] == ["b"], run
        # The next one on the full disk is refused, and says so although not even its note finds room.
        (run,) = runner("a3", "run", "redis", check=False)
        assert not run["ok"] and "a3:" in run["error"] and "must stay free" in run["error"], run
        warnings = lab.status()["backups"]["warnings"]
        for kind, words in (("postgres", "disk is full"), ("redis", "must stay free")):
            assert any(
                f"backup of {kind} of cell main in region a failed" in one and words in one for one in warnings
            ), warnings

        host.sh(f"rm {STATE}/filler && mount -o remount,size=8g {DISK}")
        wait_until_archived("a", segment, 300)
        # As docs/backup-stores.md says: it removes what the failed run left.
        host.sh("systemctl start shannon-restic-prune.service", timeout=600)
        (run,) = runner("b3", "run", "redis")
        assert run["ok"] and run["regions"] == ["b", "a"], run
        (run,) = runner("a3", "run", "postgres", "--type", "full", timeout=600)
        assert run["ok"], run
        listed = [one["id"] for one in backups.known("a3", "postgres")]
        assert listed[-1] == run["id"] and set(listed) - set(before) == {run["id"]}, (before, listed)
    (verified,) = runner("a3", "verify", "postgres", timeout=600)
    assert verified["ok"] and verified["id"] == run["id"], verified
    moves.wait_until_whole()
    lab.show(
        capsys,
        f"a full repository disk: the backup failed after {took:.0f} s, the other region had the next WAL segment "
        f"after {waited:.0f} s",
    )


# -- a cut ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def cut_off_when_it_grows(name: str, folder: str, megabytes: int = 20) -> t.Iterator[t.Callable[[], float]]:
    """A host is cut off from all others, by itself, as soon as a folder has grown by so much.

    Yields a function that gives the moment in seconds since 1970; 0.0 when it did not come to it.
    """
    host = lab.Host(name)
    others = [other for other in lab.DEFINITION["hosts"] if other != name]
    limit = int(host.sh(f"du -sm {folder} | cut -f1")) + megabytes
    script = (
        f'until [ "$(du -sm {folder} 2>/dev/null | cut -f1)" -ge {limit} ]; do sleep 0.05; done\n'
        f"{moves.cut_rules(others)}\ndate +%s.%N > /run/e2e-cut\n"
    )
    host.sh("rm -f /run/e2e-cut && cat > /run/e2e-cut.sh", stdin=script)
    host.sh("systemd-run --quiet --collect --unit=e2e-cut -p RuntimeMaxSec=300 /bin/sh /run/e2e-cut.sh")
    try:
        yield lambda: float(host.sh("cat /run/e2e-cut 2>/dev/null || echo 0"))
    finally:
        host.sh(f"systemctl stop e2e-cut 2>/dev/null; {moves.MEND}; rm -f /run/e2e-cut /run/e2e-cut.sh")


@pytest.mark.parametrize(
    ("kind", "options", "folder", "words"),
    [
        ("postgres", ("--type", "full"), f"{STATE}/pgbackrest/backup/main", "pgBackRest backup failed"),
        ("dump", (), f"{STATE}/scratch", "pg_dump of shannon failed"),
    ],
    ids=["postgres", "dump"],
)
def test_a_network_that_is_cut_in_the_middle_of_a_backup(
    large: None, capsys: pytest.CaptureFixture[str], kind: str, options: tuple[str, ...], folder: str, words: str
) -> None:
    """The repository's host reaches nobody any more: not the host that it reads, not the registry."""
    before = {one["id"] for one in backups.known("b3", kind)}
    host = lab.Host("b3")
    with cut_off_when_it_grows("b3", folder) as moment:
        answer = runner("b3", "run", kind, *options, check=False, timeout=500)
        ended = time.time()
        assert moment(), f"the backup ended before the network was cut: {answer}"
        took = ended - moment()
        # It could not be written down, so it is an error and no record.
        assert isinstance(answer, dict) and not answer["ok"], answer
        assert words in answer["error"] and "registry could not be told" in answer["error"], answer
        # pgBackRest tries again, and pg_dump's workers try to cancel what they wait for: two minutes for a connection.
        assert took < 300, f"it took {took:.0f} s to notice"
        assert not host.sh(f"ls {STATE}/scratch").strip()
    moves.wait_until_whole(300)
    (run,) = runner("b3", "run", "redis")
    assert run["ok"], run
    said = backups.line(kind, "b")
    assert said["state"] == "failed" and words in said["error"] and "killed" not in said["error"], said
    assert {one["id"] for one in backups.known("b3", kind)} == before
    (again,) = runner("b3", "run", kind, *options, timeout=600)
    assert again["ok"], again
    assert again["id"] in {one["id"] for one in backups.known("b3", kind)} - before
    assert not host.sh(f"ls {STATE}/scratch").strip()
    lab.show(capsys, f"cut off in the middle of a backup of {kind}: said after {took:.0f} s, the next run is good")


# -- the registry --------------------------------------------------------------------------------------------------


def test_a_registry_without_any_disk_comes_back_out_of_a_repository(
    backed_up: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Members, and the snapshots that they kept, are gone; region b's repository has one from before two moves."""
    (run,) = runner("b3", "run", "registry")
    assert run["ok"], run
    for target in ("b", "a"):
        moves.move("switchover", target)
        moves.wait_until_whole()
    before = moves.record()
    folder, file = f"{STATE}/fetch/e2e-registry", tmp_path / "registry.db"
    said = ("-e", "store=registry", "-e", "reason=e2e", "-e", f"registry_snapshot={file}",
            "-e", "i_know_registry_data_is_lost=true")  # fmt: skip
    host = lab.Host("b3")

    def fetch() -> None:
        fetched = runner("b3", "fetch", "registry", "--to", f"backup:{run['id']}", "--into", folder)
        file.write_bytes(base64.b64decode(host.sh(f"base64 {fetched['folder']}/registry.db")))
        host.sh(f"rm -rf {folder}")

    fetch()  # should the test fail before it has it
    with Load(rate=2) as load:
        lost = time.time()
        try:
            services.everywhere(
                moves.REGISTRY_MEMBERS,
                f"systemctl stop etcd@registry && rm -rf {moves.REGISTRY_DATA} {SNAPSHOTS}/registry-*.db",
            )
            refused = lab.playbook("restore", "-e", "store=registry", "-e", "plan=true", check=False)
            assert refused.returncode != 0 and "No member has kept a snapshot" in " ".join(refused.stdout.split())
            fetch()  # and it needs no registry
            began = time.time()
            lab.playbook("restore", *said)
            took = time.time() - began
        except BaseException:
            # Without a registry nothing that follows has a lab, and restore.yml is made to be run again.
            lab.playbook("restore", *said, check=False)
            raise
        moves.wait_until_whole()
        load.wait_for(6)
        gap = load.longest_gap(lost)
        figures = load.check()
    after = moves.record()
    assert (after["home"], after["state"]) == ("a", "active") and after["epoch"] > before["epoch"], (before, after)
    assert runner("b3", "run", "registry")[0]["ok"]
    lab.show(
        capsys,
        f"a registry without any disk is restored out of a repository in {took:.0f} s, longest gap {gap:.1f} s",
        figures,
    )


# -- everything ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Content:
    """What users have in the stores."""

    table: str
    tasks: str
    points: frozenset[str]
    keys: int


def content() -> Content:
    """What there is now, as soon as both regions' Qdrant has what PostgreSQL wants it to have."""
    wanted: set[str] = set()

    def same() -> bool:
        wanted.clear()
        query = "SELECT DISTINCT point_id::text FROM vector_log WHERE collection = 'task_embeddings'"
        wanted.update(str(row[0]) for row in services.sql(query))
        return all(services.points_in(region, sorted(wanted)) == wanted for region in ("a", "b"))

    lab.wait_for(same, "all vectors in both regions", 180, lambda: f"{len(wanted)} are wanted", 2)
    tasks = psql(
        "SELECT count(*), md5(string_agg(concat_ws('|', id, query, status, result), ',' ORDER BY id))"
        " FROM task_executions WHERE status = 'completed'"
    )
    keys = f"print(sum(client.get('shannon:e2e:lost:%d' % n) == str(n) for n in range({KEYS})))"
    return Content(table(), tasks, frozenset(wanted), int(redis(keys)))


def ssh(name: str, command: str) -> list[str]:
    """A command on a host, for bytes in or out."""
    return [*lab.ssh_argv(lab.LAB, lab.LAB.host(name)), "sudo sh -c " + shlex.quote(command)]


def lab_py(verb: str) -> None:
    lab.run(sys.executable, "lab/lab.py", verb, timeout=900)


def start_over() -> None:
    """An empty lab, with secrets of its own, for the tests that follow."""
    lab_py("down")
    lab_py("up")
    lab.playbook("site", timeout=1800)


def test_all_is_lost_but_one_repository_and_the_controllers_secrets(
    backed_up: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As docs/restore.md has it, step by step. The disk comes from a host whose users had other numbers."""
    secrets, kept = lab.INVENTORY / ".secrets", tmp_path / "secrets"
    disk = tmp_path / "repository.tar"
    psql(f"DROP TABLE IF EXISTS {LARGE}")
    with services.Api() as api:
        for _turn in range(5):
            api.run(f"Tell me of {services.word()}")
        redis(f"[client.set('shannon:e2e:lost:%d' % n, n) for n in range({KEYS})]")
        lab.playbook("backup", timeout=600)
        # What came after the backups: PostgreSQL has it in the archive, and Qdrant from PostgreSQL.
        for _turn in range(5):
            api.run(f"Tell me of {services.word()}")
    psql(f"INSERT INTO {TABLE} SELECT n, md5(n::text) FROM generate_series(10001, 11000) n")
    before = content()
    assert before.keys == KEYS
    wait_until_archived("b", close_segment())
    newest = backups.known("b3", "postgres")[-1]["id"]

    whole = False
    try:
        lab.Host("b3").sh(f"systemctl stop {SERVERS}")
        with disk.open("wb") as out:
            subprocess.run(ssh("b3", f"tar -C {STATE} -cf - pgbackrest restic"), stdout=out, check=True, timeout=600)
        shutil.copytree(secrets, kept)
        lab_py("down")
        assert not secrets.exists()
        lab_py("up")
        began = time.time()
        shutil.copytree(kept, secrets)
        with disk.open("rb") as given:
            subprocess.run(
                ssh("b3", f"mkdir -p {STATE} && tar -C {STATE} -xpf - && chown -R 4711:4711 {STATE}/*"),
                stdin=given, check=True, timeout=600,
            )  # fmt: skip
        done = lab.playbook("site", "-e", json.dumps({"backup_jobs": {}}), timeout=1800)
        assert "the repository has the backups of another system" in " ".join((done.stdout + done.stderr).split())
        assert not lab.Host("b3").sh("ls /etc/systemd/system | grep '^shannon-backup-.*timer$' || true")
        site = time.time() - began
        assert psql(f"SELECT to_regclass('{TABLE}') IS NULL") == "t"

        plan = backups.restore("-e", "from_region=b", "-e", "plan=true")
        assert newest in plan.stdout, plan.stdout[-3000:]
        restoring = time.time()
        done = backups.restore("-e", "from_region=b", *STOP, timeout=900)
        took = time.time() - restoring
        served = time.time() - began
        assert content() == before
        assert moves.record()["state"] == "active"
        lab.playbook("smoke")
        moves.wait_until_whole()

        tagged = lab.playbook("site", "--tags", "backup")
        assert "of another system" not in " ".join((tagged.stdout + tagged.stderr).split())
        for region in ("a", "b"):
            wait_until_archived(region, close_segment(), 300)
            timers = lab.Host(REPOSITORY[region]).sh("systemctl is-active shannon-backup-redis.timer", check=False)
            assert timers.strip() == "active"
        lab.playbook("backup", "-e", "type=full", timeout=600)
        for region in ("a", "b"):
            (verified,) = runner(REPOSITORY[region], "verify", "postgres", timeout=600)
            assert verified["ok"], verified
        bad = [one for one in lab.status()["backups"]["kinds"] if one["age"] is None or one["state"] == "failed"]
        assert not bad, bad
        redis(f"[client.delete('shannon:e2e:lost:%d' % n) for n in range({KEYS})]")
        moves.wait_until_whole()
        whole = True
    finally:
        shutil.rmtree(kept, ignore_errors=True)
        disk.unlink(missing_ok=True)
        if not whole:
            start_over()
    lab.show(
        capsys,
        f"all lost but region b's repository: {served:.0f} s from empty hosts to the cell open again; site.yml "
        f"{site:.0f} s, restore.yml {took:.0f} s ({backups.seconds_of(done)})",
        f"{before.table.split('|')[0]} rows, {before.tasks.split('|')[0]} tasks, {len(before.points)} vectors and "
        f"{before.keys} keys of Redis as before",
    )
