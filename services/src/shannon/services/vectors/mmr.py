# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Maximal marginal relevance: results that answer the query without repeating each other."""

from __future__ import annotations

import math
import typing as t

Vector = t.Sequence[float]


def cosine(left: Vector, right: Vector) -> float:
    """Cosine similarity, -1 to 1; 0 when a vector is all zeros.

    :raises ValueError: the vectors differ in length.
    """
    return _dot(_unit(left), _unit(right))


def rerank(relevance: t.Sequence[float], vectors: t.Sequence[Vector], count: int, weight: float = 0.7) -> list[int]:
    """Indices of up to C(count) items in the order of their selection, which is the order of the answer.

    Each step takes the item with the greatest C(weight * relevance - (1 - weight) * similarity to the nearest of those
    taken already) (seed facts 6). The original sorted by relevance afterwards, which undid it. Ties go to the lower
    index, so the result is deterministic.

    :param relevance: similarity of each item to the query.
    :param vectors: the items' vectors, as many as C(relevance).
    :param count: how many to take; more than there are takes all.
    :param weight: lambda, 0 (only diversity) to 1 (only relevance).
    :raises ValueError: lengths differ, or the weight is out of range.
    """
    if len(relevance) != len(vectors):
        raise ValueError(f"{len(relevance)} scores for {len(vectors)} vectors")
    if not 0 <= weight <= 1:
        raise ValueError(f"lambda is {weight}, expected 0 to 1")
    units = [_unit(vector) for vector in vectors]
    nearest = [-math.inf] * len(units)
    left = list(range(len(units)))
    chosen: list[int] = []
    while left and len(chosen) < count:
        best = max(left, key=lambda item: (_score(relevance[item], nearest[item], weight), -item))
        left.remove(best)
        chosen.append(best)
        for item in left:
            nearest[item] = max(nearest[item], _dot(units[item], units[best]))
    return chosen


def _score(relevance: float, nearest: float, weight: float) -> float:
    repeated = 0.0 if nearest == -math.inf else nearest
    return weight * relevance - (1 - weight) * repeated


def _dot(left: Vector, right: Vector) -> float:
    if len(left) != len(right):
        raise ValueError(f"vectors of {len(left)} and {len(right)} dimensions can't be compared")
    return sum(map(float.__mul__, left, right))


def _unit(vector: Vector) -> list[float]:
    values = [float(value) for value in vector]
    norm = math.hypot(*values)
    return [value / norm for value in values] if norm else values
