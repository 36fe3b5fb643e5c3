# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups in a restic repository, behind an append-only server or on this host's disk.

Passwords reach restic by its environment, the client's certificate by a descriptor: neither is in a process list or
stays on a disk when a run is killed. Works with restic 0.12 (Ubuntu 22.04) and later.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
import typing as t
import urllib.parse
from dataclasses import dataclass, field
from datetime import datetime, timezone

from .errors import ResilienceError

#: Seconds that restic may try one thing over again before it is stopped: by itself it goes on for a quarter of an hour.
PATIENCE = 30.0
#: Seconds that a stopped restic has to remove its lock.
GRACE = 10.0
_RETRY = re.compile(r"^(\w+\(.*?\)) returned error, retrying after")
_TAG = re.compile(r"^[A-Za-z0-9_.:=@/+-]+$")
#: What is kept of what restic says.
_LINES = 400


class ResticError(ResilienceError):
    """restic failed; the text says at which repository, why as far as that is known, and what to do."""


class WrongPassword(ResticError):
    """The repository is there, but this password opens it not."""


class RepositoryMissing(ResticError):
    """No repository is there."""


class RepositoryUnreachable(ResticError):
    """The server does not answer, or refuses this client."""


class RepositoryFull(ResticError):
    """The repository's disk has no room."""


class RepositoryLocked(ResticError):
    """Another run holds the repository."""


class AppendOnly(ResticError):
    """The server lets nobody remove anything, as it should."""


class CorruptRepository(ResticError):
    """Something in the repository is not what was written."""


#: What restic says, the error that it means, and what to do. The first that fits counts.
_MEANINGS: tuple[tuple[str, type[ResticError], str, str], ...] = (
    (
        r"wrong password or no key found",
        WrongPassword,
        "the repository's password is not the one that it was made with",
        "Take the password from the controller's secrets (restic_<region>), or from the copy that you keep of them",
    ),
    (
        r"\b401\b.*Unauthorized",
        RepositoryUnreachable,
        "the server refuses the user or its password",
        "Run site.yml --tags backup, so that client and server have the same secrets",
    ),
    (
        r"no space left on device|disk quota exceeded|\b507\b",
        RepositoryFull,
        "the repository's disk is full",
        "Give it room or keep less (backup_restic_keep) and run the prune timer there; the next run then goes on",
    ),
    (
        r"\b403\b.*Forbidden",
        AppendOnly,
        "the server is append-only and refuses to remove or replace anything",
        "Only the prune timer of the repository's host may forget",
    ),
    (
        r"already locked",
        RepositoryLocked,
        "another run holds the repository's lock",
        "Wait for it; a lock of a dead run on another host is given up after 30 minutes",
    ),
    (
        r"x509:|tls:|certificate",
        RepositoryUnreachable,
        "the TLS connection is refused",
        "Compare the certificates and the CA of both hosts: site.yml --tags pki",
    ),
    (
        r"connection refused|i/o timeout|no route to host|no such host|network is unreachable|connection reset"
        r"|unexpected EOF|Client\.Timeout|context deadline exceeded|broken pipe|server closed",
        RepositoryUnreachable,
        "the server does not answer",
        "Look at shannon-restic.service on the repository's host, and at the firewall between",
    ),
    (
        r"<config/?> does not exist|unable to open config file: .*(no such file|does not exist|404)",
        RepositoryMissing,
        "there is no repository",
        "Run site.yml --tags backup, which makes it; if there was one, look at the disk first",
    ),
    (
        r"ciphertext verification failed|does not match|invalid data|contains errors|hash mismatch|is damaged"
        r"|not referenced in any index|missing from index|pack \w+.* (?:contains|not found)|tree \w+.*not found"
        r"|load.*EOF|not found in (?:the )?(?:index|repository)|error loading|damaged|invalid header|header length",
        CorruptRepository,
        "the repository is damaged: what is read is not what was written",
        "Restore from the other region's repository; look at this disk, then mend it as docs/backup-stores.md says",
    ),
)


