# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which migrations are applied, which are refused, and how passwords are compared."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest

from ansible_collections.shannon.resilience.plugins.module_utils.migrations import (
    Migration,
    MigrationError,
    Roles,
    Schema,
    parse,
    password_matches,
    pending,
    quoted,
    scram_verifier,
)

FILES = {"0002_b.sql": "SELECT 2;", "0001_a.sql": "SELECT 1;"}


def applied(*migrations: Migration) -> dict[int, tuple[str, str]]:
    return {migration.version: (migration.name, migration.checksum) for migration in migrations}


class Recorder:
    """A connection that answers queries from a script and remembers every statement."""

    def __init__(self, answers: dict[str, list[tuple[t.Any, ...]]], fail_on: str = "") -> None:
        self.answers, self.fail_on = answers, fail_on
        self.statements: list[str] = []
        self._rows: list[tuple[t.Any, ...]] = []

    def cursor(self) -> Recorder:
        return self

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_exc: object) -> None:
        """Nothing to close."""

    def execute(self, statement: str, values: tuple[t.Any, ...] = ()) -> None:
        self.statements.append(statement)
        if self.fail_on and self.fail_on in statement:
            raise RuntimeError("syntax error")
        self._rows = next((rows for part, rows in self.answers.items() if part in statement), [])

    def fetchone(self) -> tuple[t.Any, ...] | None:
        return self._rows[0] if self._rows else None

    def fetchall(self) -> list[tuple[t.Any, ...]]:
        return self._rows


def test_order_is_by_version() -> None:
    assert [migration.name for migration in parse(FILES)] == ["0001_a.sql", "0002_b.sql"]


@pytest.mark.parametrize("name", ["a.sql", "1_a.sql", "0001-a.sql", "0001_A.sql", "0001_a.txt"])
def test_improper_names_are_refused(name: str) -> None:
    with pytest.raises(MigrationError, match="proper name"):
        parse({name: ""})


def test_a_version_twice_is_refused() -> None:
    with pytest.raises(MigrationError, match="same version 1"):
        parse({"0001_a.sql": "", "0001_b.sql": ""})


def test_blanks_at_line_ends_do_not_count_as_an_edit() -> None:
    assert Migration(1, "a", "SELECT 1;  \n").checksum == Migration(1, "a", "SELECT 1;").checksum


def test_what_is_not_applied_is_pending() -> None:
    first, second = parse(FILES)
    assert pending([first, second], {}) == [first, second]
    assert pending([first, second], applied(first)) == [second]
    assert pending([first, second], applied(first, second)) == []


def test_an_edited_migration_is_refused() -> None:
    first, second = parse(FILES)
    with pytest.raises(MigrationError, match=r"0001_a\.sql was edited.*new migration"):
        pending([Migration(1, "0001_a.sql", "SELECT 3;"), second], applied(first))


def test_an_older_checkout_is_refused() -> None:
    first, second = parse(FILES)
    with pytest.raises(MigrationError, match="older checkout"):
        pending([first], applied(first, second))


def test_an_inserted_migration_is_refused() -> None:
    first, second = parse(FILES)
    with pytest.raises(MigrationError, match="older than"):
        pending([first, second], applied(second))


def test_each_migration_is_one_transaction_under_the_lock() -> None:
    connection = Recorder({"to_regclass": [(False,)]})
    assert Schema(connection, "shannon").migrate(parse(FILES)) == ["0001_a.sql", "0002_b.sql"]
    said = connection.statements
    assert said.count("BEGIN") == said.count("COMMIT") == 2
    assert said.index("SELECT pg_advisory_lock(%s)") < said.index("BEGIN")
    assert said[-1] == "SELECT pg_advisory_unlock(%s)"
    assert 'SET LOCAL ROLE "shannon"' in said


def test_nothing_pending_takes_no_lock() -> None:
    first, second = parse(FILES)
    rows = [(version, *row) for version, row in applied(first, second).items()]
    connection = Recorder({"to_regclass": [(True,)], "FROM public.schema_migrations": rows})
    assert Schema(connection).migrate([first, second]) == []
    assert not any("lock" in statement for statement in connection.statements)


def test_a_failed_migration_is_rolled_back_and_the_lock_released() -> None:
    connection = Recorder({"to_regclass": [(False,)]}, fail_on="SELECT 2;")
    with pytest.raises(MigrationError, match=r"0002_b\.sql failed and was rolled back: syntax error"):
        Schema(connection).migrate(parse(FILES))
    assert connection.statements[-2:] == ["ROLLBACK", "SELECT pg_advisory_unlock(%s)"]
    assert connection.statements.count("COMMIT") == 1


def test_the_verifier_is_the_one_of_rfc_7677() -> None:
    salt = bytes.fromhex("5b6d99689d12354be69d0c8d5b22c0d1".ljust(32, "0"))
    verifier = scram_verifier("pencil", salt)
    assert verifier.startswith("SCRAM-SHA-256$4096:")
    assert password_matches("pencil", verifier)
    assert not password_matches("pencils", verifier)


@pytest.mark.parametrize("stored", [None, "", "md5deadbeef", "SCRAM-SHA-256$x"])
def test_anything_but_scram_does_not_match(stored: str | None) -> None:
    assert not password_matches("pencil", stored)


def test_a_missing_role_is_made_without_its_password_in_the_words() -> None:
    connection = Recorder({})
    done = Roles(connection).ensure({"name": "monitor", "password": "pencil", "member_of": ["pg_monitor"]})
    assert done == ["create role monitor", "role monitor: password", "role monitor: member of pg_monitor"]
    assert not any("pencil" in statement for statement in connection.statements)


def test_a_role_that_is_as_declared_stays() -> None:
    connection = Recorder({"pg_authid": [(scram_verifier("pencil"), True, False, True)]})
    assert Roles(connection).ensure({"name": "replicator", "password": "pencil", "replication": True}) == []


def test_a_dry_run_changes_nothing() -> None:
    connection = Recorder({})
    assert Roles(connection).ensure_database("shannon", "shannon", dry_run=True) == ["create database shannon"]
    assert all(statement.startswith("SELECT") for statement in connection.statements)


def test_identifiers_are_quoted() -> None:
    assert quoted('a"b') == '"a""b"'


def test_the_roles_own_migrations_have_proper_names() -> None:
    folder = Path(__file__).parents[2] / "roles" / "postgres" / "files" / "migrations"
    migrations = parse({path.name: path.read_text() for path in folder.glob("*.sql")})
    assert [migration.version for migration in migrations] == list(range(1, len(migrations) + 1))
