# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of circuit breakers: the environment over the configuration file over the kind's defaults (seed facts 1).

Durations are written as in Go: C(250ms), C(30s), C(1m30s), C(1h). What is wrong is refused, never replaced in silence.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t
from dataclasses import dataclass

from .circuit_breaker_model import KINDS, RANGES, SETTING_NAMES, Settings
from .errors import ResilienceError

#: Prefixes of the environment variables by kind; generic breakers have none.
PREFIXES = {
    "redis": "CB_REDIS_",
    "database": "CB_DB_",
    "grpc": "CB_GRPC_",
    "grpc_connection": "CB_GRPC_CONN_",
    "http": "CB_HTTP_",
}
#: Settings that are seconds, and so may be written as durations.
DURATIONS = ("interval", "timeout", "probe_timeout", "slow_call", "rate_window", "timeout_max")
#: Other names that the file may use.
ALIASES = {"max_failures": "failure_threshold"}

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|ms|s|m|h)")


class SettingsError(ResilienceError, ValueError):
    """A setting can't be used; the text names where it comes from, its key, its value and what is allowed."""


@dataclass(frozen=True)
class Origin:
    """Where a value came from.

    :ivar source: environment, file or default.
    :ivar key: the variable, or the key in the file; for a default the kind.
    """

    value: float
    source: str
    key: str

    def __str__(self) -> str:
        return f"{self.value:g} ({self.source}{'' if self.source == 'default' else f' {self.key}'})"


def seconds(text: str) -> float:
    """Seconds of a duration as Go writes it.

    :raises ValueError: it is none.
    """
    rest = text.strip()
    sign = -1.0 if rest.startswith("-") else 1.0
    rest = rest[1:] if rest[:1] in ("+", "-") else rest
    if rest == "0":
        return 0.0
    parts = list(_PART.finditer(rest))
    if not parts or "".join(part.group(0) for part in parts) != rest:
        raise ValueError(f"{text!r} is no duration; write it as 250ms, 30s, 1m30s or 1h")
    return sign * sum(float(part.group(1)) * _UNITS[part.group(2)] for part in parts)


def resolve(
    kind: str, environ: t.Mapping[str, str], section: t.Mapping[str, t.Any] | None = None
) -> tuple[Settings, dict[str, Origin]]:
    """A kind's settings, and for each of them its value and where that came from.

    :param kind: a key of :data:`KINDS`.
    :param environ: the environment; only variables with the kind's prefix are looked at.
    :param section: C(circuit_breakers.<kind>) of the configuration file; durations as texts or seconds.
    :raises SettingsError: a value or a key can't be used.
    """
    if kind not in KINDS:
        raise SettingsError(f"kind is {kind!r}; allowed: {', '.join(KINDS)}")
    default = KINDS[kind]
    origins = {name: Origin(getattr(default, name), "default", kind) for name in SETTING_NAMES}
    origins.update(_from_file(kind, section or {}))
    origins.update(_from_environment(kind, environ))
    try:
        settings = dataclasses.replace(default, **{name: origin.value for name, origin in origins.items()})  # type: ignore[arg-type]
    except ValueError as exc:  # two values that don't go together
        raise SettingsError(f"circuit breaker of kind {kind}: {exc}") from exc
    return settings, origins


def _from_file(kind: str, section: t.Mapping[str, t.Any]) -> dict[str, Origin]:
    found: dict[str, Origin] = {}
    for key, value in section.items():
        where = f"circuit_breakers.{kind}.{key}"
        name = ALIASES.get(key, key)
        if name not in SETTING_NAMES:
            allowed = ", ".join((*SETTING_NAMES, *ALIASES))
            raise SettingsError(f"file: {where} is unknown; allowed: {allowed}")
        if name in found:
            raise SettingsError(f"file: {where} says the same as {found[name].key}; say it once")
        if isinstance(value, str) and name in DURATIONS:
            value = _duration("file", where, name, value)
        found[name] = Origin(_checked("file", where, name, value), "file", where)
    return found


def _from_environment(kind: str, environ: t.Mapping[str, str]) -> dict[str, Origin]:
    prefix = PREFIXES.get(kind)
    if prefix is None:
        return {}
    longer = tuple(other for other in PREFIXES.values() if other != prefix and other.startswith(prefix))
    found: dict[str, Origin] = {}
    for variable in sorted(environ):
        if not variable.startswith(prefix) or (longer and variable.startswith(longer)):
            continue
        name = variable[len(prefix) :].lower()
        if name not in SETTING_NAMES or variable != variable.upper():
            allowed = ", ".join(prefix + setting.upper() for setting in SETTING_NAMES)
            raise SettingsError(f"environment: {variable} is unknown; allowed: {allowed}")
        text = environ[variable]
        if name in DURATIONS:
            value: t.Any = _duration("environment", variable, name, text)
        else:
            value = _number(variable, name, text)
        found[name] = Origin(_checked("environment", variable, name, value), "environment", variable)
    return found


def _duration(source: str, key: str, name: str, text: str) -> float:
    try:
        return seconds(text)
    except ValueError as exc:
        raise SettingsError(
            f"{source}: {key} is {text!r}; allowed: {RANGES[name]}, as a duration such as 250ms, 30s, 1m30s or 1h"
        ) from exc


def _number(variable: str, name: str, text: str) -> float:
    try:
        return RANGES[name].kind(text.strip())  # type: ignore[no-any-return]
    except ValueError as exc:
        raise SettingsError(f"environment: {variable} is {text!r}; allowed: {RANGES[name]}") from exc


def _checked(source: str, key: str, name: str, value: t.Any) -> float:
    try:
        RANGES[name].check(key, value)
    except ValueError as exc:
        raise SettingsError(f"{source}: {exc}") from exc
    return t.cast(float, value if RANGES[name].kind is int else float(value))
