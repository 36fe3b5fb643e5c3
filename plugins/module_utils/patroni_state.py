# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Patroni remembers of a cell in a region's etcd, when its data is replaced: all but the configuration goes."""

from __future__ import annotations

import json
import typing as t

from .concurrently import wait_until
from .errors import ConflictError, ResilienceError
from .etcd import EtcdClient, put_op, when_mod_revision

#: What is kept, and may be changed: the dynamic configuration.
CONFIG = "config"


def forget(
    client: EtcdClient,
    cell: str,
    standby: t.Mapping[str, t.Any] | None,
    namespace: str = "/shannon/",
    timeout: float = 90.0,
    dry_run: bool = False,
) -> list[str]:
    """Have Patroni's next start find a configuration and nothing else; returns what was done.

    :param standby: the region follows somebody (Patroni's C(standby_cluster)), or (None) is the cell's home.
    :raises ResilienceError: a member lives.
    """
    prefix = f"{namespace}{cell}/"
    done: list[str] = []
    if not dry_run:
        wait_until(
            lambda: _nobody_lives(client, prefix),
            f"the members of the cell {cell} to be gone from the region's etcd (stop patroni@{cell} on all its hosts)",
            timeout,
        )
    for entry in client.range(prefix):
        key = entry.key.removeprefix(prefix)
        if key != CONFIG:
            done.append(f"forget {key}")
            if not dry_run:
                client.delete(entry.key)
    found = client.get(prefix + CONFIG)
    if found is None:
        return done
    value = json.loads(found.value)
    wanted = dict(value)
    if standby is None:
        wanted.pop("standby_cluster", None)
    else:
        wanted["standby_cluster"] = dict(standby)
    if wanted != value:
        done.append("follow nobody" if standby is None else f"follow {standby.get('host')}")
        if not dry_run:
            outcome = client.txn(
                [when_mod_revision(found.key, found.mod_revision)], [put_op(found.key, json.dumps(wanted))]
            )
            if not outcome.succeeded:
                raise ConflictError(f"{found.key} changed at the same moment: run it again")
    return done


def _nobody_lives(client: EtcdClient, prefix: str) -> tuple[bool, str]:
    alive = [
        entry.key.removeprefix(prefix)
        for entry in client.range(prefix)
        if entry.lease and (entry.key.startswith(f"{prefix}members/") or entry.key == f"{prefix}leader")
    ]
    return not alive, f"{', '.join(alive)} still there" if alive else "nobody"


def following(hosts: t.Sequence[str], port: int, slot: str) -> dict[str, t.Any]:
    """What makes a region follow another one, as the region agent says it, too."""
    if not hosts:
        raise ResilienceError("a standby region needs the addresses of the home's hosts")
    return {
        "host": ",".join(hosts),
        "port": port,
        "primary_slot_name": slot,
        "create_replica_methods": ["basebackup"],
    }
