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
  - Nothing is changed when a file is refused by its O(files[].validate) or something else is in the way.
  - Each file is replaced atomically. Folders are made first, then files, then links; paths in O(absent) go last.
  - A link where a file should be is replaced by the file; what the link points to stays as it is.
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
        description: Name or number of the owner.
        type: str
        default: root
      group:
        description: Name or number of the group.
        type: str
        default: root
      mode:
        description: Mode as an octal string with a leading zero, such as V("0640").
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
        description: Name or number of the owner.
        type: str
        default: root
      group:
        description: Name or number of the group.
        type: str
        default: root
      mode:
        description: Mode as an octal string with a leading zero, such as V("0640").
        type: str
        default: "0644"
      secret:
        description:
          - Keep the content out of diffs, of the host's journal and of what the module returns.
          - Put C(no_log=true) on the task as well, since Ansible itself shows a task's arguments when it is verbose.
        type: bool
        default: false
      validate:
        description:
          - A command that must succeed within a minute before any file is replaced.
          - C(%s) in it is the path of the new content.
          - Not run in check mode, since its program may be yet to come.
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
  description: Whether systemd was told to read its units again; in check mode, whether it would be.
  returned: success
  type: bool
"""

import grp
import json
import os
import pwd
import re
import shlex
import stat
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils import files as disk

UNITS = "/etc/systemd/system/"
#: Exists where systemd is the init system; elsewhere (an image being built) there is nobody to tell.
BOOTED = "/run/systemd/system"
VALIDATE_TIMEOUT = 60
HIDDEN = "(hidden)\n"

Entry = dict[str, t.Any]
Ids = tuple[int, int]


class QuietModule(AnsibleModule):
    """Keeps secret content out of the host's journal, where Ansible notes each module's arguments."""

    def _log_invocation(self) -> None:
        if any(entry["secret"] for entry in self.params["files"]):
            self.log(f"Invoked for {', '.join(entry['path'] for entry in self.params['files'])}; content is secret")
        else:
            super()._log_invocation()


class ConfigFiles:
    """Looks for what would go wrong, validates all new content, and only then changes anything."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.changed_paths: list[str] = []
        self.diffs: list[dict[str, str]] = []
        self.staged: dict[str, str] = {}
        self.made: list[str] = []

    # ---- how it ends

    def fail(self, message: str) -> t.NoReturn:
        self.undo()
        self.module.fail_json(
            msg=f"{os.uname().nodename}: {message}", changed=bool(self.changed_paths), changed_paths=self.changed_paths
        )
        raise SystemExit(1)  # fail_json does not return; this tells readers and type checkers so

    def undo(self) -> None:
        """Remove what only exists for files that are not in place yet."""
        for staged in self.staged.values():
            if os.path.lexists(staged):
                os.unlink(staged)
        self.staged.clear()
        if not self.changed_paths:
            for folder in reversed(self.made):
                try:
                    os.rmdir(folder)
                except OSError:
                    break  # somebody else put something into it

    def note(self, path: str, before: str, after: str) -> None:
        if path not in self.changed_paths:
            self.changed_paths.append(path)
        if self.module._diff:
            self.diffs.append({"before_header": path, "after_header": path, "before": before, "after": after})

    # ---- look

    def check(self) -> None:
        """Everything that can be known to go wrong before anything is changed."""
        seen: dict[str, Entry] = {}
        absent = [{"path": path} for path in self.params["absent"]]
        for kind in ("directories", "files", "links"):
            for entry in self.params[kind]:
                self.check_path(entry, {**entry, "kind": kind}, seen)
                if kind != "links":
                    self.mode_of(entry)
                    self.owner_of(entry)
        for entry in absent:
            self.check_path(entry, {**entry, "kind": "absent"}, seen)
        for entry in self.params["directories"]:
            if os.path.lexists(entry["path"]) and not os.path.isdir(entry["path"]):
                self.fail(f"{entry['path']} should be a folder and is something else. Move it away first.")
        for entry in self.params["files"]:
            self.check_file(entry["path"])
            text_of(entry, self.fail)
        for entry in self.params["links"]:
            path = entry["path"]
            if os.path.lexists(path) and not os.path.islink(path):
                self.fail(f"{path} should be a link to {entry['target']} and is something else. Move it away first.")
        for path in self.params["absent"]:
            if os.path.isdir(path) and not os.path.islink(path):
                self.fail(f"{path} should not be there and is a folder; folders are not removed. Remove it yourself.")

    def check_path(self, entry: Entry, wanted: Entry, seen: dict[str, Entry]) -> None:
        if not os.path.isabs(entry["path"]):
            self.fail(f"{entry['path']} is no absolute path. Give the whole path.")
        path = os.path.normpath(entry["path"])
        if seen.setdefault(path, wanted) != wanted:
            self.fail(f"{path} is asked for twice, in different ways. Name it once.")

    def check_file(self, path: str) -> None:
        if os.path.isdir(path):
            self.fail(f"{path} should be a file and is a folder. Move it away first.")
        if os.path.lexists(path) and not os.path.islink(path) and not os.path.isfile(path):
            self.fail(f"{path} should be a file and is a device, pipe or socket. Move it away first.")

    def owner_of(self, entry: Entry) -> Ids | None:
        """Numeric owner and group; None when check mode meets an account that a package is yet to create."""
        try:
            return _uid(entry["owner"]), _gid(entry["group"])
        except KeyError:
            if self.module.check_mode:
                return None
            self.fail(
                f"{entry['path']}: the owner {entry['owner']} or the group {entry['group']} does not exist on this "
                "host. Install the package or create the account first."
            )

    def mode_of(self, entry: Entry) -> int:
        if not re.fullmatch(r"0[0-7]{3,4}", entry["mode"]):
            self.fail(
                f'{entry["path"]}: mode {entry["mode"]!r} is no octal number such as "0640". Quote it in YAML and '
                "begin with a zero, or it is read as a decimal number."
            )
        return int(entry["mode"], 8)

    # ---- prepare

    def make_directories(self) -> set[str]:
        """Make the folders that are missing, since new content is validated where it will be.

        :returns: those that were missing.
        """
        missing = {entry["path"] for entry in self.params["directories"] if not os.path.isdir(entry["path"])}
        if not self.module.check_mode:
            for entry in self.params["directories"]:
                if entry["path"] in missing:
                    self.made += disk.make_folders(os.path.normpath(entry["path"]))
                    self.set_attributes(entry["path"], self.owner_of(entry), self.mode_of(entry))
        return missing

    def stage(self, entry: Entry, content: bytes) -> None:
        """Put new content beside its destination and validate it there; nothing is replaced yet."""
        path = entry["path"]
        folder = os.path.dirname(path)
        if not os.path.isdir(folder):
            self.fail(f"{path}: the folder {folder} does not exist. Name it in 'directories'.")
        for remains in disk.left_behind(path):
            os.unlink(remains)
        self.staged[path] = disk.stage(path, content, self.mode_of(entry), self.owner_of(entry))
        if entry["validate"]:
            self.validate(entry)

    def validate(self, entry: Entry) -> None:
        staged = self.staged[entry["path"]]
        command = [part.replace("%s", staged) for part in shlex.split(entry["validate"])]
        code, out, err = self.module.run_command(
            ["timeout", "--kill-after=5", str(VALIDATE_TIMEOUT), *command], environ_update={"LC_ALL": "C.UTF-8"}
        )
        if code:
            said = (err or out).strip()[-2000:].replace(staged, entry["path"])
            if entry["secret"]:
                said = "(hidden, since the file is secret; run the command by hand on the host)"
            reason = f"did not end within {VALIDATE_TIMEOUT} s" if code == 124 else f"exit {code}"
            self.fail(
                f"{entry['path']}: the new content was refused by '{entry['validate']}' ({reason}); nothing was "
                f"replaced. Correct the template or the variables behind it. It said: {said}"
            )

    # ---- apply

    def set_attributes(self, path: str, owner: Ids | None, mode: int) -> None:
        if owner is not None:
            os.chown(path, *owner)
        os.chmod(path, mode)

    def attributes(self, entry: Entry) -> None:
        """Owner, group and mode of a file or folder that exists."""
        path, owner, mode = entry["path"], self.owner_of(entry), self.mode_of(entry)
        found = os.stat(path)
        if (found.st_uid, found.st_gid) == owner and stat.S_IMODE(found.st_mode) == mode:
            return
        self.note(
            path,
            f"owner {found.st_uid}:{found.st_gid} mode {stat.S_IMODE(found.st_mode):04o}\n",
            f"owner {'{}:{}'.format(*owner) if owner else 'yet to be made'} mode {mode:04o}\n",
        )
        if not self.module.check_mode:
            self.set_attributes(path, owner, mode)

    def file(self, entry: Entry, before: bytes | None, after: bytes) -> None:
        path = entry["path"]
        if entry["secret"]:
            self.note(path, HIDDEN, "(hidden, changed)\n")
        else:
            self.note(path, (before or b"").decode(errors="replace"), after.decode(errors="replace"))
        if not self.module.check_mode:
            disk.replace(self.staged[path], path)
            del self.staged[path]

    def link(self, entry: Entry) -> None:
        path, target = entry["path"], entry["target"]
        before = os.readlink(path) if os.path.islink(path) else None
        if before == target:
            return
        self.note(path, "absent\n" if before is None else f"link to {before}\n", f"link to {target}\n")
        if self.module.check_mode:
            return
        folder = os.path.dirname(path)
        if not os.path.isdir(folder):
            self.fail(f"{path}: the folder {folder} does not exist. Name it in 'directories'.")
        temporary = os.path.join(folder, f"{disk.STAGED}{os.getpid()}{os.path.basename(path)}")
        if os.path.lexists(temporary):
            os.unlink(temporary)
        self.staged[path] = temporary
        os.symlink(target, temporary)
        disk.replace(self.staged[path], path)
        del self.staged[path]

    def remove(self, path: str) -> None:
        if not os.path.lexists(path):
            return
        self.note(path, "present\n", "absent\n")
        if not self.module.check_mode:
            os.unlink(path)
            disk.sync(os.path.dirname(path))

    def reload_units(self) -> bool:
        """Tell systemd when units changed; M(shannon.resilience.units) does so too, should this be cut short."""
        if not any(path.startswith(UNITS) for path in self.changed_paths) or not os.path.isdir(BOOTED):
            return False
        if not self.module.check_mode:
            code, out, err = self.module.run_command(["timeout", "60", "systemctl", "daemon-reload"])
            if code:
                self.fail(
                    f"the files are in place, but 'systemctl daemon-reload' failed (exit {code}): "
                    f"{(err or out).strip()}. Look at 'systemctl status' on the host and run this again."
                )
        return True

    def run(self) -> dict[str, t.Any]:
        self.check()
        missing = self.make_directories()
        changed_files: list[tuple[Entry, bytes | None, bytes]] = []
        kept_files: list[Entry] = []
        for entry in self.params["files"]:
            if entry["create_only"] and os.path.lexists(entry["path"]):
                if not os.path.islink(entry["path"]):
                    kept_files.append(entry)
                continue
            before, after = content_of(entry["path"]), text_of(entry, self.fail).encode()
            if before == after and not os.path.islink(entry["path"]):
                kept_files.append(entry)
            elif entry["path"] not in self.staged:
                changed_files.append((entry, before, after))
                if not self.module.check_mode:
                    self.stage(entry, after)
        for entry in self.params["directories"]:
            if entry["path"] in missing:
                self.note(entry["path"], "absent\n", "folder\n")
            else:
                self.attributes(entry)
        for entry, before, after in changed_files:
            self.file(entry, before, after)
        for entry in kept_files:
            self.attributes(entry)
        for entry in self.params["links"]:
            self.link(entry)
        for path in self.params["absent"]:
            self.remove(path)
        return {
            "changed": bool(self.changed_paths),
            "changed_paths": self.changed_paths,
            "daemon_reloaded": self.reload_units(),
            "diff": self.diffs,
        }


