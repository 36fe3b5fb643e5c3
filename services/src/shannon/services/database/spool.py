# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A log on disk for writes that were acknowledged and are not in the database yet.

A spool is a folder of segments. A segment is a run of frames: length and CRC-32 of the content, four bytes each, then
the content. A frame counts once it is on disk as a whole (fsync); what a crash leaves of the last one is cut off at the
next start. A segment is removed when everything in it is done; after a crash what is left is given again, done or not,
since writing a record twice changes nothing (see :mod:`.records`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import re
import struct
import threading
import typing as t
from dataclasses import dataclass
from zlib import crc32

from shannon.resilience.errors import ResilienceError
from shannon.services.common import logs

_log = logs.get(__name__)
_HEAD = struct.Struct("<II")
_NAME = re.compile(r"^(\d{16})\.spool$")
#: Bytes after which a new segment begins, so that old ones can be removed.
SEGMENT = 4 * 2**20
#: Bytes of the longest frame; a length beyond it is damage, not a record.
LONGEST = 16 * 2**20


class Place(t.NamedTuple):
    """Where a content is: its segment, where it begins there in bytes, and how many it has."""

    segment: int
    offset: int
    length: int


class SpoolFullError(ResilienceError):
    """There is no room for another record: the spool's own bound, or the disk's."""


@dataclass
class _Segment:
    number: int
    path: pathlib.Path
    size: int = 0
    open: int = 0  # frames in it that are not done
    busy: bool = False  # being written to, so that it can't be emptied


class Spool:
    """A folder of segments; of one process, several threads.

    :param folder: made when missing.
    :param limit: bytes of all segments together.
    :param segment: bytes of one.
    :raises OSError: the folder can't be used.
    """

    def __init__(self, folder: str | pathlib.Path, limit: int, segment: int = SEGMENT) -> None:
        self._folder = pathlib.Path(folder)
        self._limit = limit
        self._most = segment
        # Two locks: an fsync may take long, and who says that something is done does not wait for it.
        self._appending = threading.Lock()
        self._lock = threading.Lock()
        self._segments: dict[int, _Segment] = {}
        self._newest = 0
        self._current: _Segment | None = None
        self._handle: t.BinaryIO | None = None
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        #: Bytes of damage that were found and set aside.
        self.damaged = 0

    def recover(self) -> t.Iterator[tuple[Place, bytes]]:
        """Everything that an earlier process left, in order: where it is, and the content.

        Call it once, before the first append; each content must be marked done like a new one.
        """
        for path in sorted(self._folder.iterdir()):
            match = _NAME.match(path.name)
            if not match:
                continue
            segment = _Segment(int(match.group(1)), path)
            contents = list(self._frames(segment))
            with self._lock:
                segment.open = len(contents)
                self._segments[segment.number] = segment
                self._newest = max(self._newest, segment.number)
                if not contents:
                    self._remove(segment)
            yield from contents

    def append(self, contents: t.Sequence[bytes]) -> list[Place]:
        """Put contents on disk, all with one fsync; when it returns they are there to stay.

        :param contents: of up to LONGEST bytes each.
        :returns: for each where it is, to mark it done with or to read it again.
        :raises SpoolFullError: there is no room; none of them counts then.
        """
        frames = b"".join(_HEAD.pack(len(content), crc32(content)) + content for content in contents)
        with self._appending:
            self._find_room(len(frames))
            try:
                segment, handle = self._writable()
            except OSError as exc:
                raise self._refusal(exc) from exc
            try:
                left = memoryview(frames)
                while left:
                    left = left[os.write(handle.fileno(), left) :]
                os.fsync(handle.fileno())
            except OSError as exc:
                self._take_back(segment, handle)
                raise self._refusal(exc) from exc
            with self._lock:
                places = []
                at = segment.size + _HEAD.size
                for content in contents:
                    places.append(Place(segment.number, at, len(content)))
                    at += len(content) + _HEAD.size
                segment.size += len(frames)
                segment.open += len(contents)
                segment.busy = False
            return places

    def read(self, place: Place) -> bytes:
        """A content that is not done yet.

        :raises OSError: it can't be read, or is not what was written.
        """
        with self._segments[place.segment].path.open("rb") as handle:
            handle.seek(place.offset - _HEAD.size)
            head, content = handle.read(_HEAD.size), handle.read(place.length)
        if head != _HEAD.pack(place.length, crc32(content)):
            raise OSError(errno.EIO, f"damaged at {place.offset}", str(self._segments[place.segment].path))
        return content

    def done(self, places: t.Iterable[Place]) -> None:
        """These contents are in the database; a segment of which all are is removed."""
        with self._lock:
            for place in places:
                segment = self._segments[place.segment]
                segment.open -= 1
                self._remove(segment)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        with self._lock:
            return sum(segment.size for segment in self._segments.values())

    @property
    def waiting(self) -> int:
        """Contents that are not done."""
        with self._lock:
            return sum(segment.open for segment in self._segments.values())

    def close(self) -> None:
        """Close the segment that is written to."""
        with self._appending, self._lock:
            self._let_go()

    def _frames(self, segment: _Segment) -> t.Iterator[tuple[Place, bytes]]:
        content = segment.path.read_bytes()
        segment.size = len(content)
        at = 0
        while at < len(content):
            length, check = _HEAD.unpack_from(content, at) if at + _HEAD.size <= len(content) else (LONGEST + 1, 0)
            end = at + _HEAD.size + length
            if length > LONGEST or end > len(content):
                self._set_aside(segment, at, content[at:])
                os.truncate(segment.path, at)
                segment.size = at
                return
            frame = content[at + _HEAD.size : end]
            if crc32(frame) == check:
                yield Place(segment.number, at + _HEAD.size, length), frame
            else:
                # The lengths still lead from frame to frame, so only this one is lost.
                self._set_aside(segment, at, content[at:end])
            at = end

    def _set_aside(self, segment: _Segment, at: int, damage: bytes) -> None:
        # What a crash leaves of the last frame was never acknowledged. Damage may be more than that, so it is kept.
        aside = segment.path.with_suffix(".damaged")
        _log.error(
            "%s: %d bytes from %d on are no whole record, as a crash in the middle of a write leaves it; see %s",
            *(segment.path, len(damage), at, aside),
        )
        with aside.open("ab") as handle:
            handle.write(damage)
        self.damaged += len(damage)

    def _find_room(self, wanted: int) -> None:
        total = self.size
        if total + wanted > self._limit:
            raise SpoolFullError(
                f"the spool {self._folder} has {total} of {self._limit} bytes; the database has been away for long, "
                "or database.spool_size is too small"
            )

    def _refusal(self, exc: OSError) -> SpoolFullError:
        return SpoolFullError(f"the spool {self._folder} takes nothing more: {exc.strerror or exc}")

    def _writable(self) -> tuple[_Segment, t.BinaryIO]:
        with self._lock:
            if self._current is not None and self._handle is not None and self._current.size < self._most:
                self._current.busy = True
                return self._current, self._handle
        number = self._newest + 1
        segment = _Segment(number, self._folder / f"{number:016d}.spool", busy=True)
        # A name that is there already would be of a segment that nobody recovered.
        handle = t.cast("t.BinaryIO", open(segment.path, "xb", buffering=0))  # noqa: SIM115 - open until it is full
        with self._lock:
            self._let_go()
            self._newest = number
            self._segments[number] = self._current = segment
            self._handle = handle
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return segment, handle

    def _take_back(self, segment: _Segment, handle: t.BinaryIO) -> None:
        # Nobody was told that these frames are safe; so they must not be found by the next start either.
        with self._lock:
            segment.busy = False
            try:
                os.ftruncate(handle.fileno(), segment.size)
                handle.seek(segment.size)
            except OSError:
                # What is behind the last good frame is damage to the next start, so nothing may come after it.
                _log.exception("%s can't be cut back to what was acknowledged; a new one is begun", segment.path)
                self._let_go()
            self._remove(segment)

    def _let_go(self) -> None:
        """Write to the present segment no more."""
        before, self._current = self._current, None
        if self._handle is not None:
            with contextlib.suppress(OSError):
                self._handle.close()
            self._handle = None
        if before is not None:
            self._remove(before)

    def _remove(self, segment: _Segment) -> None:
        """Free a segment's room if nothing in it waits and nothing is being written to it."""
        if segment.open or segment.busy or segment.number not in self._segments:
            return
        try:
            if segment is self._current and self._handle is not None:
                os.ftruncate(self._handle.fileno(), 0)
                self._handle.seek(0)
                segment.size = 0
            else:
                segment.path.unlink(missing_ok=True)
                del self._segments[segment.number]
        except OSError:
            # What is in it is in the database; found again by the next start it changes nothing.
            _log.exception("%s can't be removed", segment.path)
