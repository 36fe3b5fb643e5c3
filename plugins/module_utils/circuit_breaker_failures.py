# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What counts as a failure, by kind of dependency (seed facts 1).

A dependency fails when it can't be reached, does not answer in time, or says that it can't work. An answer that the
caller does not like (a duplicate key, a 404, an invalid argument) is an answer. When the caller itself gave up, its
error says nothing. Errors are known by their shape rather than by their class, so that no driver is imported.
"""

from __future__ import annotations

import typing as t

#: True: a failure; False: an answer; None: it says nothing about the dependency.
Verdict: t.TypeAlias = "bool | None"

#: gRPC codes that say that the server, or the way to it, is not well. UNKNOWN is what a server answers that crashed
#: over the call, DATA_LOSS what it answers when its data is gone.
GRPC_FAILURES = frozenset(
    ["UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "INTERNAL", "UNKNOWN", "DATA_LOSS"]
)
#: SQLSTATE classes: connection exception, insufficient resources, operator intervention, system error, internal error.
SQL_FAILURES = frozenset(["08", "53", "57", "58", "XX"])
#: Classes of PEP 249 that a driver raises without asking the server: the statement or its values are wrong.
_SQL_MISTAKES = frozenset(["ProgrammingError", "DataError", "IntegrityError", "NotSupportedError"])
#: query_canceled: by a user's request or, which is a failure, by a timeout.
_QUERY_CANCELED = "57014"
#: What Redis says when something is not there, a script among them.
_REDIS_NOT_FOUND = ("no such key", "noscript", "nogroup")
#: Names of the errors that tell a caller that it was cancelled itself.
_CANCELLED = frozenset(["CancelledError"])


def is_failure(kind: str) -> t.Callable[[BaseException], Verdict]:
    """The classification for breakers of this kind.

    :param kind: redis, database, grpc, grpc_connection, http or generic.
    :raises ValueError: there is no such kind.
    """
    try:
        return _KINDS[kind]
    except KeyError:
        raise ValueError(f"kind is {kind!r}; allowed: {', '.join(_KINDS)}") from None


def is_bad_response(response: t.Any) -> bool:
    """Whether an HTTP response is a failure although nothing was raised: 5xx. For C(is_bad_result)."""
    status = _status(response)
    return status is not None and status >= 500


def _generic(exc: BaseException) -> Verdict:
    return None if _given_up(exc) else True


def _redis(exc: BaseException) -> Verdict:
    """Any error but "key not found"; a transaction that lost against another writer (WATCH) is an answer, too."""
    if _given_up(exc):
        return None
    if isinstance(exc, KeyError) or "WatchError" in _classes(exc):
        return False
    if "NoScriptError" in _classes(exc):
        return False
    said = str(exc).lower()
    return not any(words in said for words in _REDIS_NOT_FOUND)


def _database(exc: BaseException) -> Verdict:
    """Errors of the connection or the server; those of a statement (classes 22, 23, 40, 42 and such) are answers."""
    if _given_up(exc):
        return None
    state = getattr(exc, "sqlstate", None) or getattr(exc, "pgcode", None)
    if not isinstance(state, str):
        return not _SQL_MISTAKES & _classes(exc)
    if state == _QUERY_CANCELED and "user request" in str(exc):
        return None
    return state[:2] in SQL_FAILURES


def _grpc(exc: BaseException) -> Verdict:
    if _given_up(exc):
        return None
    code = _grpc_code(exc)
    if code is None:
        return True
    return None if code == "CANCELLED" else code in GRPC_FAILURES


def _http(exc: BaseException) -> Verdict:
    """What never became a response, and responses of 5xx; 4xx (429 among them) are answers."""
    if _given_up(exc):
        return None
    status = _status(getattr(exc, "response", None))
    if status is None:
        status = _status(exc)
    return status is None or status >= 500


def _given_up(exc: BaseException) -> bool:
    return not isinstance(exc, Exception) or bool(_CANCELLED & _classes(exc))


def _classes(exc: BaseException) -> frozenset[str]:
    return frozenset(base.__name__ for base in type(exc).__mro__)


def _grpc_code(exc: BaseException) -> str | None:
    code = getattr(exc, "code", None)
    if callable(code):
        code = code()
    name = getattr(code, "name", None)
    return name if isinstance(name, str) else None


def _status(thing: t.Any) -> int | None:
    """The status of a response or an error, by the names that HTTP libraries have for it."""
    for name in ("status_code", "status", "code"):
        value = getattr(thing, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and 100 <= value <= 599:
            return int(value)
    return None


_KINDS: dict[str, t.Callable[[BaseException], Verdict]] = {
    "generic": _generic,
    "redis": _redis,
    "database": _database,
    "grpc": _grpc,
    "grpc_connection": _generic,
    "http": _http,
}
