# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The data folder of a cell's member, when a restored one takes its place: what it is, and each step done once.

A restored folder carries its restore's name in a file; members that are cloned from it carry it, too. So every host can
tell whether it has been dealt with, also after a run that was killed.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import typing as t
from dataclasses import dataclass

from .errors import ResilienceError
from .files import sync, write

#: In a data folder: the restore that it came from.
MARK = "shannon.restore"
_NAME = re.compile(r"^[A-Za-z0-9_.-]{1,64}$")


@dataclass(frozen=True)
class Folder:
    """What there is.

    :param mark: the restore that the data came from; empty for none.
    :param running: process of a PostgreSQL that runs there; 0 for none.
    :param primary: it was last a primary, or is one.
    :param kept: the folder that the restore put aside, where there is one.
    """

    there: bool
    mark: str = ""
    running: int = 0
    primary: bool = False
    staged: bool = False
    kept: str = ""


def look(data: str, staged: str, name: str) -> Folder:
    """The state of a member's folder."""
    place = pathlib.Path(data)
    there = (place / "PG_VERSION").exists()
    kept = _kept(data, name)
    return Folder(
        there=there,
        mark=_mark(place),
        running=_running(place),
        primary=there and not (place / "standby.signal").exists(),
        staged=bool(staged) and (pathlib.Path(staged) / "PG_VERSION").exists(),
        kept=str(kept) if kept.exists() else "",
    )


def swap(data: str, staged: str, name: str) -> bool:
    """Let the staged folder take the place of the data, which is kept beside it; whether anything was done.

    :raises ResilienceError: something runs there, or there is nothing to put in place.
    """
    _check_name(name)
    place, new, kept = pathlib.Path(data), pathlib.Path(staged), _kept(data, name)
    if _mark(place) == name:
        return False
    _refuse_running(place)
    if not (new / "PG_VERSION").exists():
        raise ResilienceError(f"{staged} is no restored data folder, so nothing takes the place of {data}")
    _refuse_running(new)
    write(str(new / MARK), f"{name}\n".encode(), 0o600)
    _own_like(new / MARK, new)
    if place.exists():
        if kept.exists():
            raise ResilienceError(
                f"{kept} and {data} are both there, and neither is the restored one: somebody started the cell in "
                "between. Move one of them away, and run this again"
            )
        os.rename(place, kept)
    os.rename(new, place)
    sync(str(place.parent))
    return True


def empty(data: str, name: str) -> bool:
    """Remove a member's data, so that it is cloned from the restored one; whether anything was done.

    :raises ResilienceError: something runs there.
    """
    _check_name(name)
    place = pathlib.Path(data)
    gone = place.with_name(f"{place.name}.removed-{name}")
    if _mark(place) == name or not (place.exists() or gone.exists()):
        return False
    _refuse_running(place)
    if place.exists():
        # Half of a removed folder must not be taken for a whole one.
        if gone.exists():
            shutil.rmtree(gone)
        os.rename(place, gone)
        sync(str(place.parent))
    shutil.rmtree(gone)
    return True


def _kept(data: str, name: str) -> pathlib.Path:
    place = pathlib.Path(data)
    return place.with_name(f"{place.name}.before-restore-{name}")


def _mark(place: pathlib.Path) -> str:
    try:
        return (place / MARK).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _running(place: pathlib.Path) -> int:
    try:
        pid = int((place / "postmaster.pid").read_text(encoding="utf-8").split()[0])
        parts = pathlib.Path(f"/proc/{pid}/comm").read_text(encoding="utf-8")
    except (OSError, ValueError, IndexError):
        return 0
    return pid if parts.startswith("postgres") else 0


def _refuse_running(place: pathlib.Path) -> None:
    pid = _running(place)
    if pid:
        raise ResilienceError(f"{place}: PostgreSQL runs there (process {pid}); stop its unit first")


def _own_like(path: pathlib.Path, other: pathlib.Path) -> None:
    facts = other.stat()
    with contextlib.suppress(PermissionError):
        os.chown(path, facts.st_uid, facts.st_gid)


def _check_name(name: str) -> None:
    if not _NAME.match(name):
        raise ResilienceError(f"{name!r} is no name of a restore: letters, digits, dots, dashes and underscores")


def facts_of(folder: Folder) -> dict[str, t.Any]:
    """For a module's result."""
    return {
        "there": folder.there,
        "mark": folder.mark,
        "running": folder.running,
        "primary": folder.primary,
        "staged": folder.staged,
        "kept": folder.kept,
    }
