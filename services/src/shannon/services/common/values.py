# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values of the configuration file as people write them: durations and sizes."""

from __future__ import annotations

import re
import typing as t

from pydantic import BeforeValidator

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h|d)")
_SIZES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "kB": 10**3, "MB": 10**6, "GB": 10**9}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|kB|MB|GB)")


def seconds(value: t.Any) -> t.Any:
    """Seconds of a duration such as C(250ms), C(30s), C(1m30s) or C(720h); a number is seconds already.

    :raises ValueError: it is neither.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError("a duration is a number of seconds or a text such as 250ms, 30s, 1m30s or 720h")
    if isinstance(value, (int, float)):
        return float(value)
    text = value.strip()
    parts = list(_PART.finditer(text))
    if not parts or "".join(part.group(0) for part in parts) != text:
        raise ValueError(f"{value!r} is no duration; write it as 250ms, 30s, 1m30s or 720h")
    return sum(float(part.group(1)) * _UNITS[part.group(2)] for part in parts)


def size(value: t.Any) -> t.Any:
    """Bytes of a size such as C(64MiB); a whole number is bytes already.

    :raises ValueError: it is neither.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if not found:
        raise ValueError(f"{value!r} is no size; write it as 512KiB, 64MiB or 1GiB")
    return int(float(found.group(1)) * _SIZES[found.group(2)])


#: A field in seconds that the file may give as "30s".
Duration = t.Annotated[float, BeforeValidator(seconds)]
#: A field in bytes that the file may give as "64MiB".
Size = t.Annotated[int, BeforeValidator(size)]
