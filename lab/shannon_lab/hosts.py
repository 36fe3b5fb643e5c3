# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's network and hosts, as containers that run systemd."""

from __future__ import annotations

import json
import shutil
import time
import typing as t
from dataclasses import dataclass

from . import access, engine
from .command import LabError, attempt, for_all, last_lines, say
from .definition import Definition, Host

LABEL = "shannon.lab"
NAME_LABEL = "shannon.lab.name"
#: Seconds. Three hosts that boot at once start thirty services on two cores, beside the four hosts that run.
READY_TIMEOUT = 300.0
# One question to a host that boots: how systemd is, the host's key, and the units that failed.
BOOT_QUESTION = """
systemctl is-system-running --wait 2>/dev/null
cat /etc/ssh/ssh_host_ed25519_key.pub 2>/dev/null
systemctl list-units --failed --plain --no-legend 2>/dev/null | cut -d' ' -f1
"""


@dataclass(frozen=True)
class Container:
    """What Docker says about one host."""

    name: str
    state: str
    image: str
    network_id: str


def containers(definition: Definition) -> dict[str, Container]:
    """All containers of this lab, by their container name: those with its label and its prefix, and no others."""
    ids = engine.docker(
        "ps", "--all", "--quiet", "--no-trunc",
        "--filter", f"label={LABEL}=1", "--filter", f"label={NAME_LABEL}={definition.name}",
        what="list the lab's containers",
    ).split()  # fmt: skip
    if not ids:
        return {}
    done = attempt(["docker", "inspect", "--type", "container", *ids])  # one may vanish meanwhile: take what is there
    found: dict[str, Container] = {}
    for entry in json.loads(done.stdout or "[]"):
        name = entry["Name"].lstrip("/")
        if not name.startswith(f"{definition.name}-"):
            continue
        attached = (entry["NetworkSettings"].get("Networks") or {}).get(definition.network.name) or {}
        found[name] = Container(
            name=name,
            state=entry["State"]["Status"],
            image=entry["Config"]["Image"],
            network_id=attached.get("NetworkID", ""),
        )
    return found


def ensure_network(definition: Definition, networks: list[dict[str, t.Any]]) -> str:
    """Return the id of the lab's network; make it when it is not there."""
    wanted = definition.network
    for network in networks:
        if network["Name"] != wanted.name:
            continue
        subnets = [pool.get("Subnet") for pool in (network.get("IPAM") or {}).get("Config") or []]
        if (network.get("Labels") or {}).get(NAME_LABEL) != definition.name:
            raise LabError(
                f"Docker has a network {wanted.name!r} that is not this lab's. Remove it (docker network rm "
                f"{wanted.name}), or choose another network.name in {definition.file}"
            )
        if subnets != [str(wanted.subnet)]:
            raise LabError(
                f"the lab's network has the subnet {', '.join(map(str, subnets))}, {definition.file} says "
                f"{wanted.subnet}. Take the lab down and up again (make lab-down lab)"
            )
        return network["Id"]
    say(f"making the network {wanted.name}, {wanted.subnet}")
    return engine.docker(
        "network", "create", "--driver", "bridge",
        "--subnet", str(wanted.subnet), "--gateway", str(wanted.gateway),
        "--opt", f"com.docker.network.bridge.name={wanted.bridge}",
        "--label", f"{LABEL}=1", "--label", f"{NAME_LABEL}={definition.name}",
        wanted.name,
        what=f"make the network {wanted.name}",
    ).strip()  # fmt: skip


def create_arguments(definition: Definition, host: Host, image: str) -> list[str]:
    """The arguments of `docker create` for one host."""
    neighbours = [other for other in definition.hosts.values() if other.name != host.name]
    arguments = [
        "--name", host.container, "--hostname", host.name,
        "--network", definition.network.name, "--ip", host.address,
        "--label", f"{LABEL}=1", "--label", f"{NAME_LABEL}={definition.name}", "--label", f"{LABEL}.host={host.name}",
        "--restart", "no", "--stop-timeout", "20", "--shm-size", "256m",
        # What systemd needs. The host's cgroup namespace and a writable tree serve cgroup v1 and v2 alike: systemd
        # finds its own place in the tree and stays below it.
        "--cgroupns", "host", "--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw",
        "--cap-add", "SYS_ADMIN", "--cap-add", "NET_ADMIN", "--cap-add", "DAC_READ_SEARCH",
        # The role common must leave a container's kernel alone: the services' ports are not to be given to outgoing
        # connections.
        "--sysctl", "net.ipv4.ip_local_reserved_ports=50051-50052",
        # As the role sets it elsewhere: what was sent to a peer that is cut off does not wait for a quarter of an hour.
        "--sysctl", "net.ipv4.tcp_retries2=6",
        "--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined",
        "--security-opt", "label=disable",
        "--tmpfs", "/run", "--tmpfs", "/run/lock",
    ]  # fmt: skip
    for other in neighbours:
        arguments += ["--add-host", f"{other.name}:{other.address}"]
    return [*arguments, image]


