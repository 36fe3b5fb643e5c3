# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the registry knows of backups: each region's last run and last good run of each kind, its last verification.

A run is at C(/shannon/backups/<cell>/<kind>/<region>), its verification at C(.../<region>/verified); what belongs to no
cell has C(_) in the cell's place. How far the WAL in a region's repository goes is beside PostgreSQL's run, at
C(.../<region>/archive). C(judge) compares all of it with the objectives.
"""

from __future__ import annotations

import json
import typing as t
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone

from .errors import ResilienceError
from .etcd import EtcdClient, KeyValue

BACKUPS = "/shannon/backups/"
LOCK = "/shannon/backup-lock"
NO_CELL = "_"
VERIFIED = "verified"
ARCHIVE = "archive"
#: What the lines and the objectives call the archive of WAL. It is no kind that somebody takes: PostgreSQL sends it.
WAL = "wal"
#: Seconds for which a look at an archive tells something; repository hosts look every five minutes.
LOOKED_WITHIN = 900.0
#: Kinds, and whether each belongs to a cell.
KINDS = {"postgres": True, "dump": True, "redis": True, "qdrant": False, "registry": False, "config": False}
#: What a registry's value may hold of a manifest or of differences; all of it is in the backup.
_LONGEST = 20000


@dataclass(frozen=True)
class Run:
    """One run of a backup, or of its verification.

    :ivar region: the region whose host did it; C(regions) those whose repositories hold what it made.
    :ivar id: names the backup in its repository.
    :ivar good: the last run that succeeded, in short; of a run that did, itself.
    :ivar differences: of a verification, what differs from the manifest, a sentence each.
    """

    kind: str
    cell: str
    region: str
    host: str
    started_at: str
    ended_at: str
    ok: bool
    error: str = ""
    id: str = ""
    type: str = ""
    bytes: int = 0
    seconds: float = 0.0
    regions: list[str] = field(default_factory=list)
    manifest: str = ""
    summary: dict[str, t.Any] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    good: dict[str, t.Any] = field(default_factory=dict)

    def key(self) -> str:
        """Where the registry has it."""
        return key_of(self.kind, self.cell, self.region)

    def short(self) -> dict[str, t.Any]:
        """What later runs remember of it."""
        names = ("id", "started_at", "ended_at", "bytes", "seconds", "regions", "type")
        return {name: getattr(self, name) for name in names}

    def stored(self) -> str:
        """The text that the registry holds; never longer than a few pages."""
        value = asdict(self)
        if len(json.dumps(value["summary"])) > _LONGEST:
            value["summary"] = {"left_out": "longer than the registry should hold; the manifest has it"}
        value["differences"] = value["differences"][:50]
        value["error"] = value["error"][:2000]
        return json.dumps(value, sort_keys=True)


@dataclass(frozen=True)
class Look:
    """How far the WAL in a region's repository goes, as the repository's host saw it.

    :ivar at: when it looked; C(known_at) when it last could.
    :ivar age: how old (seconds) the oldest write was at C(known_at) that the repository lacked; None when it has no
        backup that WAL could go on from.
    :ivar behind: bytes that it lacked; None when nobody said how far the cell had written.
    :ivar segment: the last one up to which nothing is missing.
    :ivar error: why it could not look.
    """

    cell: str
    region: str
    host: str
    at: str
    known_at: str = ""
    age: float | None = None
    behind: int | None = None
    segment: str = ""
    error: str = ""

    def key(self) -> str:
        """Where the registry has it."""
        return f"{key_of('postgres', self.cell, self.region)}/{ARCHIVE}"


S = t.TypeVar("S", Run, Look)


def key_of(kind: str, cell: str, region: str) -> str:
    """The registry's key of a region's last run."""
    return f"{BACKUPS}{cell or NO_CELL}/{kind}/{region}"


def parse(found: KeyValue, shape: type[S] = Run) -> S:  # type: ignore[assignment]
    """A run, or a look at an archive, from its key.

    :raises ResilienceError: somebody wrote it by hand, and wrong.
    """
    try:
        value = json.loads(found.value)
        known = {one.name for one in fields(shape)}
        return shape(**{name: part for name, part in value.items() if name in known})
    except (TypeError, ValueError, AttributeError) as exc:
        raise ResilienceError(
            f"the registry's key {found.key} should hold the record of a backup and holds {found.value[:200]!r}; "
            "delete it with etcdctl, the next run writes it anew"
        ) from exc


class BackupRecords:
    """The records, on top of the registry's etcd.

    Every method raises :class:`.errors.ResilienceError` when the registry can't answer.
    """

    def __init__(self, client: EtcdClient) -> None:
        self.client = client

    def get(self, kind: str, cell: str, region: str) -> Run | None:
        """A region's last run of a kind."""
        found = self.client.get(key_of(kind, cell, region))
        return None if found is None else parse(found)

    def put(self, run: Run) -> Run:
        """Write a run; one that failed goes on naming the last that did not."""
        if run.ok:
            run = replace(run, good=run.short())
        else:
            try:
                before = self.get(run.kind, run.cell, run.region)
            except ResilienceError:
                before = None
            run = replace(run, good=before.good if before else {})
        self.client.put(run.key(), run.stored())
        return run

    def verified(self, run: Run) -> None:
        """Write a verification, beside the backup's run."""
        run = replace(run, good=run.short()) if run.ok else run
        self.client.put(f"{run.key()}/{VERIFIED}", run.stored())

    def looked(self, look: Look) -> Look:
        """Write a look at an archive; one that could not be taken goes on saying what the last one saw."""
        if look.error:
            try:
                found = self.client.get(look.key())
                before = parse(found, Look) if found else None
            except ResilienceError:
                before = None
            if before:
                look = replace(
                    look, known_at=before.known_at, age=before.age, behind=before.behind, segment=before.segment
                )
        self.client.put(look.key(), json.dumps(asdict(replace(look, error=look.error[:2000])), sort_keys=True))
        return look

    def everything(self) -> dict[str, dict[str, t.Any]]:
        """All that there is, by C(<cell>/<kind>/<region>): C(run), C(verified), C(archive), as mappings or missing."""
        return sorted_out(self.client.range(BACKUPS))


