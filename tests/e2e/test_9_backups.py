"""Backups restore: a deleted table comes back to the second before, out of either region's repository.

Each restore is made by restore.yml as an operator would, while the stack runs; what was there before is compared.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import moves
import pytest
import shannon_api as services
from backups import REPOSITORY, RUNNER, STATE, STOP, TABLE, make_table, psql, redis, restore, runner, seconds_of, table

import lab


@pytest.fixture(scope="module")
def backed_up(deployed: dict[str, float]) -> t.Iterator[float]:
    """A table of our own, and a backup of everything; yields how long taking all of them took."""
    moves.bring_home()
    make_table()
    began = time.time()
    lab.playbook("backup", "-e", "type=full", timeout=600)
    yield time.time() - began
    moves.bring_home()
    psql(f"DROP TABLE IF EXISTS {TABLE}")


def delete_the_table() -> tuple[str, str]:
    """Drop our table; what was in it, and the second before."""
    psql("DROP TABLE IF EXISTS public.e2e_later")
    expected = table()
    time.sleep(1.5)
    before = psql("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US') || '+00'")
    time.sleep(1.5)
    psql(f"DROP TABLE {TABLE}")
    psql("CREATE TABLE public.e2e_later (id int)")
    return expected, before


def assert_it_is_back(expected: str) -> None:
    assert table() == expected
    # What came after the point is gone: it is that point, and not the latest.
    assert psql("SELECT to_regclass('public.e2e_later') IS NULL") == "t"
    for member in moves.HOSTS["a"] + moves.HOSTS["b"]:
        host = lab.Host(member)
        lab.wait_for(
            lambda host=host: psql(f"SELECT count(*) FROM {TABLE}", host) == expected.split("|")[0],
            f"the restored table on {member}",
            60,
        )


@pytest.mark.soak
def test_all_kinds_are_in_both_regions_and_in_the_status(backed_up: float, capsys: pytest.CaptureFixture[str]) -> None:
    found = lab.status()
    lines = found["backups"]["kinds"]
    assert {line["region"] for line in lines} == {"a", "b"}
    wanted = {"postgres", "wal", "dump", "redis", "qdrant", "registry", "config"}
    assert {line["kind"] for line in lines} == wanted
    bad = [line for line in lines if line["age"] is None or line["overdue"] or line["ok"] is False]
    assert not bad, bad
    assert found["cells"]["main"]["healthy"]
    text = lab.Host("b3").sh(f"cat {STATE}/metrics/shannon_backup.prom")
    for kind in ("redis", "wal"):
        assert f'shannon_backup_overdue{{kind="{kind}",cell="main",region="b"}} 0' in text
    sizes = ", ".join(
        f"{one['kind']} {one['bytes'] / 1e6:.1f} MB" for one in lines if one["region"] == "b" and one["bytes"]
    )
    lab.show(capsys, f"backups of all kinds in both regions: {backed_up:.0f} s; {sizes}")


@pytest.mark.soak
def test_each_restores_to_what_it_was_taken_from(backed_up: float, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(moves.REPORTS.glob("*-verification-backups.json"))
    began = time.time()
    lab.playbook("verify_backups", timeout=600)
    took = time.time() - began
    (report,) = set(moves.REPORTS.glob("*-verification-backups.json")) - before
    document = json.loads(report.read_text())
    assert document["passed"] and len(document["runs"]) == 12, document
    lines = lab.status()["backups"]["kinds"]
    assert {line["state"] for line in lines} == {"good"}, lines
    lab.show(capsys, f"verify_backups.yml: {took:.0f} s for {len(document['runs'])} backups")


@pytest.mark.soak
def test_an_archive_that_gets_no_wal_is_overdue_and_the_others_is_not(
    backed_up: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """Region a's repository takes no WAL in; what is written meanwhile is in region b's alone."""
    ages = {line["region"]: line["age"] for line in look_at_the_archives()}
    assert all(age is not None and age <= 120 for age in ages.values()), ages
    lab.Host("a3").sh("systemctl stop shannon-pgbackrest-repository")
    try:
        began = time.time()
        lab.wait_for(lambda: wal_goes_on() and look_at_the_archives()[0]["overdue"], "the warning", 240, interval=10)
        took = time.time() - began
        a, b = look_at_the_archives()
        assert (a["state"], b["state"]) == ("overdue", "good"), (a, b)
        assert a["behind"] > b["behind"] and took - 90 < a["age"] < took + 90, (took, a, b)
        found = lab.status()
        assert any("archive of WAL of cell main in region a is overdue" in one for one in found["backups"]["warnings"])
        assert found["cells"]["main"]["healthy"]
        text = lab.Host("a3").sh(f"cat {STATE}/metrics/shannon_backup.prom")
        assert 'shannon_backup_overdue{kind="wal",cell="main",region="a"} 1' in text
    finally:
        lab.Host("a3").sh("systemctl start shannon-pgbackrest-repository")
    lab.wait_for(lambda: look_at_the_archives()[0]["state"] == "good", "the archive to catch up", 240, interval=5)
    lab.show(capsys, f"archive that gets no WAL: overdue after {took:.0f} s, {a['age']:.0f} s old")


def wal_goes_on() -> bool:
    """Write something and close the segment."""
    psql(f"UPDATE {TABLE} SET word = word WHERE id = 1; SELECT pg_switch_wal()")
    return True


def look_at_the_archives() -> list[dict[str, t.Any]]:
    """Have both repositories looked at now; what the status says of region a's and of region b's."""
    for host in REPOSITORY.values():
        lab.Host(host).sh(f"{RUNNER} metrics", timeout=60)
    lines = [line for line in lab.status()["backups"]["kinds"] if line["kind"] == "wal"]
    return sorted(lines, key=lambda line: line["region"])


@pytest.mark.soak
def test_a_tampered_backup_is_found_out(backed_up: float) -> None:
    """What a run added to region a's repository is changed behind the server's back: all of it, since the runner may
    have the packs of folders in its cache."""
    host = lab.Host("a3")
    host.sh("touch /root/e2e-before")
    runner("a3", "run", "dump")
    packs = host.sh(f"find {STATE}/restic/data -type f -newer /root/e2e-before; rm /root/e2e-before").split()
    assert packs
    for pack in packs:
        host.sh(f"cp -a {pack} /root/{Path(pack).name} && chmod u+w {pack}")
        host.sh(f"printf x | dd of={pack} bs=1 seek=60 conv=notrunc 2>/dev/null")
    try:
        done = lab.playbook("verify_backups", "-e", "kind=dump", "-e", "backup_region=a", check=False, timeout=300)
        assert done.returncode != 0 and "FAILED" in done.stdout
        lines = lab.status()["backups"]
        assert any("dump" in warning and "region a failed" in warning for warning in lines["warnings"]), lines
    finally:
        for pack in packs:
            host.sh(f"cp -a /root/{Path(pack).name} {pack} && rm /root/{Path(pack).name}")
    lab.playbook("verify_backups", "-e", "kind=dump", "-e", "backup_region=a", timeout=300)


@pytest.mark.soak
def test_a_wrong_key_is_said(backed_up: float) -> None:
    host = lab.Host("b3")
    host.sh(
        "rm -rf /run/wrong && mkdir -m 755 /run/wrong && cp /etc/shannon/credentials/backup/* /run/wrong/ && "
        "echo wrong > /run/wrong/restic_b && chown -R root:shannon-backup /run/wrong && "
        "sed 's#/etc/shannon/credentials/backup#/run/wrong#' /etc/shannon/backup/backup.json > /run/wrong/backup.json"
        " && chmod -R g+rX /run/wrong"
    )
    try:
        said = host.sh(f"{RUNNER} --config /run/wrong/backup.json list --kind redis 2>&1 || true")
        assert "password" in said.lower() or "key" in said.lower(), said
    finally:
        host.sh("rm -rf /run/wrong")


@pytest.mark.soak
def test_a_killed_backup_is_told_of_and_the_next_goes_on(backed_up: float) -> None:
    host = lab.Host("b3")
    host.sh(f"systemd-run --quiet --collect --unit=e2e-backup {RUNNER} run dump")
    lab.wait_for(
        lambda: bool(host.sh(f"cat {STATE}/running.json 2>/dev/null", check=False)), "the run", 30, interval=0.1
    )
    host.sh("systemctl kill --signal=KILL e2e-backup")
    (run,) = runner("b3", "run", "redis")
    assert run["ok"], run
    killed = next(line for line in lab.status()["backups"]["kinds"] if (line["kind"], line["region"]) == ("dump", "b"))
    assert killed["state"] == "failed" and "killed" in killed["error"], killed
    (again,) = runner("b3", "run", "dump")
    assert again["ok"], again
    assert not host.sh(f"ls {STATE}/scratch").strip()


@pytest.mark.soak
def test_one_region_out_of_reach_does_not_stop_the_others_backups(backed_up: float) -> None:
    lab.Host("a3").sh("systemctl stop shannon-restic")
    try:
        (run,) = runner("b3", "run", "redis", timeout=200)
        assert run["ok"] and run["regions"] == ["b"] and "region a did not take it" in run["error"], run
    finally:
        lab.Host("a3").sh("systemctl start shannon-restic")
    assert runner("b3", "run", "redis")[0]["regions"] == ["b", "a"]


@pytest.mark.soak
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-e", "cell=nowhere"], "must be one of main"),
        (["-e", "to=2001-01-01T00:00:00+00", "-e", "store=postgres", *STOP], "Nothing was changed"),
        (["-e", "store=postgres", "-e", "reason=e2e"], "writes flow"),
        (["-e", "from_region=c"], "one of a, b"),
        (["-e", "reason=two words"], '"words" belongs to nothing'),
    ],
)
def test_what_must_not_begin_changes_nothing(backed_up: float, options: list[str], words: str) -> None:
    before = moves.record()
    done = lab.playbook("restore", "-e", "cell=main", *options, check=False)
    assert done.returncode != 0 and words in " ".join((done.stdout + done.stderr).split()), done.stdout[-3000:]
    assert moves.record() == before


@pytest.mark.soak
def test_a_home_that_does_not_reach_the_repository_is_not_closed(backed_up: float) -> None:
    host = lab.Host("b3")
    host.sh("systemctl stop shannon-pgbackrest-repository")
    try:
        options = ("-e", "cell=main", "-e", "store=postgres", "-e", "from_region=b", *STOP)
        refused = lab.playbook("restore", *options, check=False)
    finally:
        host.sh("systemctl start shannon-pgbackrest-repository")
    said = " ".join(refused.stdout.split())
    assert refused.returncode != 0 and "does not reach the repository of region b on b3" in said, said[-2000:]
    assert moves.record()["state"] == "active"
    moves.wait_until_whole()


@pytest.mark.soak
def test_a_sandbox_leaves_the_live_cell_alone(backed_up: float) -> None:
    before, expected = moves.record(), table()
    done = restore("-e", "store=postgres", "-e", "sandbox=true", "-e", "sandbox_host=b3")
    assert "postgres: good" in done.stdout, done.stdout[-3000:]
    assert (moves.record(), table()) == (before, expected)


@pytest.mark.soak
def test_a_deleted_table_comes_back_out_of_the_homes_repository(
    backed_up: float, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, before = delete_the_table()
    began = time.time()
    done = restore("-e", "store=postgres", "-e", f"to={before}", *STOP)
    took = time.time() - began
    assert_it_is_back(expected)
    assert moves.record()["state"] == "active"
    moves.wait_until_whole()
    lab.show(capsys, f"a deleted table restored in {took:.0f} s: {seconds_of(done)}")


@pytest.mark.soak
def test_a_killed_restore_stays_closed_and_goes_on_out_of_the_other_regions_repository(
    backed_up: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """The full backup and the WAL of the new timeline are in region b's repository as well."""
    runner("b3", "run", "postgres", "--type", "diff")
    expected, before = delete_the_table()
    options = ["-e", "store=postgres", "-e", f"to={before}", "-e", "from_region=b", *STOP]
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(lab.INVENTORY),
               "playbooks/restore.yml", "-e", "cell=main", *options]  # fmt: skip
    with subprocess.Popen(command, cwd=lab.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          start_new_session=True) as process:  # fmt: skip
        try:
            lab.wait_for(lambda: moves.record()["state"] == "restoring", "the restore to begin", 120)
            time.sleep(12)
        finally:
            process.send_signal(signal.SIGKILL)
    cell = lab.status()["cells"]["main"]
    assert cell["state"] == "restoring" and not cell["healthy"]
    refused = moves.move("switchover", "b", check=False)
    assert refused["status"] != 0 and "being restored" in refused["error"], refused
    other = restore("-e", "store=redis", *STOP, check=False)
    assert other.returncode != 0 and "was not finished" in " ".join(other.stdout.split())
    began = time.time()
    restore(*options)
    took = time.time() - began
    assert_it_is_back(expected)
    moves.wait_until_whole()
    lab.show(capsys, f"a killed restore went on and ended in {took:.0f} s")


