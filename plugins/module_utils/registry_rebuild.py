# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What to decide when the registry is rebuilt or gets a member back. Decides only; nothing here touches anything.

A registry is rebuilt from the data of one member whose others are lost (break-glass), or from a snapshot. Either way it
gets a new cluster id, so that no member of the old one can join it, and epochs above all that anybody has seen, so that
a region agent that has seen the new registry believes the old one no more.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from .errors import ResilienceError
from .registry import CellRecord

BREAK_GLASS = "break_glass"
RESTORE = "registry_restore"
#: Which cell was given its record by which rebuilding; the value is its token.
REBUILT = "/shannon/registry/rebuilt/"


# -- whether the glass may be broken ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemberSeen:
    """What a member of the registry looked like.

    :ivar listens: whether anything accepts connections on its ports.
    :ivar quorum: whether it can read through a quorum.
    """

    name: str
    listens: bool
    quorum: bool
    said: str = ""


@dataclass(frozen=True)
class Survey:
    """All that the rules look at.

    :ivar members: by name, the survivor among them.
    :ivar has_data: whether the survivor has data of the registry.
    :ivar regions: all regions of the topology.
    :ivar survivor_region: the survivor's own; empty on the witness.
    :ivar fenced: the regions of which the operator says that they are dead or fenced.
    :ivar answering: of each of those regions, the hosts on which PostgreSQL or Redis answers, and on which ports.
    """

    survivor: str
    members: t.Mapping[str, MemberSeen]
    has_data: bool
    regions: t.Sequence[str]
    survivor_region: str
    fenced: t.Sequence[str]
    answering: t.Mapping[str, t.Mapping[str, t.Sequence[int]]]
    reason: str


@dataclass(frozen=True)
class Verdict:
    """What a rule found. Without an override there is none."""

    rule: str
    passed: bool
    seen: str
    remedy: str = ""
    override: str = ""


def judge(survey: Survey) -> list[Verdict]:
    """The rules of break-glass, all of them."""
    return [rule(survey) for rule in RULES]


def standing_in_the_way(verdicts: t.Sequence[Verdict], overrides: t.Sequence[str]) -> list[Verdict]:
    """The rules that were not passed and not overridden."""
    return [one for one in verdicts if not (one.passed or (one.override and one.override in overrides))]


def _known(survey: Survey) -> Verdict:
    passed = survey.survivor in survey.members
    return Verdict(
        "survivor", passed, f"{survey.survivor} is {'a' if passed else 'no'} member of the registry",
        f"Name one of {', '.join(sorted(survey.members))}.",
    )  # fmt: skip


def _no_quorum(survey: Survey) -> Verdict:
    well = sorted(name for name, one in survey.members.items() if one.quorum)
    seen = f"{', '.join(well)} can read through a quorum" if well else "no member can read through a quorum"
    return Verdict(
        "no_quorum", not well, seen,
        "The registry works: a lost member is added again with playbooks/registry_member.yml -e member=NAME.",
    )  # fmt: skip


def _data(survey: Survey) -> Verdict:
    seen = f"{survey.survivor} has {'data' if survey.has_data else 'no data'} of the registry"
    return Verdict(
        "data",
        survey.has_data,
        seen,
        "Name a member that has its data, or restore a snapshot (docs/restore-registry.md).",
    )


def _others_are_silent(survey: Survey) -> Verdict:
    others = sorted(name for name, one in survey.members.items() if name != survey.survivor and one.listens)
    seen = f"{', '.join(others)} still listens" if others else "no other member listens"
    return Verdict(
        "others_silent", not others, seen,
        "Bring it together with the survivor instead: two of three are a quorum. To give it up, stop and disable "
        "etcd@registry on it first.",
        "accept_reachable_member",
    )  # fmt: skip


def _fenced_is_said(survey: Survey) -> Verdict:
    unknown = sorted(set(survey.fenced) - set(survey.regions))
    missing = sorted(set(survey.regions) - {survey.survivor_region} - set(survey.fenced))
    own = survey.survivor_region in survey.fenced
    if unknown:
        seen = f"{', '.join(unknown)} is no region; regions are {', '.join(survey.regions)}"
    elif own:
        seen = f"region {survey.survivor_region} is the survivor's own"
    elif missing and survey.survivor_region:
        seen = f"nobody said that region {', '.join(missing)} is dead or fenced"
    elif not survey.survivor_region and not survey.fenced:
        seen = "nobody said which region is dead or fenced"
    else:
        return Verdict("fenced", True, f"dead or fenced by the operator's word: {', '.join(survey.fenced)}")
    return Verdict(
        "fenced", False, seen,
        "See with your own eyes that the region has no power or no network, then say so: -e i_have_fenced_region="
        f"{','.join(missing) or 'REGION'}.",
    )  # fmt: skip