def sorted_out(found: t.Sequence[KeyValue]) -> dict[str, dict[str, t.Any]]:
    """Keys of the registry by C(<cell>/<kind>/<region>); an unreadable one becomes a run that failed."""
    sorted_runs: dict[str, dict[str, t.Any]] = {}
    for one in found:
        name = one.key.removeprefix(BACKUPS)
        what = "run"
        for ending in (VERIFIED, ARCHIVE):
            if name.endswith(f"/{ending}"):
                name, what = name.removesuffix(f"/{ending}"), ending
        try:
            sorted_runs.setdefault(name, {})[what] = asdict(parse(one, Look if what == ARCHIVE else Run))
        except ResilienceError as exc:
            sorted_runs.setdefault(name, {})[what] = {"ok": False, "error": str(exc), "good": {}}
    return sorted_runs


def judge(
    records: t.Mapping[str, t.Mapping[str, t.Any]],
    objectives: t.Mapping[str, t.Any],
    cells: t.Sequence[str],
    regions: t.Sequence[str],
    now: datetime,
) -> list[dict[str, t.Any]]:
    """One line per kind, cell and region: how old the newest good backup in its repository is, and what is amiss.

    The archive of WAL has a line as well, of the kind V(wal); its C(age) is that of the oldest write that it lacks.

    :param records: what :meth:`BackupRecords.everything` found.
    :param objectives: the part C(backups) of C(config/objectives.yml).
    :param regions: those that have a repository.
    :returns: mappings with C(kind), C(cell), C(region), C(age), C(rpo), C(overdue), C(ok), C(error), C(verified_age),
        C(verified_ok), C(bytes), C(seconds), C(behind) and C(state), which is V(good), V(failed), V(overdue),
        V(unverified) or V(missing). What a line has no use for is None.
    """
    lines = []
    for kind, per_cell in KINDS.items():
        for cell in cells if per_cell else [NO_CELL]:
            for region in regions:
                lines.append(_line(records, kind, cell, region, _limits(objectives, kind), now, regions))
        for cell in cells if kind == "postgres" else []:
            for region in regions:
                lines.append(_wal_line(records, cell, region, _limits(objectives, WAL), now))
    return lines


def _limits(objectives: t.Mapping[str, t.Any], kind: str) -> t.Mapping[str, t.Any]:
    limits = objectives.get(kind)
    return limits if isinstance(limits, t.Mapping) else {}


def _line(
    records: t.Mapping[str, t.Mapping[str, t.Any]],
    kind: str,
    cell: str,
    region: str,
    limits: t.Mapping[str, t.Any],
    now: datetime,
    regions: t.Sequence[str],
) -> dict[str, t.Any]:
    own = records.get(f"{cell}/{kind}/{region}", {})
    run = own.get("run") or {}
    # The other region's host may have filled this region's repository, too.
    good = max(
        (
            made
            for other in regions
            if (made := ((records.get(f"{cell}/{kind}/{other}", {}).get("run") or {}).get("good") or {}))
            and region in (made.get("regions") or [other])
        ),
        key=lambda made: str(made.get("started_at", "")),
        default={},
    )
    verified = own.get(VERIFIED) or {}
    age = seconds_since(good.get("started_at"), now)
    verified_age = seconds_since(verified.get("ended_at"), now)
    rpo, recheck = _number(limits.get("rpo")), _number(limits.get("verified"))
    overdue = age is not None and rpo is not None and age > rpo
    last_failed = bool(run) and not run.get("ok") and str(run.get("started_at", "")) > str(good.get("started_at", ""))
    if age is None:
        state = "failed" if last_failed else "missing"
    elif last_failed or (verified and not verified.get("ok")):
        state = "failed"
    elif overdue:
        state = "overdue"
    elif recheck is not None and (verified_age is None or verified_age > recheck):
        state = "unverified"
    else:
        state = "good"
    error = str(run.get("error") or "") if last_failed else ""
    if not error and verified and not verified.get("ok"):
        error = str(verified.get("error") or "; ".join(verified.get("differences") or []))
    return {
        **_blank(kind, cell, region),
        "state": state,
        "age": age,
        "rpo": rpo,
        "overdue": overdue,
        "ok": None if not run else bool(run.get("ok")),
        "error": error,
        "verified_age": verified_age,
        "verified_ok": None if not verified else bool(verified.get("ok")),
        "bytes": int(good.get("bytes") or 0),
        "seconds": float(good.get("seconds") or 0.0),
        "id": str(good.get("id") or ""),
    }


