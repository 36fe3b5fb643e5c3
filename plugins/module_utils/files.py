# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that are either the old or the new one whatever happens, and locks that are waited for within bounds."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import tempfile
import time
import typing as t

from .concurrently import wait_until

#: What marks a copy that is not in its place yet; programs that read whole folders skip names with a leading dot.
STAGED = ".shannon-"
#: Seconds after which a staged copy is taken for the remains of a run that was killed.
LEFT_BEHIND = 3600


def stage(path: str, content: bytes, mode: int, owner: tuple[int, int] | None = None) -> str:
    """Put new content on disk beside its destination, readable by nobody else until owner and mode are right.

    :param owner: numeric user and group; None leaves those of the process.
    :returns: path of the copy, for :func:`replace`.
    """
    descriptor, staged = tempfile.mkstemp(prefix=STAGED, suffix=os.path.basename(path), dir=os.path.dirname(path))
    try:
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(content)
            handle.flush()
            if owner is not None:
                os.fchown(handle.fileno(), *owner)
            os.fchmod(handle.fileno(), mode)
            os.fsync(handle.fileno())
    except BaseException:
        os.unlink(staged)
        raise
    return staged


def replace(staged: str, path: str) -> None:
    """Let the staged copy take its place, for good: it is there after a power cut, too."""
    os.rename(staged, path)
    sync(os.path.dirname(path))


def write(path: str, content: bytes, mode: int) -> None:
    """Write a whole file atomically."""
    replace(stage(path, content, mode), path)


def sync(path: str) -> None:
    """Make the content of a file, or the renames in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def left_behind(path: str, now: float | None = None) -> list[str]:
    """Staged copies of this file whose run was killed long ago; they may hold secrets."""
    folder, name = os.path.split(path)
    candidates = glob.glob(os.path.join(glob.escape(folder), f"{STAGED}????????{glob.escape(name)}"))
    limit = (time.time() if now is None else now) - LEFT_BEHIND
    return sorted(candidate for candidate in candidates if os.lstat(candidate).st_mtime < limit)


def make_folders(path: str, mode: int = 0o755) -> list[str]:
    """Make a folder and its parents, with the same mode whatever the umask is; several runs may do so at once.

    :returns: the folders that this call made, the outermost first.
    """
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    made = []
    for folder in reversed(missing):
        try:
            os.mkdir(folder)
        except FileExistsError:
            # Another run was faster; what else may be there by that name is an error.
            if not os.path.isdir(folder):
                raise
        else:
            os.chmod(folder, mode)
            made.append(folder)
    return made


@contextlib.contextmanager
def locked(path: str, timeout: float) -> t.Iterator[None]:
    """Hold a lock file; the kernel lets go of it when its holder dies.

    :raises WaitTimeout: another process held it all the time.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def take() -> tuple[bool, str]:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False, "another run holds it"
        return True, ""

    try:
        wait_until(take, f"the lock {path}", timeout, interval=0.1)
        yield
    finally:
        os.close(descriptor)