def text_of(entry: Entry, fail: t.Callable[[str], t.NoReturn]) -> str:
    """The file's text; a mapping or list is written as JSON."""
    content = entry["content"]
    if isinstance(content, str):
        return content
    if isinstance(content, (dict, list)):
        return json.dumps(content, indent=2) + "\n"
    fail(f"{entry['path']}: content is {type(content).__name__}; give text, a mapping or a list.")


def content_of(path: str) -> bytes | None:
    """What is in the file now; None when there is none."""
    try:
        with open(path, "rb") as handle:
            return handle.read()
    except FileNotFoundError:
        return None


def hidden(entry: Entry) -> Entry:
    """The entry as it may be shown."""
    return {**entry, "content": HIDDEN.strip()} if entry["secret"] else entry


def _uid(name: str) -> int:
    return int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid


def _gid(name: str) -> int:
    return int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid


def main() -> None:
    owned = {
        "path": {"type": "path", "required": True},
        "owner": {"type": "str", "default": "root"},
        "group": {"type": "str", "default": "root"},
    }
    module = QuietModule(
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
    work = ConfigFiles(module)
    # The result repeats the arguments, so secret content is taken out of them.
    module.params = {**module.params, "files": [hidden(entry) for entry in module.params["files"]]}
    try:
        result = work.run()
    except OSError as exc:
        work.fail(f"cannot write {exc.filename or 'a file'}: {exc.strerror or exc}. Is the disk full or read-only?")
    except BaseException:
        work.undo()
        raise
    module.exit_json(**result)


if __name__ == "__main__":
    main()