@dataclass(frozen=True)
class Repository:
    """Where a repository is and what opens it.

    :ivar name: for messages, the region's name.
    :ivar url: C(rest:https://HOST:PORT/) of an append-only server, or a folder.
    :ivar password: what the repository is encrypted with.
    :ivar username: user of the server.
    :ivar http_password: the server's password of that user.
    :ivar ca_file: the CA of the server's certificate.
    :ivar client_cert: the certificate to present; C(client_key) is its key.
    """

    name: str
    url: str
    password: str = field(repr=False)
    username: str = ""
    http_password: str = field(default="", repr=False)
    ca_file: str = ""
    client_cert: str = ""
    client_key: str = ""

    @property
    def remote(self) -> bool:
        """Whether a server is between."""
        return self.url.startswith("rest:")

    def address(self) -> str:
        """The repository as restic takes it, credentials and all."""
        if not self.remote or not self.username:
            return self.url
        parts = urllib.parse.urlsplit(self.url.removeprefix("rest:"))
        user = urllib.parse.quote(self.username, safe="")
        password = urllib.parse.quote(self.http_password, safe="")
        path = parts.path if parts.path.endswith("/") else f"{parts.path}/"
        return f"rest:{parts.scheme}://{user}:{password}@{parts.netloc}{path}"

    def secrets(self) -> list[str]:
        """What must be in no message."""
        quoted = urllib.parse.quote(self.http_password, safe="")
        return [secret for secret in (self.password, self.http_password, quoted) if secret]


