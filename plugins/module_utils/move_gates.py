# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules that a move must pass before anything changes: a list that can be read, extended and tested one by one.

A rule says what it saw and what it allows. One that has an override can be overridden by the operator, by that name;
the override goes into the registry's history.
"""

from __future__ import annotations

import typing as t
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone

from .region_lease import View
from .registry import RESTORING, CellRecord, HistoryEntry

FAILOVER = "failover"
SWITCHOVER = "switchover"


@dataclass(frozen=True)
class Limits:
    """What the rules allow.

    :ivar lag_seconds: the RPO target of a failover.
    :ivar lag_bytes: what a standby of a planned move may be behind at its start: it catches up while clients wait.
    :ivar cooldown: seconds between two moves of a cell.
    :ivar certificate_days: days that the first certificate to expire must have left.
    """

    lag_seconds: float = 5.0
    lag_bytes: int = 64 * 2**20
    cooldown: float = 30.0
    certificate_days: int = 1


@dataclass(frozen=True)
class Facts:
    """What was seen before a move.

    :ivar info: the cell as C(cell_status) summarised it; C(certificate) beside it.
    :ivar home_beats: whether the home's agents went on writing to the registry while it was looked at.
    :ivar agents: host of the target region to what its agent said, or its error as a text.
    :ivar gateways: host of the target region to an empty text when its gateway is well, else to why it is not.
    :ivar mover: who moves the cell now, when somebody does.
    :ivar now: the time of the host that looked.
    """

    kind: str
    record: CellRecord
    target: str
    view: View
    info: t.Mapping[str, t.Any]
    home_beats: bool
    agents: t.Mapping[str, t.Any]
    gateways: t.Mapping[str, str]
    history: t.Sequence[HistoryEntry] = ()
    mover: str = ""
    certificate: t.Mapping[str, t.Any] | None = None
    now: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    limits: Limits = field(default_factory=Limits)

    def members(self, component: str, region: str) -> list[t.Mapping[str, t.Any]]:
        """The members of a component in a region."""
        return list(self.info[component].get(region, {}).get("members", ()))


@dataclass(frozen=True)
class Verdict:
    """What a rule found."""

    name: str
    title: str
    passed: bool
    seen: str
    allowed: str
    remedy: str = ""
    override: str = ""
    overridden: bool = False

    def stands_in_the_way(self) -> bool:
        return not self.passed and not self.overridden

    def as_dict(self) -> dict[str, t.Any]:
        return asdict(self)


Finding = tuple[bool, str, str, str]


@dataclass(frozen=True)
class Gate:
    """One rule.

    :ivar check: gives whether it passes, what was seen, what is allowed, and what to do when it does not pass.
    :ivar override: name of the variable that overrides it; empty when nothing does.
    """

    name: str
    title: str
    kinds: tuple[str, ...]
    check: t.Callable[[Facts], Finding]
    override: str = ""


def judge(facts: Facts, overrides: t.Collection[str], gates: t.Sequence[Gate] | None = None) -> list[Verdict]:
    """All rules' verdicts on a move.

    :param overrides: names of the overrides that the operator gave.
    """
    found = []
    for gate in GATES if gates is None else gates:
        if facts.kind not in gate.kinds:
            continue
        passed, seen, allowed, remedy = gate.check(facts)
        found.append(
            Verdict(
                name=gate.name,
                title=gate.title,
                passed=passed,
                seen=seen,
                allowed=allowed,
                remedy="" if passed else remedy,
                override=gate.override,
                overridden=not passed and bool(gate.override) and gate.override in overrides,
            )
        )
    return found


def lag(facts: Facts) -> tuple[int | None, float | None]:
    """How far the target's PostgreSQL is behind the last thing known of the home: bytes, and seconds.

    With the home gone the end of its WAL is what it last told the registry, once a second; a standby that has all of it
    is behind by less than that second.
    """
    leaders = [one for one in facts.members("postgres", facts.target) if one["role"] == "standby_leader"]
    if not leaders:
        return None, None
    leader = leaders[0]
    if leader.get("lag_bytes") is not None:
        return int(leader["lag_bytes"]), leader.get("lag_seconds")
    position = facts.view.position
    received = leader.get("received")
    if position is None or received is None or position.region != facts.record.home:
        return None, None
    missing = max(0, position.lsn - int(received))
    if not missing:
        return 0, 0.0
    replayed = leader.get("replayed_at")
    return missing, None if replayed is None else max(0.0, round(position.at - float(replayed), 1))


def _quorum(facts: Facts) -> Finding:
    return True, f"{facts.record.describe()}", "the registry answers through its quorum", ""


def _no_move(facts: Facts) -> Finding:
    return (
        not facts.mover,
        facts.mover or "nobody moves the cell",
        "one move of a cell at a time",
        "Wait for it, or run this again when it has ended. Take over only one that hangs: it changes nothing more.",
    )


def _state(facts: Facts) -> Finding:
    return (
        facts.record.state != RESTORING,
        f"state {facts.record.state}",
        "a cell that is not being restored",
        "Let restore.yml end, or run it again if it was killed: what it began is half of a cell.",
    )


def _target(facts: Facts) -> Finding:
    members = facts.members("postgres", facts.target)
    leaders = [str(one["name"]) for one in members if one["role"] == "standby_leader"]
    words = ", ".join(f"{one['name']} {one['role'] or 'dead'} {one['state']}".strip() for one in members)
    return (
        len(leaders) == 1,
        words or "no members",
        "one standby leader in the target region",
        f"Look at journalctl -u patroni@{facts.record.cell} on the hosts of region {facts.target}.",
    )


def _lag(facts: Facts) -> Finding:
    size, seconds = lag(facts)
    limits = facts.limits
    if facts.kind == SWITCHOVER:
        allowed = f"at most {limits.lag_bytes} bytes"
        passed = size is not None and size <= limits.lag_bytes
    else:
        allowed = f"at most {limits.lag_seconds:g} s (rpo_target)"
        passed = size == 0 or (seconds is not None and seconds <= limits.lag_seconds)
    seen = "not known" if size is None else f"{size} bytes" + ("" if seconds is None else f", {seconds:.1f} s")
    return (
        passed,
        seen,
        allowed,
        ("Clients would wait for all of it." if facts.kind == SWITCHOVER else "What is missing would be lost.")
        + " Wait until the standby has caught up, if it still can.",
    )


def _home_gone(facts: Facts) -> Finding:
    writers = [str(one["name"]) for one in facts.members("postgres", facts.record.home) if one["role"] == "primary"]
    lease = facts.view.lease
    if writers:
        return False, f"{', '.join(writers)} is a primary and answers", "the home region is gone", _USE_SWITCHOVER
    if lease and facts.home_beats:
        return False, f"{lease.host} keeps the home's lease", "the home region is gone", _USE_SWITCHOVER
    seen = "its lease has ended" if lease is None else "its lease is still there, and nobody renews it"
    return True, f"no primary of region {facts.record.home} answers, {seen}", "the home region is gone", ""


def _home_well(facts: Facts) -> Finding:
    lease = facts.view.lease
    writers = [str(one["name"]) for one in facts.members("postgres", facts.record.home) if one["role"] == "primary"]
    passed = bool(writers) and lease is not None and lease.region == facts.record.home
    seen = f"primary {', '.join(writers) or 'none'}, lease {'of ' + lease.region if lease else 'held by nobody'}"
    return passed, seen, "the home region serves", "A home that is lost is left with playbooks/failover.yml."


def _agents(facts: Facts) -> Finding:
    well = [host for host, said in facts.agents.items() if isinstance(said, dict)]
    return (
        len(well) > len(facts.agents) // 2,
        f"{len(well)} of {len(facts.agents)} answer" + (f" ({', '.join(sorted(well))})" if well else ""),
        "a majority of the target's region agents",
        "Look at systemctl status shannon-region-agent on the hosts of the target region.",
    )


def _capacity(facts: Facts) -> Finding:
    problems = []
    for component in ("postgres", "redis", "qdrant"):
        members = facts.members(component, facts.target)
        # A member whose upstream is gone is not healthy, and no less able to take over.
        well = [one for one in members if not one["error"] or one["state"]]
        if len(well) <= len(members) // 2:
            problems.append(f"{component}: {len(well)} of {len(members)} run")
    ready = [host for host, why in facts.gateways.items() if not why]
    if facts.gateways and not ready:
        problems.append(f"no gateway is ready: {next(iter(facts.gateways.values()))}")
    return (
        not problems,
        "; ".join(problems) or f"enough members, gateways {', '.join(ready) or 'none in the inventory'}",
        "more than half of each store's members, and a gateway",
        "The target would serve with less than it needs, or not at all.",
    )


def _certificates(facts: Facts) -> Finding:
    found = facts.certificate
    if not found:
        return True, "none seen", f"{facts.limits.certificate_days} days left", ""
    return (
        int(found["days"]) >= facts.limits.certificate_days,
        f"{found['host']}'s expires in {found['days']} days",
        f"at least {facts.limits.certificate_days} days left",
        "Run site.yml with --tags pki.",
    )


def _cooldown(facts: Facts) -> Finding:
    moves = [entry for entry in facts.history if entry.previous_home and entry.home != entry.previous_home]
    allowed = f"{facts.limits.cooldown:g} s since the last move"
    if not moves:
        return True, "never moved", allowed, ""
    age = (facts.now - datetime.fromisoformat(moves[-1].at)).total_seconds()
    return (
        age >= facts.limits.cooldown or age < 0,
        f"{age:.0f} s ago, to {moves[-1].home} by {moves[-1].operator}",
        allowed,
        "A cell that is moved to and fro is in deeper trouble: look first.",
    )


_USE_SWITCHOVER = "A home that serves is left with playbooks/switchover.yml, which loses nothing."
_BOTH = (FAILOVER, SWITCHOVER)
#: The override by which a mover takes another's mark.
TAKE_MARK = "accept_other_move"
GATES: tuple[Gate, ...] = (
    # Without a quorum there is nothing to override with: playbooks/break_glass.yml is for that.
    Gate("quorum", "The registry has a quorum", _BOTH, _quorum),
    Gate("no_move", "Nobody else moves the cell", _BOTH, _no_move, TAKE_MARK),
    Gate("state", "The cell is not being restored", _BOTH, _state),
    Gate("home_gone", "The home region is really gone", (FAILOVER,), _home_gone, "accept_healthy_home"),
    Gate("home_well", "The home region serves", (SWITCHOVER,), _home_well, "accept_unwell_home"),
    Gate("target", "The target has a standby leader", _BOTH, _target, "accept_target"),
    Gate("agents", "The target's region agents answer", _BOTH, _agents, "accept_agents"),
    Gate("lag", "The target is not too far behind", _BOTH, _lag, "accept_lag"),
    Gate("capacity", "The target can carry the load", _BOTH, _capacity, "accept_capacity"),
    Gate("certificates", "Certificates last", _BOTH, _certificates, "accept_certificates"),
    Gate("cooldown", "The cell was not moved just now", _BOTH, _cooldown, "accept_cooldown"),
)
#: The one list of them: a playbook takes every variable KIND_accept_*, and who mistypes one is told these.
OVERRIDES: tuple[str, ...] = tuple(gate.override for gate in GATES if gate.override)
