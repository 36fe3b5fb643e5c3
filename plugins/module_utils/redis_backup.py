# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups of a Redis group: an RDB over replication, checked, loaded, and described so that a restore can be proven."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import typing as t
from dataclasses import dataclass, field
from datetime import datetime, timezone

from . import files
from .concurrently import gather
from .errors import EndpointError, ResilienceError
from .redis import Replication, replication_info
from .redis_scratch import FILE, RedisScratch
from .tls import TlsFiles, client_context

MANIFEST = "manifest.json"
_PART = 1 << 20


@dataclass(frozen=True)
class Source:
    """An instance to take a backup from, and who may do so."""

    host: str
    port: int
    username: str
    password: str = field(repr=False)
    tls: TlsFiles | None

    def replication(self, timeout: float = 3.0) -> Replication:
        """What it says of its replication."""
        context = None if self.tls is None else client_context(self.tls)
        return replication_info(self.host, self.port, self.username, self.password, context, timeout)


def newest_replica(sources: t.Sequence[Source]) -> Source:
    """The replica in line that has read most; the primary when there is none, which spares nothing but loses nothing.

    :raises ResilienceError: no instance can be taken a backup from; the text says of each why.
    """
    answers = gather({number: source.replication for number, source in enumerate(sources)})
    replicas: list[tuple[int, Source]] = []
    primaries: list[Source] = []
    said = []
    for number, source in enumerate(sources):
        seen = answers[number]
        if isinstance(seen, ResilienceError):
            said.append(str(seen))
        elif seen.loading:
            said.append(f"{source.host}:{source.port} still loads its data")
        elif seen.role == "primary":
            primaries.append(source)
        elif seen.link == "up":
            replicas.append((seen.offset, source))
        else:
            said.append(f"{source.host}:{source.port} is a replica whose link is {seen.link}")
    if replicas:
        return max(replicas, key=lambda one: one[0])[1]
    if primaries:
        return primaries[0]
    raise ResilienceError(f"no Redis instance can be taken a backup from: {'; '.join(said) or 'none was named'}")


def pull(source: Source, into: str, timeout: float = 3600.0, binary: str = "redis-cli") -> None:
    """Have an instance send its data as to a replica; the file is there whole or not at all."""
    partial = f"{into}.partial"
    words = [binary, "-h", source.host, "-p", str(source.port)]
    if source.username:
        words += ["--user", source.username]
    if source.tls is not None:
        words += ["--tls", "--cacert", source.tls.ca, "--cert", source.tls.cert, "--key", source.tls.key]
    environment = {"PATH": os.environ.get("PATH", ""), "REDISCLI_AUTH": source.password, "LANG": "C.UTF-8"}
    expected = "its data as an RDB file"
    try:
        done = subprocess.run(
            [*words, "--no-auth-warning", "--rdb", partial],
            env=environment if source.password else {"PATH": environment["PATH"]},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
        said = " ".join((done.stderr + done.stdout).replace(source.password or "\0", "***").split())
        if done.returncode or not os.path.exists(partial) or os.path.getsize(partial) == 0:
            raise EndpointError(source.host, source.port, expected, said[-300:] or "nothing", _remedy(said))
        with open(partial, "rb") as handle:
            os.fsync(handle.fileno())
        os.rename(partial, into)
    except OSError as exc:
        raise ResilienceError(f"cannot run {binary} for {into}: {exc}") from exc
    except subprocess.TimeoutExpired as exc:
        raise EndpointError(source.host, source.port, f"{expected} within {timeout:.0f} s", "no end of it") from exc
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)


def check_rdb(path: str, binary: str = "redis-check-rdb", timeout: float = 3600.0) -> None:
    """Have redis-check-rdb read a file.

    :raises ResilienceError: it is no whole RDB file.
    """
    try:
        done = subprocess.run(
            [binary, path], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=timeout, check=False,
        )  # fmt: skip
    except OSError as exc:
        raise ResilienceError(f"cannot run {binary}: {exc}. Install the package redis-tools") from exc
    except subprocess.TimeoutExpired as exc:
        raise ResilienceError(f"{binary} {path}: not done within {timeout:.0f} s") from exc
    if done.returncode or "RDB looks OK" not in done.stdout:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        telling = [line for line in lines if re.search(r"rror|EOF|CRC|Wrong|orrupt|ABORT", line)]
        raise ResilienceError(
            f"{path} is no whole RDB file: {' / '.join((telling or lines)[:3])[:400]}. It can't be restored; take "
            "another backup, or restore from the other region's repository."
        )


