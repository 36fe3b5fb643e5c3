# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A member's configuration and data on its own host: read them, and make new data from old.

Data is never changed in place: it is copied or restored beside, and what it replaces is kept.
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
import re
import shutil
import signal
import subprocess
import time
import typing as t
from dataclasses import dataclass

from .errors import ResilienceError, WaitTimeout
from .registry_rebuild import Identity

#: Where data is made and kept; on the same file system as the members' own.
WORK = "/var/lib/shannon/registry-rebuild"
_METADATA = 1


@dataclass(frozen=True)
class MemberConfig:
    """What the role C(etcd) wrote."""

    text: str

    @classmethod
    def read(cls, path: str) -> MemberConfig:
        """From a file.

        :raises ResilienceError: it is not there.
        """
        try:
            return cls(pathlib.Path(path).read_text(encoding="utf-8"))
        except OSError as exc:
            raise ResilienceError(
                f"the member's configuration can't be read: {exc}. Run site.yml with --tags registry first."
            ) from exc

    def value(self, key: str) -> str:
        """A value of the first level.

        :raises ResilienceError: there is none.
        """
        found = re.search(rf'^{re.escape(key)}:\s*"?([^"\n]*?)"?\s*$', self.text, re.MULTILINE)
        if not found:
            raise ResilienceError(f"the member's configuration has no {key}: run site.yml with --tags registry")
        return found.group(1)

    def joining(self, members: str) -> str:
        """The text for a first start as one that joins these members."""
        text = re.sub(r"^initial-cluster:.*$", f'initial-cluster: "{members}"', self.text, flags=re.MULTILINE)
        return re.sub(r"^initial-cluster-state:.*$", "initial-cluster-state: existing", text, flags=re.MULTILINE)


def identity(data_dir: str | os.PathLike[str]) -> Identity | None:
    """Of which member and which cluster the data is, from the head of its log; None when there is no data."""
    logs = sorted(pathlib.Path(data_dir, "member", "wal").glob("*.wal"))
    for path in logs[-1:]:
        with path.open("rb") as handle:
            for kind, body in _records(handle.read(4096)):
                if kind == _METADATA:
                    fields = _varints(body)
                    return Identity(fields.get(1, 0), str(fields.get(2, 0)))
    return None


def _records(raw: bytes) -> t.Iterator[tuple[int, bytes]]:
    """Type and content of the records at the head of a log: a length with its padding, then a protobuf message."""
    at = 0
    while at + 8 <= len(raw):
        frame = int.from_bytes(raw[at : at + 8], "little")
        size, padding = frame & (2**56 - 1), (frame >> 56) & 7 if frame >> 63 else 0
        message = raw[at + 8 : at + 8 + size]
        if not size or len(message) < size:
            return
        kind, body, inner = 0, b"", 0
        while inner < len(message):
            tag, inner = _varint(message, inner)
            if tag & 7 == 2:
                length, inner = _varint(message, inner)
                body, inner = message[inner : inner + length], inner + length
            else:
                value, inner = _varint(message, inner)
                kind = value if tag >> 3 == 1 else kind
        yield kind, body
        at += 8 + size + padding


