#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: registry_member
short_description: Make this host a member of the registry again
version_added: "0.1.0"
description:
  - A host whose data was lost, or belongs to a registry that was given up, is taken out of the registry and added
    again; its old data is kept below C(/var/lib/shannon/registry-rebuild). One that is a member with good data is only
    started.
  - The registry must have a quorum without this host. It never loses it by this, since the member first only learns,
    and votes when it has caught up (etcd 3.4 and later).
  - Lists the registries that were given up in C(/var/lib/shannon/registry-given-up) on this host, as the registry says.
  - Run it on the host, one host after the other.
options:
  endpoints:
    description: The registry's other members, each as C(host:port).
    type: list
    elements: str
    required: true
  instance:
    description: The instance of etcd.
    type: str
    default: registry
  user:
    description: Who owns the data.
    type: str
    default: etcd
  wipe:
    description: Whether the host is added anew although its data is good; for data that is damaged.
    type: bool
    default: false
  timeout:
    description: Seconds for the member to be well.
    type: float
    default: 90
attributes:
  check_mode:
    description: Can run in check mode.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Be a member of the registry
  shannon.resilience.registry_member:
    endpoints: ["192.0.2.21:12379", "192.0.2.31:12379"]
"""

RETURN = r"""
cluster_id:
  description: Cluster id of the registry.
  returned: success
  type: str
given_up:
  description: Cluster ids that the registry says were given up.
  returned: success
  type: list
  elements: str
added:
  description: Whether the host was taken out and added again.
  returned: success
  type: bool
kept:
  description: Where the data is that the host had; empty when it had none, or keeps it.
  returned: success
  type: str
