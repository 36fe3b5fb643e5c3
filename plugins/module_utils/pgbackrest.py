# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine of physical backups that is built in: pgBackRest, called as a command.

It runs on a repository host (all verbs) or on a host of PostgreSQL (info and restore). A repository has the same number
on every host: pgBackRest asks a remote host for the repository of that number.
"""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import time
import typing as t
from dataclasses import dataclass, field

from .concurrently import gather
from .errors import ResilienceError
from .postgres_engine import (
    BACKUP,
    KINDS,
    LATEST,
    TIME,
    BackupInfo,
    RepositoryInfo,
    RestoreTarget,
    choose_backup,
    format_time,
    parse_history,
    parse_lsn,
    parse_time,
    ranges_of,
    segment_position,
    target_problem,
)

COMMAND = "/usr/bin/pgbackrest"
REPOSITORY_CONFIG = "/etc/pgbackrest/repository.conf"
#: pgBackRest's number for a stanza that belongs to another PostgreSQL.
MISMATCH = 28
#: What is put after a data folder's path to name the configuration that its recovery reads.
RESTORE_CONFIG = ".pgbackrest.conf"
#: pgBackRest's number for a lock that somebody else has, and how many seconds it is waited for.
LOCKED, LOCK_WITHIN = 50, 60.0
_ERROR = re.compile(r"ERROR: \[(\d{3})\]: (.*)", re.S)
_SEGMENT_FILE = re.compile(r"(?:^|/)([0-9A-F]{24})-[0-9a-f]{40}")
_HISTORY_FILE = re.compile(r"(?:^|/)([0-9A-F]{8})\.history$")
#: What an operator can do about it, by a word of the message or the number of the error.
_REMEDIES = (
    (("CryptoError", "cipher header", "unable to flush", "[095]", "found outside of section"),
     "Is it the passphrase that this repository was made with (secrets backup_cipher_<region>)?"),
    (("No space left", "FileWriteError", "unable to write"),
     "The repository's disk is full, or a file can't be written: look at df, and at the retention of role backup."),
    (("unable to find primary",), "Does the cell have a primary (playbooks/status.yml), and does its host answer?"),
    (("unable to find a standby", "unable to find standby"), "Does a replica of the cell run (playbooks/status.yml)?"),
    (("access denied",), "Certificates carry the host's name; tls-server-auth must list it for this stanza."),
    (("has a stanza-create been performed", "[055]"), "Was the stanza made (role backup), and is the file there?"),
    (("[082]",), "WAL does not arrive in the repository: look at PostgreSQL's journal and at pg_stat_archiver."),
    (("[050]",), "Another run holds the lock: wait for it, or look at systemctl list-units 'shannon-backup*'."),
)  # fmt: skip


class PgBackRestError(ResilienceError):
    """pgBackRest failed; C(code) is its own number of the error, 0 when it had none."""

    def __init__(self, text: str, code: int = 0) -> None:
        self.code = code
        super().__init__(text)


@dataclass
class PgBackRest:
    """One cell in one repository.

    :param stanza: the cell.
    :param config: a repository host's configuration, or that of a host of PostgreSQL.
    :param repo: number of the repository; 0 is the only one that the configuration has.
    :param timeout: seconds for one command.
    :param work: folder for configurations that live as long as one command; made when missing.
    :param process_max: processes of a restore; a backup takes the configuration's.
    :param command: the program.
    """

    stanza: str
    config: str = REPOSITORY_CONFIG
    repo: int = 0
    timeout: float = 86400.0
    work: str = ""
    process_max: int = 2
    command: str = COMMAND
    #: Whether :meth:`create` had the repository go on with another system.
    upgraded: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if not self.repo:
            names = self._read()["global"]
            numbers = sorted({int(match[1]) for name in names if (match := re.match(r"^repo(\d+)-", name))})
            if len(numbers) != 1:
                raise PgBackRestError(f"{self.config} has the repositories {numbers}: say which one is meant")
            self.repo = numbers[0]

    def create(self, upgrade: bool = False) -> str:
        """Make the stanza, or find it made; returns why it does not fit the cluster, empty when it does.

        A repository without any backup has nothing that could be restored, so it goes on with whatever the cell runs:
        after all was lost but the other region's repository, this one was made for a cluster that is gone again.

        :param upgrade: let the repository go on with another system than the one that it has backups of.
        """
        with self._reachable() as config:
            try:
                self._when_free(["stanza-create"], config)
            except PgBackRestError as exc:
                if exc.code != MISMATCH:
                    raise
                if not upgrade and self.info().backups:
                    return (
                        f"{self._where()}: the repository has the backups of another system than the cell runs now, so "
                        "nothing is archived or backed up. Restore the cell from it (restore.yml), or, when the old "
                        f"backups are given up, have state=present with upgrade=true: {exc}"
                    )
                self._when_free(["stanza-upgrade"], config)
                self.upgraded = True
        return ""

    def check(self) -> None:
        """Have PostgreSQL switch its WAL segment, and wait until that arrived."""
        with self._reachable() as config:
            self._run(["check"], config)  # of all repositories that the configuration has; it takes no number

    def backup(self, kind: str) -> BackupInfo:
        """Make one, then remove what the retention does not keep; a run that was killed is gone on with by the next."""
        if kind not in KINDS:
            raise ResilienceError(f"a backup is one of {', '.join(KINDS)}, not {kind!r}")
        before = {backup.label for backup in self.info().backups}
        with self._reachable() as config:
            self._run([f"--repo={self.repo}", f"--type={kind}", "backup"], config)
        made = [backup for backup in self.info().backups if backup.label not in before]
        if not made:
            raise PgBackRestError(f"{self._where()}: pgBackRest ended well, yet there is no new backup in its info")
        if made[-1].error:
            raise PgBackRestError(
                f"{self._where()}: the backup {made[-1].label} has pages with wrong checksums: the data folder "
                "that was read is damaged. Look at pgBackRest's log on this host and at PostgreSQL's, and run amcheck."
            )
        return made[-1]

    def expire(self) -> None:
        """Remove what the configured retention does not keep."""
        self._run([f"--repo={self.repo}", "expire"], self.config)

    def verify(self) -> list[str]:
        """Read every file of the repository and compare checksums; what is wrong, a sentence each."""
        try:
            said = self._run([f"--repo={self.repo}", "--log-level-console=info", "verify"], self.config)
            found = verify_problems(said)
            # A segment that is not there at all does not trouble pgBackRest's verify.
            gap = target_problem(self.info(), RestoreTarget())
        except PgBackRestError as exc:
            return [str(exc)]
        return found + ([gap] if gap else [])

    def info(self) -> RepositoryInfo:
        """Backups, archived ranges and the timelines' branches."""
        told = self._json([f"--repo={self.repo}", "--output=json", "info"])
        files = self._json([f"--repo={self.repo}", "--recurse", "--output=json", "repo-ls", f"archive/{self.stanza}"])
        branches = {}
        for path in files:
            match = _HISTORY_FILE.search(path)
            if match and path.split("/")[0] in archives_of(told, self.stanza):
                text = self._run([f"--repo={self.repo}", "repo-get", f"archive/{self.stanza}/{path}"], self.config)
                parent = parse_history(text)
                if parent:
                    branches[int(match[1], 16)] = parent
        return parse_info(told, files, branches, self.stanza)

    def restore(self, target: RestoreTarget, into: str, info: RepositoryInfo | None = None) -> BackupInfo:
        """Restore into an empty or a half-restored folder; what is in it and fits is kept.

        :param info: what :meth:`info` said before, to spare a second look.
        :raises ResilienceError: the target can't be reached, said before anything is written.
        """
        backup = choose_backup(info or self.info(), target)
        folder = pathlib.Path(into)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        config = self._restore_config(into)
        # A folder that a killed run left half full is compared file by file; pgBackRest insists on PG_VERSION for that.
        delta = ["--delta"] if (folder / "PG_VERSION").exists() else []
        if not delta and any(folder.iterdir()):
            delta = ["--delta", "--force"]
        arguments = [f"--repo={self.repo}", f"--set={backup.label}", f"--pg1-path={into}", *target_options(target)]
        arguments += [f"--process-max={self.process_max}", *delta, "restore"]
        self._run(arguments, config)
        return backup

    # -- how it is called ----------------------------------------------------------------------------------------

    def _where(self) -> str:
        return f"{socket.gethostname()}: stanza {self.stanza}, repository {self.repo} ({self.config})"

    def _when_free(self, arguments: list[str], config: str) -> None:
        """Run what needs the lock that a push of WAL holds for a moment; a primary without a stanza tries all the time.

        :raises PgBackRestError: it failed, or the lock was not free within LOCK_WITHIN seconds.
        """
        deadline = time.monotonic() + LOCK_WITHIN
        while True:
            try:
                self._run(arguments, config)
                return
            except PgBackRestError as exc:
                if exc.code != LOCKED or time.monotonic() >= deadline:
                    raise
            time.sleep(0.2)

    def _run(self, arguments: list[str], config: str) -> str:
        command = [self.command, f"--config={config}", f"--stanza={self.stanza}", *arguments]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PGBACKREST_")}
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                errors="replace", env=environment, cwd="/", start_new_session=True,
            )  # fmt: skip
        except OSError as exc:
            raise PgBackRestError(f"{self._where()}: {self.command} can't be run: {exc}") from exc
        try:
            out, err = process.communicate(timeout=self.timeout)
        except BaseException as exc:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGTERM)  # its workers as well
            process.communicate()
            if isinstance(exc, subprocess.TimeoutExpired):
                raise PgBackRestError(
                    f"{self._where()}: pgBackRest did not end within {self.timeout:.0f} s: {arguments[-1]}"
                ) from exc
            raise
        if process.returncode:
            raise failure(self._where(), arguments, process.returncode, err + out)
        return out

    def _json(self, arguments: list[str]) -> t.Any:
        said = self._run(arguments, self.config)
        try:
            return json.loads(said, strict=False)  # a message may quote a file that can't be read, byte by byte
        except ValueError as exc:
            raise PgBackRestError(f"{self._where()}: expected JSON, got {said[:200]!r}") from exc

    def _read(self) -> configparser.ConfigParser:
        try:
            return parse_config(pathlib.Path(self.config).read_text(encoding="utf-8"))
        except OSError as exc:
            raise PgBackRestError(f"{self.config} can't be read: {exc}. Role backup writes it.") from exc

    @contextlib.contextmanager
    def _reachable(self) -> t.Iterator[str]:
        """A configuration without the hosts of PostgreSQL that do not answer, so that a dead region costs seconds."""
        config = self._read()
        hosts = pg_hosts(config, self.stanza)
        answers = gather({number: (lambda place=place: _answers(*place)) for number, place in hosts.items()})
        dead = [number for number, answer in answers.items() if answer is not True]
        if not dead:
            yield self.config
            return
        if len(dead) == len(hosts):
            names = ", ".join(f"{host}:{port}" for host, port in hosts.values())
            raise PgBackRestError(
                f"{self._where()}: no host of PostgreSQL answers ({names}): expected pgBackRest's TLS server there. "
                "Look at: systemctl status shannon-pgbackrest"
            )
        if self.work:
            pathlib.Path(self.work).mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", suffix=".conf", dir=self.work or None, encoding="utf-8") as handle:
            handle.write(without_hosts(config, self.stanza, dead))
            handle.flush()
            yield handle.name

    def _restore_config(self, into: str) -> str:
        """The configuration for a restore on this host; the recovery that follows reads WAL by it."""
        config = self._read()
        hosts = pg_hosts(config, self.stanza)
        if not hosts:
            return self.config
        path = pathlib.Path(into + RESTORE_CONFIG)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
            handle.write(without_hosts(config, self.stanza, list(hosts)) + f"pg1-path={into}\n")
        return str(path)


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=2.0):
            return True
    except OSError:
        return False


