#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: config_files
short_description: Bring all files, folders and links of one component to the wanted state in one call
version_added: "0.1.0"
description:
  - A component's configuration is several files that belong together. This writes them in one module call, since each
    further task costs a second over a handful of hosts, and it validates all of them before it replaces any.
  - Each file is replaced atomically. Folders are made first, then files, then links; paths in O(absent) go last.
  - When something below C(/etc/systemd/system) changed, systemd is told to read its units again.
options:
  directories:
    description: Folders to have.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Absolute path.
        type: path
        required: true
      owner:
        description: Name of the owner.
        type: str
        default: root
      group:
        description: Name of the group.
        type: str
        default: root
      mode:
        description: Mode as an octal string.
        type: str
        default: "0755"
  files:
    description: Files to have, with their whole content.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Absolute path.
        type: path
        required: true
      content:
        description: The content; a mapping or list is written as JSON.
        type: raw
        required: true
      owner:
        description: Name of the owner.
        type: str
        default: root
      group:
        description: Name of the group.
        type: str
        default: root
      mode:
        description: Mode as an octal string.
        type: str
        default: "0644"
      secret:
        description: Keep the content out of diffs. Put C(no_log=true) on the task as well.
        type: bool
        default: false
      validate:
        description: A command that must succeed before the file is replaced; C(%s) is the path of the new content.
        type: str
      create_only:
        description: Leave the content of a file that exists as it is.
        type: bool
        default: false
  links:
    description: Symbolic links to have; a link of a unit to C(/dev/null) masks the unit.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Absolute path of the link.
        type: path
        required: true
      target:
        description: What it points to.
        type: path
        required: true
  absent:
    description: Files and links that must not be there; a folder in the way is an error.
    type: list
    elements: path
    default: []
attributes:
  check_mode:
    description: Can run in check mode; users, groups, folders and validating commands may be missing then.
    support: full
  diff_mode:
    description: Shows the change of each file that is not secret.
    support: full
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Write the configuration of etcd
  shannon.resilience.config_files:
    directories:
      - {path: /etc/shannon/etcd, group: etcd, mode: "0750"}
    files:
      - path: /etc/shannon/etcd/region.yml
        content: "{{ lookup('ansible.builtin.template', 'etcd.yml.j2') }}"
        group: etcd
        mode: "0640"
    links:
      - {path: /etc/systemd/system/etcd.service, target: /dev/null}
  notify: Restart etcd
"""

RETURN = r"""
changed_paths:
  description: Paths of the folders, files and links that changed.
  returned: success
  type: list
  elements: str
daemon_reloaded:
  description: Whether systemd was told to read its units again.
  returned: success
  type: bool
