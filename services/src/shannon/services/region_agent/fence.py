# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fence: an nftables set of ports that are open, each for a few seconds only.

The rules let clients in while a port is in the set. The kernel takes it out by itself when its time is up, so an agent
that hangs, is stopped or killed can't leave a former primary open.
"""

from __future__ import annotations

import ipaddress
import pathlib
import subprocess
import threading
import typing as t

from shannon.resilience.errors import ResilienceError
from shannon.services.common import logs

TABLE = "inet shannon_fence"
SET = "open"
#: Connections that stay when their port closes, by the version of IP.
STREAMS = {4: "streams4", 6: "streams6"}
_log = logs.get(__name__)


class Fence:
    """This host's fence.

    :param run: feeds a script to nft; for tests.
    """

    def __init__(self, run: t.Callable[[str], None] | None = None) -> None:
        self._run = run or _nft
        self._lock = threading.Lock()

    def open(self, ports: t.Sequence[int], seconds: float) -> None:
        """Leave the ports open for so long from now, whatever held before.

        :raises ResilienceError: nft refused; the ports close when their earlier time is up.
        """
        milliseconds = int(seconds * 1000)
        if milliseconds < 1 or not ports:
            return  # to nftables a timeout of 0 is none at all
        lines = []
        for port in ports:
            # An element that is there keeps its time when it is added again, so it is taken out in the same step.
            lines += [
                f"add element {TABLE} {SET} {{ {port} timeout {milliseconds}ms }}",
                f"delete element {TABLE} {SET} {{ {port} }}",
                f"add element {TABLE} {SET} {{ {port} timeout {milliseconds}ms }}",
            ]
        with self._lock:
            self._run("\n".join(lines) + "\n")

    def load(self, path: str) -> None:
        """Put the table in place, with every port closed.

        :raises ResilienceError: the file is missing or nft refused it.
        """
        try:
            text = pathlib.Path(path).read_text(encoding="utf-8")
        except OSError as exc:
            raise ResilienceError(
                f"the fence's rules can't be read: {exc}. Run site.yml with --tags region_agent"
            ) from exc
        with self._lock:
            self._run(text)

    def close(self, ports: t.Sequence[int], streams: t.Sequence[tuple[str, int]] = (), seconds: float = 0.0) -> None:
        """Close the ports now, in one step with whatever may stay.

        :param streams: address and port of the other ends of connections that stay.
        :param seconds: for how long they do.
        :raises ResilienceError: nft refused; everything is as it was.
        """
        lines = []
        for address, port in streams:
            known = STREAMS[ipaddress.ip_address(address).version]
            lines.append(f"add element {TABLE} {known} {{ {address} . {port} timeout {int(seconds * 1000)}ms }}")
        for port in ports:
            lines += [
                f"add element {TABLE} {SET} {{ {port} timeout 1s }}",
                f"delete element {TABLE} {SET} {{ {port} }}",
            ]
        with self._lock:
            self._run("\n".join(lines) + "\n")


def _nft(script: str) -> None:
    try:
        done = subprocess.run(
            ["/usr/sbin/nft", "-f", "-"], input=script, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise ResilienceError(f"nft can't be run: {exc}") from exc
    if done.returncode:
        raise ResilienceError(
            f"nft refused to change the fence: {done.stderr.strip()[:300]}. Is the table there (systemctl status "
            "shannon-fence)?"
        )