def take(source: Source, folder: str, server: str = "redis-server", timeout: float = 3600.0) -> dict[str, t.Any]:
    """Back up a group into a folder, and write its manifest last: a folder without one is no backup."""
    started, begun = time.time(), time.monotonic()
    os.makedirs(folder, mode=0o700, exist_ok=True)
    path = os.path.join(folder, FILE)
    for old in (MANIFEST, FILE):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, old))
    pull(source, path, timeout)
    check_rdb(path)
    pulled = time.monotonic() - begun
    manifest = {
        "kind": "redis",
        "taken_at": datetime.fromtimestamp(started, timezone.utc).isoformat(timespec="seconds"),
        "host": source.host,
        "port": source.port,
        "bytes": os.path.getsize(path),
        "sha256": sha256_of(path),
        **facts(path, server, timeout),
        "pull_seconds": round(pulled, 3),
        "seconds": round(time.monotonic() - begun, 3),
    }
    files.write(os.path.join(folder, MANIFEST), json.dumps(manifest, indent=1, sort_keys=True).encode(), 0o600)
    return manifest


def facts(path: str, server: str = "redis-server", timeout: float = 3600.0) -> dict[str, t.Any]:
    """What a scratch instance finds in a file: keys, those with a time to live, and Redis' digest of all."""
    folder = tempfile.mkdtemp(prefix=".scratch-", dir=os.path.dirname(path))
    try:
        os.link(path, os.path.join(folder, FILE))
        with RedisScratch(folder, path, server, timeout) as scratch:
            databases = scratch.databases()
            return {
                "redis_version": scratch.version(),
                "keys": sum(databases.values()),
                "databases": databases,
                "expires": scratch.expires(),
                "digest": scratch.digest(),
            }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_manifest(folder: str) -> dict[str, t.Any]:
    """A backup's manifest.

    :raises ResilienceError: there is none, or it is none of Redis'.
    """
    path = os.path.join(folder, MANIFEST)
    try:
        with open(path, encoding="utf-8") as handle:
            found = json.load(handle)
    except FileNotFoundError as exc:
        raise ResilienceError(f"{path} is missing: the backup was not finished. Take another one.") from exc
    except (OSError, ValueError) as exc:
        raise ResilienceError(f"{path}: {exc}. Take another backup.") from exc
    if not isinstance(found, dict) or found.get("kind") != "redis":
        raise ResilienceError(f"{path} is no manifest of a backup of Redis")
    return found


def verify(folder: str, server: str = "redis-server", timeout: float = 3600.0) -> list[str]:
    """Differences between a backup and its manifest, found by loading it; none means that it restores."""
    manifest = read_manifest(folder)
    path = os.path.join(folder, FILE)
    try:
        seen: dict[str, t.Any] = {"bytes": os.path.getsize(path), "sha256": sha256_of(path)}
    except OSError as exc:
        return [f"{path}: {exc.strerror}"]
    problems = differences(manifest, seen)
    if problems:
        return problems
    try:
        check_rdb(path)
        return differences(manifest, facts(path, server, timeout))
    except ResilienceError as exc:
        return [str(exc)]


def differences(manifest: t.Mapping[str, t.Any], seen: t.Mapping[str, t.Any]) -> list[str]:
    """What is not as the manifest says, of what was looked at."""
    names = ("bytes", "sha256", "keys", "databases", "expires", "digest")
    return [
        f"{name} is {seen[name]}, the manifest says {manifest[name]}"
        for name in names
        if name in seen and seen[name] != manifest[name]
    ]


def sha256_of(path: str) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while part := handle.read(_PART):
            digest.update(part)
    return digest.hexdigest()


def _remedy(said: str) -> str:
    if "NOPERM" in said or "WRONGPASS" in said or "NOAUTH" in said:
        return "Run site.yml --tags redis, so that the user backup is there with the password of the secrets"
    if "No space left" in said:
        return "Make room on this host's disk; nothing partial was kept"
    return "Look at that instance: journalctl -u 'redis@*'"
