#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cell_validate
short_description: Check that the homes of cells have what they should
version_added: "0.1.0"
description:
  - Checks for each cell, in its home, that one primary serves, that the schema has its version, that all indexes are
    there and valid, that all collections and their payload indexes are there with all copies active, and that the
    services are ready.
  - PostgreSQL is asked through the region agents, so that no database driver is needed.
  - M(shannon.resilience.cell_move) does the same after a move, and then compares the rows with those that the new home
    had before.
  - Run it on one host of the topology, with the host's certificate; best on the witness.
options:
  topology:
    description: What M(shannon.resilience.topology) derived.
    type: dict
    required: true
  cells:
    description: The cells to check; left out, all of them.
    type: list
    elements: str
    default: []
  migrations:
    description:
      - Name and text of each migration of the schema, as M(shannon.resilience.postgres_migrations) takes them.
      - Left out, neither the version is checked nor which indexes there are.
    type: dict
    default: {}
  collections:
    description:
      - The collections, each with its payload indexes, as M(shannon.resilience.qdrant_collections) takes them.
      - Left out, collections are not checked.
    type: dict
    default: {}
  within:
    description: Seconds within which everything has to be right; what is not is looked at again until then.
    type: float
    default: 10
  timeout:
    description: Seconds that one endpoint may take to answer.
    type: float
    default: 2
  qdrant_api_key:
    description: A key of Qdrant that may read.
    type: str
    required: true
extends_documentation_fragment:
  - shannon.resilience.tls
attributes:
  check_mode:
    description: Can run in check mode; never changes anything.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Check that all cells have what they should
  shannon.resilience.cell_validate:
    topology: "{{ shannon_topology }}"
    collections:
      summaries: {session_id: keyword}
    qdrant_api_key: "{{ shannon_secrets.qdrant_read_only_api_key }}"
"""

RETURN = r"""
validations:
  description: For each cell C(region), its home, C(passed) and C(checks).
  returned: always
  type: dict
  sample:
    main:
      region: a
      passed: false
      checks:
        - name: indexes
          title: All indexes are there and valid
          passed: false
          seen: public.users_tenant_id is not valid
          expected: 71 valid indexes
          remedy: "On the primary: REINDEX INDEX CONCURRENTLY"
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils.cell_validation import Expected, document, failures
from ansible_collections.shannon.resilience.plugins.module_utils.cell_validator import Validator
from ansible_collections.shannon.resilience.plugins.module_utils.concurrently import gather
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.registry import Registry
from ansible_collections.shannon.resilience.plugins.module_utils.tls import ARGUMENTS as TLS_ARGUMENTS
from ansible_collections.shannon.resilience.plugins.module_utils.tls import files_of


def run(module: AnsibleModule) -> dict[str, t.Any]:
    """Validate the cells."""
    params = module.params
    topology = params["topology"]
    tls = files_of(params)
    known = [cell["name"] for cell in topology["cells"]]
    wrong = sorted(set(params["cells"]) - set(known))
    if wrong:
        raise ResilienceError(f"there is no cell {', '.join(wrong)}; expected one of {', '.join(known)}")
    expected = Expected(params["migrations"], params["collections"])
    expected.versions()  # a migration that can't be read is told before anybody is asked
    port = topology["ports"]["registry_client"]
    members = [host for hosts in topology["components"]["registry"].values() for host in hosts]
    endpoints = [{"host": topology["hosts"][host]["address"], "port": port} for host in members]
    records = Registry.connect(endpoints, tls).records()
    validator = Validator(topology, tls, params["qdrant_api_key"], expected, params["timeout"], params["within"])
    found = {}
    for cell in params["cells"] or known:
        if cell not in records:
            raise ResilienceError(f"the registry does not know the cell {cell}: run site.yml with --tags registry")
        found[cell] = lambda cell=cell: validator.validate(cell, records[cell].home)
    validations = {}
    for cell, checks in gather(found).items():
        if isinstance(checks, ResilienceError):
            raise checks
        validations[cell] = {"region": records[cell].home, **document(checks)}
    return validations


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "topology": {"type": "dict", "required": True},
            "cells": {"type": "list", "elements": "str", "default": []},
            "migrations": {"type": "dict", "default": {}},
            "collections": {"type": "dict", "default": {}},
            "within": {"type": "float", "default": 10},
            "timeout": {"type": "float", "default": 2},
            "qdrant_api_key": {"type": "str", "required": True, "no_log": True},
            **TLS_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    try:
        validations = run(module)
    except ResilienceError as exc:
        module.fail_json(msg=str(exc), validations={})
    problems = [
        f"cell {cell}, region {it['region']}: {line}" for cell, it in validations.items() for line in failures(it)
    ]
    if problems:
        module.fail_json(msg="\n".join(problems), validations=validations)
    module.exit_json(changed=False, validations=validations)


if __name__ == "__main__":
    main()
