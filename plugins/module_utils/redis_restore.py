# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring a Redis group back from a backup: a running primary by replication, one that is down by its files.

An RDB file beside an append-only file is ignored by Redis, and an empty primary wipes its replicas. So a running
primary gets the data from a scratch instance that has loaded the verified file: Redis writes a new append-only file by
itself, and the group's replicas follow. Files are touched only where no instance runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import tempfile
import time
import typing as t
from datetime import datetime, timezone

from . import files
from .concurrently import wait_until
from .errors import ResilienceError
from .redis import RedisClient, Replication
from .redis_backup import Source, check_rdb, differences, facts, pull, read_manifest, sha256_of
from .redis_scratch import FILE, Listener, RedisScratch, server_version

#: Says which restore ended well last; beside the instance's data.
MARK = "restored.json"
AOF_FOLDER = "appendonlydir"
AOF_NAME = "appendonly.aof"
Say = t.Callable[[str], None]
Client = t.Callable[[], RedisClient]


def _silent(_text: str) -> None:
    pass


def already_restored(mark: str, restore_id: str) -> bool:
    """Whether the restore of this name ended well."""
    if not restore_id:
        return False
    try:
        with open(mark, encoding="utf-8") as handle:
            return bool(json.load(handle).get("restore_id") == restore_id)
    except (OSError, ValueError, AttributeError):
        return False


