# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Console script C(shannon-region-agent)."""

from __future__ import annotations

import argparse
import os
import pathlib
import signal
import sys
import threading
import typing as t

from shannon.resilience.errors import ResilienceError
from shannon.resilience.etcd import EtcdClient
from shannon.resilience.given_up import FILE, GivenUp
from shannon.resilience.region_lease import LEASES, SERVING
from shannon.resilience.registry import CELLS
from shannon.resilience.tls import client_context
from shannon.services import __version__
from shannon.services.common import logs
from shannon.services.common.config import ConfigError
from shannon.services.common.lifecycle import notify

from .facts import Facts
from .fence import Fence
from .keeper import Keeper
from .listener import Listener
from .promises import Peers, Promises
from .settings import DEFAULT_PATH, load
from .worker import Worker

_log = logs.get(__name__)
#: Seconds between two rounds in which nothing was heard.
INTERVAL = 1.0
#: The same while a region is being left or entered, on hosts that lead or led. A round costs some 30 ms of a core, and
#: followers hear of the registry's changes anyway.
MOVING = 0.2
#: Seconds for which one request to the registry may take; a round must end before a host's authority does.
REGISTRY_TIMEOUT = 1.0
#: Seconds between two questions whether the registry was rebuilt.
LEARNING = 3.0


