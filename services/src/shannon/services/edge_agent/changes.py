# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hears of the registry's changes at once."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import typing as t

from shannon.resilience.errors import ResilienceError
from shannon.services.common import logs

_log = logs.get(__name__)
#: Seconds of one watch. Between two of them a change may go unheard, so whoever waits here also looks at times.
_WATCH = 30.0


class Watcher(t.Protocol):
    """What can wait for a change (:class:`~shannon.resilience.etcd.EtcdClient`)."""

    def watch(self, prefixes: t.Sequence[str], seconds: float) -> bool: ...


class Changes:
    """A thread that watches the registry, and lets a coroutine wait for what it hears.

    :param client: the registry; a client of its own, since a watch occupies it.
    :param prefixes: the keys that matter.
    :param pause: seconds until the next watch when one failed.
    """

    def __init__(self, client: Watcher, prefixes: t.Sequence[str], pause: float) -> None:
        self._client = client
        self._prefixes = tuple(prefixes)
        self._pause = pause
        self._heard = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        # A daemon, so that a watch does not hold up the end of the service.
        threading.Thread(target=self._watch, name="registry watch", daemon=True).start()

    async def wait(self, seconds: float) -> bool:
        """Wait for a change.

        :returns: whether there was one; else the time is up.
        """
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._heard.wait(), seconds)
        heard = self._heard.is_set()
        self._heard.clear()
        return heard

    def _watch(self) -> None:
        works = True
        while not self._loop.is_closed():
            try:
                changed = self._client.watch(self._prefixes, _WATCH)
            except ResilienceError as exc:
                if works:
                    _log.warning("the registry can't be watched, it is asked every %g s: %s", self._pause, exc)
                works = False
                time.sleep(self._pause)
                continue
            works = True
            if changed:
                with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
                    self._loop.call_soon_threadsafe(self._heard.set)