def note_restored(mark: str, restore_id: str, manifest: t.Mapping[str, t.Any]) -> None:
    """Remember which restore ended well."""
    found = {
        "restore_id": restore_id,
        "sha256": manifest["sha256"],
        "keys": manifest["keys"],
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    files.write(mark, json.dumps(found).encode(), 0o640)


def verified(folder: str, allow_empty: bool = False, server: str = "redis-server") -> dict[str, t.Any]:
    """A backup's manifest, after its file was compared with it and checked.

    :raises ResilienceError: it is damaged, or holds nothing: an empty source would wipe the whole group.
    """
    manifest = read_manifest(folder)
    path = os.path.join(folder, FILE)
    try:
        problems = differences(manifest, {"bytes": os.path.getsize(path), "sha256": sha256_of(path)})
    except OSError as exc:
        problems = [f"{path}: {exc.strerror}"]
    if problems:
        raise ResilienceError(f"nothing was changed, the backup in {folder} is damaged: {'; '.join(problems)}")
    check_rdb(path)
    if not manifest["keys"] and not allow_empty:
        raise ResilienceError(
            f"nothing was changed: the backup in {folder} holds no key at all, and restoring it would empty the group. "
            "Choose an older one, or set allow_empty if that is what you want."
        )
    return manifest


class LiveRestore:
    """Restores a running primary, on its host.

    :param primary: connects to it as a user that may do everything.
    :param own: the same instance for a user that may take a backup; what arrived is read back through it.
    :param listener: where the scratch instance serves the primary.
    :param folder: a folder for the scratch instance.
    :param admin: user and password of the group's ACL for the scratch instance's own commands.
    """

    def __init__(
        self,
        primary: Client,
        own: Source,
        listener: Listener,
        folder: str,
        admin: tuple[str, str],
        user: tuple[int, int] | None = None,
        groups: t.Sequence[int] = (),
        server: str = "redis-server",
        timeout: float = 1800.0,
        say: Say = _silent,
    ) -> None:
        self._primary = primary
        self._own = own
        self._listener = listener
        self._folder = folder
        self._admin = admin
        self._user = user
        self._groups = groups
        self._server = server
        self._timeout = timeout
        self._say = say

    def problem(self) -> str:
        """Why this instance may not be restored; empty when it may."""
        seen = self._replication()
        if seen.role == "primary" or self._follows_scratch(seen):
            return ""
        return (
            f"it is a replica of {seen.primary_address}:{seen.primary_port}, not the group's primary; restore that "
            "one, and the others follow it"
        )

    def run(self, backup: str, manifest: t.Mapping[str, t.Any]) -> list[str]:
        """Have the primary take the data of a verified backup; what was done.

        A run that was killed leaves the primary a replica of a scratch instance, so it takes no writes; the next run
        finds that, ends the old scratch instance and begins anew.
        """
        actions = []
        with RedisScratch(
            self._folder,
            os.path.join(backup, FILE),
            self._server,
            self._timeout,
            self._listener,
            self._user,
            self._groups,
            self._admin,
        ) as scratch:
            if problems := differences(
                manifest, {"keys": sum(scratch.databases().values()), "digest": scratch.digest()}
            ):
                raise ResilienceError(f"nothing was changed, the loaded backup is not as it was: {'; '.join(problems)}")
            self._say("the backup is loaded")
            scratch.become_primary()
            with self._primary() as live:
                live.command(["REPLICAOF", self._listener.address, self._listener.port])
            self._wait_in_line(scratch)
            self._say("the primary has taken the data")
            actions.append(f"{self._own.host}:{self._own.port} took {manifest['keys']} keys of {manifest['taken_at']}")
            self._compare(manifest)
            with self._primary() as live:
                live.command(["REPLICAOF", "NO", "ONE"])
        self._wait_aof()
        shutil.rmtree(self._folder, ignore_errors=True)
        return actions

    def _replication(self) -> Replication:
        with self._primary() as live:
            return live.replication()

    def _follows_scratch(self, seen: Replication) -> bool:
        return (seen.primary_address, seen.primary_port) == (self._listener.address, self._listener.port)

    def _wait_in_line(self, scratch: RedisScratch) -> None:
        def in_line() -> tuple[bool, str]:
            seen = self._replication()
            with scratch.client() as client:
                source = client.replication()
            if seen.link != "up" or seen.loading:
                return False, f"link {seen.link}{', loading' if seen.loading else ''}"
            return self._follows_scratch(seen) and seen.offset >= source.offset, f"{seen.offset} of {source.offset}"

        wait_until(in_line, "the primary to take the backup's data", self._timeout, interval=0.1)

    def _compare(self, manifest: t.Mapping[str, t.Any]) -> None:
        """Read back what arrived, before it is let go: as long as it is a replica nothing expires and nobody writes."""
        folder = tempfile.mkdtemp(prefix="readback-", dir=os.path.dirname(self._folder))
        try:
            path = os.path.join(folder, FILE)
            pull(self._own, path, self._timeout)
            problems = differences(manifest, facts(path, self._server, self._timeout))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if problems:
            raise ResilienceError(
                f"{self._own.host}:{self._own.port} took the data, but not as it was: {'; '.join(problems)}. It takes "
                "no writes until a restore ends well; run it again."
            )

    def _wait_aof(self) -> None:
        def written() -> tuple[bool, str]:
            with self._primary() as live:
                info = live.info("persistence", "replication")
            busy = info.get("aof_rewrite_in_progress") == "1" or info.get("aof_rewrite_scheduled") == "1"
            if info.get("aof_enabled") != "1":
                # It was switched off by whoever configured it, or it is just being written anew.
                return not busy and self._aof_is_off(), "the append-only file is off"
            good = info.get("aof_last_bgrewrite_status") == "ok" and info.get("aof_last_write_status") == "ok"
            return not busy and good and info.get("role") == "master", "the append-only file is being written anew"

        wait_until(written, "the append-only file to hold the restored data", self._timeout, interval=0.2)

    def _aof_is_off(self) -> bool:
        with self._primary() as live:
            reply = live.command(["CONFIG", "GET", "appendonly"])
        return bool(reply) and "no" in reply


def let_pass(folder: str) -> None:
    """Have a folder in which folders of others are, and let those others through to theirs, but list nothing."""
    os.makedirs(folder, mode=0o711, exist_ok=True)
    mode = stat.S_IMODE(os.stat(folder).st_mode)
    if mode & 0o111 != 0o111:
        os.chmod(folder, mode | 0o111)


def wait_replicas(primary: Client, expected: int, timeout: float) -> None:
    """Wait until the primary's replicas have all that it has.

    :param expected: how many replicas there must be.
    """

    with primary() as client:
        target = client.replication().offset

    def in_line() -> tuple[bool, str]:
        with primary() as client:
            seen = client.replication()
        # A replica is called online before it has read what it was sent; what it says that it has applied counts.
        near = [link for link in seen.links if link.state == "online" and link.offset >= target]
        return len(near) >= expected, f"{len(near)} of {expected} in line"

    wait_until(in_line, "the replicas to take the restored data", timeout, interval=0.2)


# -- an instance that is down ------------------------------------------------------------------------------------------


def restore_files(
    backup: str,
    data: str,
    manifest: t.Mapping[str, t.Any],
    user: tuple[int, int] | None = None,
    server: str = "redis-server",
    moment: t.Callable[[], float] = time.time,
) -> list[str]:
    """Give an instance that is down the data of a verified backup, as its append-only file.

    What it had is kept aside. Since Redis 7 the append-only file is a folder whose manifest names its parts, and the
    RDB file is its base; before, it is one file that may begin with an RDB file.

    :param data: the instance's data folder; nobody may run on it.
    """
    if pid := _runs_in(data):
        raise ResilienceError(
            f"nothing was changed: process {pid} runs on {data}. Stop the instance first, or restore it live"
        )
    folders = server_version(server) >= (7, 0)
    staged = os.path.join(data, f"{files.STAGED}restore")
    shutil.rmtree(staged, ignore_errors=True)
    os.makedirs(os.path.join(staged, AOF_FOLDER), mode=0o750)
    source = os.path.join(backup, FILE)
    if folders:
        base = f"{AOF_NAME}.1.base.rdb"
        _copy(source, os.path.join(staged, AOF_FOLDER, base))
        listing = f"file {base} seq 1 type b\n".encode()
        files.write(os.path.join(staged, AOF_FOLDER, f"{AOF_NAME}.manifest"), listing, 0o640)
        new = AOF_FOLDER
    else:
        _copy(source, os.path.join(staged, AOF_NAME))
        new = AOF_NAME
    if user is not None:
        for root, _folders, names in os.walk(staged):
            for path in (root, *(os.path.join(root, name) for name in names)):
                os.chown(path, *user)
    written = sha256_of(os.path.join(staged, new, base) if folders else os.path.join(staged, new))
    if written != manifest["sha256"]:
        shutil.rmtree(staged, ignore_errors=True)
        raise ResilienceError(f"nothing was changed: the copy on {data} is not the backup. Look at this host's disk")
    actions = []
    stamp = datetime.fromtimestamp(moment(), timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    # Whatever this host's Redis could take for its data goes aside, so that only the restored one is left.
    for name in (AOF_FOLDER, AOF_NAME, "dump.rdb"):
        path = os.path.join(data, name)
        if os.path.exists(path):
            os.rename(path, f"{path}.before-restore-{stamp}")
            actions.append(f"{path} is kept as {name}.before-restore-{stamp}")
    os.rename(os.path.join(staged, new), os.path.join(data, new))
    files.sync(data)
    shutil.rmtree(staged, ignore_errors=True)
    return [*actions, f"{os.path.join(data, new)} holds {manifest['keys']} keys of {manifest['taken_at']}"]


def _copy(source: str, target: str) -> None:
    shutil.copyfile(source, target)
    os.chmod(target, 0o640)
    files.sync(target)


def _runs_in(folder: str) -> int:
    """A Redis that has this folder as its own; 0 when there is none."""
    wanted = os.path.realpath(folder)
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError), open(f"/proc/{entry}/comm", encoding="utf-8") as handle:
            if handle.read().startswith("redis-server") and os.path.realpath(f"/proc/{entry}/cwd") == wanted:
                return int(entry)
    return 0