@dataclass(frozen=True)
class Keep:
    """How many snapshots stay, of each group of host and tags (paths differ from run to run)."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0

    def words(self) -> list[str]:
        """As restic takes it.

        :raises ResticError: nothing would stay.
        """
        found = [(name, getattr(self, name)) for name in ("last", "hourly", "daily", "weekly", "monthly")]
        if any(number < 0 for _name, number in found) or not any(number for _name, number in found):
            raise ResticError(
                "a policy that keeps nothing would empty the repository: backup_restic_keep needs a number"
            )
        return [word for name, number in found if number for word in (f"--keep-{name}", str(number))]


@dataclass(frozen=True)
class Backup:
    """What a backup made.

    :ivar id: the snapshot.
    :ivar bytes: what was read.
    :ivar added: what the repository had not yet.
    """

    id: str
    files: int
    bytes: int
    added: int
    seconds: float


@dataclass(frozen=True)
class Snapshot:
    """One backup in a repository."""

    id: str
    time: datetime
    host: str
    tags: tuple[str, ...]
    paths: tuple[str, ...]


class Retries:
    """Notes what restic tries over again, and since when.

    :param patience: seconds after which trying is hopeless.
    """

    def __init__(self, patience: float, clock: t.Callable[[], float] = time.monotonic) -> None:
        self._patience = patience
        self._clock = clock
        self._since: dict[str, float] = {}

    def hopeless(self, line: str) -> bool:
        """Whether this line of restic's says that it has tried the same thing for too long, or for nothing.

        What an append-only server refuses once it refuses always: rclone keeps the beginning of a file that it could
        not write whole, and lets nobody replace it. The next run writes other files.
        """
        found = _RETRY.match(line)
        if not found:
            return False
        if "403 Forbidden" in line:
            return True
        now = self._clock()
        return now - self._since.setdefault(found.group(1), now) >= self._patience


class Restic:
    """One repository.

    :param cache_folder: a folder for restic's cache; empty for none.
    :param timeout: seconds for each verb.
    :param lock_wait: seconds to wait for another run's lock.
    """

    def __init__(
        self,
        repository: Repository,
        binary: str = "restic",
        cache_folder: str = "",
        timeout: float = 3600.0,
        lock_wait: float = 60.0,
        patience: float = PATIENCE,
    ) -> None:
        self.repository = repository
        self._binary = binary
        self._cache_folder = cache_folder
        self._timeout = timeout
        self._lock_wait = lock_wait
        self._patience = patience

    def opens(self) -> bool:
        """Whether the repository is there and the password opens it; False when none is there.

        :raises WrongPassword: it is another's.
        """
        try:
            self._run(["cat", "config"])
        except RepositoryMissing:
            return False
        return True

    def init(self) -> bool:
        """Make the repository if there is none; whether it was made now.

        :raises WrongPassword: one is there that this password does not open; it is left alone.
        """
        if self.opens():
            return False
        try:
            self._run(["init"])
        except ResticError:
            # Somebody else may have been faster.
            if not self.opens():
                raise
            return False
        return True

    def backup(
        self, paths: t.Sequence[str], tags: t.Sequence[str] = (), host: str = "", excludes: t.Sequence[str] = ()
    ) -> Backup:
        """Back up files and folders, as one snapshot.

        :raises ResticError: something could not be read or written; there is no snapshot of it that counts.
        """
        words = ["backup", "--json", *_tagged(tags), *_host(host)]
        words += [word for exclude in excludes for word in ("--exclude", exclude)]
        return _backup_of(self._run([*words, "--", *paths]), self.repository.name)

    def backup_stdin(self, stream: t.IO[bytes], filename: str, tags: t.Sequence[str] = (), host: str = "") -> Backup:
        """Back up what a stream gives, as one file. The caller sees whether the stream was whole."""
        words = ["backup", "--json", "--stdin", "--stdin-filename", filename, *_tagged(tags), *_host(host)]
        return _backup_of(self._run(words, stdin=stream), self.repository.name)

    def snapshots(self, tags: t.Sequence[str] = (), host: str = "") -> list[Snapshot]:
        """Snapshots that have all these tags, the oldest first."""
        words = ["snapshots", "--json", *(["--tag", ",".join(_checked(tags))] if tags else []), *_host(host)]
        found = _json(self._run(words), self.repository.name) or []
        return sorted((_snapshot_of(one) for one in found), key=lambda one: one.time)

    def restore(self, snapshot: str, into: str, include: t.Sequence[str] = ()) -> None:
        """Restore below a folder; each file keeps its path there, see :func:`restored_path`."""
        words = ["restore", snapshot, "--target", into]
        self._run([*words, *(word for path in include for word in ("--include", path))])

    def dump(self, snapshot: str, path: str, into: str) -> None:
        """Restore one file to a place of its own; it is there whole or not at all."""
        partial = f"{into}.partial"
        try:
            with open(partial, "wb") as handle:
                self._run(["dump", snapshot, path], stdout=handle)
                handle.flush()
                os.fsync(handle.fileno())
            os.rename(partial, into)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)

    def check(self, read_data_subset: str = "") -> None:
        """Check the structure, and read data too if a part of it is named (C(5%), C(1/10)).

        :raises CorruptRepository: something is missing or was changed.
        """
        subset = [f"--read-data-subset={read_data_subset}"] if read_data_subset else []
        self.unlock()
        try:
            self._run(["check", *subset])
        except ResilienceError as exc:  # all of them are ResticErrors
            if isinstance(
                exc, (WrongPassword, RepositoryMissing, RepositoryUnreachable, RepositoryLocked, RepositoryFull)
            ):
                raise
            raise CorruptRepository(str(exc)) from exc

    def forget(self, keep: Keep, tags: t.Sequence[str] = (), prune: bool = True) -> list[str]:
        """Remove what the policy does not keep; the ids of what was removed.

        :raises AppendOnly: it was tried through the server.
        """
        if self.repository.remote:
            raise AppendOnly(
                f"the repository {self.repository.name} is behind an append-only server, which lets nobody remove "
                "backups. Only the prune timer of its host may forget, on the folder itself"
            )
        words = [
            "forget",
            "--json",
            "--group-by",
            "host,tags",
            *keep.words(),
            *(["--tag", ",".join(_checked(tags))] if tags else []),
        ]
        self.unlock()
        groups = _json(self._run(words), self.repository.name) or []
        if prune:
            self._run(["prune"])
        return [str(one["id"]) for group in groups for one in group.get("remove") or []]

    def unlock(self) -> None:
        """Remove locks whose run is dead: on this host at once, on another after 30 minutes."""
        self._run(["unlock"])

    # -- running restic ------------------------------------------------------------------------------------------

    def _run(self, words: t.Sequence[str], stdin: t.IO[bytes] | None = None, stdout: t.IO[bytes] | None = None) -> str:
        deadline = time.monotonic() + self._lock_wait
        pause = threading.Event()
        while True:
            try:
                return self._run_once(words, stdin, stdout)
            except RepositoryLocked:
                if time.monotonic() >= deadline or stdin is not None:
                    raise
            pause.wait(min(5.0, max(0.1, self._lock_wait / 10)))
            with contextlib.suppress(ResticError):
                self._run_once(["unlock"], None, None)

    def _run_once(self, words: t.Sequence[str], stdin: t.IO[bytes] | None, stdout: t.IO[bytes] | None) -> str:
        options, descriptors = self._options()
        environment = {
            **{name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ},
            "LANG": "C.UTF-8",
            "RESTIC_REPOSITORY": self.repository.address(),
            "RESTIC_PASSWORD": self.repository.password,
        }
        try:
            process = subprocess.Popen(
                [self._binary, *options, *words],
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                stdout=subprocess.PIPE if stdout is None else stdout,
                stderr=subprocess.PIPE,
                env=environment,
                pass_fds=descriptors,
                start_new_session=True,
            )
        except OSError as exc:
            raise ResticError(f"cannot run {self._binary}: {exc}. Install the package restic") from exc
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return self._watch(process, words[0])

    def _watch(self, process: subprocess.Popen[bytes], verb: str) -> str:
        """Read what restic says, stop it when it gets nowhere, and turn a failure into an error."""
        said: list[str] = []
        output: list[str] = []
        retries = Retries(self._patience)
        hopeless = threading.Event()

        def read_errors() -> None:
            for raw in t.cast(t.BinaryIO, process.stderr):
                line = raw.decode(errors="replace").rstrip()
                said.append(line)
                del said[:-_LINES]
                if retries.hopeless(line) and not hopeless.is_set():
                    hopeless.set()
                    _stop(process)

        def read_output() -> None:
            if process.stdout is not None:
                for raw in process.stdout:
                    # Of a backup's thousands of progress lines only the last ones matter.
                    if not raw.startswith(b'{"message_type":"status"'):
                        output.append(raw.decode(errors="replace"))

        readers = [threading.Thread(target=reader, daemon=True) for reader in (read_errors, read_output)]
        for reader in readers:
            reader.start()
        late = False
        try:
            process.wait(self._timeout)
        except subprocess.TimeoutExpired:
            late = True
            _stop(process)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            for reader in readers:
                reader.join(GRACE)
        if process.returncode == 0 and not late:
            return "".join(output)
        text = "\n".join([*said, *"".join(output).splitlines()[-20:]])
        raise self._error(verb, process.returncode, text, late)

    def _error(self, verb: str, code: int, text: str, late: bool) -> ResticError:
        for secret in self.repository.secrets():
            text = text.replace(secret, "***")
        where = f"restic {verb}, repository {self.repository.name} ({self.repository.url})"
        seen = brief(text)
        if re.search(r"^Save\(.*403 Forbidden", text, re.MULTILINE):
            return RepositoryFull(
                f"{where}: the server could not write a file whole, because its disk is full or the connection was "
                "cut, and being append-only it refuses a second try. Give it room or keep less (backup_restic_keep) "
                f"and run shannon-restic-prune.service there; the next run then goes on. restic said: {seen}"
            )
        for pattern, error, meaning, remedy in _MEANINGS:
            if re.search(pattern, text, re.IGNORECASE):
                return error(f"{where}: {meaning}. {remedy}. restic said: {seen}")
        if _RETRY.search(text) or re.search(r"^\w+\(.*\) returned error, retrying", text, re.MULTILINE):
            return RepositoryUnreachable(
                f"{where}: the server fails again and again; is its disk full? Look at: journalctl -u shannon-restic "
                f"on its host. restic said: {seen}"
            )
        if late:
            return ResticError(f"{where}: not done within {self._timeout:.0f} s; it was stopped. restic said: {seen}")
        if code < 0:
            return ResticError(f"{where}: was ended by signal {-code}; the next run goes on where it was")
        return ResticError(f"{where}: failed with code {code}. restic said: {seen}")

    def _options(self) -> tuple[list[str], list[int]]:
        """Options for every verb, and descriptors that restic must inherit."""
        options = ["--cache-dir", self._cache_folder] if self._cache_folder else ["--no-cache"]
        if not self.repository.remote:
            return options, []
        if self.repository.ca_file:
            options += ["--cacert", self.repository.ca_file]
        if not self.repository.client_cert:
            return options, []
        # restic wants certificate and key in one file. This one is in memory only.
        try:
            both = b""
            for path in (self.repository.client_cert, self.repository.client_key):
                with open(path, "rb") as handle:
                    both += handle.read() + b"\n"
        except OSError as exc:
            raise ResticError(
                f"cannot read the client's certificate: {exc}. Run as a user in the group shannon-tls"
            ) from exc
        descriptor = os.memfd_create("restic-client")
        os.write(descriptor, both)
        return [*options, "--tls-client-cert", f"/proc/self/fd/{descriptor}"], [descriptor]


def restored_path(into: str, path: str) -> str:
    """Where :meth:`Restic.restore` puts what was backed up from this path."""
    return os.path.join(into, os.path.abspath(path).lstrip("/"))


def brief(text: str, limit: int = 400) -> str:
    """The lines of restic's that say most: the fatal ones, else the last."""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("\t", "github.com/"))]
    fatal = [line for line in lines if re.match(r"(Fatal|error|Error|pack|Pack)\b", line)]
    told = "; ".join(dict.fromkeys((fatal or lines)[-3:]))
    return (told[:limit] + "...") if len(told) > limit else told or "nothing"


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupt restic, which then removes its lock; end it when it does not listen."""

    def interrupt() -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()

    threading.Thread(target=interrupt, daemon=True).start()


def _checked(tags: t.Sequence[str]) -> list[str]:
    for tag in tags:
        if not _TAG.match(tag):
            raise ResticError(f"{tag!r} is no tag: letters, digits and _.:=@/+- only, no commas")
    return list(tags)


def _tagged(tags: t.Sequence[str]) -> list[str]:
    return [word for tag in _checked(tags) for word in ("--tag", tag)]


def _host(host: str) -> list[str]:
    return ["--host", host] if host else []


def _json(text: str, name: str) -> t.Any:
    try:
        return json.loads(text) if text.strip() else None
    except ValueError as exc:
        raise ResticError(f"the repository {name}: restic's answer is not JSON: {text[:200]!r}") from exc


def _backup_of(text: str, name: str) -> Backup:
    for line in reversed(text.splitlines()):
        if '"summary"' in line:
            found = _json(line, name)
            return Backup(
                str(found["snapshot_id"]),
                int(found["total_files_processed"]),
                int(found["total_bytes_processed"]),
                int(found["data_added"]),
                float(found["total_duration"]),
            )
    raise ResticError(f"the repository {name}: restic ended well but told of no snapshot: {brief(text)}")


def _snapshot_of(found: dict[str, t.Any]) -> Snapshot:
    # Python 3.10 reads no nanoseconds.
    text = re.sub(r"(\.\d{6})\d*", r"\1", str(found["time"])).replace("Z", "+00:00")
    return Snapshot(
        str(found["id"]),
        datetime.fromisoformat(_padded(text)).astimezone(timezone.utc),
        str(found["hostname"]),
        tuple(str(tag) for tag in found.get("tags") or ()),
        tuple(str(path) for path in found["paths"]),
    )


def _padded(text: str) -> str:
    """Fractions of three or six digits are all that Python 3.10 reads."""
    return re.sub(r"\.(\d{1,6})(?=[+-])", lambda found: "." + found.group(1).ljust(6, "0"), text)
