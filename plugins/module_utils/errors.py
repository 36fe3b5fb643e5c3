# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Errors of the library: each says where it happened, what was expected, what was seen and what to do next."""

from __future__ import annotations


class ResilienceError(Exception):
    """Base of every error this library raises on purpose; its text is meant for an operator."""


class EndpointError(ResilienceError):
    """An endpoint did not answer, or did not answer as expected.

    :param host: name or address of the host that was asked.
    :param port: TCP port that was asked.
    :param expected: what a healthy endpoint would have done, as a noun phrase.
    :param seen: what happened instead.
    :param remedy: the next thing an operator should look at or do.
    """

    def __init__(self, host: str, port: int, expected: str, seen: str, remedy: str = "") -> None:
        self.host = host
        self.port = port
        self.expected = expected
        self.seen = seen
        self.remedy = remedy
        text = f"{host}:{port}: expected {expected}, got {seen}"
        if remedy:
            text = f"{text}. {remedy}"
        super().__init__(text)


class ConflictError(ResilienceError):
    """A compare-and-swap lost: somebody else changed the record since it was read."""


class WaitTimeout(ResilienceError):
    """A condition did not hold within its bound; the text names the condition and the last thing seen."""
