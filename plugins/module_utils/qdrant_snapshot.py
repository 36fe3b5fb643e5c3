# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups of a region's Qdrant, shard by shard from the peers that hold them, with what proves a restore.

A snapshot of a whole collection has the shards of one peer only, and recovering it on a peer that holds another shard
too leaves that one C(Partial) for good. Snapshots of single shards fit any cluster: one peer takes the file, and Qdrant
itself brings the other copies in line. So a backup of three peers can be restored into three others, or into one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import typing as t
from datetime import datetime, timedelta, timezone

from . import files
from .concurrently import wait_until
from .errors import ResilienceError
from .qdrant import Qdrant
from .qdrant_transfer import PART, ShardSnapshots

#: The indexer's positions: taken before the data, so that what is replayed after a restore starts early enough.
POSITIONS = "indexer_positions"
MANIFEST = "manifest.json"
PROGRESS = "restored.json"
#: How many points a sample search finds.
NEAREST = 10
#: Scores may differ by rounding when a segment is laid out anew.
SCORE_TOLERANCE = 1e-4
#: Hours after which a snapshot on a peer is taken for the remains of a run that was killed.
LEFT_BEHIND = 12

Peers = t.Mapping[str, Qdrant]
Say = t.Callable[[str], None]


def _silent(_text: str) -> None:
    pass


def first_that_answers(peers: Peers) -> Qdrant:
    """A peer to ask; with a leader, so that it can create and drop collections.

    :raises ResilienceError: none answers.
    """
    said = []
    for name, peer in peers.items():
        try:
            if peer.peer_status().leader is not None:
                return peer
            said.append(f"{name}: its cluster has no leader")
        except ResilienceError as exc:
            said.append(f"{name}: {exc}")
    raise ResilienceError(f"no peer of Qdrant can be asked: {'; '.join(said) or 'none was named'}")


# -- taking a backup -------------------------------------------------------------------------------------------------


def take(
    peers: Peers,
    folder: str,
    collections: t.Sequence[str] | None = None,
    searches: int = 5,
    timeout: float = 600.0,
    say: Say = _silent,
) -> dict[str, t.Any]:
    """Back up collections into a folder, and write its manifest last: a folder without one is no backup.

    :param peers: by host name, all peers of the region's cluster.
    :param collections: None for all.
    :param searches: how many sample searches prove each collection.
    :raises ResilienceError: a shard has no copy in use on any peer that answers, or something could not be read.
    """
    started, begun = time.time(), time.monotonic()
    one = first_that_answers(peers)
    there = one.collections()
    names = list(there if collections is None else collections)
    if missing := sorted(set(names) - set(there)):
        raise ResilienceError(f"Qdrant has no collection {', '.join(missing)}; it has {', '.join(sorted(there))}")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(folder, MANIFEST))
    aliases = one.aliases()
    found: dict[str, t.Any] = {}
    for name in sorted(names, key=lambda name: (name != POSITIONS, name)):
        found[name] = _take_collection(one, peers, name, folder, searches, timeout, say)
        found[name]["aliases"] = sorted(alias for alias, target in aliases.items() if target == name)
    manifest = {
        "kind": "qdrant",
        "taken_at": datetime.fromtimestamp(started, timezone.utc).isoformat(timespec="seconds"),
        "bytes": sum(shard["bytes"] for it in found.values() for shard in it["shards"].values()),
        "seconds": round(time.monotonic() - begun, 3),
        "collections": found,
    }
    files.write(os.path.join(folder, MANIFEST), json.dumps(manifest, indent=1, sort_keys=True).encode(), 0o600)
    return manifest


def _take_collection(
    one: Qdrant, peers: Peers, name: str, folder: str, searches: int, timeout: float, say: Say
) -> dict[str, t.Any]:
    target = os.path.join(folder, name)
    shutil.rmtree(target, ignore_errors=True)
    os.makedirs(target, mode=0o700)
    facts = one.collection(name)
    before = one.count(name)
    samples = _samples(one, name, facts["config"]["params"], searches)
    shards: dict[str, t.Any] = {}
    for shard, host in sorted(_holders(peers, name, int(facts["config"]["params"].get("shard_number", 1))).items()):
        snapshots = ShardSnapshots(peers[host], timeout)
        _sweep(snapshots, name, shard)
        file = f"shard-{shard}.snapshot"
        got = snapshots.fetch(name, shard, os.path.join(target, file))
        shards[str(shard)] = {"host": host, "file": f"{name}/{file}", "bytes": got.bytes, "sha256": got.sha256}
        say(f"{name}: shard {shard} from {host}, {got.bytes} bytes")
    after = one.count(name)
    # Only answers that were the same before and after are those of the snapshot, too.
    failed = _failed(one, name, samples)
    stable = [sample for sample in samples if sample["id"] not in failed]
    return {
        "points": [min(before, after), max(before, after)],
        "config": facts["config"],
        "payload_schema": _schema(facts),
        "shards": shards,
        "searches": stable,
        **({"positions": _positions(one)} if name == POSITIONS else {}),
    }


