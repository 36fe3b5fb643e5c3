# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Versioned schema migrations and declared roles: what is there, what is wanted, what has to be done.

Takes any DB-API connection whose parameters are written C(%s); it imports no driver.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import typing as t
from dataclasses import dataclass

from .errors import ResilienceError

#: Name of a migration's file: a number, an underscore, words.
NAME = re.compile(r"^(?P<version>\d{4,})_(?P<title>[a-z0-9_]+)\.sql$")
#: Two runs take the same lock, so the second finds the first one's work done. Any number that is ours alone will do.
LOCK = 0x5348414E4E4F4E
SCRAM_ITERATIONS = 4096
_TABLE = """
CREATE TABLE IF NOT EXISTS public.schema_migrations (
    version     bigint PRIMARY KEY,
    name        text NOT NULL,
    checksum    text NOT NULL,
    applied_at  timestamptz NOT NULL DEFAULT now(),
    duration_ms integer NOT NULL DEFAULT 0
)
"""
#: Role attributes that a role must be given in so many words; what is not said is off.
ATTRIBUTES = {"replication": "rolreplication", "createdb": "rolcreatedb", "login": "rolcanlogin"}


@dataclass(frozen=True)
class Migration:
    """One file: C(0001_name.sql) and its text."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """Of the text without blanks at the ends of lines, so that an editor's habits do not count as an edit."""
        lines = [line.rstrip() for line in self.sql.strip().splitlines()]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class MigrationError(ResilienceError):
    """The migrations contradict the database or each other, or one of them failed."""


def parse(files: t.Mapping[str, str]) -> list[Migration]:
    """Migrations in order, from file name to text.

    :raises MigrationError: a name that is not C(0001_words.sql), or a version that occurs twice.
    """
    found: dict[int, Migration] = {}
    for name, sql in files.items():
        match = NAME.match(name)
        if not match:
            raise MigrationError(
                f"the migration {name!r} has no proper name: four digits, an underscore, small letters, .sql"
            )
        version = int(match["version"])
        if version in found:
            raise MigrationError(f"the migrations {found[version].name} and {name} have the same version {version}")
        found[version] = Migration(version, name, sql)
    return [found[version] for version in sorted(found)]


def pending(migrations: t.Sequence[Migration], applied: t.Mapping[int, tuple[str, str]]) -> list[Migration]:
    """Those that have not been applied.

    :param applied: version to name and checksum, as the database has them.
    :raises MigrationError: an applied one was edited or lost, or a new one is older than an applied one.
    """
    known = {migration.version: migration for migration in migrations}
    for version, (name, checksum) in sorted(applied.items()):
        migration = known.get(version)
        if migration is None:
            raise MigrationError(
                f"the database has the migration {name}, which is not among the given ones: "
                "is this an older checkout than the one that was deployed?"
            )
        if migration.checksum != checksum:
            raise MigrationError(
                f"the migration {migration.name} was edited after it was applied "
                f"(checksum then {checksum[:12]}, now {migration.checksum[:12]}). "
                "Put its text back as it was, and write the change as a new migration."
            )
    todo = [migration for migration in migrations if migration.version not in applied]
    newest = max(applied, default=0)
    for migration in todo:
        if migration.version < newest:
            raise MigrationError(
                f"the migration {migration.name} is older than {applied[newest][0]}, which was applied already: "
                "give it a number after that"
            )
    return todo


class Schema:
    """One database's migrations.

    :param connection: with autocommit on; transactions are begun and ended here.
    :param owner: the role that migrations run as, so that it owns what they make; it must own the database.
    """

    def __init__(self, connection: t.Any, owner: str = "") -> None:
        self._connection = connection
        self._owner = owner

    def applied(self) -> dict[int, tuple[str, str]]:
        """Version to name and checksum; empty before the first run."""
        with self._connection.cursor() as cursor:
            cursor.execute("SELECT to_regclass('public.schema_migrations') IS NOT NULL")
            if not cursor.fetchone()[0]:
                return {}
            cursor.execute("SELECT version, name, checksum FROM public.schema_migrations")
            return {int(version): (name, checksum) for version, name, checksum in cursor.fetchall()}

    def migrate(self, migrations: t.Sequence[Migration]) -> list[str]:
        """Apply what is pending, each migration in a transaction with its own row; returns the names.

        :raises MigrationError: as :func:`pending`, or the database refused one; what came before it stays applied.
        """
        if not pending(migrations, self.applied()):
            return []
        with self._connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", (LOCK,))
            try:
                # Read again: whoever held the lock may have done all of it.
                todo = pending(migrations, self.applied())
                for migration in todo:
                    self._apply(cursor, migration)
                return [migration.name for migration in todo]
            finally:
                cursor.execute("SELECT pg_advisory_unlock(%s)", (LOCK,))

    def _apply(self, cursor: t.Any, migration: Migration) -> None:
        cursor.execute("BEGIN")
        try:
            if self._owner:
                cursor.execute(f"SET LOCAL ROLE {quoted(self._owner)}")
            cursor.execute(_TABLE)
            cursor.execute(migration.sql)
            cursor.execute(
                "INSERT INTO public.schema_migrations (version, name, checksum, duration_ms) VALUES (%s, %s, %s, "
                "(extract(epoch FROM clock_timestamp() - now()) * 1000)::integer)",
                (migration.version, migration.name, migration.checksum),
            )
            cursor.execute("COMMIT")
        except Exception as exc:
            cursor.execute("ROLLBACK")
            raise MigrationError(
                f"the migration {migration.name} failed and was rolled back: {str(exc).strip()}"
            ) from exc


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def scram_verifier(password: str, salt: bytes | None = None, iterations: int = SCRAM_ITERATIONS) -> str:
    """What PostgreSQL stores for a password (RFC 5803), so that the password itself never reaches the server's log."""
    salt = secrets.token_bytes(16) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    client = hmac.digest(salted, b"Client Key", "sha256")
    server = hmac.digest(salted, b"Server Key", "sha256")
    stored = hashlib.sha256(client).digest()
    parts = (base64.b64encode(part).decode() for part in (salt, stored, server))
    return "SCRAM-SHA-256${}:{}${}:{}".format(iterations, *parts)


