# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Routing control: an operator's word, per region, on whether the edges send it anything. It outranks health checks.

It lives in the registry at C(/shannon/routing/<region>), so that every edge has the same, and an edge that was away
learns it when it comes back. A region without a record is C(auto).
"""

from __future__ import annotations

import json
import re
import typing as t
from dataclasses import asdict, dataclass
from datetime import datetime, timezone

from .errors import ConflictError, ResilienceError
from .etcd import EtcdClient, get_op, put_op, when_absent, when_mod_revision

ROUTING = "/shannon/routing/"
#: Health checks decide.
AUTO = "auto"
#: Traffic goes there whatever the health checks say.
ON = "on"
#: What runs may end, nothing new goes there.
DRAIN = "drain"
#: Nothing goes there, and what runs is cut off.
OFF = "off"
STATES = (AUTO, ON, DRAIN, OFF)
_REGION = re.compile(r"^[a-z][a-z0-9_]{0,15}$")


@dataclass(frozen=True)
class Control:
    """What holds for a region, who said so, when and why."""

    region: str
    state: str = AUTO
    reason: str = ""
    operator: str = ""
    at: str = ""


class RoutingControls:
    """The registry's routing controls.

    :param client: the registry's etcd.
    """

    def __init__(self, client: EtcdClient) -> None:
        self._client = client

    def read(self) -> dict[str, Control]:
        """All controls that were ever set, by region.

        :raises ResilienceError: the registry can't answer, or a record can't be read.
        """
        return {(control := _control(found.key, found.value)).region: control for found in self._client.range(ROUTING)}

    def set(self, region: str, state: str, reason: str, operator: str) -> tuple[Control, Control]:
        """Set a region's control by compare-and-swap; the same word again changes nothing.

        :returns: what held before, and what holds now.
        :raises ConflictError: somebody else set it at the same moment.
        """
        if not _REGION.match(region):
            raise ResilienceError(f"{region!r} is no region's name")
        if state not in STATES:
            raise ResilienceError(f"{state!r} is none of {', '.join(STATES)}")
        if not reason.strip() or not operator.strip():
            raise ResilienceError("a routing control needs a reason and an operator, for those who find it later")
        key = ROUTING + region
        found = self._client.get(key)
        before = Control(region) if found is None else _control(key, found.value)
        if before.state == state:
            return before, before
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        after = Control(region, state, reason, operator, now)
        compare = when_absent(key) if found is None else when_mod_revision(key, found.mod_revision)
        outcome = self._client.txn([compare], [put_op(key, json.dumps(asdict(after), sort_keys=True))], [get_op(key)])
        if not outcome.succeeded:
            there = outcome.reads[0]
            now_holds = _control(key, there[0].value) if there else Control(region)
            if (now_holds.state, now_holds.operator, now_holds.reason) != (state, operator, reason):
                raise ConflictError(
                    f"the routing of region {region} was set to {now_holds.state} at the same moment by "
                    f"{now_holds.operator or 'somebody'} ({now_holds.reason or 'no reason given'}); look again first"
                )
        return before, after


def _control(key: str, value: str) -> Control:
    try:
        raw: t.Any = json.loads(value)
        control = Control(**{name: str(raw[name]) for name in ("region", "state", "reason", "operator", "at")})
    except (ValueError, TypeError, KeyError) as exc:
        raise ResilienceError(f"the registry's record {key} is no routing control: {value[:200]!r}") from exc
    if control.state not in STATES or ROUTING + control.region != key:
        raise ResilienceError(f"the registry's record {key} is no routing control: {value[:200]!r}")
    return control
