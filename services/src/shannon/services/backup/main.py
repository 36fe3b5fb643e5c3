# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Console script C(shannon-backup)."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import time
import typing as t
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from shannon.resilience.backup_records import KINDS, Run, age_in_words, judge, stamp, warnings
from shannon.resilience.errors import ResilienceError
from shannon.resilience.etcd import EtcdClient
from shannon.resilience.files import write
from shannon.resilience.tls import client_context
from shannon.services import __version__

from . import metrics
from .kinds import kinds
from .kinds.base import Kind
from .runner import Runner, Skipped, Stopped, moment, space_of
from .settings import DEFAULT_PATH, Cell, Settings, load

ALL = "all"
TYPES = ("full", "diff", "incr")
_EPILOG = """examples:
  shannon-backup run postgres --cell main --type full
  shannon-backup verify all
  shannon-backup list --kind redis --from-region b
  shannon-backup sandbox postgres --cell main --to "2026-01-31 13:05:00+00:00" --keep-running 600
  shannon-backup fetch redis --cell main --to latest --into /var/lib/shannon/backup/fetch/mine

exit status: 0 all is well, 1 something failed (the text says what), 2 wrong use.
Only one run works at a time in all regions; another one waits for it."""


def main(arguments: t.Sequence[str] | None = None) -> int:
    """Command line."""
    parser = _parser()
    options = parser.parse_args(arguments)
    # Standard output is the answer; what happens on the way goes to the journal, or to who looks on.
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        settings = load(options.config)
        client = EtcdClient(settings.registry, client_context(settings.tls), 3.0, name="the registry")
        runner = Runner(settings, client, kinds(settings))
        return t.cast(int, options.verb(runner, options))
    except Stopped:
        print("shannon-backup: stopped", file=sys.stderr)
        return 1
    except (ResilienceError, OSError) as exc:
        if getattr(options, "json", False):
            print(json.dumps({"ok": False, "error": str(exc)}))
        print(f"shannon-backup: {exc}", file=sys.stderr)
        return 1