def parse_config(text: str) -> configparser.ConfigParser:
    """pgBackRest's configuration; a key that is repeated keeps all its values, a line each."""
    lines, seen = [], {}
    section = ""
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("["):
            section = stripped
        key, separator, value = stripped.partition("=")
        if separator and not stripped.startswith("#"):
            place = (section, key)
            if place in seen:
                lines[seen[place]] += f"\n\t{value}"
                continue
            seen[place] = len(lines)
        lines.append(stripped)
    config = configparser.ConfigParser(interpolation=None, delimiters=("=",), comment_prefixes=("#",), strict=True)
    config.optionxform = str  # type: ignore[assignment, method-assign]
    config.read_string("\n".join(lines))
    return config


def pg_hosts(config: configparser.ConfigParser, stanza: str) -> dict[int, tuple[str, int]]:
    """The remote hosts of PostgreSQL of a stanza: number to name and port."""
    if not config.has_section(stanza):
        raise PgBackRestError(f"the configuration of pgBackRest has no section [{stanza}]: does role backup know it?")
    found = {}
    for key, value in config[stanza].items():
        match = re.match(r"^pg(\d+)-host$", key)
        if match:
            found[int(match[1])] = (value, int(config[stanza].get(f"pg{match[1]}-host-port", "8432")))
    return found