class Agent:
    """Everything of one host."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._settings = settings = load(path)
        context = client_context(settings.tls)
        given_up = GivenUp((FILE,), pathlib.Path(settings.state_directory) / "registry-given-up")
        self._given_up = given_up
        self._told: frozenset[str] = frozenset()
        self._client = EtcdClient(settings.registry, context, REGISTRY_TIMEOUT, "the registry", given_up)
        self._watcher = EtcdClient(settings.registry, context, REGISTRY_TIMEOUT, "the registry", given_up)
        dcs = EtcdClient(settings.etcd, context, 2.0, name=f"etcd of region {settings.region}")
        runtime = pathlib.Path(settings.runtime_directory)
        promises = Promises(runtime / "promises.json")
        peers = Peers(settings, context)
        fence = Fence()
        self._promises = promises
        self._fence = fence
        self.keepers: dict[str, Keeper] = {}
        self.workers: dict[str, Worker] = {}
        self._events: dict[str, threading.Event] = {}
        for cell in settings.cells:
            keeper = Keeper(settings, cell, self._client, fence, promises, peers, context, self._waker(cell.name))
            self.keepers[cell.name] = keeper
            self.workers[cell.name] = Worker(settings, cell, keeper, self._client, dcs, context)
            self._events[cell.name] = threading.Event()
        answerers = {"/promise": self._promise, "/bound": self._bound, "/status": self._status}
        self._listener = Listener(settings, {**answerers, **Facts(settings).answerers()})
        self.stopping = threading.Event()

    def run(self) -> int:
        """Run until told to stop; returns the exit status."""
        self._fence.load(self._settings.fence_file)
        self._listener.start()
        # Before anything is believed: this host may have been away while the registry was rebuilt.
        self._learn()
        threads = [
            threading.Thread(target=self._watch, daemon=True, name="watch"),
            threading.Thread(target=self._keep_learning, daemon=True, name="learn"),
        ]
        for name in self.keepers:
            threads.append(threading.Thread(target=self._keep, args=(name,), daemon=True, name=f"keeper-{name}"))
            threads.append(
                threading.Thread(target=self._guarded(self.workers[name].run), daemon=True, name=f"worker-{name}")
            )
            markers = self.workers[name].markers
            threads.append(threading.Thread(target=markers.run, daemon=True, name=f"markers-{name}"))
        for thread in threads:
            thread.start()
        notify("READY=1")
        _log.info("ready")
        failed = False
        written = self._written()
        while not self.stopping.wait(1.0):
            if self._written() != written:
                _log.info("the settings or the fence's rules changed; the agent starts anew")
                break
            # A crashed thread ends the agent, which systemd starts again; the fence closes by itself meanwhile.
            failed = not all(thread.is_alive() for thread in threads)
            if failed:
                _log.error("a thread crashed; the agent ends")
                break
            notify("WATCHDOG=1")
        for worker in self.workers.values():
            worker.stop()
        self._listener.stop()
        return 1 if failed else 0

    def _written(self) -> list[float]:
        paths = [pathlib.Path(path) for path in (self._path, self._settings.fence_file)]
        return [path.stat().st_mtime if path.exists() else 0.0 for path in paths]

    def _keep(self, name: str) -> None:
        event = self._events[name]
        while not self.stopping.is_set():
            self.keepers[name].round()
            standing = self.keepers[name].standing()
            event.wait(MOVING if standing.moving and standing.leads else INTERVAL)
            event.clear()

    def _watch(self) -> None:
        while not self.stopping.is_set():
            try:
                changed = self._watcher.watch([CELLS, LEASES, SERVING], 30.0)
            except ResilienceError as exc:
                _log.debug("no watch: %s", exc)
                self.stopping.wait(INTERVAL)
                continue
            if changed:
                for event in self._events.values():
                    event.set()

    def _keep_learning(self) -> None:
        while not self.stopping.wait(LEARNING):
            self._learn()

    def _learn(self) -> None:
        """Hear of registries that were given up, from whichever member knows."""
        try:
            for cluster in self._client.learn_given_up():
                _log.warning("the registry was rebuilt: members with the cluster id %s are not believed", cluster)
        except ResilienceError as exc:
            _log.error("%s", exc)
        ids = self._given_up.ids()
        if ids == self._told:
            return
        # For the gateway and whoever else asks the registry from this host: the own note is nobody else's to read.
        path = pathlib.Path(self._settings.runtime_directory) / "registry-given-up"
        try:
            fresh = path.with_suffix(".new")
            fresh.write_text("".join(f"{one}\n" for one in sorted(ids)), encoding="utf-8")
            os.chmod(fresh, 0o644)
            os.replace(fresh, path)
            self._told = ids
        except OSError as exc:
            _log.error("%s can't be written: %s", path, exc)

    def _waker(self, name: str) -> t.Callable[[], None]:
        return lambda: self.workers[name].wake() if name in self.workers else None

    @staticmethod
    def _guarded(run: t.Callable[[], None]) -> t.Callable[[], None]:
        def guarded() -> None:
            try:
                run()
            except Exception:
                _log.exception("crashed")
                raise

        return guarded

    # -- what others ask -----------------------------------------------------------------------------------------

    def _promise(self, question: dict[str, t.Any], address: str) -> tuple[int, dict[str, t.Any]]:
        region = str(question["region"])
        # Who has a certificate of ours still speaks for its own region only.
        if address not in self._settings.agents.get(region, {}).values():
            return 403, {"promised": False, "reason": f"{address} is no data host of region {region}"}
        return 200, self.keepers[str(question["cell"])].promise(question)

    def _bound(self, question: dict[str, t.Any], _address: str) -> tuple[int, dict[str, t.Any]]:
        return 200, {"seconds": self._promises.bound(str(question["cell"]), str(question["region"]))}

    def _status(self, _question: dict[str, t.Any], _address: str) -> tuple[int, dict[str, t.Any]]:
        cells = {name: worker.word() for name, worker in self.workers.items()}
        return 200, {
            "host": self._settings.host,
            "region": self._settings.region,
            "version": __version__,
            "cells": cells,
        }


def main(arguments: t.Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="shannon-region-agent", description="Makes this host match the registry.")
    parser.add_argument("--config", default=DEFAULT_PATH, help=f"settings (default: {DEFAULT_PATH})")
    parser.add_argument("--version", action="version", version=__version__)
    options = parser.parse_args(arguments)
    logs.configure("region-agent", "info")
    try:
        agent = Agent(options.config)
    except (ConfigError, ResilienceError) as exc:
        print(f"shannon-region-agent: {exc}", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_ignored: agent.stopping.set())
    os.umask(0o022)
    try:
        return agent.run()
    except ResilienceError as exc:
        print(f"shannon-region-agent: {exc}", file=sys.stderr)
        return 1