@pytest.mark.soak
def test_a_lost_qdrant_answers_as_before(backed_up: float, capsys: pytest.CaptureFixture[str]) -> None:
    def more(tasks: int) -> int:
        """Run tasks, each of which leaves a vector; how many vectors there are to be then."""
        with services.Api() as api:
            for _turn in range(tasks):
                api.run(f"Tell me of {services.word()}")
        asked = "SELECT count(DISTINCT point_id) FROM vector_log WHERE collection = 'task_embeddings'"
        return int(services.sql(asked)[0][0])

    def points(region: str) -> int:
        path = "/collections/task_embeddings/points/count"
        code, answer = services.qdrant(f"{region}3", "POST", path, {"exact": True})
        return int(answer["result"]["count"]) if code == 200 else -1

    count = more(3)
    lab.wait_for(lambda: points("b") == count, "all vectors in the snapshot", 60, lambda: f"{points('b')} of {count}")
    runner("b3", "run", "qdrant")
    snapshot, count = count, more(3)
    assert 0 < snapshot < count
    lab.wait_for(lambda: points("a") == count, "all vectors before", 60, lambda: f"{points('a')} of {count}")
    for name in ("task_embeddings", "indexer_positions"):
        assert services.qdrant("a3", "DELETE", f"/collections/{name}")[0] == 200
    began = time.time()
    done = restore("-e", "store=qdrant", "-e", "from_region=b", *STOP)
    lab.wait_for(
        lambda: points("a") == points("b") == count, "all vectors again", 120, lambda: f"{points('a')} of {count}"
    )
    lab.show(capsys, f"a lost Qdrant restored in {time.time() - began:.0f} s: {seconds_of(done)}; {count} vectors, "
             f"{snapshot} of them in the snapshot")  # fmt: skip
    moves.wait_until_whole()


