#!/usr/bin/env python3
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab from the command line: two regions and a witness in seven systemd containers. See lab/README.md."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import sys
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor

from shannon_lab import access, definition, engine, hosts, image, preflight, qdrant
from shannon_lab.command import LabError, attempt, fail, for_all, say


@contextlib.contextmanager
def one_at_a_time(lab: definition.Definition, patience: float = 600) -> t.Iterator[None]:
    """Only one `up`, `down` or `image` of a lab runs at a time; a second one waits."""
    directory = definition.REPOSITORY / ".cache"
    directory.mkdir(exist_ok=True)
    with (directory / f"{lab.name}.lock").open("w") as lock:
        deadline, told = time.monotonic() + patience, False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as exc:
                if time.monotonic() >= deadline:
                    raise LabError(f"another lab.py has held {lock.name} for {patience:.0f} s") from exc
                if not told:
                    say("another lab.py works on this lab: waiting for it")
                    told = True
                time.sleep(0.5)
        yield


def up(lab: definition.Definition) -> None:
    """Bring the lab up from whatever state it is in."""
    info = engine.ensure()
    access.ensure_tools()
    found = hosts.containers(lab)
    networks = preflight.docker_networks()
    network_exists = any(network["Name"] == lab.network.name for network in networks)
    running = {name for name, host in lab.hosts.items() if host.container in found}
    running = {name for name in running if found[lab.hosts[name].container].state in ("running", "paused")}
    starting = len(lab.hosts) - len(running)
    if not network_exists:
        preflight.check_subnet(lab, networks, preflight.ROUTES.read_text())
    if starting:
        preflight.check_memory(lab, starting, preflight.MEMORY.read_text())
        preflight.check_disk(lab, starting, info.get("DockerRootDir", "/var/lib/docker"))

    missing = any(host.container not in found for host in lab.hosts.values())
    if qdrant.needs_image(lab):
        image.ensure(lab)
    with ThreadPoolExecutor(max_workers=1) as pool:
        archive = pool.submit(qdrant.ensure, lab)
        reference = image.ensure(lab) if missing else None
        archive.result()

    network_id = hosts.ensure_network(lab, networks)
    access.ensure_key(lab)

    def settle(name: str) -> str:
        """Bring one host to running; returns what was done."""
        host = lab.hosts[name]
        seen = found.get(host.container)
        if seen and (seen.state in ("dead", "removing") or seen.network_id not in ("", network_id)):
            say(f"{name}: what is left of an earlier lab is beyond repair ({seen.state}): making it anew")
            hosts.remove(host.container)
            seen = None
        if seen is None:
            hosts.create(lab, host, reference or image.ensure(lab))
            hosts.start(host)
            return "made"
        if seen.state == "running":
            return ""
        if seen.state == "paused":
            engine.docker("unpause", host.container, what=f"wake the host {name}")
            return "woken"
        if seen.state == "created":
            access.inject_key(lab, host)
        hosts.start(host)
        return "started"

    done = for_all(lab.hosts, settle)
    for verb in ("made", "started", "woken"):
        if names := [name for name, what in done.items() if what == verb]:
            say(f"{verb}: {', '.join(names)}")
    hosts.wait_ready(lab, lab.hosts)
    if reference:
        old = sorted(name for name, host in lab.hosts.items() if done[name] != "made" and host.container in found)
        old = [name for name in old if found[lab.hosts[name].container].image != reference]
        if old:
            say(f"{', '.join(old)} still run an older host image; `down` and `up` renew them")
    say(f"the lab {lab.name} is up: {' '.join(lab.hosts)} answer over ssh")


def down(lab: definition.Definition, dockerd: bool) -> None:
    """Take the lab down; on request also the dockerd that this tool started."""
    hosts.down(lab)
    if dockerd:
        engine.stop_own_daemon()
    elif engine.own_daemon() is not None:
        say("the dockerd that this tool started still runs; `lab.py down --dockerd` stops it, too")


