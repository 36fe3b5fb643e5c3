# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads JSON bodies: content type 415, malformed 400, wrong fields 422, each with a reason."""

from __future__ import annotations

import json
import math
import typing as t

from fastapi import Request
from pydantic import BaseModel, ValidationError

from .errors import ApiError, sentences

M = t.TypeVar("M", bound=BaseModel)


async def read(request: Request, model: type[M], required: bool = True) -> M:
    """The request's body as a model.

    :param required: whether there must be one; if not, none is an empty object.
    :raises ApiError: see above.
    """
    raw = await request.body()
    if not raw and not required:
        return model()
    return validated(model, parse(request.headers.get("content-type", ""), raw))


def parse(content_type: str, raw: bytes) -> t.Any:
    """The JSON document in a body."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "unsupported_media_type", f"expected application/json, got {kind or 'no content type'}")
    try:
        return json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        raise ApiError(400, "malformed_json", f"the body is no JSON: {str(exc)[:200]}") from exc


def validated(model: type[M], document: t.Any) -> M:
    """A document as a model, of which every text can be stored."""
    if problem := unstorable(document):
        raise ApiError(422, "invalid_request", problem)
    try:
        return model.model_validate(document)
    except ValidationError as exc:
        raise ApiError(422, "invalid_request", sentences(exc.errors(include_input=False, include_url=False))) from exc


def unstorable(document: t.Any) -> str:
    """Why PostgreSQL could not hold a document; empty when it can.

    It has no NUL characters, no lone surrogates and no infinite numbers.
    """
    left = [document]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            left.extend(item.keys())
            left.extend(item.values())
        elif isinstance(item, list):
            left.extend(item)
        elif isinstance(item, float) and not math.isfinite(item):
            return "a number is too large"
        elif isinstance(item, str):
            if "\0" in item:
                return "a text has a NUL character in it, which can't be stored"
            if any("\ud800" <= letter <= "\udfff" for letter in item):
                return "a text has half of a surrogate pair in it, which is no character"
    return ""


def _no_constant(name: str) -> t.Any:
    raise ValueError(f"{name} is no JSON number")
