# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A service's life: command line, start, supervised background tasks, and an end that drains within its time."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
import typing as t

from shannon.services import __version__

from . import breakers, logs
from .config import Config, ConfigError, load
from .secrets import SecretError

_log = logs.get(__name__)
Stop = t.Callable[[], t.Awaitable[None]]


class Lifecycle:
    """What a service uses to run and to end.

    :ivar stopping: set once the service is to end; loops look at it, or wait for it with :meth:`pause`.
    :ivar failure: the first crash of a background task; it ends the service, which systemd then starts again.
    """

    def __init__(self, graceful_timeout: float) -> None:
        self.stopping = asyncio.Event()
        self.failure: BaseException | None = None
        self._graceful_timeout = graceful_timeout
        self._tasks: set[asyncio.Task[t.Any]] = set()
        self._stops: list[tuple[str, Stop]] = []

    def spawn(self, work: t.Coroutine[t.Any, t.Any, t.Any], name: str) -> asyncio.Task[t.Any]:
        """Run something in the background; if it crashes the service ends, since half a service is worse than none."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def on_stop(self, stop: Stop, name: str = "") -> None:
        """Have something called at the end; the last that was added is called first."""
        self._stops.append((name or getattr(stop, "__qualname__", repr(stop)), stop))

    async def pause(self, seconds: float) -> bool:
        """Wait, but not beyond the service's end.

        :returns: whether the service goes on.
        """
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)
        return not self.stopping.is_set()

    async def drain(self) -> None:
        """Call what was registered, then end the background tasks, all within the graceful timeout."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._graceful_timeout
        while self._stops:
            name, stop = self._stops.pop()
            try:
                await asyncio.wait_for(stop(), max(deadline - loop.time(), 0.1))
            except asyncio.TimeoutError:
                _log.error("%s did not end within the graceful timeout of %g s", name, self._graceful_timeout)
            except Exception:
                # The others must be given their chance to end in order.
                _log.exception("%s failed while the service ended", name)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[t.Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (exc := task.exception()) is None:
            return
        _log.error("the background task %s crashed; the service ends", task.get_name(), exc_info=exc)
        if self.failure is None:
            self.failure = exc
        self.stopping.set()


def notify(state: str) -> None:
    """Tell systemd something (C(READY=1), C(STOPPING=1)); nothing happens when it does not listen."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as talker:
        talker.connect("\0" + address[1:] if address.startswith("@") else address)
        talker.sendall(state.encode())


async def live(start: t.Callable[[Lifecycle], t.Awaitable[None]], graceful_timeout: float) -> int:
    """Start a service, keep it until a signal or a crash, and drain it.

    :param start: starts everything and returns once the service can take work.
    :returns: the exit status.
    """
    lifecycle = Lifecycle(graceful_timeout)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lifecycle.stopping.set)
    try:
        starting = loop.create_task(start(lifecycle))
        told = loop.create_task(lifecycle.stopping.wait())
        await asyncio.wait({starting, told}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            notify("READY=1")
            _log.info("ready")
            await told
        else:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        told.cancel()
    finally:
        notify("STOPPING=1")
        _log.info("stopping")
        await lifecycle.drain()
        _log.info("stopped")
    return 1 if lifecycle.failure is not None else 0


def run(
    service: str, start: t.Callable[[Config, Lifecycle], t.Awaitable[None]], arguments: t.Sequence[str] | None = None
) -> int:
    """The C(main) of a console script.

    :param service: its name, in logs and in C(--help).
    :returns: 0 after an orderly end, 1 after a crash, 2 when the configuration can't be used.
    """
    parser = argparse.ArgumentParser(
        prog=f"shannon-{service}", description=f"The service {service} of shannon.resilience."
    )
    parser.add_argument("--config", default="/etc/shannon/shannon.yaml", help="the configuration (%(default)s)")
    parser.add_argument("--check-config", action="store_true", help="only say whether the configuration can be used")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    options = parser.parse_args(arguments)
    try:
        config = load(options.config)
        breakers.configure(config.circuit_breakers)
    except ConfigError as exc:
        print(exc, file=sys.stderr)
        return 2
    if options.check_config:
        print(f"{options.config} can be used")
        return 0
    logs.configure(service, config.service.log_level)

    async def starting(lifecycle: Lifecycle) -> None:
        await start(config, lifecycle)

    try:
        return asyncio.run(live(starting, config.service.graceful_timeout))
    except SecretError as exc:
        _log.error("%s", exc)
        return 2
    except Exception:
        _log.exception("the service could not start")
        return 1
