# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A psql that stays, for what is asked every second: each start of one costs more than the question."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
import typing as t

from shannon.resilience.errors import ResilienceError

APPLICATION = "shannon-markers"
#: A server whose second host is gone lets a commit wait, and notices no client that left. So there must not be a second
#: session while the first one's commit still waits.
_EARLIER = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{APPLICATION}' AND pid <> pg_backend_pid()"


def psql(database: str, port: int, application: str = APPLICATION, seconds: float = 2.0) -> list[str]:
    """The command: this host's PostgreSQL over the socket, as its own superuser, bounded on its side too.

    :param seconds: that one statement may take.
    """
    conninfo = (
        f"dbname={database} port={port} connect_timeout=2 application_name={application} "
        f"options='-c statement_timeout={int(seconds * 1000)} -c lock_timeout=1000'"
    )
    runuser = ["/usr/sbin/runuser", "-u", "postgres", "--"]
    return [*runuser, "psql", "-XAtq", "-v", "VERBOSITY=terse", "-d", conninfo]


class Session:
    """One psql, started by the first question and again after each failure.

    :param command: what to start; it reads statements and writes lines as psql does.
    :param alone: whether there may be no other marker's session.
    """

    def __init__(self, command: t.Sequence[str], alone: bool = True) -> None:
        self._command = list(command)
        self._alone = alone
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self._asked = 0

    def ask(self, statement: str, timeout: float = 2.0) -> list[str]:
        """The lines that a statement gives, without empty ones.

        :param statement: one statement without its semicolon.
        :raises ResilienceError: PostgreSQL refused it, or did not answer in time; whether it was carried out is not
            known then.
        """
        deadline = time.monotonic() + timeout
        if self._process is None:
            self._start()
            if self._alone and self._exchange(_EARLIER, deadline) != ["0"]:
                self.close()
                raise ResilienceError("PostgreSQL of this host: an earlier marker still waits to be committed")
        return self._exchange(statement, deadline)

    def close(self) -> None:
        """End it at once."""
        process, self._process, self._rest = self._process, None, b""
        if process is None:
            return
        with contextlib.suppress(OSError):  # it may have ended by itself
            os.killpg(process.pid, signal.SIGKILL)  # runuser is the parent of the psql that is meant
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what could not be sent does not matter any more
                    pipe.close()
        process.wait()

    def _start(self) -> None:
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd="/",
                start_new_session=True,
            )
        except OSError as exc:
            raise ResilienceError(f"PostgreSQL of this host can't be asked: {exc}") from exc

    def _exchange(self, statement: str, deadline: float) -> list[str]:
        self._asked += 1
        end = f"end-of-answer-{self._asked}"
        try:
            lines = self._send(f"{statement};\n\\echo {end}\n", end, deadline)
        except (OSError, ResilienceError) as exc:
            self.close()
            raise ResilienceError(f"PostgreSQL of this host: {exc}") from exc
        wrong = [line for line in lines if line.startswith(("ERROR:", "FATAL:", "PANIC:", "psql:"))]
        if wrong:
            raise ResilienceError(f"PostgreSQL of this host: {wrong[0][:300]}")
        return [line for line in lines if line and not line.startswith(("WARNING:", "NOTICE:"))]

    def _send(self, text: str, end: str, deadline: float) -> list[str]:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise ResilienceError("there is no session")
        process.stdin.write(text.encode())
        process.stdin.flush()
        lines: list[str] = []
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                while b"\n" in self._rest:
                    line, _newline, self._rest = self._rest.partition(b"\n")
                    if line.decode(errors="replace") == end:
                        return lines
                    lines.append(line.decode(errors="replace"))
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise ResilienceError("no answer in time")
                received = os.read(process.stdout.fileno(), 65536)
                if not received:
                    raise ResilienceError(f"the session ended: {(lines or ['it said nothing'])[-1][:300]}")
                self._rest += received
