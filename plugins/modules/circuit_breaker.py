#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: circuit_breaker
short_description: Show, reset, force open, disable or enable persistent circuit breakers
version_added: "0.1.0"
description:
  - Works on the file in which M(shannon.resilience.health_check) keeps its circuit breakers.
  - The state shown is as of now; a breaker whose time is over is half-open, whoever wrote the file, and whenever.
options:
  state:
    description:
      - V(shown) changes nothing.
      - V(reset) closes breakers, with nothing counted, and takes back what an operator said.
      - V(forced_open) lets nothing through, for a planned outage say, until V(enabled) or V(reset).
      - V(disabled) lets everything through, until V(enabled) or V(reset).
      - V(enabled) takes back V(forced_open) and V(disabled), and leaves other breakers as they are.
    type: str
    choices: [shown, reset, forced_open, disabled, enabled]
    default: shown
  names:
    description:
      - The breakers; by default all that are in the file.
      - One that is not there yet is made by V(forced_open) and V(disabled), and counts as closed otherwise.
    type: list
    elements: str
    default: []
  reason:
    description: Why, for V(forced_open) and V(disabled). Whoever is refused gets to read it.
    type: str
    default: ""
  path:
    description: The file.
    type: path
    default: /var/lib/shannon/breakers.json
attributes:
  check_mode:
    description: Can run in check mode.
    support: full
  diff_mode:
    description: Shows the state of the breakers that change.
    support: full
seealso:
  - module: shannon.resilience.health_check
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Show all breakers
  shannon.resilience.circuit_breaker:
  register: found

- name: Nothing is to ask a host during its maintenance
  shannon.resilience.circuit_breaker:
    names: ["redis@192.0.2.1:6379"]
    state: forced_open
    reason: maintenance until noon

- name: Try again at once what the last run found dead
  shannon.resilience.circuit_breaker:
    state: reset
"""

RETURN = r"""
breakers:
  description: The breakers as they are now (in check mode, as they would be), by name.
  returned: success
  type: dict
  contains:
    state:
      description: closed, half-open or open.
      type: str
    control:
      description: none, forced_open or disabled.
      type: str
    reason:
      description: Why an operator said so.
      type: str
    counts:
      description: What was counted in this state.
      type: dict
    retry_after:
      description: Seconds until it lets a call through; null when it is forced open.
      type: float
    open_since:
      description: When it opened, in seconds since 1970; 0 unless it is open.
      type: float
changed_breakers:
  description: Names of those that changed.
  returned: success
  type: list
  elements: str
"""

import dataclasses
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils.circuit_breaker import CircuitBreaker, Control, State
from ansible_collections.shannon.resilience.plugins.module_utils.circuit_breaker_storage import FileStorage, Record
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.health_check import SETTINGS

#: How many seconds the settings of whoever wrote a record may have kept it open; they are not known here.
_ANY = dataclasses.replace(SETTINGS, timeout_max=7 * 86400.0)


def run(module: AnsibleModule) -> dict[str, t.Any]:
    params = module.params
    wanted = params["state"]
    storage = FileStorage(params["path"], read_only=module.check_mode or wanted == "shown")
    before: dict[str, str] = {}
    after: dict[str, str] = {}
    shown: dict[str, dict[str, t.Any]] = {}
    with storage.transaction() as records:
        for name in sorted(set(params["names"]) or records):
            record = records.get(name)
            breaker = recall(module, name, record)
            found = describe(breaker)
            if apply(breaker, wanted, params["reason"]):
                records[name] = breaker.snapshot()
                before[name] = brief(found) if record is not None else "not there"
                after[name] = brief(describe(breaker))
            shown[name] = describe(breaker)
    for text in storage.warnings:
        module.warn(text)
    return {
        "changed": bool(after),
        "breakers": shown,
        "changed_breakers": sorted(after),
        "diff": {
            "before": "".join(f"{name}: {text}\n" for name, text in before.items()),
            "after": "".join(f"{name}: {text}\n" for name, text in after.items()),
        },
    }


def recall(module: AnsibleModule, name: str, record: Record | None) -> CircuitBreaker:
    breaker = CircuitBreaker(name, "", _ANY)
    try:
        breaker.restore(record)
    except ValueError as exc:
        module.warn(f"breaker {name} counts as closed: the file has {exc}")
    return breaker


def apply(breaker: CircuitBreaker, wanted: str, reason: str) -> bool:
    """Bring a breaker to what is wanted; returns whether that changed anything."""
    if wanted == "forced_open":
        if breaker.control is Control.FORCED_OPEN and breaker.reason == reason:
            return False
        breaker.force_open(reason)
    elif wanted == "disabled":
        if breaker.control is Control.DISABLED and breaker.reason == reason:
            return False
        breaker.disable(reason)
    elif wanted == "enabled":
        if breaker.control is Control.NONE:
            return False
        breaker.enable()
    elif wanted == "reset":
        fresh = breaker.state is State.CLOSED and breaker.control is Control.NONE
        if fresh and not any(dataclasses.astuple(breaker.counts)):
            return False
        breaker.reset()
    else:
        return False
    return True


def describe(breaker: CircuitBreaker) -> dict[str, t.Any]:
    control = breaker.control
    return {
        "state": breaker.state.label,
        "control": control.value,
        "reason": breaker.reason,
        "counts": dataclasses.asdict(breaker.counts),
        "retry_after": None if control is Control.FORCED_OPEN else round(breaker.retry_after, 3),
        "open_since": round(breaker.open_since, 3),
    }


def brief(found: dict[str, t.Any]) -> str:
    control = f", {found['control']}" if found["control"] != Control.NONE.value else ""
    reason = f" ({found['reason']})" if found["reason"] else ""
    failures = found["counts"]["consecutive_failures"]
    counted = f", {failures} failures in a row" if failures else ""
    return f"{found['state']}{control}{reason}{counted}"


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {
                "type": "str",
                "choices": ["shown", "reset", "forced_open", "disabled", "enabled"],
                "default": "shown",
            },
            "names": {"type": "list", "elements": "str", "default": []},
            "reason": {"type": "str", "default": ""},
            "path": {"type": "path", "default": "/var/lib/shannon/breakers.json"},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module))
    except ResilienceError as exc:
        module.fail_json(msg=str(exc))


if __name__ == "__main__":
    main()
