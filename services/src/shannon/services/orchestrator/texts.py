# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Texts that PostgreSQL takes: it stores no NUL, which models and tools do write now and then."""

from __future__ import annotations

import json
import typing as t

_NUL, _INSTEAD = "\0", "\ufffd"


def clean(value: t.Any) -> t.Any:
    """The value with each NUL in its texts replaced; mappings and lists are gone through."""
    if isinstance(value, str):
        # A lone surrogate, as JSON may hold one, is no character either.
        return value.replace(_NUL, _INSTEAD).encode("utf-8", "replace").decode()
    if isinstance(value, t.Mapping):
        return {clean(key): clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(item) for item in value]
    return value


def document(value: t.Any) -> str:
    """A value as JSON for a jsonb column."""
    return json.dumps(clean(value), ensure_ascii=False, default=str)


def shorten(text: str, longest: int) -> str:
    """The text, cut to so many characters."""
    return text if len(text) <= longest else text[: longest - 3] + "..."
