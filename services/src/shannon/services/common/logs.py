# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Structured logs: one JSON object a line on standard output, which the journal keeps.

Fields: C(time) (RFC 3339, UTC), C(level), C(service), C(logger), C(message), C(request_id) where there is one, C(error)
with the traceback of an exception, and whatever a call gives in C(extra={"fields": {...}}).
"""

from __future__ import annotations

import contextvars
import datetime
import json
import logging
import sys
import typing as t

#: The id of the request that the running task works for.
request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")


class JsonFormatter(logging.Formatter):
    """A log record as one line of JSON."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        moment = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc)
        line: dict[str, t.Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if current := request_id.get():
            line["request_id"] = current
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            line.update({key: value for key, value in fields.items() if key not in line})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(service: str, level: str = "info") -> None:
    """Let everything that this process logs go out as JSON.

    :param service: the field C(service) of every line.
    :param level: debug, info, warning or error.
    """
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter(service))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # What libraries tell about each request is on our own lines already, and httpx's would show addresses twice.
    for chatty in ("httpx", "httpcore", "uvicorn.access", "psycopg.pool"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def get(name: str) -> logging.Logger:
    """A logger."""
    return logging.getLogger(name)