def _varints(message: bytes) -> dict[int, int]:
    found, at = {}, 0
    while at < len(message):
        tag, at = _varint(message, at)
        found[tag >> 3], at = _varint(message, at)
    return found


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(raw):
        value |= (raw[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if not raw[at - 1] & 0x80:
            break
    return value, at


class Tools:
    """etcd's own programs, run as the user who owns the data.

    :param user: the owner; empty: whoever runs this.
    """

    def __init__(self, user: str = "etcd") -> None:
        self._as = ["runuser", "-u", user, "--"] if user else []
        # etcd 3.4 and before run on it only when told to.
        arm = {"ETCD_UNSUPPORTED_ARCH": "arm64"} if platform.machine() == "aarch64" else {}
        self._environment = {**os.environ, "ETCDCTL_API": "3", **arm}

    def run(self, *words: str, cwd: str = "/", timeout: float = 60) -> str:
        """What a program prints.

        :raises ResilienceError: it failed; the text has what it said.
        """
        try:
            done = subprocess.run(
                [*self._as, *words], cwd=cwd, env=self._environment, capture_output=True, text=True, timeout=timeout,
                check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise ResilienceError(f"{' '.join(words[:3])} could not be run: {exc}") from exc
        if done.returncode:
            raise ResilienceError(
                f"{' '.join(words[:3])} ended with {done.returncode}: {(done.stderr.strip() or done.stdout)[-800:]}"
            )
        return done.stdout

    def rescue(self, data_dir: str, folder: str, snapshot: str, timeout: float = 60) -> int:
        """Take a snapshot of a stopped member's data, without its other members.

        etcd is started on a copy of it as the only member of a cluster, which drops what this member had not heard to
        be agreed on: at most what was written within the last heartbeat. It listens on sockets in the folder only.

        :returns: the revision that it has.
        """
        copy = os.path.join(folder, "copy")
        self.run("rm", "-rf", "--", copy)
        self.run("cp", "-a", "--reflink=auto", "--", data_dir, copy, timeout=600)
        socket = "unix://client:1"
        # A file rather than flags: etcd 3.3 passes over settings in it that it does not know.
        settings = pathlib.Path(folder, "rescue.yml")
        settings.write_text(
            f"name: rescue\ndata-dir: {copy}\nforce-new-cluster: true\n"
            f"listen-client-urls: {socket}\nadvertise-client-urls: {socket}\nlisten-peer-urls: unix://peer:1\n"
            "logger: zap\nlog-outputs: [stderr]\nlog-level: error\n",
            encoding="utf-8",
        )
        settings.chmod(0o644)
        command = [*self._as, "etcd", "--config-file", str(settings)]
        log = pathlib.Path(folder, "rescue.log")
        with log.open("wb") as handle:
            process = subprocess.Popen(
                command, cwd=folder, env=self._environment, stdin=subprocess.DEVNULL, stdout=handle, stderr=handle,
                start_new_session=True,
            )  # fmt: skip
        try:
            deadline = time.monotonic() + timeout
            while True:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise WaitTimeout(
                        f"waited {timeout:.0f} s for etcd to open a copy of {data_dir} as its only member; it said: "
                        f"{log.read_text(errors='replace').strip()[-800:] or 'nothing'}. Nothing was changed."
                    )
                try:
                    words = ("etcdctl", "--endpoints", socket, "--command-timeout", "5s")
                    self.run(*words, "get", "/shannon/cells/", "--prefix", "--keys-only", cwd=folder, timeout=10)
                    break
                except ResilienceError:
                    time.sleep(0.2)
            said = json.loads(self.run(*words, "endpoint", "status", "--write-out", "json", cwd=folder))
            self.run("rm", "-f", "--", snapshot)
            self.run(
                "etcdctl", "--endpoints", socket, "--command-timeout", "300s", "snapshot", "save", snapshot,
                cwd=folder, timeout=320,
            )  # fmt: skip
        finally:
            _end(process)
            shutil.rmtree(copy, ignore_errors=True)
        return int(said[0]["Status"]["header"]["revision"])

    def restore(self, snapshot: str, target: str, name: str, peer_url: str, members: str, token: str) -> None:
        """Make a member's data from a snapshot: of a new cluster with these members (C(name=url,...))."""
        self.run("rm", "-rf", "--", target)
        # From 3.6 on only etcdutl can; before 3.5 there is only etcdctl.
        program = "etcdutl" if shutil.which("etcdutl") else "etcdctl"
        self.run(
            program, "snapshot", "restore", snapshot, "--name", name, "--data-dir", target,
            "--initial-advertise-peer-urls", peer_url, "--initial-cluster", members, "--initial-cluster-token", token,
            timeout=600,
        )  # fmt: skip


def _end(process: subprocess.Popen[bytes]) -> None:
    """runuser hands a signal on, but the whole session is ours."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                continue


def keep(data_dir: str, kept: str) -> bool:
    """Move a member's data away; whether there was any. The folder itself stays, as the unit expects it."""
    member = pathlib.Path(data_dir, "member")
    if not member.exists():
        return False
    pathlib.Path(kept).mkdir(parents=True, exist_ok=True, mode=0o700)
    os.rename(member, pathlib.Path(kept, "member"))
    return True


def put_in(restored: str, data_dir: str) -> None:
    """Move restored data to where the member looks for it."""
    os.rename(pathlib.Path(restored, "member"), pathlib.Path(data_dir, "member"))
    shutil.rmtree(restored, ignore_errors=True)