def _holders(peers: Peers, name: str, shards: int) -> dict[int, str]:
    """For each shard a peer to take it from; the work is spread over the peers."""
    holding: dict[str, set[int]] = {}
    silent = []
    for host, peer in peers.items():
        try:
            holding[host] = {shard for shard, state in peer.local_shards(name).items() if state == "Active"}
        except ResilienceError as exc:
            silent.append(str(exc))
    chosen: dict[int, str] = {}
    for shard in sorted({*range(shards), *(shard for held in holding.values() for shard in held)}):
        able = [host for host, held in holding.items() if shard in held]
        if not able:
            raise ResilienceError(
                f"the collection {name} has no copy of shard {shard} in use on {', '.join(holding) or 'any peer'}"
                f"{''.join(f'; {text}' for text in silent)}. Wait until its shards are Active (status.yml), then run "
                "it again."
            )
        chosen[shard] = min(able, key=lambda host: (list(chosen.values()).count(host), host))
    return chosen


def _sweep(snapshots: ShardSnapshots, name: str, shard: int) -> None:
    """Remove from the peer what runs that were killed have left there."""
    limit = datetime.now(timezone.utc) - timedelta(hours=LEFT_BEHIND)
    for found in snapshots.list(name, shard):
        made = found.get("creation_time")
        if made and datetime.fromisoformat(str(made)[:19]).replace(tzinfo=timezone.utc) < limit:
            snapshots.delete(name, shard, str(found["name"]))


def _positions(one: Qdrant) -> list[dict[str, t.Any]]:
    """What the indexer had read when the backup began, per cell and collection."""
    points = one.scroll(POSITIONS, 1000, vectors=False)
    return [dict(point.get("payload") or {}) for point in points]


