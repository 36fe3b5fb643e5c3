# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sees PostgreSQL become the primary in the moment in which it does.

Patroni says so as well, but on busy cores a second later, when its next turn is over; clients wait.
"""

from __future__ import annotations

import threading
import time

from shannon.resilience.errors import ResilienceError
from shannon.services.common import logs

from .sql import SWITCH_POINT, end_of_former
from .sql_session import Session, psql

_log = logs.get(__name__)
APPLICATION = "shannon-promotion"
#: Seconds that a question may take when nothing else bounds it: on a busy host the start of psql takes one of them.
TIMEOUT = 5.0
#: Seconds between two looks.
PAUSE = 0.03


class Promotion:
    """The session with this host's PostgreSQL that asks, from the promotion to the moment in which it is known.

    :param session: for tests.
    """

    def __init__(self, port: int, session: Session | None = None) -> None:
        self._session = session or Session(psql("postgres", port, APPLICATION, TIMEOUT), alone=False)

    def seen(self, seconds: float, stopping: threading.Event) -> bool:
        """Whether PostgreSQL has ended its recovery, within so many seconds; whoever asks again goes on waiting."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not stopping.is_set():
            try:
                if self._session.ask("SELECT pg_is_in_recovery()", left) == ["f"]:
                    return True
            except ResilienceError as exc:
                _log.debug("the promotion is not seen: %s", exc)
                return False
            stopping.wait(PAUSE)
        return False

    def switch_point(self) -> int:
        """Where the timeline before the present one ended, in bytes.

        :raises ResilienceError: PostgreSQL does not say so.
        """
        return end_of_former(self._session.ask(SWITCH_POINT, TIMEOUT))

    def rest(self) -> None:
        """End the session."""
        self._session.close()