def _blank(kind: str, cell: str, region: str) -> dict[str, t.Any]:
    """A line of which nothing is known yet: all that every line has."""
    nothing = ("age", "rpo", "ok", "verified_age", "verified_ok", "bytes", "seconds", "behind")
    return {
        "kind": kind,
        "cell": cell,
        "region": region,
        "state": "missing",
        "overdue": False,
        "error": "",
        "id": "",
        **dict.fromkeys(nothing),
    }


def _wal_line(
    records: t.Mapping[str, t.Mapping[str, t.Any]],
    cell: str,
    region: str,
    limits: t.Mapping[str, t.Any],
    now: datetime,
) -> dict[str, t.Any]:
    look = records.get(f"{cell}/postgres/{region}", {}).get(ARCHIVE) or {}
    age, rpo = _number(look.get("age")), _number(limits.get("rpo"))
    error = str(look.get("error") or "")
    ago = seconds_since(look.get("known_at"), now)
    if age is not None and ago is not None and ago > LOOKED_WITHIN:
        # Between two looks their age is as good as a new one. Later all that is known is how old it is at the worst.
        age = round(age + ago, 1)
        error = error or f"{look.get('host')} has not looked for {age_in_words(ago)}"
    overdue = age is not None and rpo is not None and age > rpo
    if look.get("error"):
        state = "failed"
    elif age is None:
        state = "missing"
    else:
        state = "overdue" if overdue else "good"
    return {
        **_blank(WAL, cell, region),
        "state": state,
        "age": age,
        "rpo": rpo,
        "overdue": overdue,
        "ok": None if not look else not look.get("error"),
        "error": error,
        "behind": look.get("behind"),
        "id": str(look.get("segment") or ""),
    }


def warnings(lines: t.Sequence[t.Mapping[str, t.Any]]) -> list[str]:
    """A sentence for each line that an operator should look at."""
    found = []
    for line in lines:
        of = "archive of WAL" if line["kind"] == WAL else f"backup of {line['kind']}"
        where = of + ("" if line["cell"] == NO_CELL else f" of cell {line['cell']}") + f" in region {line['region']}"
        if line["kind"] == WAL and line["state"] == "failed":
            found.append(f"{where} could not be looked at: {line['error']}")
        elif line["kind"] == WAL and line["state"] == "missing":
            found.append(
                f"{where}: " + ("nobody has looked yet" if line["ok"] is None else "no backup that it goes on from")
            )
        elif line["kind"] == WAL and line["overdue"]:
            why = f" ({line['error']})" if line["error"] else ""
            found.append(
                f"{where} is overdue: it lacks the last {age_in_words(line['age'])}, "
                f"{age_in_words(line['rpo'])} promised{why}"
            )
        elif line["state"] == "failed":
            found.append(f"{where} failed: {line['error'] or 'it did not say why'}")
        elif line["state"] == "missing":
            found.append(f"{where}: there is none yet")
        elif line["overdue"]:
            found.append(f"{where} is overdue: {age_in_words(line['age'])} old, {age_in_words(line['rpo'])} promised")
        elif line["state"] == "unverified":
            found.append(f"{where} was not restored for a test as often as promised")
    return found


def age_in_words(seconds: float | None) -> str:
    """C(42 s), C(13 min), C(5.2 h) or C(3.1 d)."""
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} d"


def stamp(moment: datetime) -> str:
    """A moment as the records have it: ISO 8601 in UTC, which sorts."""
    return moment.astimezone(timezone.utc).isoformat(timespec="milliseconds")


def seconds_since(at: t.Any, now: datetime) -> float | None:
    """How long ago a stamp was; None for anything else."""
    if not isinstance(at, str) or not at:
        return None
    try:
        then = datetime.fromisoformat(at.replace("Z", "+00:00"))
    except ValueError:
        return None
    then = then if then.tzinfo else then.replace(tzinfo=timezone.utc)
    return max(0.0, round((now - then).total_seconds(), 1))


def _number(value: t.Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
