# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a primary is asked that is closed to its clients before it stops, so that nobody waits for its stop.

A primary's stop takes seconds: a checkpoint, the archive, its followers. Clients need not wait for any of that: once
nobody can write, and the end of what was written is known, another region that has it may go on.
"""

from __future__ import annotations

import threading

from shannon.resilience.errors import ResilienceError

from .sql import parse_lsn
from .sql_session import Session, psql

APPLICATION = "shannon-closing"
#: Seconds that each question may take.
TIMEOUT = 8.0
#: Physical replication only: such a connection can't be given a statement.
STREAMS = (
    "SELECT client_addr || ' ' || client_port FROM pg_stat_activity"
    " WHERE backend_type = 'walsender' AND datid IS NULL AND client_addr IS NOT NULL"
)
#: Everybody who could still commit something, without Patroni, who is about to stop the server.
_CLIENTS = (
    "pg_stat_activity WHERE backend_type IN ('client backend', 'parallel worker')"
    " AND pid <> pg_backend_pid() AND application_name NOT LIKE 'Patroni%'"
)
#: The message's commit writes out all that was before it; a commit is answered when it is on this host's disk, for the
#: new home says itself whether it has it.
END = (
    "SET synchronous_commit = local",
    "DO $$ BEGIN"
    f"  PERFORM pg_terminate_backend(pid) FROM {_CLIENTS};"
    "  FOR turn IN 1..150 LOOP"
    "    PERFORM pg_stat_clear_snapshot();"
    f"    EXIT WHEN NOT EXISTS (SELECT FROM {_CLIENTS});"
    "    PERFORM pg_sleep(0.01);"
    "  END LOOP;"
    "END $$",
    "SELECT pg_logical_emit_message(true, 'shannon', 'closed to clients')",
    "SELECT pg_current_wal_flush_lsn()",
)


class Closing:
    """The session with this host's PostgreSQL that asks; it may be opened before it is needed."""

    def __init__(self, port: int) -> None:
        self._session = Session(psql("postgres", port, APPLICATION, TIMEOUT), alone=False)
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Open it: on a busy host the start of psql takes longer than all that it is asked.

        :raises ResilienceError: PostgreSQL does not answer.
        """
        with self._lock:
            self._session.ask("SELECT", TIMEOUT)

    def streams(self) -> list[tuple[str, int]]:
        """Address and port of the followers that this host's PostgreSQL sends WAL to.

        :raises ResilienceError: it does not answer.
        """
        with self._lock:
            found = [line.rsplit(" ", 1) for line in self._session.ask(STREAMS, TIMEOUT)]
        # An inet says its length when it is turned into text.
        return [(address.partition("/")[0], int(number)) for address, number in found]

    def end_of_clients(self) -> int:
        """End all sessions, and say how far all that any of them was told to be written goes, in bytes.

        It only holds when nobody can come back: the fence is closed before.

        :raises ResilienceError: it does not answer, or is no primary.
        """
        with self._lock:
            lines = [line for statement in END for line in self._session.ask(statement, TIMEOUT)]
        try:
            return parse_lsn(lines[-1])
        except (IndexError, ValueError) as exc:
            raise ResilienceError(f"PostgreSQL of this host does not say how far it has written: {lines!r}") from exc

    def rest(self) -> None:
        """End the session."""
        with self._lock:
            self._session.close()
