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
  - Units are enabled or disabled first and then acted on in the order given; neighbours that all start, or all stop, do
    so together.
  - A service of type C(simple) or C(exec) counts as running when two looks see the same process; give a service that
    can tell when it is ready the type C(notify).
options:
  units:
    description: The units, acted on in this order; may be empty.
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
      reload_for:
        description:
          - Files that the unit reads when it starts and when it is reloaded. With O(units[].state=started) a unit that
            runs is reloaded when one of them is newer than its last start or reload, or when its last reload failed. So
            a run that was cut short between the file and the reload is finished by the next one, without a handler.
        type: list
        elements: path
        default: []
      enabled:
        description: Whether it starts at boot. A unit file without C([Install]) can't be enabled, which is an error.
        type: bool
  timeout:
    description: Seconds that each unit has to reach its state; one that systemd restarts by itself may use all of it.
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

- name: Run the firewall with the rules that were written last
  shannon.resilience.units:
    units:
      - {name: shannon-firewall.service, state: started, enabled: true, reload_for: [/etc/shannon/firewall.nft]}
"""

RETURN = r"""
changed_units:
  description: Names of the units that were started, stopped, restarted, reloaded, enabled or disabled.
  returned: success
  type: list
  elements: str
"""

import os
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils import systemd
from ansible_collections.shannon.resilience.plugins.module_utils.concurrently import wait_until
from ansible_collections.shannon.resilience.plugins.module_utils.errors import WaitTimeout

#: Seconds for commands that only ask, or that only make links.
ASKING = 30
#: Seconds between two looks at a unit that is on its way.
INTERVAL = 0.2
JOURNAL_LINES = 20
WANTED = {"start": "running", "restart": "running", "reload": "running", "stop": "stopped"}


class Units:
    """Looks at units, acts on those that differ, and explains those that do not come up."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.timeout = module.params["timeout"]

    def fail(self, message: str, **details: t.Any) -> t.NoReturn:
        self.module.fail_json(msg=f"{os.uname().nodename}: {message}", **details)
        raise SystemExit(1)  # fail_json does not return; this tells readers and type checkers so

    def command(self, timeout: float, *words: str) -> tuple[int, str, str]:
        """Run a command, bounded: a start that hangs ends with the time limit instead of holding up the play."""
        code, out, err = self.module.run_command(
            ["timeout", "--kill-after=5", f"{timeout:.1f}", *words], environ_update={"LC_ALL": "C.UTF-8"}
        )
        return code, out, err.strip()

    def observe(self, names: list[str]) -> dict[str, dict[str, str]]:
        """What systemd says about the units, asked once for all of them."""
        properties = f"--property={','.join(systemd.PROPERTIES)}"
        code, out, said = self.command(ASKING, "systemctl", "show", "--no-pager", properties, "--", *names)
        found = systemd.parse_show(out)
        if code or len(found) != len(names):
            self.fail(
                f"systemd tells nothing about {', '.join(names)} (exit {code}): {said or 'no answer'}. Is this a host "
                "that systemd runs, and are these whole names of units?"
            )
        return dict(zip(names, found, strict=True))

    def run(self) -> dict[str, t.Any]:
        units = [
            systemd.Unit(
                systemd.full_name(unit["name"]), unit["state"], unit["enabled"], tuple(unit["reload_for"] or ())
            )
            for unit in self.module.params["units"]
        ]
        names = [unit.name for unit in units]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            self.fail(f"{', '.join(twice)} is asked for twice. Name each unit once.")
        seen = self.observe(names) if names else {}
        links = {unit.name: systemd.enablement(unit, seen[unit.name]) for unit in units}
        actions = {
            unit.name: systemd.action(
                unit, seen[unit.name], bool(unit.reload_for) and systemd.is_stale(seen[unit.name], changed_at(unit))
            )
            for unit in units
        }
        changed = [name for name in names if links[name] or actions[name]]
        if not self.module.check_mode:
            seen = self.reread(names, changed, seen)
            self.check(units, changed, links, seen)
            for verb in ("disable", "enable"):
                self.link(verb, [name for name in names if links[name] == verb])
            for verb, together in systemd.batches(actions.items()):
                self.act(verb, together, seen)
        return {
            "changed": bool(changed),
            "changed_units": changed,
            "diff": {
                "before": "".join(
                    f"{name}: {seen[name].get('ActiveState')}, {seen[name].get('UnitFileState') or 'not there'}\n"
                    for name in changed
                ),
                "after": "".join(
                    f"{name}: {', '.join(verb for verb in (links[name], actions[name]) if verb)}\n" for name in changed
                ),
            },
        }

    def reread(
        self, names: list[str], changed: list[str], seen: dict[str, dict[str, str]]
    ) -> dict[str, dict[str, str]]:
        """Let systemd read unit files again that changed behind its back, such as by a run that was cut short."""
        stale = any(state.get("NeedDaemonReload") == "yes" for state in seen.values())
        if not stale and all(systemd.exists(seen[name]) for name in changed):
            return seen
        code, _out, said = self.command(ASKING, "systemctl", "daemon-reload")
        if code:
            self.fail(
                f"'systemctl daemon-reload' failed (exit {code}): {said}. Look at 'systemctl status' on the host."
            )
        return self.observe(names)

    def check(
        self, units: list[systemd.Unit], changed: list[str], links: dict[str, str], seen: dict[str, dict[str, str]]
    ) -> None:
        """Refuse what can't work before any unit is touched."""
        for unit in units:
            state = seen[unit.name]
            if unit.name in changed and not systemd.exists(state):
                self.fail(
                    f"there is no unit {unit.name} that systemd can use (it says: {state.get('LoadState')}). Run the "
                    f"role that writes it first, or look at 'systemctl status {unit.name}' there.",
                    unit=unit.name,
                )
            if links[unit.name] == "enable" and state.get("UnitFileState") == "static":
                self.fail(
                    f"{unit.name} can't be enabled, since its file has no [Install] section. Add one, or leave "
                    "'enabled' out.",
                    unit=unit.name,
                )

    def link(self, verb: str, names: list[str]) -> None:
        if not names:
            return
        code, _out, said = self.command(ASKING, "systemctl", verb, "--quiet", "--", *names)
        if code:
            self.fail(f"'systemctl {verb} {' '.join(names)}' failed (exit {code}): {said}.", unit=names[0])

    def act(self, verb: str, names: list[str], seen: dict[str, dict[str, str]]) -> None:
        """Do it, and wait until all of them are where they should be; the first that is not is explained."""
        deadline = time.monotonic() + self.timeout
        refused = [name for name in names if verb != "stop" and systemd.needs_reset(seen[name])]
        if refused:
            self.command(ASKING, "systemctl", "reset-failed", "--", *refused)
        # Blocking, so that systemd itself tells when a unit is up; bounded, since a unit may never be.
        code, _out, said = self.command(self.timeout, "systemctl", verb, "--no-pager", "--", *names)
        if code == 124 or code == 137:
            said = "It did not get there in time."
        elif code and verb == "reload":
            self.explain(verb, names[0], self.observe(names)[names[0]], said)
        looks: list[dict[str, dict[str, str]]] = []

        def arrived() -> tuple[bool, str]:
            looks.append(self.observe(names))
            before = looks[-2] if len(looks) > 1 else {}
            verdicts = {name: systemd.reached(verb, looks[-1][name], before.get(name)) for name in names}
            hopeless = [name for name in names if verdicts[name] is False]
            if hopeless:
                self.explain(verb, hopeless[0], looks[-1][hopeless[0]], said)
            return all(verdicts.values()), ""

        try:
            wait_until(arrived, "the units", max(deadline - time.monotonic(), 2 * INTERVAL), INTERVAL)
        except WaitTimeout:
            before = looks[-2] if len(looks) > 1 else {}
            late = next(name for name in names if not systemd.reached(verb, looks[-1][name], before.get(name)))
            self.explain(verb, late, looks[-1][late], said or "It did not get there in time.")

    def explain(self, verb: str, name: str, state: dict[str, str], said: str) -> t.NoReturn:
        """Fail with all that somebody needs who is not on the host."""
        _code, journal, _said = self.command(
            ASKING, "journalctl", "--no-pager", "--output=cat", f"--lines={JOURNAL_LINES}", f"--unit={name}"
        )
        self.fail(
            f"{name} should be {WANTED[verb]} within {self.timeout} s of '{verb}' and is {state.get('ActiveState')} "
            f"({state.get('SubState')}, result {state.get('Result') or 'unknown'}). {said}\n"
            f"Last lines of its journal:\n{journal.strip() or '(none)'}\n"
            f"Look at 'systemctl status {name}' and 'journalctl -u {name}' on the host, and correct what they say; a "
            "unit that only needs longer needs a larger 'timeout'.",
            unit=name,
            journal=journal.splitlines(),
        )


def changed_at(unit: systemd.Unit) -> float:
    """When the newest of a unit's files changed, in seconds of systemd's clock. A file that is not there never did."""
    booted = time.time() - time.monotonic()
    times = [os.stat(path).st_mtime for path in unit.reload_for if os.path.exists(path)]
    return max(times, default=0.0) - booted


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
                    "reload_for": {"type": "list", "elements": "path", "default": []},
                },
            },
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    if module.params["timeout"] < 1:
        module.fail_json(msg=f"timeout is {module.params['timeout']}; give at least 1 second.")
    module.exit_json(**Units(module).run())


if __name__ == "__main__":
    main()