def without_hosts(config: configparser.ConfigParser, stanza: str, dead: t.Collection[int]) -> str:
    """The configuration of one stanza, with the other hosts moved up, and without what only a server needs."""
    lines = ["[global]"]
    for key, value in config["global"].items():
        if not key.startswith("tls-server-"):
            lines += [f"{key}={part.strip()}" for part in value.splitlines()]
    lines.append(f"[{stanza}]")
    numbers = [number for number in sorted(pg_hosts(config, stanza)) if number not in dead]
    renamed = {number: place for place, number in enumerate(numbers, 1)}
    for key, value in config[stanza].items():
        match = re.match(r"^pg(\d+)-(.*)$", key)
        if match is None:
            lines.append(f"{key}={value}")
        elif int(match[1]) in renamed:
            lines.append(f"pg{renamed[int(match[1])]}-{match[2]}={value}")
    return "\n".join(lines) + "\n"


def target_options(target: RestoreTarget) -> list[str]:
    """A target in pgBackRest's words. PostgreSQL is to end its recovery there by itself."""
    if target.kind == LATEST:
        options = ["--type=default"]
    elif target.kind == BACKUP:
        options = ["--type=immediate", "--target-action=promote"]
    else:
        value = format_time(parse_time(target.value)) if target.kind == TIME else target.value
        options = [f"--type={target.kind}", f"--target={value}", "--target-action=promote"]
        if target.exclusive and target.kind != "name":
            options.append("--target-exclusive")
    if target.timeline != "latest" and target.kind != BACKUP:
        options.append(f"--target-timeline={target.timeline}")
    if target.kind == BACKUP:
        options.append("--target-timeline=current")
    return options


