"""A restored folder in a member's place, what Patroni forgets, manifests and dumps: each step once, and never half."""

from __future__ import annotations

import json
import os
import pathlib
import typing as t

import pytest
from fake_etcd import FakeCluster

from ansible_collections.shannon.resilience.plugins.module_utils import (
    patroni_state,
    postgres_dump,
    postgres_folder,
    postgres_manifest,
)
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError, WaitTimeout
from ansible_collections.shannon.resilience.plugins.module_utils.etcd import EtcdClient
from ansible_collections.shannon.resilience.plugins.module_utils.postgres_scratch import ScratchPostgres


@pytest.fixture
def member(tmp_path: pathlib.Path) -> pathlib.Path:
    for name in ("data", "restore-r1/data"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "PG_VERSION").write_text("15\n", encoding="utf-8")
    (tmp_path / "data" / "old").touch()
    return tmp_path


def swap(member: pathlib.Path) -> bool:
    return postgres_folder.swap(str(member / "data"), str(member / "restore-r1/data"), "r1")


def look(member: pathlib.Path) -> postgres_folder.Folder:
    return postgres_folder.look(str(member / "data"), str(member / "restore-r1/data"), "r1")


class TestFolder:
    def test_swap_once(self, member: pathlib.Path) -> None:
        assert look(member).staged and look(member).mark == ""
        assert swap(member)
        assert look(member).mark == "r1" and not look(member).staged
        assert (pathlib.Path(look(member).kept) / "old").exists()
        assert not swap(member)

    def test_killed_between_the_two_renames(self, member: pathlib.Path) -> None:
        os.rename(member / "data", member / "data.before-restore-r1")
        assert swap(member)
        assert look(member).mark == "r1" and (pathlib.Path(look(member).kept) / "old").exists()

    def test_somebody_made_a_new_folder_in_between(self, member: pathlib.Path) -> None:
        (member / "data.before-restore-r1").mkdir()
        with pytest.raises(ResilienceError, match="both there"):
            swap(member)
        assert (member / "data" / "old").exists()

    def test_nothing_while_it_runs(self, member: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(postgres_folder, "_running", lambda place: 42)
        for call in (lambda: swap(member), lambda: postgres_folder.empty(str(member / "data"), "r1")):
            with pytest.raises(ResilienceError, match="process 42"):
                call()
        assert (member / "data" / "old").exists()

    def test_nothing_staged(self, member: pathlib.Path) -> None:
        (member / "restore-r1/data/PG_VERSION").unlink()
        with pytest.raises(ResilienceError, match="no restored data folder"):
            swap(member)
        assert (member / "data" / "old").exists()

    def test_empty_spares_what_came_from_this_restore(self, member: pathlib.Path) -> None:
        (member / "data" / postgres_folder.MARK).write_text("r1\n", encoding="utf-8")
        assert not postgres_folder.empty(str(member / "data"), "r1")
        assert postgres_folder.empty(str(member / "data"), "r2")
        assert not (member / "data").exists() and not postgres_folder.empty(str(member / "data"), "r2")

    def test_half_removed(self, member: pathlib.Path) -> None:
        os.rename(member / "data", member / "data.removed-r1")
        assert postgres_folder.empty(str(member / "data"), "r1")
        assert not (member / "data.removed-r1").exists()

    def test_a_name_that_is_a_path(self, member: pathlib.Path) -> None:
        with pytest.raises(ResilienceError, match="no name"):
            postgres_folder.empty(str(member / "data"), "../x")


@pytest.fixture
def client() -> t.Iterator[EtcdClient]:
    cluster = FakeCluster(1)
    with cluster.running() if hasattr(cluster, "running") else cluster as started:
        del started
        yield EtcdClient(cluster.endpoints)


class TestPatroniState:
    def test_all_but_the_configuration_goes(self, client: EtcdClient) -> None:
        for key in ("config", "initialize", "status", "members/a1"):
            client.put(f"/shannon/main/{key}", json.dumps({"ttl": 20, "standby_cluster": {"host": "x"}}))
        client.put("/shannon/main2/initialize", "1")
        assert patroni_state.forget(client, "main", None) == [
            "forget initialize", "forget members/a1", "forget status", "follow nobody",
        ]  # fmt: skip
        assert [entry.key for entry in client.range("/shannon/")] == [
            "/shannon/main/config",
            "/shannon/main2/initialize",
        ]
        found = client.get("/shannon/main/config")
        assert found is not None and json.loads(found.value) == {"ttl": 20}
        assert patroni_state.forget(client, "main", None) == []

    def test_a_standby_follows_the_home(self, client: EtcdClient) -> None:
        client.put("/shannon/main/config", "{}")
        wanted = patroni_state.following(["192.0.2.1", "192.0.2.2"], 5432, "region_b")
        assert patroni_state.forget(client, "main", wanted, dry_run=True) == ["follow 192.0.2.1,192.0.2.2"]
        patroni_state.forget(client, "main", wanted)
        found = client.get("/shannon/main/config")
        assert found is not None and json.loads(found.value)["standby_cluster"] == wanted

    def test_not_while_a_member_lives(self, client: EtcdClient) -> None:
        lease = client.lease_grant(30)
        client.put("/shannon/main/members/a1", "{}", lease.id)
        with pytest.raises(WaitTimeout, match="members/a1 still there"):
            patroni_state.forget(client, "main", None, timeout=0.2)


def taken(**tables: tuple[int, str]) -> dict[str, t.Any]:
    found = {f"public.{name}": {"rows": rows, "checksum": sum_} for name, (rows, sum_) in tables.items()}
    return {
        "lsn": "0/5",
        "databases": {"shannon": {"tables": found, "sequences": {"public.s": 5}, "schema_version": 3}},
    }


class TestManifest:
    def test_the_same(self) -> None:
        assert postgres_manifest.compare(taken(t=(1, "x")), taken(t=(1, "x"))) == []

    def test_differences(self) -> None:
        other = taken(t=(1, "y"), u=(3, "x"), w=(0, "0"))
        other["databases"]["shannon"].update(schema_version=2, sequences={"public.s": 4})
        assert postgres_manifest.compare(taken(t=(1, "x"), u=(2, "x"), v=(1, "z")), other) == [
            "shannon: public.t has the right number of rows, with other values",
            "shannon: public.u has 3 rows, not 2",
            "shannon: the table public.v is not there",
            "shannon: the table public.w is too much",
            "shannon: the schema's version is 2, not 3",
            "shannon: the sequence public.s is at 4, before 5",
        ]
        assert postgres_manifest.compare(taken(), {"databases": {}}) == ["the database shannon is not there"]

    def test_its_target(self) -> None:
        target = postgres_manifest.manifest_target(taken())
        assert (target.kind, target.value, target.exclusive) == ("lsn", "0/5", True)

    def test_replay_goes_on_whatever_happens(self) -> None:
        said: list[str] = []

        class Cursor:
            def __enter__(self) -> t.Any:
                return self

            def __exit__(self, *_args: object) -> None:
                pass

            def execute(self, statement: str) -> None:
                said.append(statement)
                if "REPEATABLE READ" in statement:
                    raise RuntimeError("cut")

            def fetchall(self) -> list[tuple[object]]:
                return [("paused" if "pause_state" in said[-1] else True,)]

        class Connection:
            autocommit = False

            def cursor(self) -> Cursor:
                return Cursor()

            def close(self) -> None:
                said.append("closed")

        with pytest.raises(RuntimeError):
            postgres_manifest.manifest(lambda database: Connection())
        assert said.index("SELECT pg_wal_replay_pause()") < said.index("SELECT pg_wal_replay_resume()")
        assert said.count("closed") == 2


class TestDump:
    def make(self, folder: pathlib.Path) -> pathlib.Path:
        (folder / "dump").mkdir(parents=True)
        (folder / "dump" / "toc.dat").write_bytes(b"x")
        manifest = {"database": "shannon", "files": postgres_dump.checksums(folder)}
        (folder / postgres_dump.MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        return folder

    def test_verify(self, tmp_path: pathlib.Path) -> None:
        folder = self.make(tmp_path / "d")
        assert postgres_dump.verify(str(folder)) == []
        (folder / "dump" / "toc.dat").write_bytes(b"y")
        (folder / "dump" / "more").touch()
        assert postgres_dump.verify(str(folder)) == [
            "dump/more is too much",
            "dump/toc.dat is damaged: its checksum is not the manifest's",
        ]
        (folder / "dump" / "toc.dat").unlink()
        assert "dump/toc.dat is missing" in postgres_dump.verify(str(folder))
        assert "expected the manifest" in postgres_dump.verify(str(tmp_path / "none"))[0]

    def test_a_damaged_one_is_not_restored(self, tmp_path: pathlib.Path) -> None:
        folder = self.make(tmp_path / "d")
        (folder / "dump" / "toc.dat").unlink()
        with pytest.raises(ResilienceError, match="is not restored"):
            postgres_dump.restore(str(folder), "other", {})

    def test_a_name_of_a_database_is_quoted_and_a_cut_connection_is_noticed(self) -> None:
        said = postgres_dump.conninfo("it's a \\ name")
        assert said.startswith("dbname='it\\'s a \\\\ name' keepalives_idle=10 ")
        assert "tcp_user_timeout=30000" in said

    def test_half_a_dump_leaves_nothing(self, tmp_path: pathlib.Path) -> None:
        with pytest.raises(ResilienceError, match="can't be run"):
            postgres_dump.dump(str(tmp_path / "d"), "shannon", {}, bin_dir=str(tmp_path / "none"))
        assert list(tmp_path.iterdir()) == []

    def test_tables(self) -> None:
        listed = "; comment\n3344; 0 16386 TABLE DATA public t postgres\n215; 1259 16386 TABLE public t postgres\n"
        assert postgres_dump.tables_of(listed) == {"public.t"}


class TestScratch:
    def test_finish_takes_out_what_the_recovery_needed(
        self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = tmp_path / "data"
        data.mkdir()
        auto = data / "postgresql.auto.conf"
        auto.write_text(
            "# by hand\nwork_mem = '8MB'\n# Recovery settings generated by pgBackRest restore on x\n"
            "restore_command = 'pgbackrest'\nrecovery_target_time = 'x'\n",
            encoding="utf-8",
        )
        secret = pathlib.Path(f"{data}.pgbackrest.conf")
        secret.touch()
        scratch = ScratchPostgres(str(data), str(tmp_path / "run"))
        state = {"Database cluster state": "in production"}
        monkeypatch.setattr(ScratchPostgres, "control", lambda self: state)
        with pytest.raises(ResilienceError, match="in production"):
            scratch.finish()
        assert secret.exists()
        state["Database cluster state"] = "shut down"
        scratch.finish()
        assert auto.read_text(encoding="utf-8") == "# by hand\nwork_mem = '8MB'\n" and not secret.exists()

    def test_a_process_number_of_another_program_is_not_taken_for_ours(self, tmp_path: pathlib.Path) -> None:
        (tmp_path / "postmaster.pid").write_text(f"{os.getpid()}\n", encoding="utf-8")
        ScratchPostgres(str(tmp_path), str(tmp_path / "run")).stop_left_behind()
        assert not (tmp_path / "postmaster.pid").exists()


@pytest.mark.parametrize(("lives", "expected"), [(True, ""), (False, "did not start: FATAL: no room")])
def test_an_instance_that_serves_has_taken_a_connection(
    lives: bool, expected: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """psql is refused twice, as it is while PostgreSQL starts."""
    programs = {
        "postgres": "exec sleep 60" if lives else "echo 'FATAL: no room' >&2; exit 1",
        "psql": f'echo x >> {tmp_path}/asked; [ "$(wc -l < {tmp_path}/asked)" -gt 2 ] && echo 1 || exit 2',
    }
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(ScratchPostgres, "control", lambda _self: {})
    scratch = ScratchPostgres(str(tmp_path / "data"), str(tmp_path / "run"), bin_dir=str(tmp_path / "bin"))
    try:
        if lives:
            scratch.serve(timeout=30)
            assert (tmp_path / "asked").read_text().count("x") == 3
        else:
            with pytest.raises(ResilienceError, match=expected):
                scratch.serve(timeout=30)
    finally:
        scratch.stop(fast=True)
