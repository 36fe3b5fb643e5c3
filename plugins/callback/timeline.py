# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When each task began and ended on each host, for the report on a move."""

from __future__ import annotations

DOCUMENTATION = r"""
name: timeline
type: aggregate
short_description: Write down when each task began and ended on each host
version_added: "0.1.0"
description:
  - Appends a line of JSON to a file for each task that ends on a host, with C(name), C(host), C(begin), C(end) (both in
    seconds since 1970), C(status) and C(play). The module M(shannon.resilience.dr_report) draws them.
  - The status is V(ok), V(changed), V(failed), V(ignored), V(skipped) or V(unreachable).
  - What a task was given and what it returned is never written, since it could hold secrets.
  - A file of more than 4 MiB is begun anew.
  - Without a file it does nothing. A file that can't be written costs one warning, and never the run.
requirements:
  - enable in configuration
options:
  file:
    description:
      - The file to append to; it is made with mode 0600. Its folder is made with mode 0700, but none above it.
      - A relative path counts from the folder that the playbook is started in.
    type: str
    env:
      - name: SHANNON_TIMELINE_FILE
    ini:
      - section: callback_timeline
        key: file
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
# ANSIBLE_CALLBACKS_ENABLED=shannon.resilience.timeline SHANNON_TIMELINE_FILE=/tmp/steps.jsonl ansible-playbook ...
# or in ansible.cfg:
# [defaults]
# callbacks_enabled = shannon.resilience.timeline
# [callback_timeline]
# file = /var/tmp/steps.jsonl
"""

# ruff: noqa: E402  (Ansible wants the documentation before the imports)
import contextlib
import json
import os
import time
import typing as t

from ansible.plugins.callback import CallbackBase

if t.TYPE_CHECKING:
    from ansible.executor.task_result import CallbackTaskResult
    from ansible.inventory.host import Host
    from ansible.playbook.play import Play
    from ansible.playbook.task import Task


#: Size in bytes from which on a file is begun anew.
TOO_LARGE = 4 * 2**20


class CallbackModule(CallbackBase):
    """What Ansible calls."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "shannon.resilience.timeline"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *args: t.Any, **kwargs: t.Any) -> None:
        self._path = ""
        self._play = ""
        #: When a task began, by its id, and by its id and host where it is known that exactly.
        self._begun: dict[tuple[str, str], float] = {}
        self._names: dict[str, str] = {}
        super().__init__(*args, **kwargs)

    def set_options(self, *args: t.Any, **kwargs: t.Any) -> None:
        super().set_options(*args, **kwargs)
        path = self.get_option("file")
        self._path = os.path.abspath(os.path.expanduser(path)) if path else ""
        self.disabled = not self._path
        if self._path:
            # So that the playbook finds the file for its report, whichever setting named it.
            os.environ["SHANNON_TIMELINE_FILE"] = self._path
            # What can't be done here is told by the first line that can't be written.
            with contextlib.suppress(OSError):
                os.mkdir(os.path.dirname(self._path), 0o700)
            with contextlib.suppress(OSError):
                if os.path.getsize(self._path) > TOO_LARGE:
                    os.unlink(self._path)

    def v2_playbook_on_play_start(self, play: Play) -> None:
        self._play = play.get_name()
        self._begun.clear()
        self._names.clear()

    def v2_playbook_on_task_start(self, task: Task, is_conditional: bool) -> None:
        self._start(task)

    def v2_playbook_on_handler_task_start(self, task: Task) -> None:
        self._start(task)

    def v2_runner_on_start(self, host: Host, task: Task) -> None:
        self._begun[task._uuid, host.get_name()] = time.time()

    def v2_runner_on_ok(self, result: CallbackTaskResult) -> None:
        self._finish(result, "changed" if result.is_changed() else "ok")

    def v2_runner_on_failed(self, result: CallbackTaskResult, ignore_errors: bool = False) -> None:
        self._finish(result, "ignored" if ignore_errors else "failed")

    def v2_runner_on_skipped(self, result: CallbackTaskResult) -> None:
        self._finish(result, "skipped")

    def v2_runner_on_unreachable(self, result: CallbackTaskResult) -> None:
        self._finish(result, "unreachable")

    def _start(self, task: Task) -> None:
        # Only here the variables in a task's name have their values.
        self._names[task._uuid] = task.get_name().strip()
        self._begun[task._uuid, ""] = time.time()

    def _finish(self, result: CallbackTaskResult, status: str) -> None:
        end = time.time()
        task, host = result.task, result.host.get_name()
        # A handler may run a second time under the same id, so a start counts once.
        begin = self._begun.pop((task._uuid, host), None) or self._begun.get((task._uuid, ""), end)
        name = self._names.get(task._uuid) or task.get_name().strip()
        self._append(
            {
                "name": name,
                "host": host,
                "begin": round(begin, 3),
                "end": round(end, 3),
                "status": status,
                "play": self._play,
            }
        )

    def _append(self, step: dict[str, t.Any]) -> None:
        line = json.dumps(step).encode() + b"\n"
        try:
            # In one write to the end, so that the lines of two runs at once don't mix.
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)
        except OSError as exc:
            self.disabled = True
            self._display.warning(
                f"the timeline of this run is incomplete: cannot write to {self._path}: {exc.strerror or exc}. Set "
                "SHANNON_TIMELINE_FILE to a file in a folder that you may write to."
            )