def create(definition: Definition, host: Host, image: str) -> None:
    """Make a host that is not there; its key goes in before it boots."""
    engine.docker("create", *create_arguments(definition, host, image), what=f"make the host {host.name}")
    access.inject_key(definition, host)


def start(host: Host) -> None:
    engine.docker("start", host.container, what=f"start the host {host.name}", timeout=90)


def remove(name: str) -> None:
    engine.docker("rm", "--force", "--volumes", name, what=f"remove the container {name}", timeout=90)


def _ask_boot(host: Host) -> tuple[str, str, list[str]]:
    """How systemd is on a host, the host's ssh key and the units that failed."""
    done = attempt(["docker", "exec", host.container, "/bin/sh", "-c", BOOT_QUESTION], timeout=45)
    lines = done.stdout.split("\n")
    if done.returncode != 0 or not lines[0] or lines[0] == "offline":
        return last_lines(done.stderr, 1) or "systemd does not answer yet", "", []
    key = next((line for line in lines[1:] if line.startswith("ssh-")), "")
    return lines[0], key, [line for line in lines[1:] if line and not line.startswith("ssh-")]


def wait_ready(definition: Definition, names: t.Iterable[str], timeout: float = READY_TIMEOUT) -> None:
    """Wait until systemd is up on all of these hosts and ssh lets us in, and write down their host keys."""
    deadline = time.monotonic() + timeout

    def booted(name: str) -> str:
        host = definition.host(name)
        while True:
            state, key, failed = _ask_boot(host)
            if state in ("running", "degraded") and key:
                if failed:
                    say(f"{name}: systemd is degraded, these units failed: {', '.join(failed)}")
                return key
            if time.monotonic() >= deadline:
                log = attempt(["docker", "logs", "--tail", "5", host.container])
                detail = f"{'; failed units: ' + ', '.join(failed) if failed else ''} {last_lines(log.stdout, 5)}"
                raise LabError(f"systemd is not up after {timeout:.0f} s, it says {state!r}{detail.rstrip()}")
            time.sleep(0.3)

    keys = for_all(names, booted)
    known = _known_keys(definition)
    access.write_known_hosts(definition, {**known, **keys})

    def lets_in(name: str) -> None:
        host, injected = definition.host(name), False
        while reason := access.answers(definition, host):
            if "Permission denied" in reason and not injected:
                access.inject_key(definition, host)  # the lab's key is newer than the host
                injected = True
                continue
            if time.monotonic() >= deadline:
                raise LabError(
                    f"ssh {definition.user}@{host.address} fails after {timeout:.0f} s: {last_lines(reason, 2)}"
                )
            time.sleep(0.3)

    for_all(keys, lets_in)


def _known_keys(definition: Definition) -> dict[str, str]:
    """The host keys that known_hosts has already, for hosts that the definition still has."""
    if not definition.known_hosts.exists():
        return {}
    known: dict[str, str] = {}
    for line in definition.known_hosts.read_text(encoding="utf-8").splitlines():
        names, _space, key = line.partition(" ")
        name = names.rpartition(",")[2]
        if name in definition.hosts:
            known[name] = key
    return known


def down(definition: Definition) -> None:
    """Remove the lab's containers, network, keys and secrets, whatever of them is there, and nothing else."""
    if shutil.which("docker"):
        info, reason = engine.probe()
        if info is None:
            raise LabError(
                f"Docker does not answer ({reason}), so the lab's containers cannot be removed. Start Docker "
                "(lab.py up starts it), then run this again"
            )
        found = containers(definition)
        for_all(found, remove)
        if found:
            say(f"removed the hosts {', '.join(sorted(found))}")
        labelled = engine.docker(
            "network", "ls", "--quiet", "--filter", f"label={NAME_LABEL}={definition.name}", what="list the networks"
        ).split()
        for network in labelled:
            engine.docker("network", "rm", network, what=f"remove the network {definition.network.name}")
            say(f"removed the network {definition.network.name}")
    for directory in (definition.state, definition.secrets):
        if directory.exists():
            shutil.rmtree(directory)
            say(f"removed {directory}")
    say(f"the lab {definition.name} is down")
