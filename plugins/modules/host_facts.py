#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: host_facts
short_description: The few facts of a host that the roles of shannon.resilience use, in a fraction of a second
version_added: "0.1.0"
description:
  - Takes distribution, Python, architecture, memory, installed packages and the state of the clock in one quick call,
    so that no role needs full fact gathering, and a role whose packages are all there need not ask the package manager.
options: {}
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
- name: Take the facts of each host
  shannon.resilience.host_facts:
  register: found
"""

RETURN = r"""
host:
  description: The facts.
  returned: success
  type: dict
  contains:
    distribution:
      description: C(ID) of /etc/os-release, V(debian) or V(ubuntu) on supported hosts.
      type: str
    version:
      description: C(VERSION_ID) of /etc/os-release.
      type: str
    python:
      description: Major and minor version of the Python that runs modules.
      type: str
    architecture:
      description: Machine name of the kernel.
      type: str
    packages:
      description: Names of the installed packages.
      type: list
      elements: str
    memory_mb:
      description: Memory of the host, in MiB.
      type: int
    container:
      description: Whether the host is a container, which shares its kernel and clock with others.
      type: bool
    users:
      description: Names of the accounts in C(/etc/passwd).
      type: list
      elements: str
    groups:
      description: Names of the groups in C(/etc/group), each with those who are in it beside their own.
      type: dict
    names:
      description: Lines of C(/etc/hosts) between this collection's markers; empty when there are none.
      type: list
      elements: str
    markers:
      description:
        - Files that say what was installed or deployed before, with the SHA-1 of their content, or an empty text for a
          long one; see C(MARKERS) in the module's source.
        - One look here saves each role one of its own.
      type: dict
    time_synchronized:
      description: Whether the clock follows a time source; always false in a container, which can't tell.
      type: bool
"""

import glob
import hashlib
import os
import sys
import typing as t

from ansible.module_utils.basic import AnsibleModule

#: What roles leave behind once something is complete.
MARKERS = (
    "/opt/shannon/*/.complete",
    "/opt/shannon/*/*/.complete",
    "/opt/shannon/*/releases/*/.complete",
    "/opt/shannon/qdrant/*/qdrant",
    "/var/lib/shannon/*/started",
    "/etc/systemd/system/etcd-snapshot@registry.timer",
    "/var/lib/shannon/etcd/registry/member/wal/*.wal",
)
LONGEST_NOTE = 65536
BEGIN = "# BEGIN hosts of the topology (shannon.resilience)"
END = "# END hosts of the topology (shannon.resilience)"


def os_release(text: str) -> dict[str, str]:
    """The assignments of an os-release file, unquoted."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {name: value.strip().strip("\"'") for name, value in pairs}


def installed(listing: str) -> list[str]:
    """Names of the packages whose files are all there, from C(dpkg-query) output; those on hold count as well.

    The second word of a row is what is wanted of the package, its state, and an R when it must be installed anew.
    """
    rows = (line.split() for line in listing.splitlines())
    return sorted({row[0] for row in rows if len(row) == 2 and len(row[1]) == 2 and row[1][1] == "i"})


def memory_mb(meminfo: str) -> int:
    """Total memory in MiB, from /proc/meminfo."""
    return next((int(line.split()[1]) // 1024 for line in meminfo.splitlines() if line.startswith("MemTotal:")), 0)


def users(passwd: str) -> list[str]:
    """Names of accounts, from /etc/passwd."""
    return sorted(line.split(":", 1)[0] for line in passwd.splitlines() if ":" in line)


def groups(listing: str) -> dict[str, list[str]]:
    """Names of groups to their further members, from /etc/group."""
    rows = (line.split(":") for line in listing.splitlines())
    return {row[0]: sorted(name for name in row[3].split(",") if name) for row in rows if len(row) == 4}


def block(text: str) -> list[str]:
    """The lines between this collection's markers, from /etc/hosts."""
    lines = text.splitlines()
    if BEGIN not in lines or END not in lines:
        return []
    return lines[lines.index(BEGIN) + 1 : lines.index(END)]


def markers(patterns: t.Iterable[str] = MARKERS) -> dict[str, str]:
    """Files that match, with the SHA-1 of their content; without it for one that is too long to be a note."""
    found = {}
    for path in sorted(name for pattern in patterns for name in glob.glob(pattern)):
        try:
            with open(path, "rb") as handle:
                content = handle.read(LONGEST_NOTE + 1)
        except OSError:
            continue
        is_note = len(content) <= LONGEST_NOTE
        found[path] = hashlib.sha1(content, usedforsecurity=False).hexdigest() if is_note else ""
    return found


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as handle:
            return handle.read()
    except OSError:
        return ""


def _output(module: AnsibleModule, *command: str) -> str:
    """Standard output of a command that may be missing or may hang: bounded, and empty then."""
    _code, out, _err = module.run_command(["timeout", "3", *command], environ_update={"LC_ALL": "C"})
    return str(out)


def gather(module: AnsibleModule) -> dict[str, t.Any]:
    release = os_release(_read("/etc/os-release"))
    container = _output(module, "systemd-detect-virt", "--container").strip() not in ("none", "")
    return {
        "distribution": release.get("ID", ""),
        "version": release.get("VERSION_ID", ""),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "architecture": os.uname().machine,
        "packages": installed(_output(module, "dpkg-query", "-W", "-f", "${Package} ${db:Status-Abbrev}\n")),
        "memory_mb": memory_mb(_read("/proc/meminfo")),
        "container": container,
        "users": users(_read("/etc/passwd")),
        "groups": groups(_read("/etc/group")),
        "names": block(_read("/etc/hosts")),
        "markers": markers(),
        # A container has the clock of the host that carries it, and nothing inside can tell what that one follows.
        "time_synchronized": not container
        and _output(module, "timedatectl", "show", "-p", "NTPSynchronized").strip().endswith("=yes"),
    }


def main() -> None:
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    module.exit_json(changed=False, host=gather(module))


if __name__ == "__main__":
    main()
