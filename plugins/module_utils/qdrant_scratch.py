# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Qdrant of one peer for trying a backup: on loopback, in a folder of its own, gone afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import typing as t

from . import files
from .concurrently import wait_until
from .errors import ResilienceError
from .qdrant import Qdrant


@contextlib.contextmanager
def scratch(
    folder: str, binary: str = "/opt/shannon/qdrant/current/qdrant", wait: float = 60.0
) -> t.Iterator[dict[str, Qdrant]]:
    """Run a scratch Qdrant while the context lasts; yields its peers as the functions of qdrant_snapshot take them.

    Its API key is new each time, and it listens on 127.0.0.1.
    """
    os.makedirs(folder, mode=0o700, exist_ok=True)
    key = secrets.token_hex(24)
    port = _free_port()
    peer_port = _free_port()
    settings = {
        "log_level": "WARN",
        "telemetry_disabled": True,
        "storage": {
            "storage_path": os.path.join(folder, "storage"),
            "snapshots_path": os.path.join(folder, "snapshots"),
            "temp_path": os.path.join(folder, "tmp"),
        },
        "service": {
            "host": "127.0.0.1",
            "http_port": port,
            "grpc_port": None,
            "api_key": key,
            "enable_static_content": False,
        },
        "cluster": {"enabled": True, "p2p": {"port": peer_port}, "consensus": {"tick_period_ms": 100}},
    }
    # JSON is YAML, too.
    config = os.path.join(folder, "config.yaml")
    files.write(config, json.dumps(settings).encode(), 0o600)
    log_path = os.path.join(folder, "log")
    with open(log_path, "ab") as log:
        try:
            process = subprocess.Popen(
                [binary, "--config-path", config, "--uri", f"http://127.0.0.1:{peer_port}"],
                cwd=folder,
                env={"PATH": os.environ.get("PATH", "")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        except OSError as exc:
            raise ResilienceError(f"cannot run {binary}: {exc}. Is this a host of the group qdrant?") from exc
    peer = Qdrant("127.0.0.1", port, None, key, 10.0)

    def ready() -> tuple[bool, str]:
        if process.poll() is not None:
            return True, "it ended"
        return peer.peer_status().leader is not None, "no leader yet"

    try:
        wait_until(ready, "the scratch Qdrant to be ready", wait, interval=0.1)
        if process.poll() is not None:
            raise ResilienceError(f"the scratch Qdrant ended at once: {_tail(log_path)}")
        yield {"scratch": peer}
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _tail(path: str) -> str:
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as handle:
        return " ".join(handle.read()[-500:].split())
    return "no log"
