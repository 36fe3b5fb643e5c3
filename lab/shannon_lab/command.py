# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run commands, tell the operator what happens, and do the same thing for all hosts at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor

STARTED = time.monotonic()
R = t.TypeVar("R")


class LabError(Exception):
    """The lab cannot go on; the text says why, and what to do."""


def say(text: str) -> None:
    """Print one line of progress with the seconds since the start; stdout is for what a verb answers."""
    print(f"[{time.monotonic() - STARTED:6.1f} s] {text}", file=sys.stderr, flush=True)


def last_lines(text: str, count: int = 15) -> str:
    """The end of a command's output, which is where the reason is."""
    return "\n".join(text.strip().splitlines()[-count:])


def attempt(
    argv: t.Sequence[str],
    timeout: float = 60,
    stdin: bytes | None = None,
    environment: t.Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command within its time and return how it ended, well or not.

    A command that is missing ends with 127 and one that takes too long with 124, as in a shell.
    """
    options: dict[str, t.Any] = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
    try:
        done = subprocess.run(
            list(argv),
            capture_output=True,
            check=False,
            timeout=timeout,
            env={**os.environ, **(environment or {})},
            **options,
        )
    except FileNotFoundError:
        return subprocess.CompletedProcess(list(argv), 127, "", f"{argv[0]}: command not found")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(list(argv), 124, "", f"no answer within {timeout:.0f} s")
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    )


def run(
    argv: t.Sequence[str],
    what: str,
    timeout: float = 60,
    stdin: bytes | None = None,
    environment: t.Mapping[str, str] | None = None,
) -> str:
    """Run a command that must succeed, and return its output.

    :param what: what the command is for, as "cannot <what>" in the error.
    :raises LabError: it failed, was missing or took too long.
    """
    done = attempt(argv, timeout=timeout, stdin=stdin, environment=environment)
    if done.returncode != 0:
        reason = last_lines(done.stderr) or last_lines(done.stdout) or f"exit code {done.returncode}"
        raise LabError(f"cannot {what}: {reason}\n  (command: {' '.join(argv[:6])}{' ...' if len(argv) > 6 else ''})")
    return done.stdout


def for_all(names: t.Iterable[str], action: t.Callable[[str], R]) -> dict[str, R]:
    """Do the same for all names at once; the failures of all of them make one error."""
    names = list(names)
    if not names:
        return {}
    results: dict[str, R] = {}
    failures: list[str] = []
    with ThreadPoolExecutor(max_workers=len(names)) as pool:
        futures = {name: pool.submit(action, name) for name in names}
        for name, future in futures.items():
            try:
                results[name] = future.result()
            except LabError as exc:
                failures.append(f"{name}: {exc}")
    if failures:
        raise LabError("\n".join(failures))
    return results


def fail(exc: LabError) -> t.NoReturn:
    """End the program as an operator expects: the reason on stderr, exit code 1."""
    print(f"lab: {exc}", file=sys.stderr)
    raise SystemExit(1)