def _fenced_is_silent(survey: Survey) -> Verdict:
    hosts = [
        f"{host} on port {', '.join(map(str, ports))}"
        for region in sorted(survey.answering)
        for host, ports in sorted(survey.answering[region].items())
        if ports
    ]
    seen = (
        f"PostgreSQL or Redis still answers: {'; '.join(hosts)}"
        if hosts
        else "PostgreSQL and Redis answer nowhere there"
    )
    return Verdict(
        "fenced_silent", not hosts, seen,
        "A region that answers is not fenced: take its power or its network away.", "accept_answering_region",
    )  # fmt: skip


def _reason(survey: Survey) -> Verdict:
    passed = bool(survey.reason.strip())
    return Verdict(
        "reason", passed, "a reason is given" if passed else "no reason is given", 'Say why: -e reason="...".'
    )


RULES: tuple[t.Callable[[Survey], Verdict], ...] = (
    _known, _no_quorum, _data, _others_are_silent, _fenced_is_said, _fenced_is_silent, _reason,
)  # fmt: skip


# -- which record a cell gets ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AgentWord:
    """What a region agent says of a cell: the record that it saw last, and whether its host may take writes now."""

    host: str
    region: str
    home: str
    epoch: int
    serves: bool


def agent_word(host: str, word: t.Mapping[str, t.Any]) -> AgentWord | None:
    """From what the agent's listener says of a cell; None when it has never seen a record."""
    record = word.get("record")
    if not isinstance(record, t.Mapping):
        return None
    serves = word.get("duty") == "home" and float(word.get("authority") or 0) > 0
    return AgentWord(host, str(word.get("region", "")), str(record["home"]), int(record["epoch"]), serves)


def next_record(
    cell: str, found: CellRecord | None, words: t.Sequence[AgentWord], regions: t.Sequence[str]
) -> CellRecord:
    """The record of a cell in a rebuilt registry: its epoch is above all that anybody has seen.

    The home is the region that serves; where none does, the one that the newest record names, whoever knows it.

    :raises ResilienceError: two regions say that they serve, or nobody knows of the cell.
    """
    known = [(word.epoch, word.home) for word in words]
    if found is not None:
        known.append((found.epoch, found.home))
    if not known:
        raise ResilienceError(
            f"cell {cell}: neither the rebuilt registry nor any region agent knows its home; nothing was changed. "
            "Restore a snapshot that has its record."
        )
    serving = sorted({word.region for word in words if word.serves})
    if len(serving) > 1:
        raise ResilienceError(
            f"cell {cell}: the agents of regions {' and '.join(serving)} both say that they serve. "
            "Fence one of them, see docs/troubleshooting.md."
        )
    newest, home = max(known)
    home = serving[0] if serving else home
    if home not in regions:
        raise ResilienceError(f"cell {cell}: its home would be {home}, which is no region of the inventory")
    return CellRecord(cell, home, newest + 1)


# -- how a member comes back -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Identity:
    """Which member of which cluster some data is of."""

    member: int
    cluster: str


@dataclass(frozen=True)
class Listed:
    """A member as the cluster lists it."""

    id: int
    name: str
    peer_urls: tuple[str, ...]
    learner: bool = False


@dataclass(frozen=True)
class MemberPlan:
    """What has to be done for a host to be a member.

    :ivar keep: it is one, and its data is the cluster's: only see that it runs.
    :ivar remove: ids to take out of the cluster first.
    :ivar pending: it was added already and has not started: only its data is missing.
    """

    keep: bool
    remove: tuple[int, ...] = ()
    pending: int = 0


def member_plan(
    cluster: str, listed: t.Sequence[Listed], name: str, peer_url: str, local: Identity | None, wipe: bool = False
) -> MemberPlan:
    """How a host becomes a member again.

    :param cluster: the id of the cluster that has a quorum.
    :param local: of what the host has data; None when it has none.
    :param wipe: whether good data is given up too.
    """
    mine = [one for one in listed if one.name == name or peer_url in one.peer_urls]
    ids = {one.id for one in mine}
    if local is not None and local.cluster == cluster and local.member in ids and not wipe:
        return MemberPlan(True, tuple(sorted(ids - {local.member})))
    # A member that was added and never started has no name yet; one that starts once has data.
    fresh = [one for one in mine if not one.name and peer_url in one.peer_urls]
    if len(mine) == 1 and fresh and local is None:
        return MemberPlan(False, (), fresh[0].id)
    return MemberPlan(False, tuple(sorted(ids)))


def initial_cluster(listed: t.Sequence[Listed], added: int, name: str) -> str:
    """What a joining member must be told: exactly the members that the cluster has, itself among them."""
    pairs = [
        f"{name if one.id == added else one.name}={url}"
        for one in listed
        for url in one.peer_urls
        if one.id == added or one.name
    ]
    return ",".join(pairs)
