# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one worker of the write queue has before it: in order, and handed out in batches."""

from __future__ import annotations

import asyncio
import collections
import contextlib

from .records import Record
from .spool import Place

#: A record and its place; beyond the queue's size only the place, and the record is read again when its turn comes.
Item = tuple[Place, Record] | Place


def is_held(item: Item) -> bool:
    """Whether the record itself is in memory."""
    return not isinstance(item, Place)


class Lane:
    """A line of items.

    :param batch: the most that are handed out together.
    :param flush: seconds that a batch which is not full waits for more.
    """

    def __init__(self, batch: int, flush: float) -> None:
        self.items: collections.deque[Item] = collections.deque()
        self._batch = batch
        self._flush = flush
        self._any = asyncio.Event()
        self._full = asyncio.Event()
        self._ending = False

    def put(self, item: Item) -> None:
        """Add to the end."""
        self.items.append(item)
        self._any.set()
        if len(self.items) >= self._batch:
            self._full.set()

    def end(self) -> None:
        """Wait for nothing any more."""
        self._ending = True
        self._any.set()
        self._full.set()

    async def next(self) -> list[Item]:
        """The next batch: full, or as old as it may get; empty when there is none left after the end."""
        await self._any.wait()
        if len(self.items) < self._batch and not self._ending:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._full.wait(), self._flush)
        found = [self.items.popleft() for _turn in range(min(self._batch, len(self.items)))]
        if not self._ending:
            if not self.items:
                self._any.clear()
            if len(self.items) < self._batch:
                self._full.clear()
        return found
