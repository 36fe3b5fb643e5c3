"""pgBackRest's configuration, its answers and its failures, without pgBackRest."""

from __future__ import annotations

import contextlib
import os
import pathlib

import pytest

from ansible_collections.shannon.resilience.plugins.module_utils import pgbackrest
from ansible_collections.shannon.resilience.plugins.module_utils.pgbackrest import (
    PgBackRest,
    PgBackRestError,
    failure,
    parse_config,
    parse_info,
    pg_hosts,
    target_options,
    verify_problems,
    without_hosts,
)
from ansible_collections.shannon.resilience.plugins.module_utils.postgres_engine import RestoreTarget

CONFIG = """
[global]
repo2-path=/repository
repo2-cipher-pass=secret=with=signs
tls-server-auth=a1=main
tls-server-auth=a2=main
[main]
pg1-host=127.0.0.1
pg1-host-port=1
pg1-path=/one
pg2-host=a2
pg2-host-port=18432
pg2-path=/two
"""


def entry(**more: object) -> list[dict[str, object]]:
    found = {
        "name": "main",
        "db": [{"id": 1, "system-id": 7, "version": "15"}],
        "repo": [{"key": 2, "status": {"code": 0, "message": "ok"}}],
        "backup": [one("20260101-000000F", 1, 100)],
    }
    return [{**found, **more}]


def one(label: str, number: int, stop: int) -> dict[str, object]:
    return {
        "label": label,
        "type": "full",
        "prior": None,
        "error": False,
        "database": {"id": number},
        "archive": {"start": "000000010000000000000002", "stop": "000000010000000000000003"},
        "lsn": {"start": "0/2000028", "stop": "0/3000050"},
        "timestamp": {"start": stop - 10, "stop": stop},
        "info": {"size": 1000, "repository": {"delta": 100}},
    }


def segment(archive: str, number: int) -> str:
    return f"{archive}/0000000100000000/0000000100000000{number:08X}-{'a' * 40}.lz4"


FILES = {
    segment("15-1", 2): {"type": "file", "time": 50},
    segment("15-1", 3): {"type": "file", "time": 60},
    segment("15-2", 4): {"type": "file", "time": 70},
    "15-1/0000000100000000/000000010000000000000002.00000028.backup": {"type": "file", "time": 50},
    "archive.info": {"type": "file", "time": 1},
}


class TestConfig:
    def test_hosts_that_are_away_are_left_out_and_the_others_move_up(self) -> None:
        config = parse_config(CONFIG)
        assert pg_hosts(config, "main") == {1: ("127.0.0.1", 1), 2: ("a2", 18432)}
        text = without_hosts(config, "main", [1])
        assert "pg1-host=a2\n" in text and "pg1-path=/two" in text and "pg2" not in text
        assert "repo2-cipher-pass=secret=with=signs\n" in text and "tls-server" not in text

    def test_an_unknown_stanza(self) -> None:
        with pytest.raises(PgBackRestError, match=r"no section \[other\]"):
            pg_hosts(parse_config(CONFIG), "other")

    def test_the_only_repository_needs_no_number(self, tmp_path: pathlib.Path) -> None:
        path = tmp_path / "repository.conf"
        path.write_text(CONFIG, encoding="utf-8")
        assert PgBackRest("main", str(path)).repo == 2
        path.write_text(CONFIG.replace("tls-server-auth=a1", "repo1-path=/other\n#"), encoding="utf-8")
        with pytest.raises(PgBackRestError, match=r"\[1, 2\]"):
            PgBackRest("main", str(path))

    def test_nobody_answers(self, tmp_path: pathlib.Path) -> None:
        path = tmp_path / "repository.conf"
        path.write_text(CONFIG.partition("pg2-host")[0], encoding="utf-8")
        with pytest.raises(PgBackRestError, match=r"no host of PostgreSQL answers \(127.0.0.1:1\)"):
            PgBackRest("main", str(path)).check()

    def test_what_a_recovery_reads_is_closed_and_has_no_host(self, tmp_path: pathlib.Path) -> None:
        path = tmp_path / "repository.conf"
        path.write_text(CONFIG, encoding="utf-8")
        made = PgBackRest("main", str(path))._restore_config(str(tmp_path / "data"))
        assert os.stat(made).st_mode & 0o777 == 0o600
        text = pathlib.Path(made).read_text(encoding="utf-8")
        assert "-host" not in text and text.endswith(f"pg1-path={tmp_path / 'data'}\n")


