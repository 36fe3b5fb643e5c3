# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is asked first, and who when that one does not answer."""

from __future__ import annotations

import itertools
import typing as t

T = t.TypeVar("T")


class Turns:
    """Spreads calls over equals."""

    def __init__(self) -> None:
        self._next = itertools.count()

    def order(self, items: t.Sequence[T]) -> list[T]:
        """All items, each once, beginning with the next one's turn.

        The order is fixed here: calls that run at the same time must not shift each other's, or one of them asks the
        same item twice and another never.
        """
        start = next(self._next) % len(items) if items else 0
        return [*items[start:], *items[:start]]