@pytest.mark.soak
def test_a_lost_redis_comes_back(backed_up: float, capsys: pytest.CaptureFixture[str]) -> None:
    keys = "[client.set('shannon:e2e:backup:%d' % n, n) for n in range(500)]"
    redis(keys)
    runner("b3", "run", "redis")
    redis("[client.delete('shannon:e2e:backup:%d' % n) for n in range(500)]")
    began = time.time()
    done = restore("-e", "store=redis", *STOP)
    found = redis("print(sum(client.get('shannon:e2e:backup:%d' % n) == str(n) for n in range(500)))")
    assert found == "500"
    lab.show(capsys, f"a lost Redis restored in {time.time() - began:.0f} s: {seconds_of(done)}")
    redis("[client.delete('shannon:e2e:backup:%d' % n) for n in range(500)]")
    moves.wait_until_whole()


@pytest.mark.soak
def test_with_the_home_region_dead_the_other_ones_repository_is_enough(
    backed_up: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """Across the timeline of the failover: the table is deleted in the new home, and comes back there."""
    runner("b3", "run", "postgres", "--type", "incr")
    moves.kill("a")
    try:
        lab.wait_for(lambda: not _lease(), "the end of region a's lease", 40)
        moves.move("failover", "b")
        moves.wait_for_home("b")
        expected, before = delete_the_table()
        began = time.time()
        done = restore(
            "--limit", "localhost:region_b:witness", "-e", "store=postgres", "-e", f"to={before}",
            "-e", "from_region=b", *STOP,
        )  # fmt: skip
        took = time.time() - began
        assert table() == expected
    finally:
        moves.start("a")
    moves.wait_until_whole(300)
    assert_it_is_back(expected)
    lab.show(capsys, f"with region a dead, restored in {took:.0f} s: {seconds_of(done)}")


def _lease() -> str:
    return moves.registry("w1", "get", "/shannon/leases/main")