def password_matches(password: str, verifier: str | None) -> bool:
    """Whether a stored verifier is that of the password."""
    match = re.match(r"^SCRAM-SHA-256\$(\d+):([^$]+)\$", verifier or "")
    if not match:
        return False
    return hmac.compare_digest(
        scram_verifier(password, base64.b64decode(match[2]), int(match[1])), t.cast(str, verifier)
    )


class Roles:
    """The server's roles and databases.

    :param connection: a superuser's, with autocommit on.
    """

    def __init__(self, connection: t.Any) -> None:
        self._connection = connection

    def ensure(self, role: t.Mapping[str, t.Any], dry_run: bool = False) -> list[str]:
        """Make a role what it is declared to be; attributes that are not mentioned stay as they are.

        :param role: C(name), C(password), C(member_of), C(execute) (functions of the database that is connected to,
            with their argument types), and any of ATTRIBUTES.
        :returns: what was done (or would be), a few words each; never a password.
        """
        name = role["name"]
        with self._connection.cursor() as cursor:
            cursor.execute(
                "SELECT rolpassword, rolreplication, rolcreatedb, rolcanlogin FROM pg_authid WHERE rolname = %s",
                (name,),
            )
            row = cursor.fetchone()
            cursor.execute(
                "SELECT g.rolname FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid "
                "JOIN pg_roles r ON r.oid = m.member WHERE r.rolname = %s",
                (name,),
            )
            groups = {group for (group,) in cursor.fetchall()}
            present = dict(zip(("replication", "createdb", "login"), row[1:], strict=True)) if row else {}
            done, statements = [], []
            if row is None:
                done.append(f"create role {name}")
                statements.append((f"CREATE ROLE {quoted(name)} LOGIN", ()))
            for attribute in ATTRIBUTES:
                wanted = role.get(attribute)
                if wanted is not None and present.get(attribute, attribute == "login") != wanted:
                    word = attribute.upper() if wanted else f"NO{attribute.upper()}"
                    done.append(f"role {name}: {word.lower()}")
                    statements.append((f"ALTER ROLE {quoted(name)} {word}", ()))
            password = role.get("password")
            if password and not password_matches(password, row[0] if row else None):
                done.append(f"role {name}: password")
                statements.append((f"ALTER ROLE {quoted(name)} PASSWORD %s", (scram_verifier(password),)))
            for group in role.get("member_of") or ():
                if group not in groups:
                    done.append(f"role {name}: member of {group}")
                    statements.append((f"GRANT {quoted(group)} TO {quoted(name)}", ()))
            for function in role.get("execute") or ():
                if row is not None:
                    cursor.execute("SELECT has_function_privilege(%s, %s, 'EXECUTE')", (name, function))
                    if cursor.fetchone()[0]:
                        continue
                done.append(f"role {name}: may execute {function}")
                statements.append((f"GRANT EXECUTE ON FUNCTION {function} TO {quoted(name)}", ()))
            if not dry_run:
                for statement, values in statements:
                    cursor.execute(statement, values) if values else cursor.execute(statement)
        return done

    def ensure_database(self, name: str, owner: str, dry_run: bool = False) -> list[str]:
        """Make a database that belongs to its owner and that nobody else may connect to unasked."""
        with self._connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_get_userbyid(datdba), has_database_privilege('public', oid, 'CONNECT') "
                "FROM pg_database WHERE datname = %s",
                (name,),
            )
            row = cursor.fetchone()
            done, statements = [], []
            if row is None:
                done.append(f"create database {name}")
                statements.append(f"CREATE DATABASE {quoted(name)} OWNER {quoted(owner)} TEMPLATE template0")
            elif row[0] != owner:
                done.append(f"database {name}: owner {owner}")
                statements.append(f"ALTER DATABASE {quoted(name)} OWNER TO {quoted(owner)}")
            if row is None or row[1]:
                if row is not None:
                    done.append(f"database {name}: no access for everybody")
                statements.append(f"REVOKE CONNECT, TEMPORARY ON DATABASE {quoted(name)} FROM PUBLIC")
                statements.append(f"GRANT CONNECT ON DATABASE {quoted(name)} TO pg_monitor")
            if not dry_run:
                for statement in statements:
                    cursor.execute(statement)
        return done
