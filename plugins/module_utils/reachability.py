# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hosts answer on their ssh port: all asked at once, so that a dead region costs one timeout."""

from __future__ import annotations

import socket
import typing as t

from .concurrently import gather
from .errors import EndpointError
from .http_client import describe


def ssh_answers(host: str, port: int, timeout: float) -> str:
    """The first bytes of the ssh banner. A paused host still accepts connections, so connecting is not enough.

    :raises EndpointError: no banner within the timeout.
    """
    try:
        with socket.create_connection((host, port), timeout=timeout) as connection:
            connection.settimeout(timeout)
            banner = connection.recv(64)
    except OSError as exc:
        raise EndpointError(host, port, "an ssh banner", describe(exc)) from exc
    if not banner:
        raise EndpointError(host, port, "an ssh banner", "a closed connection")
    return banner.decode(errors="replace").strip()


def probe(hosts: t.Mapping[str, tuple[str, int]], timeout: float) -> tuple[list[str], dict[str, str]]:
    """Ask every host at once.

    :param hosts: name to address and ssh port.
    :param timeout: seconds for connecting, and again for the banner.
    :returns: names that answered, in the given order, and the reason of each that did not.
    """

    def asker(address: str, port: int) -> t.Callable[[], str]:
        return lambda: ssh_answers(address, port, timeout)

    answers = gather({name: asker(address, port) for name, (address, port) in hosts.items()})
    reachable = [name for name, answer in answers.items() if isinstance(answer, str)]
    return reachable, {name: str(answer) for name, answer in answers.items() if not isinstance(answer, str)}