"""

import contextlib
import os
import pathlib
import shutil
import tempfile
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils.concurrently import wait_until
from ansible_collections.shannon.resilience.plugins.module_utils.errors import EndpointError, ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.etcd import Endpoint, EtcdClient, parse_endpoint
from ansible_collections.shannon.resilience.plugins.module_utils.etcd_data import WORK, MemberConfig, identity, keep
from ansible_collections.shannon.resilience.plugins.module_utils.given_up import FILE, KEYS, GivenUp
from ansible_collections.shannon.resilience.plugins.module_utils.registry_rebuild import (
    Listed,
    initial_cluster,
    member_plan,
)
from ansible_collections.shannon.resilience.plugins.module_utils.tls import TlsFiles, client_context


class Joiner:
    """Of this host."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.instance = self.params["instance"]
        self.unit = f"etcd@{self.instance}.service"
        self.config = MemberConfig.read(f"/etc/shannon/etcd/{self.instance}.yml")
        self.name, self.peer = self.config.value("name"), self.config.value("initial-advertise-peer-urls")
        self.data_dir = self.config.value("data-dir")
        own = self.config.value("advertise-client-urls").partition("://")[2]
        self.own: Endpoint = parse_endpoint(own)
        self.context = client_context(TlsFiles()) if self.peer.startswith("https") else None
        others = [one for one in map(parse_endpoint, self.params["endpoints"]) if one != self.own]
        # Another member may have come back with the old registry's data, too: who knows better is asked first.
        learned = tempfile.mkdtemp() + "/given-up" if module.check_mode else FILE
        self.client = EtcdClient(others, self.context, 5.0, "the registry", GivenUp((FILE,), learned))
        self.client.learn_given_up()
        self.deadline = time.monotonic() + self.params["timeout"]

    def left(self) -> float:
        return max(1.0, self.deadline - time.monotonic())

    def listed(self) -> list[Listed]:
        return [Listed(one.id, one.name, one.peer_urls, one.learner) for one in self.client.members()]

    def run(self) -> dict[str, t.Any]:
        """See that this host is a member."""
        given_up = sorted(item.key.removeprefix(KEYS) for item in self.client.range(KEYS))
        cluster = next(
            (one.cluster_id for one in self.client.statuses().values() if not isinstance(one, ResilienceError)), ""
        )
        listed = self.listed()
        plan = member_plan(cluster, listed, self.name, self.peer, identity(self.data_dir), self.params["wipe"])
        answer: dict[str, t.Any] = {"cluster_id": cluster, "given_up": given_up, "added": not plan.keep, "kept": ""}
        if plan.keep and not plan.remove and self.is_well() and not any(one.learner for one in self.mine()):
            return {"changed": False, **answer}
        if self.module.check_mode:
            return {"changed": True, **answer}
        if not plan.keep:
            self.systemctl("stop", self.unit)
        for member in plan.remove:
            self.patiently("the old member to be taken out", lambda it=member: self.client.member_remove(it))  # type: ignore[misc]
        if plan.keep:
            self.systemctl("start", "--no-block", self.unit)
        else:
            kept = os.path.join(WORK, time.strftime("member-%Y%m%dT%H%M%SZ", time.gmtime()))
            if keep(self.data_dir, kept):
                answer["kept"] = kept
            self.join(plan.pending)
        self.see_it_well()
        return {"changed": True, **answer}

    def join(self, pending: int) -> None:
        """Be added, and start for the first time as one that joins; the usual configuration holds from the next on."""
        added = pending
        if not added:
            made: list[int] = []

            def add() -> None:
                try:
                    made.append(self.client.member_add([self.peer], learner=True).id)
                except EndpointError as exc:
                    if "unknown field" not in str(exc):
                        raise
                    made.append(self.client.member_add([self.peer]).id)  # etcd 3.3 has no learners

            self.patiently("the member to be added", add)
            added = made[-1]
        folder = pathlib.Path(f"/run/shannon-etcd-join-{self.instance}")
        dropin = pathlib.Path(f"/run/systemd/system/{self.unit}.d/join.conf")
        folder.mkdir(mode=0o750, exist_ok=True)
        shutil.chown(folder, "root", self.params["user"])
        text = self.config.joining(initial_cluster(self.listed(), added, self.name))
        (folder / "config.yml").write_text(text)
        (folder / "config.yml").chmod(0o644)
        dropin.parent.mkdir(parents=True, exist_ok=True)
        dropin.write_text(f"[Service]\nExecStart=\nExecStart=/usr/bin/etcd --config-file={folder}/config.yml\n")
        try:
            self.systemctl("daemon-reload")
            self.module.run_command(["systemctl", "reset-failed", self.unit])
            self.systemctl("start", "--no-block", self.unit)
            wait_until(self.has_data, f"data of {self.unit}", self.left())
            wait_until(self.answers, f"{self.unit} to answer on {self.own}", self.left())
        finally:
            dropin.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                dropin.parent.rmdir()
            self.systemctl("daemon-reload")

    def see_it_well(self) -> None:
        """Wait until it votes and can read through the quorum."""

        def well() -> tuple[bool, str]:
            for one in self.mine():
                if one.learner:
                    self.client.member_promote(one.id)
            why = self.why_ill()
            return not why and bool(self.mine()) and not any(one.learner for one in self.mine()), why

        wait_until(well, f"{self.unit} to be well on {self.name}", self.left(), interval=1.0)

    def mine(self) -> list[Listed]:
        return [one for one in self.listed() if self.peer in one.peer_urls]

    def has_data(self) -> tuple[bool, str]:
        return identity(self.data_dir) is not None, f"{self.data_dir} is empty; see journalctl -u {self.unit}"

    def answers(self) -> tuple[bool, str]:
        EtcdClient([self.own], self.context, 2.0, self.unit).status(self.own)
        return True, ""

    def why_ill(self) -> str:
        return EtcdClient([self.own], self.context, 3.0, self.unit).health()[self.own]

    def is_well(self) -> bool:
        return not self.why_ill()

    def patiently(self, what: str, act: t.Callable[[], t.Any]) -> None:
        """The registry refuses to change its members until those that are there have been connected for 5 s."""

        def done() -> tuple[bool, str]:
            act()
            return True, ""

        wait_until(done, what, self.left(), interval=1.0)

    def systemctl(self, *words: str) -> None:
        code, _out, said = self.module.run_command(["timeout", "60", "systemctl", *words])
        if code:
            raise ResilienceError(f"'systemctl {' '.join(words)}' failed (exit {code}): {said.strip()}")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "endpoints": {"type": "list", "elements": "str", "required": True},
            "instance": {"type": "str", "default": "registry"},
            "user": {"type": "str", "default": "etcd"},
            "wipe": {"type": "bool", "default": False},
            "timeout": {"type": "float", "default": 90},
        },
        supports_check_mode=True,
    )
    try:
        answer = Joiner(module).run()
    except (ResilienceError, OSError) as exc:
        module.fail_json(msg=f"{os.uname().nodename}: {exc}")
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
