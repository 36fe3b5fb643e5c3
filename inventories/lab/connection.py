#!/usr/bin/env python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the lab's hosts are reached, as an inventory script: over ssh, as a user with sudo, with a key of this lab's own
(lab.py up makes it) and the host keys checked. No address is written here: lab/definition.json holds them all.

A script and no group_vars, since what a variable looks up is looked up anew for every task and host.
"""

from __future__ import annotations

import json
import os
import pathlib

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def main() -> None:
    definition = json.loads(
        pathlib.Path(os.environ.get("SHANNON_LAB_DEFINITION") or REPOSITORY / "lab" / "definition.json").read_text()
    )
    state = REPOSITORY / definition["state_directory"]
    connection = {
        "ansible_connection": "ssh",
        "ansible_become": True,
        "ansible_user": definition["user"],
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_ssh_private_key_file": str(state / "id_ed25519"),
        "ansible_ssh_pipelining": True,
        # A host that dies in the middle of a task is noticed within 15 s.
        "ansible_ssh_common_args": f"-o UserKnownHostsFile={state}/known_hosts -o StrictHostKeyChecking=yes "
        "-o IdentitiesOnly=yes -o IdentityAgent=none -o PreferredAuthentications=publickey "
        "-o ServerAliveInterval=5 -o ServerAliveCountMax=3",
    }
    # The Qdrant server comes from the archive that `lab/lab.py qdrant` has fetched and verified (lab.py up calls it),
    # or from one of your own: the environment variables SHANNON_QDRANT_ARCHIVE (a path), SHANNON_QDRANT_ARCHIVE_SHA256
    # and SHANNON_QDRANT_ARCHIVE_MEMBER (the server's place inside; "qdrant" in the official releases) say so.
    own = os.environ.get("SHANNON_QDRANT_ARCHIVE")
    qdrant = definition["qdrant"]
    archive = {
        "qdrant_archive": own or str(REPOSITORY / qdrant["archive"]),
        "qdrant_archive_sha256": os.environ.get("SHANNON_QDRANT_ARCHIVE_SHA256", "")
        if own
        else qdrant["archive_sha256"],
        "qdrant_archive_member": os.environ.get("SHANNON_QDRANT_ARCHIVE_MEMBER") or "qdrant"
        if own
        else qdrant["member"],
    }
    hosts = {name: {"ansible_host": host["address"]} for name, host in definition["hosts"].items()}
    print(
        json.dumps(
            {"lab_hosts": {"hosts": list(hosts), "vars": {**connection, **archive}}, "_meta": {"hostvars": hosts}}
        )
    )


if __name__ == "__main__":
    main()