class TestInfo:
    def test_backups_and_ranges(self) -> None:
        info = parse_info(entry(), FILES, {2: (1, 5)}, "main")
        assert [backup.label for backup in info.backups] == ["20260101-000000F"]
        assert info.backups[0].stop_lsn == 0x3000050 and info.backups[0].timeline == 1
        assert [(part.first[-2:], part.last[-2:], part.ended_at) for part in info.ranges] == [("02", "03", 60.0)]
        assert info.branches == {2: (1, 5)}

    def test_wal_of_another_system_is_not_counted_in(self) -> None:
        databases = [{"id": n, "system-id": system, "version": "15"} for n, system in ((1, 7), (2, 8), (3, 7))]
        files = {**FILES, segment("15-3", 4): {"type": "file", "time": 80}}
        backups = [one("new", 2, 90), one("old", 1, 100)]
        info = parse_info(entry(db=databases, backup=backups), files, {}, "main")
        assert [backup.label for backup in info.backups] == ["old"]
        assert [part.last[-2:] for part in info.ranges] == ["04"] and info.ranges[0].ended_at == 80.0

    def test_a_version_that_says_no_positions(self) -> None:
        backup = one("x", 1, 100)
        del backup["lsn"]
        assert parse_info(entry(backup=[backup]), {}, {}, "main").backups[0].start_lsn == 0x2000000

    def test_no_stanza_and_no_access(self) -> None:
        with pytest.raises(PgBackRestError, match="no stanza other"):
            parse_info(entry(), {}, {}, "other")
        bad = [{"key": 2, "status": {"code": 99, "message": "[CryptoError] cipher header invalid"}}]
        with pytest.raises(PgBackRestError, match="passphrase"):
            parse_info(entry(repo=bad), {}, {}, "main")


class TestTarget:
    def test_words(self) -> None:
        assert target_options(RestoreTarget()) == ["--type=default"]
        assert target_options(RestoreTarget("backup", "x"))[0] == "--type=immediate"
        lsn = target_options(RestoreTarget("lsn", "0/1", timeline="2", exclusive=True))
        assert lsn == [
            "--type=lsn", "--target=0/1", "--target-action=promote", "--target-exclusive", "--target-timeline=2",
        ]  # fmt: skip
        assert "--target=2026-01-31 12:00:00+00" in target_options(RestoreTarget("time", "2026-01-31T13:00:00+01:00"))


class TestWords:
    def test_a_failure_says_what_to_do(self) -> None:
        said = "WARN: x\nERROR: [029]: unable to load\nkey/value found outside of section at line 1: \ufffd\x01x\n"
        error = failure("here", ["--repo=1", "backup"], 29, said)
        assert error.code == 29
        assert (
            "pgBackRest backup failed [029]" in str(error) and "passphrase" in str(error) and "\ufffd" not in str(error)
        )
        assert "disk" in str(failure("here", ["backup"], 64, "ERROR: [064]: unable to write '/x' [FileWriteError]"))

    def test_verify(self) -> None:
        assert verify_problems("P00   INFO: verify command end: completed successfully (4518ms)\n") == []
        found = verify_problems(
            "2026 P02   INFO: invalid checksum 'x/16388.lz4'\n2026 P00   INFO: stanza: main\n status: error\n"
            "   backup: x, status: invalid, total files checked: 1574\n      checksum invalid: 1\n"
        )
        assert "invalid checksum 'x/16388.lz4'" in found[0] and found[-1] == "checksum invalid: 1"
        assert "passphrase" in verify_problems("status: error")[0]


@pytest.mark.parametrize(("free_after", "made"), [(3, True), (99, False)])
def test_a_lock_that_a_push_holds_is_waited_for(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, free_after: int, made: bool
) -> None:
    """A primary without a stanza tries to push all the time, and each try holds the lock for a moment."""
    (tmp_path / "repository.conf").write_text(CONFIG)
    engine = PgBackRest("main", config=str(tmp_path / "repository.conf"), work=str(tmp_path))
    monkeypatch.setattr(pgbackrest, "LOCK_WITHIN", 1.5)
    tries: list[str] = []

    def run(_self: PgBackRest, arguments: list[str], _config: str) -> str:
        tries.append(arguments[-1])
        if len(tries) < free_after:
            raise PgBackRestError("unable to acquire lock", pgbackrest.LOCKED)
        return ""

    monkeypatch.setattr(PgBackRest, "_run", run)
    if made:
        engine._when_free(["stanza-create"], "any")
        assert tries == ["stanza-create"] * free_after
    else:
        with pytest.raises(PgBackRestError, match="lock"):
            engine._when_free(["stanza-create"], "any")


@pytest.mark.parametrize(
    ("backups", "upgrade", "upgraded"),
    [((), False, True), (("20260131-010000F",), False, False), (("20260131-010000F",), True, True)],
)
def test_a_repository_of_another_system_is_given_up_only_where_nothing_is_lost_or_it_is_allowed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, backups: tuple[str, ...], upgrade: bool, upgraded: bool
) -> None:
    """All was lost but region b's repository: region a's was made for the cluster that was there before the restore."""
    (tmp_path / "repository.conf").write_text(CONFIG)
    engine = PgBackRest("main", config=str(tmp_path / "repository.conf"), work=str(tmp_path))
    ran: list[str] = []

    def run(_self: PgBackRest, arguments: list[str], _config: str) -> str:
        ran.append(arguments[-1])
        if arguments[-1] == "stanza-create":
            raise PgBackRestError("files exist but do not match the database", pgbackrest.MISMATCH)
        return ""

    monkeypatch.setattr(PgBackRest, "_run", run)
    monkeypatch.setattr(PgBackRest, "_reachable", lambda _self: contextlib.nullcontext("any"))
    found = parse_info(entry(backup=[one(label, 1, 100) for label in backups]), {}, {}, "main")
    monkeypatch.setattr(PgBackRest, "info", lambda _self: found)
    problem = engine.create(upgrade)
    assert (engine.upgraded, "stanza-upgrade" in ran) == (upgraded, upgraded)
    assert ("another system" in problem) is not upgraded
