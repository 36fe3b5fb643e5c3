# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which calls of pip collect wheels for hosts that are unlike this one, and how the wheels are packed."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tarfile
import typing as t

from . import files as disk

#: C library versions that wheels are built for, up to that of Ubuntu 22.04, the oldest supported distribution.
GLIBC_MINORS = (*range(35, 16, -1), 12, 5)

#: pip picks files for `--python-version` and `--platform`, but answers conditions of requirements, such as
#: `python_version < "3.11"`, for the Python that runs it, so what only the hosts need would be missing. This starts pip
#: with the hosts' answers.
SHIM = """\
import json
import runpy
import sys

from pip._vendor.packaging import markers

answers = json.loads(sys.argv.pop(1))
own = markers.default_environment
markers.default_environment = lambda: {**own(), **answers}
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


def digest_of(params: t.Mapping[str, t.Any]) -> str:
    """A short hash of all that decides which wheels are needed."""
    wanted = {name: params[name] for name in ("requirements", "build", "python", "architecture")}
    if params.get("project"):
        wanted["project"] = [params["project"]["folder"], content_of(params["project"])]
    return hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16]


def content_of(project: t.Mapping[str, t.Any]) -> dict[str, str]:
    """Every file of a project by its path below the root, with its hash; what Python leaves behind does not count.

    :param project: C(root), C(folder) (the project's own), and C(needs) (what else it is built from).
    """
    found: dict[str, str] = {}
    for part in (project["folder"], *project["needs"]):
        for folder, folders, names in os.walk(os.path.join(project["root"], part)):
            folders[:] = sorted(name for name in folders if name != "__pycache__" and not name.endswith(".egg-info"))
            for name in names:
                path = os.path.join(folder, name)
                if not name.endswith(".pyc"):
                    with open(path, "rb") as handle:
                        found[os.path.relpath(path, project["root"])] = hashlib.sha256(handle.read()).hexdigest()
    return found


def platforms(architecture: str) -> list[str]:
    """Platform tags of wheels that run on the supported distributions; pip adds the older names of manylinux2014."""
    return [*(f"manylinux_2_{minor}_{architecture}" for minor in GLIBC_MINORS), f"manylinux2014_{architecture}"]


def environment(python: str, architecture: str) -> dict[str, str]:
    """The hosts' answers to conditions of requirements; of a minor version, its first release stands for all."""
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "os_name": "posix",
        "platform_machine": architecture,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }


def is_pure(wheel: str) -> bool:
    """Whether a wheel runs anywhere."""
    return wheel.endswith("-none-any.whl")


def build_command(interpreter: str, requirements: t.Sequence[str], folder: str) -> list[str]:
    """Build what is published as source only."""
    return [interpreter, "-m", "pip", *_QUIET, "wheel", "--no-deps", f"--wheel-dir={folder}", "--", *requirements]


def download_command(
    interpreter: str, shim: str, requirements: t.Sequence[str], python: str, architecture: str, folder: str
) -> list[str]:
    """Resolve and download all the rest; what was built before is found in the same folder."""
    return [
        interpreter,
        shim,
        json.dumps(environment(python, architecture)),
        *_QUIET,
        "download",
        "--only-binary=:all:",
        f"--python-version={python}",
        "--implementation=cp",
        *(f"--platform={name}" for name in platforms(architecture)),
        f"--find-links={folder}",
        f"--dest={folder}",
        "--",
        *requirements,
    ]


def pack(folder: str, archive: str) -> None:
    """One archive of all wheels, the same bytes for the same wheels."""
    # GzipFile writes the name of its file into the archive, so it gets none.
    with (
        open(archive, "wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in sorted(os.listdir(folder)):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = os.path.getsize(os.path.join(folder, name)), 0o644
            with open(os.path.join(folder, name), "rb") as handle:
                tar.addfile(entry, handle)
    disk.sync(archive)


_QUIET = ("--disable-pip-version-check", "--no-input")
