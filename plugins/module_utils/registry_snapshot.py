# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups of the registry: a snapshot from one of its members, verified to the last byte, and restored for a look."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import typing as t
from dataclasses import dataclass
from datetime import datetime, timezone

from . import files
from .concurrently import wait_until
from .errors import ResilienceError
from .etcd import EtcdClient
from .http_client import JsonEndpoint
from .registry import CELLS, record_of
from .tls import TlsFiles

MANIFEST = "manifest.json"
FILE = "registry.db"
#: The last bytes of a snapshot are the SHA-256 of all before them.
_TRAILER = 32
_PART = 1 << 20


@dataclass(frozen=True)
class RegistrySnapshot:
    """A snapshot on this host's disk.

    :ivar revision: the registry's revision at that moment.
    :ivar keys: how many keys etcd counts in it, its own among them.
    """

    path: str
    bytes: int
    sha256: str
    revision: int
    keys: int


def save(endpoint: str, tls: TlsFiles, into: str, timeout: float = 60.0, binary: str = "etcdctl") -> RegistrySnapshot:
    """Take a snapshot from one member (C(host:port)); the file is there whole and verified, or not at all."""
    partial = f"{into}.partial"
    words = ["--endpoints", f"https://{endpoint}", "--command-timeout", f"{timeout:.0f}s"]
    words += ["--cacert", tls.ca, "--cert", tls.cert, "--key", tls.key, "snapshot", "save", partial]
    try:
        _etcdctl(binary, words, f"a snapshot of the registry from {endpoint}", timeout + 10)
        verify(partial, binary)
        files.sync(partial)
        files.replace(partial, into)
    finally:
        for left in (partial, f"{partial}.part"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(left)
    return verify(into, binary)


def verify(path: str, binary: str = "etcdctl") -> RegistrySnapshot:
    """Read a snapshot and compare it with the checksum that it carries, which C(snapshot status) does not do.

    :raises ResilienceError: it is damaged.
    """
    try:
        size = os.path.getsize(path)
        body, whole, left = hashlib.sha256(), hashlib.sha256(), size - _TRAILER
        if left <= 0:
            raise ResilienceError(f"{path} has {size} bytes and is no snapshot of etcd. Take another one.")
        with open(path, "rb") as handle:
            while left:
                part = handle.read(min(_PART, left))
                if not part:
                    break
                body.update(part)
                whole.update(part)
                left -= len(part)
            expected = handle.read(_TRAILER)
            whole.update(expected)
    except OSError as exc:
        raise ResilienceError(f"{path}: {exc.strerror}") from exc
    if body.digest() != expected:
        raise ResilienceError(
            f"{path} is damaged: its SHA-256 should be {expected.hex()} and is {body.hexdigest()}. Take another one, "
            "or restore from the other region's repository."
        )
    said = _etcdctl(binary, ["snapshot", "status", path, "--write-out", "json"], f"the state of {path}", 60)
    try:
        status = json.loads(said)
        return RegistrySnapshot(path, size, whole.hexdigest(), int(status["revision"]), int(status["totalKey"]))
    except (ValueError, KeyError) as exc:
        raise ResilienceError(
            f"etcdctl snapshot status {path}: an answer that is not understood: {said[:200]}"
        ) from exc


def take(endpoints: t.Sequence[str], tls: TlsFiles, folder: str, timeout: float = 60.0) -> dict[str, t.Any]:
    """Back up the registry from the first member that gives a snapshot, and write a manifest last."""
    started, begun = time.time(), time.monotonic()
    os.makedirs(folder, mode=0o700, exist_ok=True)
    path = os.path.join(folder, FILE)
    for old in (MANIFEST, FILE):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, old))
    said = []
    for endpoint in endpoints:
        try:
            found = save(endpoint, tls, path, timeout)
            break
        except ResilienceError as exc:
            said.append(str(exc))
    else:
        raise ResilienceError(f"no member of the registry gives a snapshot: {'; '.join(said) or 'none was named'}")
    manifest = {
        "kind": "registry",
        "taken_at": datetime.fromtimestamp(started, timezone.utc).isoformat(timespec="seconds"),
        "host": endpoint.rsplit(":", 1)[0],
        "revision": found.revision,
        "keys": found.keys,
        "bytes": found.bytes,
        "sha256": found.sha256,
        "cells": cells_in(path),
        "seconds": round(time.monotonic() - begun, 3),
    }
    files.write(os.path.join(folder, MANIFEST), json.dumps(manifest, indent=1, sort_keys=True).encode(), 0o600)
    return manifest


