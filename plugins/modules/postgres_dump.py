#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: postgres_dump
short_description: Logical dumps of a PostgreSQL database with a manifest of checksums
version_added: "0.1.0"
description:
  - Dumps one database into a folder (pg_dump's directory format and a manifest with the SHA-256 of every file),
    verifies such a folder, and restores it into a database of another name.
  - A dump appears whole or not at all. A damaged one is not restored, and a database that exists is never touched.
options:
  path:
    description: The folder of the dump.
    type: path
    required: true
  state:
    description:
      - V(dumped) makes the dump; a folder that is there and fits its manifest is left alone.
      - V(verified) compares the files with the manifest, and fails when one differs.
      - V(restored) makes O(database) from the dump; one that is there already counts as done.
    type: str
    choices: [dumped, verified, restored]
    default: dumped
  database:
    description: The database to dump, or to make.
    type: str
  host:
    description: Address of the server, or the folder of its socket.
    type: str
    default: /var/run/postgresql
  port:
    description: Its port.
    type: int
    default: 5432
  user:
    description: Who to connect as; empty takes the operating system's user.
    type: str
    default: ""
  password:
    description: Its password. It reaches no process list.
    type: str
  ca_file:
    description: With it, the connection is encrypted and the server's certificate checked.
    type: path
  cert_file:
    description: The client's certificate.
    type: path
  key_file:
    description: Its key.
    type: path
  owners:
    description: With O(state=restored), whether tables get their owners and grants; the roles must be there then.
    type: bool
    default: true
  jobs:
    description: Connections to use at once.
    type: int
    default: 2
  bin_dir:
    description: Where pg_dump is; empty takes it from the path.
    type: path
    default: ""
  timeout:
    description: Seconds that it may take.
    type: int
    default: 14400
attributes:
  check_mode:
    description: Can run in check mode; a dump that is there is verified all the same.
    support: full
  diff_mode:
    description: Shows the tables of the dump that is made.
    support: full
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Dump the services' database
  shannon.resilience.postgres_dump:
    path: /var/lib/shannon/backup/scratch/shannon-20260131
    database: shannon
  become: true
  become_user: postgres

- name: Put it beside the live one, to take a table from it
  shannon.resilience.postgres_dump:
    path: /var/lib/shannon/backup/scratch/shannon-20260131
    state: restored
    database: shannon_before
  become: true
  become_user: postgres
"""

RETURN = r"""
manifest:
  description: Database, time, tables, and SHA-256 and size of every file.
  returned: when there is one
  type: dict
problems:
  description: What differs from the manifest.
  returned: when state is verified
  type: list
  elements: str
"""

import pathlib
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils import postgres_dump
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError


def connection(params: dict[str, t.Any]) -> dict[str, t.Any]:
    found = {"host": params["host"], "port": params["port"]}
    found.update({key: params[key] for key in ("user", "password") if params[key]})
    if params["ca_file"]:
        found.update(sslmode="verify-full", sslrootcert=params["ca_file"])
    found.update({f"ssl{key}": params[f"{key}_file"] for key in ("cert", "key") if params[f"{key}_file"]})
    return found


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["dumped", "verified", "restored"], "default": "dumped"},
            "database": {"type": "str"},
            "host": {"type": "str", "default": "/var/run/postgresql"},
            "port": {"type": "int", "default": 5432},
            "user": {"type": "str", "default": ""},
            "password": {"type": "str", "no_log": True},
            "ca_file": {"type": "path"},
            "cert_file": {"type": "path"},
            "key_file": {"type": "path", "no_log": False},
            "owners": {"type": "bool", "default": True},
            "jobs": {"type": "int", "default": 2},
            "bin_dir": {"type": "path", "default": ""},
            "timeout": {"type": "int", "default": 14400},
        },
        required_if=[("state", "dumped", ["database"]), ("state", "restored", ["database"])],
        supports_check_mode=True,
    )
    params, dry_run = module.params, module.check_mode
    path, state = params["path"], params["state"]
    common = {"jobs": params["jobs"], "bin_dir": params["bin_dir"], "timeout": params["timeout"]}
    result: dict[str, t.Any] = {"changed": False}
    try:
        if state != "dumped" or pathlib.Path(path).exists():
            result["problems"] = postgres_dump.verify(path)
            if result["problems"]:
                module.fail_json(msg=f"{path} is damaged: {'; '.join(result['problems'][:5])}", **result)
            result["manifest"] = postgres_dump.read_manifest(path)
        if state == "dumped" and "manifest" not in result:
            result["changed"] = True
            if not dry_run:
                result["manifest"] = postgres_dump.dump(path, params["database"], connection(params), **common)
                tables = "".join(f"{table}\n" for table in result["manifest"]["tables"])
                result["diff"] = {"before": "", "after": tables}
        elif state == "restored":
            result["changed"] = not postgres_dump.exists(params["database"], connection(params), params["bin_dir"])
            if result["changed"] and not dry_run:
                postgres_dump.restore(path, params["database"], connection(params), owners=params["owners"], **common)
    except ResilienceError as exc:
        result.pop("changed", None)
        module.fail_json(msg=str(exc), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
