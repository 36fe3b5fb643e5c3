# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the form of an upload: some short texts and one file."""

from __future__ import annotations

import email.parser
import email.policy

from .errors import ApiError


def fields(content_type: str, raw: bytes) -> dict[str, bytes]:
    """The parts of C(multipart/form-data) by name.

    :param raw: the body, of which the size was bounded before.
    :raises ApiError: it is malformed, or a name comes twice.
    """
    # Read as a message with this content type: the standard library knows the format.
    head = b"Content-Type: " + content_type.encode("latin-1", "replace") + b"\r\n\r\n"
    if "\r" in content_type or "\n" in content_type or "boundary=" not in content_type.lower():
        raise ApiError(400, "malformed_form", "the form has no boundary")
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + raw)
    if not message.is_multipart() or message.defects:
        raise ApiError(400, "malformed_form", "the form is malformed: expected parts between its boundaries")
    found: dict[str, bytes] = {}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        if not isinstance(name, str) or not isinstance(content, bytes):
            raise ApiError(400, "malformed_form", "a part of the form has no name, or parts of its own")
        if name in found:
            raise ApiError(422, "invalid_request", f"the form has two parts named {name[:64]!r}")
        found[name] = content
    return found
