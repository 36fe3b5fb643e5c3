# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Docker: use it where it runs; on a bare Debian or Ubuntu machine, as root, install and start it."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import subprocess
import time
import typing as t

from .command import LabError, attempt, last_lines, run, say

PID_FILE = pathlib.Path("/var/run/docker.pid")
CONTAINERD_PID_FILE = pathlib.Path("/var/run/docker/containerd/containerd.pid")
OWN_RECORD = pathlib.Path("/run/shannon-lab-dockerd.json")
OWN_LOG = pathlib.Path("/var/log/shannon-lab-dockerd.log")
START_TIMEOUT = 90.0
OLDEST_VERSION = (20, 10)


def docker(*arguments: str, what: str, timeout: float = 60, stdin: bytes | None = None) -> str:
    """Run one docker command that must succeed."""
    return run(["docker", *arguments], what=what, timeout=timeout, stdin=stdin)


def probe(timeout: float = 15) -> tuple[dict[str, t.Any] | None, str]:
    """Ask the daemon who it is: its answer, or None and the reason why there is none."""
    done = attempt(["docker", "info", "--format", "{{json .}}"], timeout=timeout)
    try:
        info = json.loads(done.stdout) if done.returncode == 0 else {}
    except ValueError:
        info = {}
    if info.get("ServerVersion"):
        return info, ""
    reasons = info.get("ServerErrors") or [last_lines(done.stderr, 3) or f"exit code {done.returncode}"]
    return None, "; ".join(reasons)


def is_root() -> bool:
    return os.geteuid() == 0


def distribution() -> str:
    """The ID of the controller's distribution, as in /etc/os-release."""
    try:
        lines = pathlib.Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    return values.get("ID", "unknown").strip('"')


