# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Moves a cell to another region: looks, judges, swaps the record, and follows what the region agents make of it.

The mover itself touches no store. It changes the registry, and the regions' agents do the rest whether it lives or not;
so a mover that is killed at any point and started again finishes the job: it looks where the record is, and goes on.
"""

from __future__ import annotations

import contextlib
import json
import time
import typing as t
import uuid
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone

from . import markers
from .cell_validation import Check, document
from .component_versions import text as version_text
from .concurrently import gather, wait_until
from .errors import ConflictError, ResilienceError, WaitTimeout
from .etcd import EtcdClient, put_op, when_absent
from .move_approval import Approval, Approvals
from .move_gates import FAILOVER, SWITCHOVER, TAKE_MARK, Facts, Limits, Verdict, judge, lag
from .move_mark import Mark, TakenOver, mapping_of
from .region_lease import LEASE_TTL, RegionLeases, View
from .registry import ACTIVE, DRAINING, ENTERING, RESTORING, TAKING_OVER, CellRecord, Registry
from .registry_keys import EDGES, REPORTS
from .smoke import Client, word_of

#: Bounds of the phases, in seconds.
HOLD_WITHIN = 3.0
DRAIN_WITHIN = 2.0
FENCE_WITHIN = LEASE_TTL + 8.0
PROMOTE_WITHIN = 60.0
PAUSE = 0.05
DONE, REFUSED, FAILED, PLANNED = "done", "refused", "failed", "planned"


@dataclass(frozen=True)
class Request:
    """What the operator wants.

    :ivar kind: failover or switchover.
    :ivar plan: only say what would be done.
    :ivar overrides: names of the rules' overrides that the operator gave.
    :ivar verify_within: seconds that the synthetic task may take, counted from the promotion.
    :ivar approval: only do what somebody else approved.
    :ivar began: monotonic time at which the stores were looked at, when that was before the mover began.
    """

    cell: str
    target: str
    kind: str
    reason: str
    operator: str
    plan: bool = False
    overrides: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    verify_within: float = 30.0
    approval: bool = False
    began: float | None = None


class World(t.Protocol):
    """What a mover sees of the stores and services; the module gives it, a test fakes it."""

    def info(self) -> dict[str, t.Any]:
        """What C(cell_status.summarise) gives."""

    def be_patient(self) -> None:
        """Have whoever is asked from now on take longer, and forget what was said before."""

    def agents(self, region: str) -> dict[str, t.Any]:
        """Per host of a region what its agent says, or its error."""

    def gateways(self, region: str) -> dict[str, str]:
        """Per host of a region an empty text when its gateway is well, else why not."""

    def edges(self) -> list[str]:
        """Hosts that are edges."""

    def edge_client(self, edge: str, deadline: float) -> Client:
        """A client that submits through an edge."""


class Validates(t.Protocol):
    """What C(cell_validator.Validator) does; the module gives it, a test fakes it."""

    def note(self, cell: str, host: str, collections: t.Mapping[str, t.Mapping[str, t.Any]]) -> None:
        """Note what a standby has, without waiting for it."""

    def validate(self, cell: str, region: str) -> list[Check]:
        """Check what a home has."""


@dataclass
class Timeline:
    """Phases of a move, in seconds since its start."""

    started: float = field(default_factory=time.monotonic)
    at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    phases: list[dict[str, t.Any]] = field(default_factory=list)
    _ended: set[str] = field(default_factory=set)

    @classmethod
    def since(cls, began: float) -> Timeline:
        """One that began at a monotonic time before now."""
        return cls(began, datetime.now(timezone.utc) - timedelta(seconds=time.monotonic() - began))

    def now(self) -> float:
        return round(time.monotonic() - self.started, 3)

    def phase(self, name: str) -> _Phase:
        """A phase as a context manager."""
        return _Phase(self, name)

    def end(self, name: str) -> None:
        """A phase ended before the block that began it does."""
        for one in self.phases:
            if one["name"] == name:
                one["end"] = self.now()
                self._ended.add(name)

    def seconds(self, name: str) -> float:
        """How long a phase took; 0 when there was none."""
        return round(sum(one["end"] - one["begin"] for one in self.phases if one["name"] == name), 3)


class _Phase:
    def __init__(self, timeline: Timeline, name: str) -> None:
        self._timeline = timeline
        self._entry: dict[str, t.Any] = {"name": name, "begin": timeline.now(), "end": timeline.now(), "note": ""}

    def __enter__(self) -> _Phase:
        self._timeline.phases.append(self._entry)
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._entry["name"] not in self._timeline._ended:
            self._entry["end"] = self._timeline.now()

    def began(self, at: float) -> None:
        """It began earlier than it was looked at."""
        self._entry["begin"] = round(at, 3)

    def note(self, text: str) -> None:
        """Say what was seen."""
        self._entry["note"] = text


class Mover:
    """Moves one cell once."""

    def __init__(self, client: EtcdClient, world: World, request: Request, validator: Validates | None = None) -> None:
        self._client = client
        self._validator = validator
        self._registry = Registry(client)
        self._leases = RegionLeases(client)
        self._world = world
        self._request = request
        self._timeline = Timeline() if request.began is None else Timeline.since(request.began)
        self._mark = Mark(client, request.cell, request.kind, request.target, request.operator, request.reason)
        #: Whether an earlier run swapped the record, and this one only sees it through.
        self._followed = False
        self._approval: Approval | None = None
        self.move: dict[str, t.Any] = {
            "cell": request.cell,
            "kind": request.kind,
            "to": request.target,
            "operator": request.operator,
            "reason": request.reason,
            "started_at": self._timeline.at.isoformat(timespec="milliseconds"),
            "overrides": [],
            "gates": [],
            "phases": self._timeline.phases,
            "outcome": FAILED,
            "error": "",
            "changed": False,
        }

    def run(self) -> dict[str, t.Any]:
        """Do it; returns the move as C(move_report) takes it, whatever became of it."""
        try:
            self._run()
        except ResilienceError as exc:
            self.move["error"] = str(exc)
            self.move["outcome"] = FAILED if self.move["changed"] or self._followed else REFUSED
        finally:
            self._mark.remove()
            self._use_approval()
        self.move["ended_at"] = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        self._keep_report()
        return self.move

    def _run(self) -> None:
        request = self._request
        with self._timeline.phase("detect") as phase:
            phase.began(0.0)
            facts, verdicts = self._look()
            refused = any(verdict.stands_in_the_way() for verdict in verdicts)
            if refused and facts.record.home != request.target:
                # So short a time tells dead hosts from those that live, but not from those that are busy: nobody is
                # refused for a host that took a little longer.
                self._world.be_patient()
                facts, verdicts = self._look()
            record = facts.record
            self._since_last_word(facts, phase)
            self.move.update(epoch_before=record.epoch, epoch=record.epoch)
            self.move["from"] = record.home
            resumed = record.home == request.target
            if resumed:
                phase.note(f"region {request.target} is the home already: what is left is done")
                if record.state == RESTORING:
                    self._judge(facts, [verdict for verdict in verdicts if verdict.name == "state"])
        if not resumed:
            with self._timeline.phase("decide"):
                self._judge(facts, verdicts)
                record = record if request.plan else self._decide(facts, verdicts)
        if request.plan:
            self.move["outcome"] = PLANNED
            return
        if resumed and record.state == DRAINING:
            self._let_go(record)  # somebody wanted to leave this region and gave up
            record = self._leases.look(request.cell).record or record
        self._followed = resumed
        if resumed and self._serves(facts.view, record) and record.state == ACTIVE:
            self._verify(record)
            self.move["outcome"] = DONE
            self._measure(record)
            self._validate(record)
            return
        with self._timeline.phase("fence") as phase:
            self._wait_for_fence(record, phase)
        with self._timeline.phase("promote") as phase:
            self._wait_for_home(record, phase)
        self._verify(record)
        self.move["outcome"] = DONE
        self.move["rto_seconds"] = self._rto()
        self._measure(record)
        self._validate(record)

    # -- looking -------------------------------------------------------------------------------------------------

    def _look(self) -> tuple[Facts, list[Verdict]]:
        request = self._request
        view = self._leases.look(request.cell)
        if view.record is None:
            raise ResilienceError(
                f"the registry does not know the cell {request.cell}; run site.yml with --tags registry first"
            )
        asked: dict[str, t.Callable[[], t.Any]] = {
            "info": self._world.info,
            "agents": lambda: self._world.agents(request.target),
            "gateways": lambda: self._world.gateways(request.target),
            "history": lambda: self._registry.history(request.cell),
            "mover": self._mark.other,
            "beats": lambda: self._beats(view),
        }
        found = gather(asked)
        for name in ("info", "history", "mover", "beats"):
            if isinstance(found[name], ResilienceError):
                raise found[name]  # type: ignore[misc]
        info = t.cast("dict[str, t.Any]", found["info"])
        facts = Facts(
            kind=request.kind,
            record=view.record,
            target=request.target,
            view=view,
            info=info["cells"][request.cell],
            home_beats=bool(found["beats"]),
            agents={} if isinstance(found["agents"], ResilienceError) else t.cast("dict[str, t.Any]", found["agents"]),
            gateways={}
            if isinstance(found["gateways"], ResilienceError)
            else t.cast("dict[str, str]", found["gateways"]),
            history=t.cast("list[t.Any]", found["history"]),
            mover=str(found["mover"]),
            certificate=info.get("certificate"),
            limits=request.limits,
        )
        self.move["versions"] = _versions(info, facts)
        size, seconds = lag(facts)
        self.move["lag_before"] = {"bytes": size, "seconds": seconds}
        return facts, judge(facts, request.overrides)

    def _beats(self, view: View) -> bool:
        """Whether the home goes on telling how far it is; it does so once a second."""
        if view.lease is None or view.record is None or view.lease.region != view.record.home:
            return False
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            time.sleep(0.25)
            now = self._leases.look(self._request.cell)
            if now.position != view.position:
                return True
            if now.lease is None:
                return False
        return False

    def _judge(self, facts: Facts, verdicts: list[Verdict]) -> None:
        self.move["gates"] = [verdict.as_dict() for verdict in verdicts]
        self.move["overrides"] = [verdict.override for verdict in verdicts if verdict.overridden]
        refusals = [verdict for verdict in verdicts if verdict.stands_in_the_way()]
        if refusals and not self._request.plan:
            raise Refused(self._request, facts.record, refusals)

    def _since_last_word(self, facts: Facts, phase: _Phase) -> None:
        """A home that is lost was lost when it was last heard of: the time until then is part of detecting it."""
        position, record = facts.view.position, facts.record
        if self._request.kind != FAILOVER or position is None or position.region != record.home or facts.home_beats:
            return
        age = self._timeline.at.timestamp() - position.at
        if age > 0:  # clocks of two hosts
            phase.began(-age)
            phase.note(f"the home was last heard of {age:.1f} s before the start")

    # -- changing ------------------------------------------------------------------------------------------------

    def _decide(self, facts: Facts, verdicts: list[Verdict]) -> CellRecord:
        self._check_approval(facts.record)
        self._note(facts)
        self._mark.put(TAKE_MARK in self.move["overrides"])
        return self._swap(facts, verdicts)

    def _swap(self, facts: Facts, verdicts: list[Verdict]) -> CellRecord:
        request, record = self._request, facts.record
        overrides = [verdict.override for verdict in verdicts if verdict.overridden]
        if request.kind == SWITCHOVER:
            if record.state != DRAINING:
                record = self._registry.compare_and_swap(
                    record, replace(record, state=DRAINING), f"switchover to {request.target}: {request.reason}",
                    request.operator, overrides,
                )  # fmt: skip
                self.move["changed"] = True
            self._timeline.end("decide")
            try:
                self._hold(record)
                return self._take(record, overrides)
            except TakenOver:
                raise  # clients wait for whoever goes on with it
            except ResilienceError:
                self._let_go(record)
                raise
        return self._take(record, overrides)

    def _take(self, record: CellRecord, overrides: t.Sequence[str]) -> CellRecord:
        request = self._request
        self._mark.check()
        state = ENTERING if request.kind == SWITCHOVER else TAKING_OVER
        new = replace(record, home=request.target, epoch=record.epoch + 1, state=state)
        new = self._registry.compare_and_swap(record, new, request.reason, request.operator, overrides)
        self.move.update(changed=True, epoch=new.epoch)
        return new

    def _let_go(self, record: CellRecord) -> None:
        """A switchover that can't go on: clients must not wait for it."""
        try:
            self._registry.compare_and_swap(
                record, replace(record, state=ACTIVE), "the switchover was given up", self._request.operator
            )
        except ResilienceError:
            return  # the home's agents take it back themselves

    def _hold(self, record: CellRecord) -> None:
        """Wait until every edge that answers holds new requests, and what they had under way has ended."""
        edges = self._world.edges()
        if not edges:
            return
        with self._timeline.phase("hold") as phase:
            waiting = self._until_edges(edges, record, HOLD_WITHIN, lambda said: bool(said.get("held")))
            phase.note(f"not heard from: {', '.join(waiting)}" if waiting else "")
        with self._timeline.phase("drain") as phase:
            waiting = self._until_edges(
                [edge for edge in edges if edge not in waiting], record, DRAIN_WITHIN,
                lambda said: not said.get("in_flight"),
            )  # fmt: skip
            phase.note(f"still busy: {', '.join(waiting)}" if waiting else "")

    def _until_edges(
        self, edges: t.Sequence[str], record: CellRecord, within: float, wanted: t.Callable[[dict[str, t.Any]], bool]
    ) -> list[str]:
        deadline = time.monotonic() + within
        while True:
            waiting = []
            for edge in edges:
                found = self._client.get(f"{EDGES}{edge}/{record.cell}")
                said = mapping_of(found.value) if found else {}
                if said.get("epoch") != record.epoch or not wanted(said):
                    waiting.append(edge)
            if not waiting or time.monotonic() >= deadline:
                return waiting
            time.sleep(PAUSE)

    # -- following -----------------------------------------------------------------------------------------------

    def _wait_for_fence(self, record: CellRecord, phase: _Phase) -> None:
        def fenced() -> tuple[bool, str]:
            view = self._leases.look(record.cell)
            self._still_ours(record, view)
            lease = view.lease
            if lease is None or lease.region == record.home:
                return True, ""
            return False, f"region {lease.region} still holds the lease of epoch {lease.epoch}"

        _until(fenced, f"the old home of cell {record.cell} to be fenced", FENCE_WITHIN)
        position = self._leases.look(record.cell).position
        if position and position.final and position.epoch == record.epoch - 1:
            phase.note(f"given back in order by region {position.region}, at {position.lsn} bytes")
        else:
            phase.note("its lease had ended")

    def _wait_for_home(self, record: CellRecord, phase: _Phase) -> None:
        def serves() -> tuple[bool, str]:
            view = self._leases.look(record.cell)
            self._still_ours(record, view)
            lease, serving = view.lease, view.serving
            if self._serves(view, record) and view.record and view.record.state == ACTIVE:
                return True, f"promoted by {serving.host if serving else ''}"
            holder = f"region {lease.region} at epoch {lease.epoch}" if lease else "nobody"
            said = f"region {serving.region} at epoch {serving.epoch}" if serving else "nobody"
            return False, f"the lease is held by {holder}, {said} serves"

        phase.note(_until(serves, f"region {record.home} to serve the cell {record.cell}", PROMOTE_WITHIN))
        serving = self._leases.look(record.cell).serving
        if serving and serving.switch_lsn:
            self.move["switch_lsn"] = serving.switch_lsn
        if serving and serving.old_end and serving.switch_lsn:
            lost = max(0, serving.old_end - serving.switch_lsn)
            text = f"the old home ended at byte {serving.old_end}, the new one went on from {serving.switch_lsn}"
            self.move["rpo"] = {"bytes": lost, "text": text, **({} if lost else {"seconds": 0.0})}

    @staticmethod
    def _serves(view: View, record: CellRecord) -> bool:
        lease, serving = view.lease, view.serving
        return bool(
            lease
            and serving
            and (lease.region, lease.epoch) == (record.home, record.epoch)
            and (serving.region, serving.epoch) == (record.home, record.epoch)
        )

    @staticmethod
    def _still_ours(record: CellRecord, view: View) -> None:
        now = view.record
        if now is None or (now.home, now.epoch) != (record.home, record.epoch):
            raise ConflictError(
                f"cell {record.cell}: somebody moved it on meanwhile: it is {now.describe() if now else 'gone'}"
            )

    def _verify(self, record: CellRecord) -> None:
        """Submit a task through each edge and wait for its answer: what a client sees."""
        edges = self._world.edges()
        if not edges:
            return
        deadline = time.monotonic() + self._request.verify_within
        clients = {edge: self._world.edge_client(edge, deadline) for edge in edges}
        with self._timeline.phase("route") as phase:
            routed = gather({edge: lambda client=client: _submit(client) for edge, client in clients.items()})
            silent = {edge: answer for edge, answer in routed.items() if isinstance(answer, ResilienceError)}
            if len(silent) == len(edges):
                raise next(iter(silent.values()))
            phase.note("; ".join(f"{edge}: {error}" for edge, error in silent.items()))
        self.move["first_task_seconds"] = self._timeline.now()
        with self._timeline.phase("verify"):
            accepted = {edge: task for edge, task in routed.items() if isinstance(task, str)}
            done = gather({edge: lambda edge=edge: _finish(clients[edge], accepted[edge]) for edge in accepted})
            for answer in done.values():
                if isinstance(answer, ResilienceError):
                    raise answer
            self.move["verified"] = {
                "task_id": ", ".join(str(task) for task in accepted.values()),
                "epoch": record.epoch,
            }

    def _check_approval(self, record: CellRecord) -> None:
        """Find somebody else's word on exactly this move, when one is needed; the history names who gave it."""
        request = self._request
        if not request.approval:
            return
        wanted = Approval(
            request.cell, request.kind, record.home, request.target, record.epoch, request.operator, request.reason,
            tuple(sorted(request.overrides)),
        )  # fmt: skip
        self._approval = Approvals(self._client).given(wanted)
        self.move["approved_by"] = self._approval.approved_by
        self._request = replace(request, reason=f"{request.reason} (approved by {self._approval.approved_by})")

    def _use_approval(self) -> None:
        """A word is for one move; it ends by itself when the registry can't be told."""
        if self._approval and self.move["changed"]:
            with contextlib.suppress(ResilienceError):
                Approvals(self._client).remove(self._approval)

    def _note(self, facts: Facts) -> None:
        """Have the rows of the standby counted while the move goes on, to compare with afterwards."""
        leaders = [one for one in facts.members("postgres", facts.target) if one["role"] == "standby_leader"]
        if self._validator and leaders:
            collections = facts.info["qdrant"].get(facts.target, {}).get("collections", {})
            self._validator.note(facts.record.cell, str(leaders[0]["name"]), collections)

    def _validate(self, record: CellRecord) -> None:
        """Check what the new home has. It serves already: this is no part of the RTO, and undoes nothing."""
        if self._validator is None:
            return
        with self._timeline.phase("validate") as phase:
            self.move["validation"] = document(self._validator.validate(record.cell, record.home))
            wrong = [one["title"] for one in self.move["validation"]["checks"] if not one["passed"]]
            phase.note(f"FAILED: {'; '.join(wrong)}" if wrong else "")

    def _rto(self) -> float:
        """From the moment in which clients began to wait, or from the start, to the first task that was taken."""
        phases = {one["name"]: one for one in self._timeline.phases}
        end = phases["route"]["end"] if "route" in phases else self._timeline.now()
        begin = phases["hold"]["begin"] if "hold" in phases else 0.0
        return round(end - begin, 3)

    def _measure(self, record: CellRecord) -> None:
        """Say what each store lost, by the markers; clients are served already."""
        try:
            if markers.MarkerBoard(self._client).written(record.cell) is None:
                return
            with self._timeline.phase("measure") as phase:
                measured = markers.measure(self._client, record.cell, record.epoch)
                phase.note("" if "stores" in measured else measured["text"])
            self.move["rpo"] = markers.together(self.move.get("rpo") or {}, measured)
        except ResilienceError as exc:
            self.move["warning"] = f"what was lost could not be measured: {exc}"

    def _keep_report(self) -> None:
        """Leave the figures with the registry, once for each epoch: a run that only saw it through says less."""
        swapped = self.move.get("epoch") != self.move.get("epoch_before")
        if not swapped and not (self._followed and self.move["outcome"] == DONE):
            return
        kept = {key: value for key, value in self.move.items() if key not in ("gates", "validation")}
        if "validation" in self.move:
            kept["validation_passed"] = self.move["validation"]["passed"]
        try:
            key = f"{REPORTS}{self.move['cell']}/{self.move['epoch']:010d}"
            text = json.dumps(kept, sort_keys=True, default=str)
            self._client.txn([] if swapped else [when_absent(key)], [put_op(key, text)])
        except ResilienceError as exc:
            self.move["warning"] = f"the report is not in the registry: {exc}"