"""

import grp
import json
import os
import pwd
import shlex
import stat
import tempfile
import typing as t

from ansible.module_utils.basic import AnsibleModule

UNITS = "/etc/systemd/system/"


class ConfigFiles:
    """Observes, validates, then applies; in check mode the last is left out."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.changed_paths: list[str] = []
        self.diffs: list[dict[str, str]] = []
        self.staged: list[str] = []

    def fail(self, message: str) -> t.NoReturn:
        for path in self.staged:
            if os.path.exists(path):
                os.unlink(path)
        self.module.fail_json(msg=message, changed_paths=self.changed_paths)
        raise SystemExit(1)  # fail_json does not return; this tells readers and type checkers so

    def note(self, path: str, before: str = "", after: str = "") -> None:
        if path not in self.changed_paths:
            self.changed_paths.append(path)
        self.diffs.append({"before_header": path, "after_header": path, "before": before, "after": after})

    def owner_ids(self, entry: dict[str, t.Any]) -> tuple[int, int] | None:
        """Numeric owner and group; None when check mode meets a user that a package is yet to create."""
        try:
            return pwd.getpwnam(entry["owner"]).pw_uid, grp.getgrnam(entry["group"]).gr_gid
        except KeyError:
            if self.module.check_mode:
                return None
            self.fail(
                f"{entry['path']}: the owner {entry['owner']} or the group {entry['group']} does not exist on this "
                "host. Install the package or create the account first."
            )

    def mode_of(self, entry: dict[str, t.Any]) -> int:
        try:
            return int(entry["mode"], 8)
        except ValueError:
            self.fail(f'{entry["path"]}: mode {entry["mode"]!r} is no octal number such as "0640".')

    def directory(self, entry: dict[str, t.Any]) -> None:
        path, ids, mode = entry["path"], self.owner_ids(entry), self.mode_of(entry)
        if not os.path.isdir(path):
            if os.path.lexists(path):
                self.fail(f"{path} should be a folder and is something else. Move it away first.")
            self.note(path, "absent\n", "folder\n")
            if not self.module.check_mode and ids is not None:
                os.makedirs(path, mode=0o755, exist_ok=True)
                os.chown(path, *ids)
                os.chmod(path, mode)
            return
        self.attributes(path, ids, mode)

    def attributes(self, path: str, ids: tuple[int, int] | None, mode: int) -> None:
        found = os.stat(path)
        if ids is None or ((found.st_uid, found.st_gid) == ids and stat.S_IMODE(found.st_mode) == mode):
            return
        self.note(
            path,
            f"owner {found.st_uid}:{found.st_gid} mode {stat.S_IMODE(found.st_mode):04o}\n",
            f"owner {ids[0]}:{ids[1]} mode {mode:04o}\n",
        )
        if not self.module.check_mode:
            os.chown(path, *ids)
            os.chmod(path, mode)

    def stage(self, entry: dict[str, t.Any]) -> tuple[dict[str, t.Any], str | None, str, str]:
        """Put new content beside its destination and validate it there; nothing is replaced yet."""
        path = entry["path"]
        content = entry["content"]
        text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
        if os.path.isdir(path):
            self.fail(f"{path} should be a file and is a folder. Move it away first.")
        before = None
        if os.path.exists(path):
            if entry["create_only"]:
                return entry, None, "", ""
            with open(path, encoding="utf-8", errors="replace") as handle:
                before = handle.read()
        if before == text:
            return entry, None, "", ""
        folder = os.path.dirname(path)
        if self.module.check_mode or not os.path.isdir(folder):
            # In check mode a folder may be yet to come, and a validating command yet to be installed.
            if not self.module.check_mode:
                self.fail(f"{path}: the folder {folder} does not exist. Name it in 'directories'.")
            return entry, "", before or "", text
        handle_fd, staged = tempfile.mkstemp(prefix=".shannon-", suffix=os.path.basename(path), dir=folder)
        self.staged.append(staged)
        with os.fdopen(handle_fd, "w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        ids = self.owner_ids(entry)
        if ids is not None:
            os.chown(staged, *ids)
        os.chmod(staged, self.mode_of(entry))
        if entry["validate"]:
            command = [part.replace("%s", staged) for part in shlex.split(entry["validate"])]
            code, out, err = self.module.run_command(command)
            if code:
                self.fail(
                    f"{path}: the new content was refused by '{entry['validate']}' (exit {code}); nothing was "
                    f"replaced. It said: {(err or out).strip()[-2000:]}"
                )
        return entry, staged, before or "", text

    def replace(self, entry: dict[str, t.Any], staged: str | None, before: str, after: str) -> None:
        path = entry["path"]
        if staged is None:
            self.attributes(path, self.owner_ids(entry), self.mode_of(entry))
            return
        hidden = entry["secret"]
        self.note(path, "(hidden)\n" if hidden else before, "(hidden, changed)\n" if hidden else after)
        if staged:
            os.rename(staged, path)
            self.staged.remove(staged)

    def link(self, entry: dict[str, t.Any]) -> None:
        path, target = entry["path"], entry["target"]
        if os.path.islink(path) and os.readlink(path) == target:
            return
        if os.path.lexists(path) and not os.path.islink(path):
            self.fail(f"{path} should be a link to {target} and is something else. Move it away first.")
        self.note(path, "absent\n", f"link to {target}\n")
        if not self.module.check_mode:
            temporary = f"{path}.shannon-{os.getpid()}"
            os.symlink(target, temporary)
            os.rename(temporary, path)

    def remove(self, path: str) -> None:
        if not os.path.lexists(path):
            return
        if os.path.isdir(path) and not os.path.islink(path):
            self.fail(f"{path} should not be there and is a folder; folders are not removed. Remove it yourself.")
        self.note(path, "present\n", "absent\n")
        if not self.module.check_mode:
            os.unlink(path)

    def run(self) -> dict[str, t.Any]:
        params = self.module.params
        for entry in params["directories"]:
            self.directory(entry)
        for entry, staged, before, after in [self.stage(entry) for entry in params["files"]]:
            self.replace(entry, staged, before, after)
        for entry in params["links"]:
            self.link(entry)
        for path in params["absent"]:
            self.remove(path)
        reload_units = any(path.startswith(UNITS) for path in self.changed_paths)
        if reload_units and not self.module.check_mode:
            self.module.run_command(["systemctl", "daemon-reload"], check_rc=True)
        return {
            "changed": bool(self.changed_paths),
            "changed_paths": self.changed_paths,
            "daemon_reloaded": reload_units,
            "diff": self.diffs,
        }


def main() -> None:
    owned = {
        "path": {"type": "path", "required": True},
        "owner": {"type": "str", "default": "root"},
        "group": {"type": "str", "default": "root"},
    }
    module = AnsibleModule(
        argument_spec={
            "directories": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {**owned, "mode": {"type": "str", "default": "0755"}},
            },
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    **owned,
                    "content": {"type": "raw", "required": True},
                    "mode": {"type": "str", "default": "0644"},
                    "secret": {"type": "bool", "default": False},
                    "validate": {"type": "str"},
                    "create_only": {"type": "bool", "default": False},
                },
            },
            "links": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "target": {"type": "path", "required": True},
                },
            },
            "absent": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    files = ConfigFiles(module)
    try:
        result = files.run()
    except OSError as exc:
        files.fail(f"cannot write {exc.filename or 'a file'}: {exc.strerror or exc}. Is the disk full or read-only?")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
