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
  - Runs on the controller, with the pip of the Python that runs this module. Nothing is downloaded again until the
    requirements change.
  - Conditions in requirements, such as C(python_version < "3.11"), are answered for the hosts, not for the controller.
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
  project:
    description:
      - A project on the controller whose wheel is built and put among the others. A change of any of its files makes
        a new archive.
      - It is built from a copy, so the checkout stays as it is. It must be pure Python.
      - What it depends on belongs into O(requirements), pinned.
    type: dict
    suboptions:
      root:
        description: The folder that the other paths start from.
        type: path
        required: true
      folder:
        description: The project's folder, which holds its C(pyproject.toml).
        type: str
        required: true
      needs:
        description: What else it is built from, at the same place relative to the project.
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

- name: Collect the wheels of a project of one's own
  shannon.resilience.wheelhouse:
    project: {root: "{{ playbook_dir }}/..", folder: services, needs: [plugins/module_utils]}
    requirements: ["httpx==0.28.1"]
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

import importlib.util
import os
import re
import shutil
import sys
import tempfile

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils import files as disk
from ansible_collections.shannon.resilience.plugins.module_utils import wheels
from ansible_collections.shannon.resilience.plugins.module_utils.errors import WaitTimeout

#: Seconds that one call of pip may take; a build of an sdist fetches what it is built with.
PIP_TIMEOUT = 600
SCRATCH = ".wheels-"


def collect(module: AnsibleModule, archive: str) -> None:
    """Download and build into a scratch folder, then put the archive in place in one step."""
    params = module.params
    dest = os.path.dirname(archive)
    for name in os.listdir(dest):
        if name.startswith(SCRATCH):  # the lock is ours, so its run is dead
            shutil.rmtree(os.path.join(dest, name), ignore_errors=True)
    scratch = tempfile.mkdtemp(dir=dest, prefix=SCRATCH)
    folder = os.path.join(scratch, "wheels")
    os.mkdir(folder)
    try:
        sources = [*params["build"]]
        if params["project"]:
            sources.append(stage(params["project"], os.path.join(scratch, "project")))
        if sources:
            run(module, wheels.build_command(sys.executable, sources, folder))
            bound = sorted(name for name in os.listdir(folder) if not wheels.is_pure(name))
            if bound:
                module.fail_json(
                    msg=f"{', '.join(bound)} runs on this controller only, so it can't be built for the hosts. Take it "
                    "out of 'build' if it is published as a wheel; else install it on the hosts as a package of the "
                    "distribution."
                )
        shim = os.path.join(scratch, "pip_for_target.py")
        with open(shim, "w", encoding="utf-8") as handle:
            handle.write(wheels.SHIM)
        run(
            module,
            wheels.download_command(
                sys.executable, shim, params["requirements"], params["python"], params["architecture"], folder
            ),
        )
        packed = os.path.join(scratch, "archive")
        wheels.pack(folder, packed)
        disk.replace(packed, archive)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def stage(project: dict, copy: str) -> str:
    """Copy what a project is built from, since a build leaves its traces; returns the copy of the project itself."""
    for name in wheels.content_of(project):
        target = os.path.join(copy, name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copyfile(os.path.join(project["root"], name), target)
    return os.path.join(copy, project["folder"])


def has_pip() -> bool:
    """Whether the Python that runs this can run pip."""
    return importlib.util.find_spec("pip") is not None


def run(module: AnsibleModule, command: list[str]) -> None:
    code, out, err = module.run_command(["timeout", "--kill-after=5", str(PIP_TIMEOUT), *command])
    if code:
        reason = f"it did not end within {PIP_TIMEOUT} s" if code == 124 else f"exit {code}"
        module.fail_json(
            msg=f"pip could not collect the wheels for Python {module.params['python']} on "
            f"{module.params['architecture']} ({reason}). The controller needs a package index for this (pip's own "
            "configuration names another), each requirement a wheel for these hosts, and what is published as source "
            f"only an entry in 'build'. It said: {(err or out).strip()[-1500:]}"
        )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "requirements": {"type": "list", "elements": "str", "required": True},
            "build": {"type": "list", "elements": "str", "default": []},
            "project": {
                "type": "dict",
                "options": {
                    "root": {"type": "path", "required": True},
                    "folder": {"type": "str", "required": True},
                    "needs": {"type": "list", "elements": "str", "default": []},
                },
            },
            "python": {"type": "str", "required": True},
            "architecture": {"type": "str", "required": True},
            "dest": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    if not re.fullmatch(r"3\.\d+", params["python"]):
        module.fail_json(msg=f'python is {params["python"]!r}; give major and minor version, quoted, such as "3.11".')
    options = [name for name in [*params["requirements"], *params["build"]] if not re.match(r"[A-Za-z0-9]", name)]
    if options or not params["requirements"]:
        module.fail_json(msg=f"requirements: {options or 'none'}; give at least one, and no options of pip.")
    project = params["project"]
    if project and not os.path.isfile(os.path.join(project["root"], project["folder"], "pyproject.toml")):
        module.fail_json(
            msg=f"project: {os.path.join(project['root'], project['folder'])} on the controller has no pyproject.toml; "
            "give the folder of a Python project, relative to 'root'."
        )
    digest = wheels.digest_of(params)
    dest = os.path.abspath(params["dest"])
    archive = os.path.join(dest, f"wheels-{digest}.tar.gz")
    changed = not os.path.exists(archive)
    if changed and not module.check_mode:
        if not has_pip():
            module.fail_json(
                msg=f"{sys.executable} on the controller has no pip. Install it (package python3-pip or "
                "'python -m ensurepip'), or set ansible_python_interpreter of this task to a Python that has it."
            )
        try:
            disk.make_folders(dest)
            with disk.locked(os.path.join(dest, ".lock"), 2 * PIP_TIMEOUT):
                changed = not os.path.exists(archive)  # another run may have been faster
                if changed:
                    collect(module, archive)
        except WaitTimeout as exc:
            module.fail_json(msg=f"{exc}. Is another run of pip stuck on this controller?")
        except OSError as exc:
            module.fail_json(
                msg=f"cannot keep wheels in {dest}: {exc.filename or ''} {exc.strerror or exc}. Does the folder belong "
                "to you, and is there room?"
            )
    module.exit_json(changed=changed, archive=archive, digest=digest)


if __name__ == "__main__":
    main()
