#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: postgres_migrations
short_description: Bring the roles, databases and schemas of a PostgreSQL server to what is declared
version_added: "0.1.0"
description:
  - Makes the declared roles and databases, then applies the migrations of each database that it does not have yet, in
    order, each in one transaction together with its row in C(public.schema_migrations).
  - Safe to run again, and safe to run twice at once (an advisory lock). A migration that was edited after it was
    applied, that is gone, or that was inserted before an applied one, is refused.
  - Nothing is ever removed.
  - Connects over the local socket, as the operating system's user that it runs as. Run it on the primary, as
    C(postgres).
requirements:
  - psycopg2 on the host
options:
  port:
    description: Port of the server, which is part of its socket's name.
    type: int
    default: 5432
  socket_directory:
    description: Folder of the server's socket.
    type: path
    default: /var/run/postgresql
  roles:
    description: Roles to have.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the role; a new one may log in.
        type: str
        required: true
      password:
        description: Its password. The server gets the SCRAM verifier only.
        type: str
      member_of:
        description: Roles that it is a member of.
        type: list
        elements: str
        default: []
      execute:
        description: Functions of the database C(postgres), with their argument types, that it may execute.
        type: list
        elements: str
        default: []
      replication:
        description: Whether it may replicate; not touched when omitted.
        type: bool
      createdb:
        description: Whether it may create databases; not touched when omitted.
        type: bool
      login:
        description: Whether it may log in; not touched when omitted.
        type: bool
  databases:
    description: Databases to have.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the database.
        type: str
        required: true
      owner:
        description: The role that owns it, and that its migrations run as.
        type: str
        required: true
      migrations:
        description: File name (C(0001_words.sql)) to text.
        type: dict
        default: {}
      seed:
        description:
          - SQL text with first data. It is applied once, after the migrations, in one transaction; that it was is
            remembered by its checksum in C(public.schema_seeds).
        type: str
        default: ""
attributes:
  check_mode:
    description: Can run in check mode; lists what is pending. A server that is not there yet counts as empty.
    support: full
  diff_mode:
    description: Shows what is done, without any password.
    support: full
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Apply the schema
  shannon.resilience.postgres_migrations:
    roles:
      - {name: shannon, password: "{{ postgres_app_password }}"}
    databases:
      - name: shannon
        owner: shannon
        migrations:
          0001_core.sql: "{{ lookup('ansible.builtin.file', 'migrations/0001_core.sql') }}"
  become: true
  become_user: postgres
"""

RETURN = r"""
done:
  description: What was done (in check mode, what would be), in order.
  returned: always
  type: list
  elements: str
  sample: [create role shannon, create database shannon, "shannon: migration 0001_core.sql"]
left_out:
  description: What was left out, and why.
  returned: success
  type: list
  elements: str
  sample: ["shannon: no seed file was given, nothing was seeded"]
