# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a breaker's settings come from, and which errors are failures of which kind of dependency."""

from __future__ import annotations

import asyncio
import concurrent.futures
import types
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.shannon.resilience.plugins.module_utils.circuit_breaker import KINDS, CircuitBreaker
from ansible_collections.shannon.resilience.plugins.module_utils.circuit_breaker_failures import (
    is_bad_response,
    is_failure,
)
from ansible_collections.shannon.resilience.plugins.module_utils.circuit_breaker_settings import (
    PREFIXES,
    SettingsError,
    resolve,
    seconds,
)

# ---- settings: facts 1.4, and 10.2 item 9 (file and code disagree, and the file is not applied)


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_hold_when_nothing_is_said(kind: str) -> None:
    settings, origins = resolve(kind, {"PATH": "/bin", "CB_OTHER_TIMEOUT": "x"}, {})
    assert settings == KINDS[kind]
    assert {origin.source for origin in origins.values()} == {"default"}


def test_the_environment_is_over_the_file_over_the_defaults() -> None:
    settings, origins = resolve(
        "redis",
        {"CB_REDIS_TIMEOUT": "1m30s", "CB_REDIS_FAILURE_THRESHOLD": "7"},
        {"timeout": "60s", "interval": 20, "max_failures": 5},
    )
    assert (settings.timeout, settings.interval, settings.failure_threshold, settings.max_requests) == (90, 20, 7, 5)
    assert {key: str(origins[key]) for key in ("timeout", "interval", "failure_threshold", "max_requests")} == {
        "timeout": "90 (environment CB_REDIS_TIMEOUT)",
        "interval": "20 (file circuit_breakers.redis.interval)",
        "failure_threshold": "7 (environment CB_REDIS_FAILURE_THRESHOLD)",
        "max_requests": "5 (default)",
    }


def test_integers_of_the_file_are_applied() -> None:
    settings, _origins = resolve("grpc", {}, {"max_requests": 10, "interval": "30s", "timeout": 60, "max_failures": 10})
    assert (settings.max_requests, settings.interval, settings.timeout, settings.failure_threshold) == (10, 30, 60, 10)


def test_every_kind_has_its_own_variables() -> None:
    environ = {f"{prefix}TIMEOUT": f"{number}s" for number, prefix in enumerate(PREFIXES.values(), 11)}
    found = {kind: resolve(kind, environ)[0].timeout for kind in PREFIXES}
    assert found == {"redis": 11, "database": 12, "grpc": 13, "grpc_connection": 14, "http": 15}
    assert resolve("generic", environ)[0] == KINDS["generic"]


def test_the_extras_can_be_set_too() -> None:
    settings, _origins = resolve(
        "http", {"CB_HTTP_FAILURE_RATE": "0.5", "CB_HTTP_RATE_WINDOW": "30s", "CB_HTTP_TIMEOUT_GROWTH": "2"}, {}
    )
    assert (settings.failure_rate, settings.rate_window, settings.timeout_growth) == (0.5, 30, 2)


