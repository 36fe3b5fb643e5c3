# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What to do about systemd units, from what systemd says about them. Decides only; nothing here runs a command."""

from __future__ import annotations

import dataclasses
import typing as t

Seen = t.Mapping[str, str]

PROPERTIES = (
    "Id",
    "LoadState",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "NeedDaemonReload",
    "Type",
    "Result",
    "InvocationID",
    "StateChangeTimestampMonotonic",
    "ReloadResult",
)
SUFFIXES = (".service", ".timer", ".socket", ".target", ".path", ".mount", ".slice")
#: Unit files that start at boot, or are pulled in by others, without a link that `enable` would make.
NEEDS_NO_LINK = ("enabled", "alias", "generated", "transient")
#: Services that count as started as soon as they run, so that a look right after the start proves little.
EAGER = ("simple", "exec", "idle")


@dataclasses.dataclass(frozen=True)
class Unit:
    """What is wanted of one unit."""

    name: str
    state: str | None = None
    enabled: bool | None = None
    reload_for: tuple[str, ...] = ()


def full_name(name: str) -> str:
    """The name with its suffix; without one it is a service."""
    return name if name.endswith(SUFFIXES) else f"{name}.service"


def parse_show(text: str) -> list[dict[str, str]]:
    """The units of a `systemctl show`, in the order asked for."""
    blocks = (block for block in text.strip().split("\n\n") if block.strip())
    return [dict(line.partition("=")[::2] for line in block.splitlines() if "=" in line) for block in blocks]


def exists(seen: Seen) -> bool:
    """Whether systemd found a unit file that it could read; a masked one exists."""
    return seen.get("LoadState") in ("loaded", "masked")


def is_active(seen: Seen) -> bool:
    return seen.get("ActiveState") in ("active", "reloading")


def enablement(unit: Unit, seen: Seen) -> str:
    """`enable`, `disable`, or nothing."""
    state = seen.get("UnitFileState", "")
    if unit.enabled is True and state not in NEEDS_NO_LINK:
        return "enable"
    if unit.enabled is False and state in ("enabled", "enabled-runtime"):
        return "disable"
    return ""


def is_stale(seen: Seen, changed_at: float) -> bool:
    """Whether a unit that runs has not read its files since they changed.

    :param changed_at: when the newest of them changed, in seconds of systemd's clock, CLOCK_MONOTONIC.
    """
    # systemd notes when a start or a reload ended, and of a reload also that it failed.
    if seen.get("ReloadResult", "success") not in ("", "success"):
        return True
    read = seen.get("StateChangeTimestampMonotonic", "")
    return read.isdigit() and changed_at > int(read) / 1e6


def action(unit: Unit, seen: Seen, stale: bool = False) -> str:
    """`start`, `stop`, `restart`, `reload`, or nothing.

    :param stale: whether the unit has yet to read a file of its C(reload_for).
    """
    if unit.state == "started":
        return ("reload" if stale else "") if is_active(seen) else "start"
    if unit.state == "stopped":
        return "" if seen.get("ActiveState", "inactive") in ("inactive", "failed") else "stop"
    if unit.state == "restarted":
        return "restart"
    if unit.state == "reloaded":
        return "reload" if is_active(seen) else "start"
    return ""


def batches(actions: t.Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """Neighbours that start or stop together; restarts and reloads go one by one, so that not all fail at once.

    :param actions: pairs of unit and verb, in the order they are to happen; an empty verb is left out.
    """
    found: list[tuple[str, list[str]]] = []
    for name, verb in actions:
        if not verb:
            continue
        if found and found[-1][0] == verb and verb in ("start", "stop"):
            found[-1][1].append(name)
        else:
            found.append((verb, [name]))
    return found


def needs_reset(seen: Seen) -> bool:
    """Whether systemd may refuse a start because of earlier failures."""
    return seen.get("ActiveState") == "failed" or seen.get("SubState") == "auto-restart"


def reached(verb: str, seen: Seen, before: Seen | None = None) -> bool | None:
    """Whether a unit is where the verb should bring it.

    :param before: the look before this one, when there was one. A service that counts as started at once has to be the
        same process in two looks, so that one that dies of its configuration and is restarted over and over is seen.
    :returns: True when it is, False when it will not get there by itself, None when it may be on its way.
    """
    state = seen.get("ActiveState")
    if verb == "stop":
        return True if state in ("inactive", "failed") else None
    if state == "active":
        if seen.get("Type") not in EAGER or verb == "reload":
            return True
        same = before is not None and before.get("ActiveState") == "active"
        return True if same and before and before.get("InvocationID") == seen.get("InvocationID") else None
    if state == "inactive" and seen.get("Type") == "oneshot" and seen.get("Result") == "success":
        return True
    return False if state in ("inactive", "failed") else None
