#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: units
short_description: Bring several systemd units to the wanted state in one call
version_added: "0.1.0"
description:
  - A host carries an instance per cell of several components. This looks at all of their units at once, acts only where
    the state differs, waits until each has reached its state, and, when one does not, fails with the last lines of that
    unit's journal.
options:
  units:
    description: The units, acted on in this order.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the unit, with its suffix (V(.service) is added to a name without one).
        type: str
        required: true
      state:
        description:
          - What the unit should be doing. V(restarted) and V(reloaded) always act.
          - V(reloaded) starts a unit that is not running.
        type: str
        choices: [started, stopped, restarted, reloaded]
      enabled:
        description: Whether it starts at boot.
        type: bool
  timeout:
    description: Seconds that each unit has to reach its state.
    type: int
    default: 60
attributes:
  check_mode:
    description: Can run in check mode; a unit that does not exist yet counts as one that would change.
    support: full
  diff_mode:
    description: Shows state and enablement of the units that change.
    support: full
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Run the cells' Redis instances
  shannon.resilience.units:
    units:
      - {name: redis@main.service, state: started, enabled: true}
      - {name: sentinel@main.service, state: started, enabled: true}
"""

RETURN = r"""
changed_units:
  description: Names of the units that were started, stopped, restarted, reloaded, enabled or disabled.
  returned: success
  type: list
  elements: str
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

PROPERTIES = ("Id", "LoadState", "ActiveState", "SubState", "UnitFileState", "NeedDaemonReload")
SUFFIXES = (".service", ".timer", ".socket", ".target", ".path", ".mount")


class Units:
    """Looks at units, acts on those that differ, and explains those that do not come up."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.timeout = module.params["timeout"]

    def systemctl(self, *words: str) -> tuple[int, str]:
        """Run systemctl, bounded: a start that hangs ends with the time limit instead of holding up the play."""
        code, out, err = self.module.run_command(
            ["timeout", "--kill-after=5", str(self.timeout), "systemctl", "--no-pager", *words],
            environ_update={"LC_ALL": "C"},
        )
        return code, (out + err).strip()

    def observe(self, names: list[str]) -> dict[str, dict[str, str]]:
        code, out = self.systemctl("show", f"--property={','.join(PROPERTIES)}", "--", *names)
        if code:
            self.module.fail_json(msg=f"systemctl show failed, is this a systemd host? It said: {out}")
        blocks = out.split("\n\n")
        found = [dict(line.partition("=")[::2] for line in block.splitlines() if "=" in line) for block in blocks]
        return dict(zip(names, found, strict=False))

    def explain(self, name: str, wanted: str, said: str) -> t.NoReturn:
        state = self.observe([name])[name]
        _code, journal, _err = self.module.run_command(
            ["journalctl", "--no-pager", "--output=cat", "--lines=20", f"--unit={name}"], environ_update={"LC_ALL": "C"}
        )
        self.module.fail_json(
            msg=(
                f"{name} should be {wanted} within {self.timeout} s and is {state.get('ActiveState')} "
                f"({state.get('SubState')}). {said}\n"
                f"Last lines of its journal (journalctl -u {name}):\n{journal.strip()}"
            ),
            unit=name,
            journal=journal.splitlines(),
        )
        raise SystemExit(1)  # fail_json does not return; this tells readers and type checkers so

    def run(self) -> dict[str, t.Any]:
        wanted = [{**unit, "name": _full(unit["name"])} for unit in self.module.params["units"]]
        seen = self.observe([unit["name"] for unit in wanted])
        if any(state.get("NeedDaemonReload") == "yes" for state in seen.values()) and not self.module.check_mode:
            self.systemctl("daemon-reload")
            seen = self.observe([unit["name"] for unit in wanted])
        changed: list[str] = []
        before: list[str] = []
        after: list[str] = []
        for unit in wanted:
            name, state = unit["name"], seen[unit["name"]]
            actions = plan(unit, state)
            if state.get("LoadState") not in ("loaded", "masked") and actions and not self.module.check_mode:
                self.module.fail_json(
                    msg=f"there is no unit {name} on this host (systemd says: {state.get('LoadState')}). "
                    "Run the role that writes it first.",
                    unit=name,
                )
            if not actions:
                continue
            changed.append(name)
            before.append(f"{name}: {state.get('ActiveState')}, {state.get('UnitFileState') or 'not there'}\n")
            after.append(f"{name}: {', '.join(actions)}\n")
            if not self.module.check_mode:
                self.apply(name, actions, state)
        return {
            "changed": bool(changed),
            "changed_units": changed,
            "diff": {"before": "".join(before), "after": "".join(after)},
        }

    def apply(self, name: str, actions: list[str], state: dict[str, str]) -> None:
        for action in actions:
            if action in ("start", "restart") and state.get("ActiveState") == "failed":
                self.systemctl("reset-failed", "--", name)
            code, said = self.systemctl(action, "--", name)
            if code:
                reason = "It did not get there in time." if code in (124, 137) else said
                self.explain(
                    name, {"stop": "stopped", "enable": "enabled", "disable": "disabled"}.get(action, "running"), reason
                )


def plan(unit: dict[str, t.Any], state: dict[str, str]) -> list[str]:
    """The systemctl verbs that bring a unit from what was seen to what is wanted."""
    actions = []
    enabled = state.get("UnitFileState") in ("enabled", "enabled-runtime")
    if unit["enabled"] is not None and unit["enabled"] != enabled and state.get("UnitFileState") != "static":
        actions.append("enable" if unit["enabled"] else "disable")
    active = state.get("ActiveState") in ("active", "reloading")
    if unit["state"] == "started" and not active:
        actions.append("start")
    elif unit["state"] == "stopped" and state.get("ActiveState") not in ("inactive", "failed", None):
        actions.append("stop")
    elif unit["state"] == "restarted":
        actions.append("restart")
    elif unit["state"] == "reloaded":
        actions.append("reload" if active else "start")
    return actions


def _full(name: str) -> str:
    return name if name.endswith(SUFFIXES) else f"{name}.service"


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "units": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "state": {"type": "str", "choices": ["started", "stopped", "restarted", "reloaded"]},
                    "enabled": {"type": "bool"},
                },
            },
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    module.exit_json(**Units(module).run())


if __name__ == "__main__":
    main()
