# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections to PostgreSQL: where they go, and how long anything on them may take."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import typing as t

import psycopg
import psycopg.conninfo

from shannon.services.common.config import Config, Database
from shannon.services.common.deployment import Cell

#: Seconds beyond the server's own limit after which a statement counts as lost: the server is not there any more.
SLACK = 2.0


class Connection(psycopg.AsyncConnection[t.Any]):
    """A connection of the pool.

    :ivar generation: of the pool when it was made; connections of an older one are not used again.
    """

    generation: int = 0


def conninfo(config: Config, cell: Cell, password: str, application: str) -> str:
    """libpq's connection string for a cell's primary, through the local data proxy.

    The data proxy's certificate is that of C(localhost), so that is the name to check, whatever its address.
    A server that does not take writes (a demoted primary) is no server for us: connecting to it fails.

    :param password: becomes part of the string, so that is a secret, too.
    :param application: the name that the server's views show.
    """
    deployment, settings = config.deployment, config.database
    parts: dict[str, t.Any] = {
        "host": "localhost",
        "hostaddr": deployment.data_proxy,
        "port": cell.ports.postgres_primary,
        "dbname": settings.name,
        "user": settings.user,
        "password": password,
        "application_name": application,
        "connect_timeout": max(2, round(settings.connect_timeout)),
        "target_session_attrs": "read-write",
        "options": _options(settings),
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": round((settings.statement_timeout + SLACK) * 1000),
        "gssencmode": "disable",
        "sslmode": "prefer",
    }
    if deployment.tls.enabled:
        files = {"sslrootcert": deployment.tls.ca, "sslcert": deployment.tls.cert, "sslkey": deployment.tls.key}
        parts |= {"sslmode": "verify-full", **files}
    return psycopg.conninfo.make_conninfo("", **parts)


def _options(settings: Database) -> str:
    milliseconds = round(settings.statement_timeout * 1000)
    # A transaction of ours that hangs would hold locks, and the vector indexer, up.
    return f"-c statement_timeout={milliseconds} -c idle_in_transaction_session_timeout={2 * milliseconds}"


@contextlib.contextmanager
def bounded(connection: psycopg.AsyncConnection[t.Any], seconds: float) -> t.Iterator[None]:
    """Break a connection on which something takes longer than this: what waits on it then fails at once.

    The server's own limit does not help when the server is gone without a word, and cancelling the waiting task makes
    the driver wait for the server again.
    """
    handle = asyncio.get_running_loop().call_later(seconds, cut, connection)
    try:
        yield
    finally:
        handle.cancel()


def cut(connection: psycopg.AsyncConnection[t.Any]) -> None:
    """End a connection from below."""
    with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as copy:
        copy.shutdown(socket.SHUT_RDWR)


def went_away(connection: psycopg.AsyncConnection[t.Any]) -> bool:
    """Whether an idle connection was ended by the other side (or has something to say, which is as rare)."""
    if connection.closed:
        return True
    try:
        poller = select.poll()
        poller.register(connection.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
        return bool(poller.poll(0))
    except (OSError, psycopg.Error):
        return True