@pytest.mark.parametrize(
    ("environ", "section", "said"),
    [
        ({"CB_DB_TIMEOUT": "soon"}, {}, r"environment: CB_DB_TIMEOUT is 'soon'; allowed: a number above 0 to 86400"),
        ({"CB_DB_TIMEOUT": ""}, {}, r"CB_DB_TIMEOUT is ''"),
        ({"CB_DB_TIMEOUT": "30"}, {}, r"CB_DB_TIMEOUT is '30'.*as a duration such as"),
        ({"CB_DB_TIMEOUT": "-5s"}, {}, r"CB_DB_TIMEOUT is -5.0; allowed"),
        ({"CB_DB_MAX_REQUESTS": "0"}, {}, r"CB_DB_MAX_REQUESTS is 0; allowed: a whole number from 1 to 10000"),
        ({"CB_DB_MAX_REQUESTS": "2.5"}, {}, r"CB_DB_MAX_REQUESTS is '2.5'; allowed: a whole number"),
        ({"CB_DB_MAX_REQUEST": "2"}, {}, r"CB_DB_MAX_REQUEST is unknown; allowed: CB_DB_MAX_REQUESTS, "),
        ({}, {"timeout": "never"}, r"file: circuit_breakers.database.timeout is 'never'; allowed"),
        ({}, {"timeout": 0}, r"file: circuit_breakers.database.timeout is 0; allowed"),
        ({}, {"max_requests": "3"}, r"circuit_breakers.database.max_requests is '3'; allowed: a whole number"),
        ({}, {"max_requests": 3.0}, r"circuit_breakers.database.max_requests is 3.0"),
        ({}, {"threshold": 3}, r"circuit_breakers.database.threshold is unknown; allowed: .*max_failures"),
        ({}, {"max_failures": 3, "failure_threshold": 3}, r"say it once"),
        ({"CB_DB_TIMEOUT": "2h"}, {}, r"timeout_max is 3600.0; allowed: timeout \(7200.0\) or more"),
    ],
)
def test_what_is_wrong_is_refused(environ: dict[str, str], section: dict[str, t.Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        resolve("database", environ, section)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(SettingsError, match="kind is 'mysql'; allowed: generic, redis"):
        resolve("mysql", {})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("250ms", 0.25),
        ("30s", 30),
        ("1m30s", 90),
        ("1.5h", 5400),
        ("720h", 2592000),
        ("0", 0),
        ("100us", 1e-4),
        (".5s", 0.5),
    ],
)
def test_durations_are_read_as_go_does(text: str, value: float) -> None:
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "s", "10", "10 s", "1d", "--1s", "1s!", "\u0661s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        seconds(text)


@given(st.text(alphabet="0123456789.smhun +-", max_size=12))
def test_durations_are_numbers_or_refused(text: str) -> None:
    try:
        assert isinstance(seconds(text), float)
    except ValueError as exc:
        assert "is no duration" in str(exc)


# ---- failures


class Coded(Exception):
    """An error with attributes as drivers have them."""

    def __init__(self, text: str = "", **attributes: t.Any) -> None:
        super().__init__(text)
        vars(self).update(attributes)


def named(name: str, *bases: type[Exception], text: str = "") -> Exception:
    return type(name, bases or (Exception,), {})(text)


def grpc_error(code: str) -> Exception:
    return Coded(code=lambda: types.SimpleNamespace(name=code))


@pytest.mark.parametrize("kind", ["generic", *PREFIXES])
@pytest.mark.parametrize(
    "error", [asyncio.CancelledError(), concurrent.futures.CancelledError(), GeneratorExit(), KeyboardInterrupt()]
)
def test_a_caller_that_gave_up_says_nothing(kind: str, error: BaseException) -> None:
    assert is_failure(kind)(error) is None


@pytest.mark.parametrize("kind", ["generic", *PREFIXES])
def test_what_has_no_shape_is_a_failure(kind: str) -> None:
    for error in (ConnectionError("refused"), TimeoutError(), OSError(113, "no route"), RuntimeError("x")):
        assert is_failure(kind)(error) is True


@pytest.mark.parametrize("sqlstate", ["08006", "08001", "53300", "57P01", "57P03", "57014", "58030", "XX000", None])
def test_a_database_that_is_not_well(sqlstate: str | None) -> None:
    assert is_failure("database")(Coded("x", sqlstate=sqlstate)) is True


@pytest.mark.parametrize("sqlstate", ["23505", "23503", "22P02", "42703", "42P01", "40001", "40P01", "25006", "P0001"])
def test_sql_errors_are_answers(sqlstate: str) -> None:
    """10.2 item 12: a constraint or a missing column opens no breaker."""
    assert is_failure("database")(Coded("x", sqlstate=sqlstate)) is False
    assert is_failure("database")(Coded("x", pgcode=sqlstate)) is False


def test_mistakes_that_the_driver_finds_are_no_failures() -> None:
    base = type("Error", (Exception,), {"sqlstate": None})
    assert is_failure("database")(named("ProgrammingError", type("DatabaseError", (base,), {}))) is False
    assert is_failure("database")(named("OperationalError", base)) is True
    assert is_failure("database")(named("PoolTimeout", base)) is True