class Refused(ResilienceError):
    """A rule stands in the way, and nothing was changed."""

    def __init__(self, request: Request, record: CellRecord, refusals: t.Sequence[Verdict]) -> None:
        lines = []
        for one in refusals:
            way = f" To do it nevertheless: -e {request.kind}_{one.override}=true." if one.override else ""
            lines.append(f"{one.title}: no. Seen: {one.seen}. Allowed: {one.allowed}. {one.remedy}{way}")
        super().__init__(
            f"the {request.kind} of cell {record.cell} ({record.describe()}) to region {request.target} is refused; "
            "nothing was changed.\n- " + "\n- ".join(lines)
        )


def _versions(info: t.Mapping[str, t.Any], facts: Facts) -> dict[str, str]:
    """What runs, as far as it was seen."""
    services = {host: str(said["version"]) for host, said in facts.agents.items() if "version" in said}
    return {**info.get("versions", {}), **({"services": version_text(services)} if services else {})}


def _until(condition: t.Callable[[], tuple[bool, str]], what: str, timeout: float) -> str:
    """As C(wait_until), but a lost race ends it at once."""

    def guarded() -> tuple[bool, str]:
        try:
            return condition()
        except ConflictError as exc:
            lost.append(exc)
            return True, ""

    lost: list[ConflictError] = []
    seen = wait_until(guarded, what, timeout, interval=PAUSE)
    if lost:
        raise lost[0]
    return seen


def _submit(client: Client) -> str:
    """Submit until it is taken; the same key each time, so it is one task however often it is sent."""
    key = uuid.uuid4().hex
    body = {"query": f"Which region takes writes now? ({key[:12]})", "mode": "simple"}
    while True:
        try:
            accepted = client.ask("POST", "/api/v1/tasks", body, **{"Idempotency-Key": key})
            return str(accepted["task_id"])
        except ResilienceError as exc:
            if time.monotonic() + PAUSE >= client.deadline:
                raise WaitTimeout(f"no task was taken through {client.url} in time; last: {exc}") from exc
            time.sleep(PAUSE)


def _finish(client: Client, task_id: str) -> str:
    while True:
        try:
            task = client.ask("GET", f"/api/v1/tasks/{task_id}")
            if word_of(task["status"]) == "completed":
                return task_id
            seen = word_of(task["status"])
        except ResilienceError as exc:
            seen = str(exc)
        if time.monotonic() + PAUSE >= client.deadline:
            raise WaitTimeout(f"the task {task_id} through {client.url} did not end in time; last: {seen}")
        time.sleep(PAUSE)


__all__ = ["FAILOVER", "SWITCHOVER", "Mover", "Refused", "Request", "World"]
