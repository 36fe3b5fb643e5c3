#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: wheelhouse
short_description: Collect Python wheels on the controller, for hosts that reach no package index
version_added: "0.1.0"
description:
  - Resolves O(requirements) for the given Python and architecture, downloads the wheels, and packs them into one
    archive that hosts install from with C(pip install --no-index --find-links).
  - Runs on the controller, with the pip of the Python that runs Ansible. Nothing is downloaded again until the
    requirements change.
options:
  requirements:
    description: Requirements as pip takes them; pin them.
    type: list
    elements: str
    required: true
  build:
    description:
      - Requirements that are published as source only; they are built on the controller first.
      - Only pure Python can be built for another Python or architecture.
    type: list
    elements: str
    default: []
  python:
    description: Major and minor version of the hosts' Python, such as V(3.11).
    type: str
    required: true
  architecture:
    description: Machine name of the hosts, such as V(x86_64) or V(aarch64).
    type: str
    required: true
  dest:
    description: Folder on the controller that keeps the archives; it is made when missing.
    type: path
    required: true
attributes:
  check_mode:
    description: Can run in check mode; tells whether wheels would be collected.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Collect the wheels of Patroni
  shannon.resilience.wheelhouse:
    requirements: ["patroni[etcd3]==4.1.5"]
    build: [python-etcd==0.4.5]
    python: "3.11"
    architecture: x86_64
    dest: "{{ inventory_dir }}/../../.cache/wheels"
  delegate_to: localhost
  become: false
"""

RETURN = r"""
archive:
  description: Path of the archive on the controller; in check mode it may not exist yet.
  returned: success
  type: str
digest:
  description: What the archive was made from, as a hash; it changes when requirements, Python or architecture do.
  returned: success
  type: str
"""

import fcntl
import gzip
import hashlib
import json
import os
import shutil
import sys
import tarfile
import tempfile

from ansible.module_utils.basic import AnsibleModule

#: C library versions that wheels on PyPI are built for, up to that of Ubuntu 22.04 (2.35).
GLIBC_MINORS = (34, 31, 28, 27, 26, 24, 17, 12, 5)


def digest_of(params: dict[str, object]) -> str:
    """A short hash of all that decides which wheels are needed."""
    wanted = {name: params[name] for name in ("requirements", "build", "python", "architecture")}
    return hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16]


def platforms(architecture: str) -> list[str]:
    """Platform tags of wheels that run on the supported distributions."""
    return [*(f"manylinux_2_{minor}_{architecture}" for minor in GLIBC_MINORS), f"manylinux2014_{architecture}"]


def pack(folder: str, archive: str) -> None:
    """One archive of all wheels, the same bytes for the same wheels."""
    with (
        open(archive, "wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for name in sorted(os.listdir(folder)):
            entry = tar.gettarinfo(os.path.join(folder, name), arcname=name)
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname, entry.mode = 0, 0, 0, "", "", 0o644
            with open(os.path.join(folder, name), "rb") as handle:
                tar.addfile(entry, handle)


def collect(module: AnsibleModule, archive: str) -> None:
    """Download and build into a scratch folder, then put the archive in place in one step."""
    params = module.params
    scratch = tempfile.mkdtemp(dir=os.path.dirname(archive), prefix=".wheels-")
    wheels = os.path.join(scratch, "wheels")
    os.mkdir(wheels)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    try:
        if params["build"]:
            run(module, [*pip, "wheel", "--no-deps", "--wheel-dir", wheels, *params["build"]])
        target = [f"--platform={name}" for name in platforms(params["architecture"])]
        run(
            module,
            [
                *pip, "download", "--only-binary=:all:", f"--python-version={params['python']}",
                "--implementation=cp", *target, f"--find-links={wheels}", f"--dest={wheels}", *params["requirements"],
            ],
        )  # fmt: skip
        packed = os.path.join(scratch, "archive")
        pack(wheels, packed)
        os.rename(packed, archive)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def run(module: AnsibleModule, command: list[str]) -> None:
    code, out, err = module.run_command(["timeout", "600", *command])
    if code:
        module.fail_json(
            msg=f"pip could not collect the wheels for Python {module.params['python']} on "
            f"{module.params['architecture']} (exit {code}). The controller needs a package index for this. "
            f"It said: {(err or out).strip()[-1500:]}"
        )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "requirements": {"type": "list", "elements": "str", "required": True},
            "build": {"type": "list", "elements": "str", "default": []},
            "python": {"type": "str", "required": True},
            "architecture": {"type": "str", "required": True},
            "dest": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    digest = digest_of(module.params)
    dest = module.params["dest"]
    archive = os.path.join(dest, f"wheels-{digest}.tar.gz")
    changed = not os.path.exists(archive)
    if changed and not module.check_mode:
        try:
            os.makedirs(dest, exist_ok=True)
            with open(os.path.join(dest, ".lock"), "w", encoding="utf-8") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                changed = not os.path.exists(archive)  # another run may have been faster
                if changed:
                    collect(module, archive)
        except OSError as exc:
            module.fail_json(msg=f"cannot keep wheels in {dest}: {exc.strerror or exc}. Is the disk full?")
    module.exit_json(changed=changed, archive=archive, digest=digest)


if __name__ == "__main__":
    main()