def test_a_query_that_the_user_cancelled_says_nothing() -> None:
    error = Coded("canceling statement due to user request", sqlstate="57014")
    assert is_failure("database")(error) is None
    assert is_failure("database")(Coded("canceling statement due to statement timeout", sqlstate="57014")) is True


def test_real_errors_of_psycopg_are_known() -> None:
    errors = pytest.importorskip("psycopg.errors")
    judge = is_failure("database")
    assert judge(errors.UniqueViolation("x")) is False and judge(errors.UndefinedColumn("x")) is False
    assert judge(errors.AdminShutdown("x")) is True and judge(errors.TooManyConnections("x")) is True
    assert judge(errors.OperationalError("connection failed")) is True
    assert judge(errors.ProgrammingError("the query has 2 placeholders but 1 parameters were passed")) is False


def test_a_failed_read_of_a_single_row_counts() -> None:
    """10.2 item 11: the original takes a row that can't be read for a success."""
    breaker = CircuitBreaker("postgresql", "x", KINDS["database"], is_failure=is_failure("database"))

    def fetchone() -> None:
        raise Coded("server closed the connection", sqlstate=None)

    for _read in range(5):
        with pytest.raises(Coded):
            breaker.call(fetchone)
    assert breaker.state.label == "open"


@pytest.mark.parametrize("code", ["UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "INTERNAL", "UNKNOWN"])
def test_grpc_codes_that_are_failures(code: str) -> None:
    assert is_failure("grpc")(grpc_error(code)) is True


@pytest.mark.parametrize(
    "code",
    [
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
    ],
)
def test_grpc_codes_that_are_answers(code: str) -> None:
    assert is_failure("grpc")(grpc_error(code)) is False


def test_a_cancelled_grpc_call_says_nothing() -> None:
    assert is_failure("grpc")(grpc_error("CANCELLED")) is None


def test_real_errors_of_grpc_are_known() -> None:
    grpc = pytest.importorskip("grpc")

    def error(code: t.Any) -> Exception:
        return t.cast(Exception, grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "x"))

    assert is_failure("grpc")(error(grpc.StatusCode.UNAVAILABLE)) is True
    assert is_failure("grpc")(error(grpc.StatusCode.NOT_FOUND)) is False


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        (Coded(response=types.SimpleNamespace(status_code=503)), True),
        (Coded(response=types.SimpleNamespace(status_code=429)), False),
        (Coded(response=types.SimpleNamespace(status_code=404)), False),
        (Coded(status_code=500), True),
        (Coded(status=400), False),
        (Coded(code=502), True),
        (named("ConnectTimeout"), True),
    ],
)
def test_http_errors(error: Exception, failed: bool) -> None:
    assert is_failure("http")(error) is failed


@pytest.mark.parametrize(("status", "bad"), [(200, False), (404, False), (429, False), (500, True), (503, True)])
def test_http_responses(status: int, bad: bool) -> None:
    assert is_bad_response(types.SimpleNamespace(status_code=status)) is bad


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        (KeyError("session"), False),
        (named("ResponseError", text="no such key"), False),
        (named("NoScriptError"), False),
        (named("ResponseError", text="NOSCRIPT No matching script"), False),
        (named("WatchError"), False),
        (named("ResponseError", text="MASTERDOWN Link with MASTER is down"), True),
        (named("BusyLoadingError"), True),
        (named("ReadOnlyError"), True),
    ],
)
def test_redis_errors(error: Exception, failed: bool) -> None:
    assert is_failure("redis")(error) is failed


def test_a_missing_key_never_opens_the_breaker() -> None:
    breaker = CircuitBreaker("redis", "x", KINDS["redis"], is_failure=is_failure("redis"))
    for _get in range(10):
        with pytest.raises(KeyError):
            breaker.call({}.__getitem__, "missing")
    assert breaker.state.label == "closed" and breaker.counts.total_successes == 10


def test_an_unknown_kind_of_failure_is_refused() -> None:
    with pytest.raises(ValueError, match="kind is 'mysql'; allowed: generic"):
        is_failure("mysql")