def _stop(_number: int, _frame: t.Any) -> None:
    raise Stopped


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shannon-backup",
        description="Takes backups of this region, proves that they restore, and brings them back.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", default=DEFAULT_PATH, help=f"settings (default: {DEFAULT_PATH})")
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    one, many = sorted(KINDS), [ALL, *KINDS]

    def verb(name: str, act: t.Callable[[Runner, argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text)
        made.set_defaults(verb=act)
        made.add_argument("--json", action="store_true", help="print JSON")
        return made

    run = verb("run", _run, "take a backup")
    run.add_argument("kind", choices=many)
    run.add_argument("--cell", help="of this cell (default: of each)")
    run.add_argument(
        "--type", choices=TYPES, default="", help="postgres: full, or what changed since the last full or any"
    )
    run.add_argument(
        "--scheduled", action="store_true", help="let the standby region go first, skip what it stored here"
    )

    run.add_argument("--since", default="", help="skip what another region's host has stored here after this time")

    verify = verb("verify", _verify, "restore the newest backup for a test, and compare it with its manifest")
    verify.add_argument("kind", choices=many)
    verify.add_argument("--cell", help="of this cell (default: of each)")
    verify.add_argument("--from-region", default="", help="out of this region's repository (default: the own)")

    listing = verb("list", _list, "say which backups a repository holds")
    listing.add_argument("--kind", choices=one)
    listing.add_argument("--cell")
    listing.add_argument("--from-region", default="")

    verb("status", _status, "say how old the backups of all regions are, against what was promised")
    verb("metrics", _metrics, "look how far the archive of WAL goes, and write the same for monitoring")

    manifest = verb("manifest", _manifest, "print what a backup holds")
    manifest.add_argument("kind", choices=one)
    manifest.add_argument("--cell")
    manifest.add_argument("--to", default="latest", help="latest, a time, or backup:ID")
    manifest.add_argument("--from-region", default="")

    plan = verb("plan", _plan, "say from which backup a restore would come, or why there is none; change nothing")
    plan.add_argument("kind", choices=one)
    plan.add_argument("--cell")
    plan.add_argument("--to", default="latest", help="latest, a time, or backup:ID; of postgres also lsn:X or name:X")
    plan.add_argument("--from-region", default="")

    sandbox = verb("sandbox", _sandbox, "restore into a scratch instance on this host; the live cell is not touched")
    sandbox.add_argument("kind", choices=one)
    sandbox.add_argument("--cell")
    sandbox.add_argument(
        "--to", default="", help="a time, lsn:X, name:X or backup:ID (default: what the manifest was taken at)"
    )
    sandbox.add_argument("--from-region", default="")
    sandbox.add_argument(
        "--keep-running", type=float, default=0.0, metavar="SECONDS", help="let the instance run so long"
    )
    sandbox.add_argument("--keep", action="store_true", help="leave the files there")

    fetch = verb("fetch", _fetch, "bring a backup's files and manifest into a folder")
    fetch.add_argument("kind", choices=[name for name in one if name != "postgres"])
    fetch.add_argument("--cell")
    fetch.add_argument("--to", default="latest", help="latest, a time, or backup:ID")
    fetch.add_argument("--from-region", default="")
    fetch.add_argument("--into", required=True, help="folder; it is made when it is missing")
    return parser


# -- verbs ---------------------------------------------------------------------------------------------------------


def _run(runner: Runner, options: argparse.Namespace) -> int:
    since = moment(options.since) if options.since else None
    results = [
        runner.run(kind, cell, options.type if kind.name == "postgres" else "", options.scheduled, since)
        for kind, cell in _wanted(runner, options)
    ]
    _write_metrics(runner)
    return _told(results, options.json)


def _verify(runner: Runner, options: argparse.Namespace) -> int:
    results = [runner.verify(kind, cell, options.from_region) for kind, cell in _wanted(runner, options)]
    _write_metrics(runner)
    return _told(results, options.json)


def _list(runner: Runner, options: argparse.Namespace) -> int:
    region = options.from_region or runner.settings.region
    options.kind = options.kind or ALL
    lines: list[dict[str, t.Any]] = []
    silent = []
    for kind, cell in _wanted(runner, options):
        try:
            known = kind.found(cell, region)
        except ResilienceError as exc:
            silent.append(f"{kind.name}: {exc}")
            continue
        for found in known:
            made_at = stamp(datetime.fromtimestamp(found.made_at, timezone.utc))
            lines.append({"kind": kind.name, "cell": cell.name if cell else "_", "id": found.id, "made_at": made_at,
                          "bytes": found.bytes, "region": region})  # fmt: skip
    if options.json:
        print(json.dumps(lines, indent=1))
    for line in [] if options.json else lines:
        print(f"{line['made_at'][:19]}Z  {line['kind']:<9} {line['cell']:<8} {line['id']}")
    for error in silent:
        print(f"shannon-backup: {error}", file=sys.stderr)
    return 1 if silent else 0


def _status(runner: Runner, options: argparse.Namespace) -> int:
    lines = _judged(runner)
    said = warnings(lines)
    if options.json:
        print(json.dumps({"backups": lines, "warnings": said}, indent=1))
        return 1 if said else 0
    for line in lines:
        print(
            f"{line['kind']:<9} {line['cell']:<8} {line['region']:<4} {line['state']:<10} "
            f"age {age_in_words(line['age']):<8} of {age_in_words(line['rpo']):<8} "
            f"verified {age_in_words(line['verified_age'])}"
        )
    for one in said:
        print(f"! {one}")
    return 1 if said else 0


def _metrics(runner: Runner, _options: argparse.Namespace) -> int:
    _write_metrics(runner)
    return 0


def _manifest(runner: Runner, options: argparse.Namespace) -> int:
    ((kind, cell),) = _wanted(runner, options, single=True)
    region = options.from_region or runner.settings.region
    found = runner.choose(kind, cell, region, options.to)
    folder = runner.settings.folder("scratch") / f"kept-manifest-{found.id[:40]}-{time.time_ns()}"
    try:
        print(json.dumps(kind.fetch(cell, found, folder), indent=1, sort_keys=True))
    finally:
        _remove(folder)
    return 0


def _plan(runner: Runner, options: argparse.Namespace) -> int:
    ((kind, cell),) = _wanted(runner, options, single=True)
    found = runner.plan(kind, cell, options.from_region, options.to)
    made_at = stamp(datetime.fromtimestamp(found.made_at, timezone.utc))
    print(json.dumps({"ok": True, "kind": kind.name, "id": found.id, "region": found.region, "made_at": made_at,
                      "bytes": found.bytes}))  # fmt: skip
    return 0


def _sandbox(runner: Runner, options: argparse.Namespace) -> int:
    ((kind, cell),) = _wanted(runner, options, single=True)
    began = time.monotonic()
    with runner.sandbox(kind, cell, options.to, options.from_region, options.keep) as (found, sandbox):
        told = {"kind": kind.name, "id": found.id, "region": found.region, "ok": not sandbox.differences,
                "differences": sandbox.differences, "facts": sandbox.facts, "where": sandbox.where,
                "seconds": round(time.monotonic() - began, 1)}  # fmt: skip
        print(json.dumps(told, indent=1), flush=True)
        if options.keep_running:
            time.sleep(options.keep_running)
    return 1 if sandbox.differences else 0


def _fetch(runner: Runner, options: argparse.Namespace) -> int:
    ((kind, cell),) = _wanted(runner, options, single=True)
    told = runner.fetch(kind, cell, options.to, options.from_region, Path(options.into))
    print(json.dumps({**told, "ok": True}, indent=1))
    return 0


# -- what they share -----------------------------------------------------------------------------------------------


def _wanted(runner: Runner, options: argparse.Namespace, single: bool = False) -> list[tuple[Kind, Cell | None]]:
    """The kinds and cells that the command line names."""
    settings: Settings = runner.settings
    names = list(runner.kinds) if options.kind == ALL else [options.kind]
    cells = [settings.cell(options.cell)] if options.cell else list(settings.cells)
    wanted: list[tuple[Kind, Cell | None]] = []
    for name in names:
        kind = runner.kinds[name]
        wanted += [(kind, cell) for cell in cells] if kind.per_cell else [(kind, None)]
    if single and len(wanted) != 1:
        raise ResilienceError(
            f"{options.kind} belongs to a cell: say which of {', '.join(one.name for one in cells)} with --cell"
        )
    return wanted


def _judged(runner: Runner) -> list[dict[str, t.Any]]:
    settings = runner.settings
    return judge(
        runner.records.everything(),
        settings.objectives,
        [cell.name for cell in settings.cells],
        list(settings.repositories),
        datetime.now(timezone.utc),
    )


def _write_metrics(runner: Runner) -> None:
    """Beside the result, never instead of it."""
    try:
        runner.look()
        room = space_of(runner.settings.state)
        text = metrics.render(_judged(runner), room.free, room.total)
        write(str(runner.settings.folder("metrics") / "shannon_backup.prom"), text.encode(), 0o644)
    except (ResilienceError, OSError) as exc:
        logging.getLogger(__name__).warning("the metrics could not be written: %s", exc)


def _told(results: t.Sequence[Run | Skipped], as_json: bool) -> int:
    if as_json:
        print(json.dumps([{**asdict(one), "skipped": isinstance(one, Skipped)} for one in results], indent=1))
    for one in [] if as_json else results:
        if isinstance(one, Skipped):
            print(f"{one.kind} {one.cell}: skipped: {one.reason}")
        else:
            note = f" ({one.error})" if one.error else ""
            verdict = "good" if one.ok else "FAILED"
            print(f"{one.kind} {one.cell}: {verdict}, {one.id or 'nothing'}, {one.seconds:.1f} s{note}")
    return 0 if all(isinstance(one, Skipped) or one.ok for one in results) else 1


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
