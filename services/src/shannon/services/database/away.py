# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an error says: PostgreSQL can't be used now, the same may work in a moment, or the statement is wrong."""

from __future__ import annotations

import asyncio
import typing as t

import psycopg

from shannon.resilience.errors import ResilienceError

#: What the driver raises when it does not get through; psycopg's own classes, and those of the socket.
DRIVER: tuple[type[Exception], ...] = (psycopg.Error, OSError, asyncio.TimeoutError)
#: SQLSTATE of a write on a server that takes none: a primary that was demoted.
READ_ONLY = "25006"
#: Those of a prepared statement that the server does not have, or whose table changed since: another connection works.
UNPREPARED = ("26000", "0A000")
#: How SQLSTATEs begin with which a server turns everyone away: no connection, shutting down or starting, no room.
_AWAY = ("08", "57P", "533")
#: And those after which the same statement may work: deadlocks, resources, locks, timeouts, the server's disks.
_PASSES = ("08", "40", "53", "55P03", "57", "58", "26000", READ_ONLY)


class DatabaseAway(ResilienceError):
    """PostgreSQL can't be used now. What was asked may have been done only if it was a commit that was under way.

    :ivar retry_after: seconds after which it may be worth trying again.
    """

    def __init__(self, text: str, retry_after: float = 1.0) -> None:
        self.retry_after = retry_after
        super().__init__(text)


class DatabaseBusy(DatabaseAway):
    """All connections are in use; PostgreSQL itself may be well."""


def is_away(exc: BaseException, broken: bool) -> bool:
    """Whether an error of the driver says that PostgreSQL can't be used now.

    :param broken: whether the connection is of no use any more, or there was none.
    """
    if broken or not isinstance(exc, psycopg.Error):
        return True
    return _state(exc) == READ_ONLY or _state(exc).startswith(_AWAY)


def may_pass(exc: BaseException) -> bool:
    """Whether the same statement may work a moment later, although nothing about it changed."""
    if isinstance(exc, DatabaseAway):
        return True
    if not isinstance(exc, psycopg.Error):
        return False
    return _state(exc).startswith(_PASSES) or (not exc.sqlstate and isinstance(exc, psycopg.OperationalError))


def _state(exc: psycopg.Error) -> str:
    return t.cast("str | None", exc.sqlstate) or ""