def parse_info(
    told: t.Any, files: t.Mapping[str, t.Mapping[str, t.Any]], branches: t.Mapping[int, tuple[int, int]], stanza: str
) -> RepositoryInfo:
    """What C(info) and C(repo-ls) say, typed.

    :raises PgBackRestError: the repository has no such stanza, or can't be read.
    """
    entry = next((entry for entry in told if entry.get("name") == stanza), None)
    if entry is None:
        raise PgBackRestError(f"the repository has no stanza {stanza}: role backup makes it")
    for repository in entry.get("repo", ()):
        status = repository.get("status", {})
        if status.get("code") not in (0, 2):  # 2: there is no backup yet
            raise failure(f"repository {repository.get('key')}", ["info"], status.get("code", 0), status["message"])
    numbers, archives = _one_system(entry)
    backups = []
    for backup in entry.get("backup", ()):
        if backup.get("database", {}).get("id", 1) not in numbers:
            continue
        timeline, start = segment_position(backup["archive"]["start"])
        _timeline, stop = segment_position(backup["archive"]["stop"])
        lsn = backup.get("lsn") or {}
        backups.append(
            BackupInfo(
                label=backup["label"],
                kind=backup["type"],
                started_at=float(backup["timestamp"]["start"]),
                ended_at=float(backup["timestamp"]["stop"]),
                start_lsn=parse_lsn(lsn["start"]) if lsn.get("start") else start,
                stop_lsn=parse_lsn(lsn["stop"]) if lsn.get("stop") else stop,
                timeline=timeline,
                size=int(backup["info"]["size"]),
                repo_size=int(backup["info"]["repository"].get("delta", 0)),
                prior=backup.get("prior") or "",
                error=bool(backup.get("error")),
            )
        )
    segments: dict[str, float] = {}
    for path, facts in files.items():
        match = _SEGMENT_FILE.search(path)
        if match and facts.get("type") == "file" and path.split("/")[0] in archives:
            segments[match[1]] = float(facts.get("time", 0))
    backups.sort(key=lambda backup: backup.ended_at)
    return RepositoryInfo(tuple(backups), ranges_of(segments), dict(branches))