def apt_install(packages: t.Sequence[str], what: str) -> None:
    """Install packages of the distribution; the caller has made sure that this is root on Debian or Ubuntu."""
    quiet = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_MODE": "l"}
    run(["apt-get", "update"], what="refresh the package lists (apt-get update)", timeout=300, environment=quiet)
    argv = ["apt-get", "install", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120", *packages]
    run(argv, what=what, timeout=900, environment=quiet)


def _install() -> None:
    if not is_root():
        raise LabError(
            "Docker is not installed, and only root can install it. Run this as root, or install Docker Engine "
            "(https://docs.docker.com/engine/install/) and add yourself to the group 'docker'"
        )
    if distribution() not in ("debian", "ubuntu") or not shutil.which("apt-get"):
        raise LabError(
            f"Docker is not installed, and this tool installs it on Debian and Ubuntu only (here: {distribution()}). "
            "Install Docker Engine (https://docs.docker.com/engine/install/), then run this again"
        )
    say("Docker's daemon is not installed: installing docker.io from the distribution")
    packages = ["docker.io", "iptables"]
    apparmor = pathlib.Path("/sys/module/apparmor/parameters/enabled")
    if apparmor.exists() and apparmor.read_text().startswith("Y"):
        packages.append("apparmor")
    apt_install(packages, "install docker.io")
    if not shutil.which("docker"):
        apt_install(["docker-cli"], "install docker-cli")  # Debian 13 and later ship the client on its own


def process_name(pid: int) -> str | None:
    """The name of a process, or None when there is none with this id, or it has ended and nobody reaped it yet."""
    try:
        head, _bracket, rest = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except OSError:
        return None
    return None if rest.split()[0] in ("Z", "X") else head.partition("(")[2]


def process_start(pid: int) -> str | None:
    """When a process started, in ticks since boot: tells it from a later one with the same id."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _read_pid(path: pathlib.Path) -> int | None:
    try:
        return int(path.read_text().strip())
    except (OSError, ValueError):
        return None


def clear_stale_pid_file(path: pathlib.Path = PID_FILE, owner: str = "dockerd") -> bool:
    """Remove the pid file of a daemon that is gone, or else the next dockerd refuses to start.

    A killed dockerd takes its containerd along. Where nobody reaps that one, the next dockerd believes that it lives
    and waits for it in vain, so its pid file is looked at, too.

    :returns: whether a daemon of this name that is alive owns the file.
    """
    pid = _read_pid(path)
    if pid is not None and process_name(pid) == owner:
        return True
    if path.exists():
        say(f"{path} names process {pid}, which is no living {owner}: removing the stale file")
        path.unlink(missing_ok=True)
    return False


def _wait_for_daemon(child: subprocess.Popen[bytes] | None, timeout: float = START_TIMEOUT) -> dict[str, t.Any]:
    deadline = time.monotonic() + timeout
    while True:
        info, reason = probe(timeout=10)
        if info:
            return info
        log = f"\n  The end of {OWN_LOG}:\n{last_lines(OWN_LOG.read_text(errors='replace'))}" if child else ""
        if child and child.poll() is not None:
            raise LabError(f"dockerd ended with exit code {child.returncode} while it started.{log}")
        if time.monotonic() >= deadline:
            raise LabError(f"dockerd does not answer after {timeout:.0f} s: {reason}{log}")
        time.sleep(0.5)


def _start(reason: str) -> dict[str, t.Any]:
    if "permission denied" in reason.lower():
        raise LabError(
            "Docker runs, but you may not use it. Add yourself to the group 'docker' (sudo usermod -aG docker $USER, "
            "then log in again), or run this as root"
        )
    if os.environ.get("DOCKER_HOST"):
        raise LabError(f"the Docker named by DOCKER_HOST={os.environ['DOCKER_HOST']} does not answer: {reason}")
    if not is_root():
        raise LabError(
            f"Docker does not answer ({reason}). Start it (sudo systemctl start docker), or run this as root, "
            "then this tool starts it"
        )
    if pathlib.Path("/run/systemd/system").is_dir():
        say("Docker does not answer: starting it with systemd")
        run(["systemctl", "start", "docker.service"], what="start docker.service", timeout=START_TIMEOUT)
        return _wait_for_daemon(None)
    if clear_stale_pid_file():
        say("a dockerd runs but does not answer yet: waiting for it")
        return _wait_for_daemon(None)
    clear_stale_pid_file(CONTAINERD_PID_FILE, "containerd")
    if not shutil.which("dockerd"):
        _install()  # a client on its own, as development machines have it
    say(f"no init system runs here: starting dockerd in the background (its log: {OWN_LOG})")
    with OWN_LOG.open("ab") as log:
        child = subprocess.Popen(
            ["dockerd"], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd="/"
        )
    OWN_RECORD.write_text(json.dumps({"pid": child.pid, "start": process_start(child.pid)}))
    return _wait_for_daemon(child)


def ensure() -> dict[str, t.Any]:
    """Return the answer of a Docker that works and is new enough; install and start one where that is possible."""
    if not shutil.which("docker"):
        _install()
    info, reason = probe()
    if info is None:
        info = _start(reason)
        say(f"Docker {info['ServerVersion']} answers")
    remote = os.environ.get("DOCKER_HOST", "")
    if remote and not remote.startswith("unix://"):
        raise LabError(f"DOCKER_HOST is {remote}: the lab's addresses can be reached only where Docker runs. Unset it")
    version = tuple(int(part) for part in info["ServerVersion"].split(".")[:2] if part.isdigit())
    if len(version) == 2 and version < OLDEST_VERSION:
        raise LabError(f"Docker {info['ServerVersion']} is too old: the lab needs 20.10 (for --cgroupns)")
    return info


def own_daemon() -> int | None:
    """The process id of the dockerd that this tool started, while it lives."""
    try:
        record = json.loads(OWN_RECORD.read_text())
        pid, start = int(record["pid"]), record["start"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return pid if process_name(pid) == "dockerd" and process_start(pid) == start else None


def stop_own_daemon(timeout: float = 30) -> None:
    """Stop the dockerd that this tool started: never another one, and not while anything runs in it."""
    pid = own_daemon()
    if pid is None:
        OWN_RECORD.unlink(missing_ok=True)
        say("this tool has no dockerd of its own running: nothing to stop")
        return
    running = docker("ps", "--format", "{{.Names}}", what="list the running containers").split()
    if running:
        raise LabError(f"dockerd (process {pid}) still runs {', '.join(running)}: it is not stopped")
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout
    while own_daemon() is not None:
        if time.monotonic() >= deadline:
            raise LabError(f"dockerd (process {pid}) did not end within {timeout:.0f} s; see {OWN_LOG}")
        time.sleep(0.2)
    OWN_RECORD.unlink(missing_ok=True)
    say(f"stopped the dockerd (process {pid}) that this tool had started")