def _schema(facts: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Payload indexes as they are created: a type, or a mapping where there is more to say."""
    return {field: it.get("params") or it["data_type"] for field, it in sorted(facts["payload_schema"].items())}


# -- proving -----------------------------------------------------------------------------------------------------------


def _samples(one: Qdrant, name: str, params: t.Mapping[str, t.Any], number: int) -> list[dict[str, t.Any]]:
    """Searches with vectors of points that are there, and their answers."""
    vectors = params.get("vectors") or {}
    using = "" if "size" in vectors else next(iter(vectors), None)
    if using is None:
        return []
    samples = []
    for point in one.scroll(name, number):
        vector = point["vector"][using] if using else point["vector"]
        # What a user wrote stays out of the manifest.
        sample = {"vector": vector, "using": using, "payload": _digest(point.get("payload")), "id": point["id"]}
        samples.append({**sample, "answer": _ask(one, name, sample)})
    return samples


def _digest(payload: t.Any) -> str:
    return hashlib.sha256(json.dumps(payload or {}, sort_keys=True).encode()).hexdigest()


def _failed(one: Qdrant, name: str, samples: t.Sequence[t.Mapping[str, t.Any]]) -> list[t.Any]:
    """Points whose payload is another, or whose vector finds others than it did."""
    payloads = one.payloads_of(name, [sample["id"] for sample in samples]) if samples else {}
    return [
        sample["id"]
        for sample in samples
        if _digest(payloads.get(str(sample["id"]))) != sample["payload"]
        or not _same_answer(sample, _ask(one, name, sample))
    ]


def _ask(one: Qdrant, name: str, sample: t.Mapping[str, t.Any]) -> list[list[t.Any]]:
    return [[point, score] for point, score in one.nearest(name, sample["vector"], NEAREST, sample["using"])]


def _same_answer(sample: t.Mapping[str, t.Any], answer: t.Sequence[t.Sequence[t.Any]]) -> bool:
    """Whether two answers are the same; points that are equally near may change places."""
    wanted = sample["answer"]
    if len(wanted) != len(answer):
        return False
    if any(abs(a[1] - b[1]) > SCORE_TOLERANCE for a, b in zip(wanted, answer, strict=True)):
        return False
    last = wanted[-1][1] if wanted else 0.0
    # What is as near as the last one may have been left out for another.
    sure = {point for point, score in wanted if abs(score - last) > SCORE_TOLERANCE}
    return sure <= {point for point, _score in answer}


def read_manifest(folder: str) -> dict[str, t.Any]:
    """A backup's manifest.

    :raises ResilienceError: there is none, or it is none of Qdrant's.
    """
    path = os.path.join(folder, MANIFEST)
    try:
        with open(path, encoding="utf-8") as handle:
            found = json.load(handle)
    except FileNotFoundError as exc:
        raise ResilienceError(f"{path} is missing: the backup was not finished. Take another one.") from exc
    except (OSError, ValueError) as exc:
        raise ResilienceError(f"{path}: {exc}. Take another backup.") from exc
    if not isinstance(found, dict) or found.get("kind") != "qdrant":
        raise ResilienceError(f"{path} is no manifest of a backup of Qdrant")
    return found


def verify(folder: str) -> list[str]:
    """Differences between the files of a backup and its manifest."""
    problems = []
    for name, it in read_manifest(folder)["collections"].items():
        for shard, wanted in it["shards"].items():
            problem = _file_problem(os.path.join(folder, wanted["file"]), wanted)
            if problem:
                problems.append(f"{name}, shard {shard}: {problem}")
    return problems


def _file_problem(path: str, wanted: t.Mapping[str, t.Any]) -> str:
    digest, size = hashlib.sha256(), 0
    try:
        with open(path, "rb") as handle:
            while part := handle.read(PART):
                digest.update(part)
                size += len(part)
    except OSError as exc:
        return f"{path}: {exc.strerror}"
    if (size, digest.hexdigest()) != (wanted["bytes"], wanted["sha256"]):
        return (
            f"{path} has {size} bytes with SHA-256 {digest.hexdigest()}, its manifest says {wanted['bytes']} with "
            f"{wanted['sha256']}"
        )
    return ""


def compare(manifest: t.Mapping[str, t.Any], peers: Peers, collections: t.Sequence[str] | None = None) -> list[str]:
    """Differences between a cluster and a backup's manifest, a sentence each; none means that it is whole."""
    one = first_that_answers(peers)
    wanted = {name: it for name, it in manifest["collections"].items() if collections is None or name in collections}
    there = set(one.collections())
    problems = [f"the collection {name} is not there" for name in wanted if name not in there]
    for name in (name for name in wanted if name in there):
        problems += _collection_differences(one, peers, name, wanted[name])
    aliases = one.aliases()
    for name, it in wanted.items():
        problems += [f"the alias {alias} is not {name}'s" for alias in it["aliases"] if aliases.get(alias) != name]
    return problems


def _collection_differences(one: Qdrant, peers: Peers, name: str, wanted: t.Mapping[str, t.Any]) -> list[str]:
    problems = []
    low, high = wanted["points"]
    count = one.count(name)
    if not low <= count <= high:
        problems.append(f"{name}: {count} points, not {low if low == high else f'{low} to {high}'}")
    facts = one.collection(name)
    if facts["config"]["params"].get("vectors") != wanted["config"]["params"].get("vectors"):
        problems.append(f"{name}: its vectors are {facts['config']['params'].get('vectors')}")
    schema = _schema(facts)
    problems += [
        f"{name}: payload index {field} is {schema.get(field, 'missing')}, not {kind}"
        for field, kind in wanted["payload_schema"].items()
        if schema.get(field) != kind
    ]
    if unsettled := _unsettled(peers, name):
        problems.append(f"{name}: {unsettled}")
    if failed := _failed(one, name, wanted["searches"]):
        problems.append(
            f"{name}: {len(failed)} of {len(wanted['searches'])} sample searches answer otherwise (the vectors of "
            f"{', '.join(map(str, failed[:3]))})"
        )
    return problems


def _unsettled(peers: Peers, name: str) -> str:
    """What of a collection is not in use yet; empty when all is."""
    waiting = []
    for host, peer in peers.items():
        waiting += [
            f"shard {shard} on {host} is {state}"
            for shard, state in peer.local_shards(name).items()
            if state != "Active"
        ]
    if not waiting:
        one = next(iter(peers.values()))
        spread = one.shards(name)
        if one.transfers(name) or spread.replicas_active < spread.replicas:
            waiting.append(f"{spread.replicas_active} of {spread.replicas} copies are in use")
    return "; ".join(waiting)


# -- restoring ---------------------------------------------------------------------------------------------------------


def restore(
    peers: Peers,
    folder: str,
    collections: t.Sequence[str] | None = None,
    restore_id: str = "",
    wait: float = 600.0,
    say: Say = _silent,
    dry_run: bool = False,
) -> list[str]:
    """Bring collections back from a backup; what was done, a sentence each.

    Every file is compared with its manifest before anything is changed. The indexer's positions are dropped first and
    restored last: whenever this ends too early, an indexer that starts reads everything again instead of skipping it.

    :param peers: all peers of the cluster; all must answer, since each must have what it holds.
    :param restore_id: names this restore; started again with the same name, it skips the collections that are done.
        Without one, collections that are as the manifest says are skipped.
    :param wait: seconds for a collection's copies to be in use.
    :param dry_run: only say what would be done.
    """
    manifest = read_manifest(folder)
    names = [name for name in manifest["collections"] if collections is None or name in collections]
    if collections is not None and (missing := sorted(set(collections) - set(names))):
        raise ResilienceError(f"the backup in {folder} has no collection {', '.join(missing)}")
    one = first_that_answers(peers)
    for peer in peers.values():
        peer.peer_status()  # all must be there
    done = _progress(folder, restore_id)
    todo = [name for name in names if name not in done and (restore_id or compare(manifest, peers, [name]))]
    if todo:
        problems = verify(folder)
        if problems:
            raise ResilienceError(f"nothing was changed, the backup is damaged: {'; '.join(problems[:3])}")
    actions = [f"{name}: restored {manifest['collections'][name]['points'][1]} points" for name in _in_order(todo)]
    if dry_run or not todo:
        return actions
    if POSITIONS in todo and POSITIONS in one.collections():
        one.delete_collection(POSITIONS)
    for name in _in_order(todo):
        _restore_collection(one, peers, name, manifest, folder, wait, say)
        done = [*done, name]
        if restore_id:
            _note_progress(folder, restore_id, done)
    return actions


def empty(peers: Peers, collections: t.Sequence[str] | None = None, dry_run: bool = False) -> list[str]:
    """Delete all points, so that the indexer fills the collections anew from vector_log; what was done.

    The positions go last: a run that was killed before leaves them ahead of the log, and is seen to be undone.
    """
    one = first_that_answers(peers)
    names = one.collections()
    wanted = [name for name in _in_order(names) if collections is None or name in collections or name == POSITIONS]
    actions = []
    for name in wanted:
        if count := one.count(name):
            actions.append(f"{name}: {count} points deleted; the indexer fills it anew")
            if not dry_run:
                one.delete_points(name)
    return actions


def positions(peers: Peers) -> list[dict[str, t.Any]]:
    """How far the indexer has come, per cell and collection; nothing when it never ran."""
    one = first_that_answers(peers)
    return _positions(one) if POSITIONS in one.collections() else []


def _in_order(names: t.Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (name == POSITIONS, name))


def _restore_collection(
    one: Qdrant, peers: Peers, name: str, manifest: t.Mapping[str, t.Any], folder: str, wait: float, say: Say
) -> None:
    it = manifest["collections"][name]
    if name in one.collections():
        one.delete_collection(name)
    copies = min(int(it["config"]["params"].get("replication_factor") or 1), len(peers))
    one.create_like(name, it["config"], copies)
    for field, kind in it["payload_schema"].items():
        one.create_index(name, field, kind)
    _wait_settled(peers, name, wait)
    for shard, file in sorted(it["shards"].items()):
        holders = [host for host, peer in peers.items() if int(shard) in peer.local_shards(name)]
        if not holders:
            raise ResilienceError(f"no peer holds shard {shard} of {name}; expected one of {', '.join(peers)}")
        host = holders[int(shard) % len(holders)]
        ShardSnapshots(peers[host], wait).put(name, int(shard), os.path.join(folder, file["file"]), file["sha256"])
        say(f"{name}: shard {shard} is back on {host}")
        _wait_settled(peers, name, wait)
    one.set_aliases(dict.fromkeys(it["aliases"], name))
    problems = _wait_equal(one, peers, name, it, wait)
    if problems:
        raise ResilienceError(f"restored, but not as it was: {'; '.join(problems)}")


def _wait_settled(peers: Peers, name: str, wait: float) -> None:
    def settled() -> tuple[bool, str]:
        unsettled = _unsettled(peers, name)
        return not unsettled, unsettled

    wait_until(settled, f"all copies of {name}'s shards to be in use", wait, interval=0.2)


def _wait_equal(one: Qdrant, peers: Peers, name: str, it: t.Mapping[str, t.Any], wait: float) -> list[str]:
    """Copies may be marked as out of line a moment after a file was taken: so look again before it is an error."""
    seen: list[str] = []

    def equal() -> tuple[bool, str]:
        seen[:] = _collection_differences(one, peers, name, it)
        return not seen, "; ".join(seen)

    with contextlib.suppress(ResilienceError):
        wait_until(equal, f"{name} to be as it was", min(wait, 60.0), interval=0.5)
    return seen


def _progress(folder: str, restore_id: str) -> list[str]:
    """The collections that a restore of this name has brought back."""
    return _all_progress(folder).get(restore_id, []) if restore_id else []


def _all_progress(folder: str) -> dict[str, list[str]]:
    try:
        with open(os.path.join(folder, PROGRESS), encoding="utf-8") as handle:
            found = json.load(handle)
    except (OSError, ValueError):
        return {}
    return {str(name): list(done) for name, done in found.items()} if isinstance(found, dict) else {}


def _note_progress(folder: str, restore_id: str, done: list[str]) -> None:
    content = json.dumps({**_all_progress(folder), restore_id: done}).encode()
    files.write(os.path.join(folder, PROGRESS), content, 0o600)