def archives_of(told: t.Any, stanza: str) -> set[str]:
    """Names of the archives that belong to the newest backup's system."""
    entry = next((entry for entry in told if entry.get("name") == stanza), {})
    return _one_system(entry)[1]


def _one_system(entry: t.Mapping[str, t.Any]) -> tuple[set[int], set[str]]:
    """Of the systems that a repository has seen, the one of the newest backup: its numbers and its archives' names.

    WAL of different systems must not be taken for one; a system that came back has several numbers.
    """
    systems = {database["id"]: (database.get("system-id"), database["version"]) for database in entry.get("db", ())}
    usable = [backup for backup in entry.get("backup", ()) if not backup.get("error")]
    newest = max(usable, key=lambda backup: backup["timestamp"]["stop"], default=None)
    number = newest.get("database", {}).get("id", 1) if newest else max(systems, default=1)
    numbers = {other for other, system in systems.items() if system == systems.get(number)} | {number}
    version = systems.get(number, ("", ""))[1]
    return numbers, {f"{version}-{other}" for other in numbers}


def verify_problems(said: str) -> list[str]:
    """What C(verify) found wrong, of what it printed; it exits with 0 whatever it found."""
    found = []
    for line in said.splitlines():
        if re.search(r"(missing|checksum invalid|size invalid|other): [1-9]", line):
            found.append(re.sub(r"^.*P\d\d +\w+: *", "", line).strip())
        elif "ERROR:" in line or re.search(r"WARN:.*(checksum|missing|invalid|unable)", line):
            found.append(re.sub(r"^.*P\d\d +", "", line).strip())
        elif re.search(r"backup: .*status: (?!valid)|INFO: .*(invalid|missing|unable)", line):
            found.append(re.sub(r"^.*P\d\d +\w+: *", "", line).strip())
    if not found and "status: error" in said:
        found.append("pgBackRest calls the repository damaged and says no more: is it the right passphrase?")
    return found


def _readable(said: str) -> str:
    """On one line, without what a file that could not be decrypted looks like."""
    said = re.sub(r"(found outside of section at line \d+): .*", r"\1", said)
    return " ".join("".join(mark for mark in said if mark.isascii() and (mark.isprintable() or mark == "\n")).split())[
        :700
    ]


def failure(where: str, arguments: t.Sequence[str], code: int, said: str) -> PgBackRestError:
    """pgBackRest's own words, and what can be done."""
    match = _ERROR.search(said)
    number = int(match[1]) if match else int(code)
    text = _readable(match[2] if match else said) or f"it ended with {code}"
    verb = next((part for part in arguments if not part.startswith("-")), "")
    haystack = f"[{number:03d}] {text}"
    remedy = next((advice for words, advice in _REMEDIES if any(word in haystack for word in words)), "")
    return PgBackRestError(
        f"{where}: pgBackRest {verb} failed [{number:03d}]: {text.rstrip('.')}. {remedy}".rstrip(), number
    )