"""

import contextlib
import hashlib
import traceback
import typing as t

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.migrations import (
    MigrationError,
    Roles,
    Schema,
    parse,
    pending,
    quoted,
)

PSYCOPG2_ERROR = None
try:
    import psycopg2
except ImportError:
    psycopg2 = None
    PSYCOPG2_ERROR = traceback.format_exc()


@contextlib.contextmanager
def connected(params: dict[str, t.Any], database: str) -> t.Iterator[t.Any]:
    """A connection over the local socket, closed afterwards."""
    connection = psycopg2.connect(
        host=params["socket_directory"],
        port=params["port"],
        dbname=database,
        connect_timeout=5,
        application_name="postgres_migrations",
        options="-c lock_timeout=30s",
    )
    try:
        connection.autocommit = True
        yield connection
    finally:
        connection.close()


def databases_present(connection: t.Any) -> set[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT datname FROM pg_database")
        return {name for (name,) in cursor.fetchall()}


def refuse_standby(connection: t.Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_is_in_recovery()")
        if cursor.fetchone()[0]:
            raise ResilienceError("this server is a standby, which takes no changes: run this on the cell's primary")


def seed(connection: t.Any, owner: str, sql: str, dry_run: bool) -> bool:
    """Apply first data once; tells whether there was anything to do."""
    checksum = hashlib.sha256(sql.strip().encode()).hexdigest()
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('public.schema_seeds') IS NOT NULL")
        if cursor.fetchone()[0]:
            cursor.execute("SELECT 1 FROM public.schema_seeds WHERE checksum = %s", (checksum,))
            if cursor.fetchone():
                return False
        if dry_run:
            return True
        cursor.execute("BEGIN")
        try:
            cursor.execute(f"SET LOCAL ROLE {quoted(owner)}")
            cursor.execute(
                "CREATE TABLE IF NOT EXISTS public.schema_seeds "
                "(checksum text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
            )
            cursor.execute(sql)
            cursor.execute("INSERT INTO public.schema_seeds (checksum) VALUES (%s)", (checksum,))
            cursor.execute("COMMIT")
        except psycopg2.Error as exc:
            cursor.execute("ROLLBACK")
            raise MigrationError(f"the seed file failed and was rolled back: {str(exc).strip()}") from exc
    return True


def bring_database(
    params: dict[str, t.Any], database: dict[str, t.Any], exists: bool, dry_run: bool
) -> tuple[list[str], list[str]]:
    """One database's migrations and seed; returns what was done and what was skipped."""
    name, done, skipped = database["name"], [], []
    migrations = parse({key: str(text) for key, text in database["migrations"].items()})
    if not exists:  # in check mode only: nothing to connect to yet
        done = [f"{name}: migration {migration.name}" for migration in pending(migrations, {})]
        if database["seed"]:
            done.append(f"{name}: seed")
        return done, skipped
    with connected(params, name) as connection:
        schema = Schema(connection, database["owner"])
        if dry_run:
            names = [migration.name for migration in pending(migrations, schema.applied())]
        else:
            names = schema.migrate(migrations)
        done += [f"{name}: migration {migration}" for migration in names]
        if not database["seed"].strip():
            skipped.append(f"{name}: no seed file was given, nothing was seeded")
        elif seed(connection, database["owner"], database["seed"], dry_run):
            done.append(f"{name}: seed")
    return done, skipped


def main() -> None:
    role_spec = {
        "name": {"type": "str", "required": True},
        "password": {"type": "str", "no_log": True},
        "member_of": {"type": "list", "elements": "str", "default": []},
        "execute": {"type": "list", "elements": "str", "default": []},
        "replication": {"type": "bool"},
        "createdb": {"type": "bool"},
        "login": {"type": "bool"},
    }
    database_spec = {
        "name": {"type": "str", "required": True},
        "owner": {"type": "str", "required": True},
        "migrations": {"type": "dict", "default": {}},
        "seed": {"type": "str", "default": ""},
    }
    module = AnsibleModule(
        argument_spec={
            "port": {"type": "int", "default": 5432},
            "socket_directory": {"type": "path", "default": "/var/run/postgresql"},
            "roles": {"type": "list", "elements": "dict", "default": [], "options": role_spec},
            "databases": {"type": "list", "elements": "dict", "default": [], "options": database_spec},
        },
        supports_check_mode=True,
    )
    params, dry_run = module.params, module.check_mode
    done: list[str] = []
    skipped: list[str] = []
    if psycopg2 is None:
        if not dry_run:
            module.fail_json(msg=missing_required_lib("psycopg2"), exception=PSYCOPG2_ERROR, done=done)
        skipped.append("psycopg2 is not installed yet, so nothing was looked at")
        module.exit_json(changed=True, done=done, left_out=skipped)
    try:
        with connected(params, "postgres") as connection:
            refuse_standby(connection)
            roles = Roles(connection)
            for role in params["roles"]:
                done += roles.ensure(role, dry_run)
            for database in params["databases"]:
                done += roles.ensure_database(database["name"], database["owner"], dry_run)
            present = databases_present(connection)
        for database in params["databases"]:
            made, left = bring_database(params, database, database["name"] in present, dry_run)
            done += made
            skipped += left
    except ResilienceError as exc:
        module.fail_json(msg=str(exc), done=done)
    except psycopg2.Error as exc:
        where = f"{params['socket_directory']}/.s.PGSQL.{params['port']}"
        if dry_run and isinstance(exc, psycopg2.OperationalError) and not done:
            skipped.append(f"no server answers at {where} yet, so nothing was looked at")
            module.exit_json(changed=True, done=done, left_out=skipped)
        module.fail_json(
            msg=f"{where}: expected a primary that takes this change, got: {str(exc).strip()}. "
            "Run it as the user postgres on the cell's primary, and look at PostgreSQL's journal.",
            done=done,
        )
    diff = {"before": "", "after": "".join(f"{line}\n" for line in done)}
    module.exit_json(changed=bool(done), done=done, left_out=skipped, diff=diff)


if __name__ == "__main__":
    main()