def status(lab: definition.Definition, as_json: bool) -> int:
    """Say how each host is; exit code 0 when all are up, 3 when not."""
    info, reason = engine.probe()
    if info is None:
        raise LabError(f"Docker does not answer: {reason}")
    found = hosts.containers(lab)

    def look(name: str) -> dict[str, str]:
        host = lab.hosts[name]
        container = found.get(host.container)
        state, system, ssh = (container.state if container else "absent"), "-", "-"
        if state == "running":
            asked = attempt(["docker", "exec", host.container, "systemctl", "is-system-running"], timeout=10)
            system = asked.stdout.strip() or "no answer"
            ssh = "yes" if not access.answers(lab, host) else "no"
        return {
            "host": name,
            "region": host.region,
            "address": host.address,
            "state": state,
            "systemd": system,
            "ssh": ssh,
        }

    rows = list(for_all(lab.hosts, look).values())
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        columns = list(rows[0])
        widths = {column: max(len(column), *(len(row[column]) for row in rows)) for column in columns}
        for row in [dict(zip(columns, columns, strict=True)), *rows]:
            print("  ".join(row[column].ljust(widths[column]) for column in columns).rstrip())
    return 0 if all(row["state"] == "running" and row["ssh"] == "yes" for row in rows) else 3


def change(lab: definition.Definition, verb: str, names: list[str]) -> None:
    """Kill, start, pause or unpause hosts; asking for what holds already changes nothing."""
    targets = [lab.host(name) for name in names]
    found = hosts.containers(lab)
    # verb: (what Docker is told, the states in which there is something to do, what the host is afterwards)
    table = {
        "kill": ("kill", ("running", "paused"), "dead: its processes ended without a word, its disk is kept"),
        "start": ("start", ("exited", "created"), "up"),
        "pause": ("pause", ("running",), "frozen: its connections stay, nothing answers"),
        "unpause": ("unpause", ("paused",), "awake"),
    }
    command, states, afterwards = table[verb]

    def act(name: str) -> bool:
        host = lab.host(name)
        container = found.get(host.container)
        if container is None:
            raise LabError(f"there is no container {host.container}; `lab.py up` makes it")
        if container.state not in states:
            if verb == "start" and container.state == "paused":
                raise LabError(f"the host is paused; `lab.py unpause {name}` wakes it")
            return False
        engine.docker(command, host.container, what=f"{verb} {name}", timeout=90)
        return True

    acted = for_all([host.name for host in targets], act)
    if verb == "start":
        hosts.wait_ready(lab, acted)
    for name, did in acted.items():
        say(
            f"{name} is {afterwards}"
            if did
            else f"{name}: nothing to do, it is {found[lab.hosts[name].container].state}"
        )


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="lab.py", description=__doc__)
    verbs = main.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("up", help="start the lab: build and make what is missing, change nothing that is there")
    verb = verbs.add_parser("down", help="remove the lab's hosts, network, keys and secrets, and nothing else")
    verb.add_argument("--dockerd", action="store_true", help="also stop the dockerd that `up` started, if it did")
    verb = verbs.add_parser("status", help="how each host is; exit code 3 when not all are up")
    verb.add_argument("--json", action="store_true", help="as JSON")
    verb = verbs.add_parser("image", help="build the host image when it is not there, and print its name")
    verb.add_argument("--refresh", action="store_true", help="build it anew, with today's packages")
    verbs.add_parser("qdrant", help="fetch and verify the Qdrant server's archive, and print its path")
    verb = verbs.add_parser("ssh", help="log in to a host, or run a command there")
    verb.add_argument("host", metavar="HOST")
    verb.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    for name, text in (
        ("kill", "end hosts at once, as a power cut would; their disks are kept"),
        ("start", "boot hosts that were killed"),
        ("pause", "freeze hosts"),
        ("unpause", "wake frozen hosts"),
    ):
        verbs.add_parser(name, help=text).add_argument("hosts", nargs="+", metavar="HOST")
    return main


def dispatch(options: argparse.Namespace) -> int:
    lab = definition.load()
    if options.verb in ("up", "down", "image"):
        with one_at_a_time(lab):
            if options.verb == "up":
                up(lab)
            elif options.verb == "down":
                down(lab, options.dockerd)
            else:
                engine.ensure()
                print(image.ensure(lab, refresh=options.refresh))
    elif options.verb == "status":
        return status(lab, options.json)
    elif options.verb == "qdrant":
        print(qdrant.ensure(lab))
    elif options.verb == "ssh":
        argv = access.ssh_argv(lab, lab.host(options.host))
        terminal = ["-t"] if sys.stdin.isatty() and not options.command else []
        os.execvp(argv[0], [argv[0], *terminal, *argv[1:], *options.command])
    else:
        change(lab, options.verb, options.hosts)
    return 0


def main() -> int:
    try:
        return dispatch(parser().parse_args())
    except LabError as exc:
        fail(exc)
    except KeyboardInterrupt:
        print("lab: interrupted; run the same again to go on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