def verify_folder(folder: str) -> list[str]:
    """Differences between a backup and its manifest, found by running it; none means that it restores."""
    path = os.path.join(folder, MANIFEST)
    try:
        with open(path, encoding="utf-8") as handle:
            wanted = json.load(handle)
    except (OSError, ValueError) as exc:
        return [f"{path}: {exc}. The backup was not finished; take another one"]
    try:
        found = verify(os.path.join(folder, FILE))
        seen = {"revision": found.revision, "keys": found.keys, "bytes": found.bytes, "sha256": found.sha256}
        problems = [
            f"{name} is {value}, the manifest says {wanted[name]}"
            for name, value in seen.items()
            if wanted[name] != value
        ]
        if not problems and (cells := cells_in(found.path)) != wanted["cells"]:
            problems.append(f"the cells are {cells}, the manifest says {wanted['cells']}")
    except ResilienceError as exc:
        return [str(exc)]
    return problems


def cells_in(path: str, timeout: float = 60.0, server: str = "etcd", binary: str = "etcdctl") -> dict[str, t.Any]:
    """The cells' records in a snapshot: it is restored into a scratch etcd on loopback and asked."""
    folder = tempfile.mkdtemp(prefix=".scratch-", dir=os.path.dirname(path))
    peer, client = _free_ports(2)
    data = os.path.join(folder, "data")
    urls = ["--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}"]
    try:
        words = ["snapshot", "restore", path, "--name", "scratch", "--data-dir", data]
        words += ["--initial-cluster", f"scratch=http://127.0.0.1:{peer}", *urls]
        _etcdctl(binary, words, f"{path} to be restored", timeout)
        with _etcd(server, data, peer, client, os.path.join(folder, "log")) as process:
            _wait_healthy(process, client, os.path.join(folder, "log"), timeout)
            found = EtcdClient([f"127.0.0.1:{client}"], None, 10.0, name="the scratch registry")
            records = [record_of(one) for one in found.range(CELLS)]
            return {
                record.cell: {"home": record.home, "epoch": record.epoch, "state": record.state} for record in records
            }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _etcd(server: str, data: str, peer: int, client: int, log_path: str) -> t.Iterator[subprocess.Popen[bytes]]:
    words = [server, "--name", "scratch", "--data-dir", data, "--force-new-cluster"]
    words += ["--listen-peer-urls", f"http://127.0.0.1:{peer}", "--listen-client-urls", f"http://127.0.0.1:{client}"]
    words += ["--advertise-client-urls", f"http://127.0.0.1:{client}"]
    with open(log_path, "wb") as log:
        try:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        except OSError as exc:
            raise ResilienceError(f"cannot run {server}: {exc}. Install the package etcd-server") from exc
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_healthy(process: subprocess.Popen[bytes], port: int, log_path: str, timeout: float) -> None:
    endpoint = JsonEndpoint("127.0.0.1", port)

    def healthy() -> tuple[bool, str]:
        if process.poll() is not None:
            return True, "it ended"
        return endpoint.request("GET", "/health").status == 200, "not healthy yet"

    wait_until(healthy, "a scratch etcd to be healthy", timeout, interval=0.1)
    if process.poll() is not None:
        with open(log_path, encoding="utf-8", errors="replace") as handle:
            raise ResilienceError(f"the scratch etcd ended at once: {' '.join(handle.read()[-400:].split())}")


def _free_ports(number: int) -> list[int]:
    probes = [socket.socket() for _one in range(number)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _etcdctl(binary: str, words: t.Sequence[str], what: str, timeout: float) -> str:
    environment = {"PATH": os.environ.get("PATH", ""), "ETCDCTL_API": "3"}
    try:
        done = subprocess.run(
            [binary, *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except OSError as exc:
        raise ResilienceError(f"cannot run {binary}: {exc}. Install the package etcd-client") from exc
    except subprocess.TimeoutExpired as exc:
        raise ResilienceError(f"expected {what} within {timeout:.0f} s, got no end of etcdctl") from exc
    if done.returncode:
        lines = (done.stderr + done.stdout).splitlines()
        telling = [line for line in lines if line.startswith("Error")] or lines[-2:]
        raise ResilienceError(f"expected {what}, got: {' '.join(telling)[-400:]}")
    return done.stdout
