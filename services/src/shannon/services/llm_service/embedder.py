# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Embeddings without a model: features of a text, hashed into a vector.

Features are words, pairs of words and runs of three characters, so that texts that share words, or parts of words, are
near each other. The same text has the same vector everywhere and always, and nothing is downloaded.
"""

from __future__ import annotations

import itertools
import math
import re
import typing as t
from zlib import crc32

_WORD = re.compile(r"\w+")
#: What a word, a pair of words and a run of characters count for; words say most of what a text is about.
WORD, PAIR, RUN = 1.0, 0.5, 0.15
_SIGN = 0x80000000


def embed(text: str, dimension: int) -> list[float]:
    """The vector of a text, of length one; of a text without a word, the first axis.

    :param dimension: how many numbers it has.
    """
    vector = [0.0] * dimension
    words = [word.encode() for word in _WORD.findall(text.lower())]
    for feature in words:
        _add(vector, crc32(feature), WORD)
    for first, second in itertools.pairwise(words):
        _add(vector, crc32(second, crc32(first, 1)), PAIR)
    for word in words:
        padded = b" " + word + b" "
        for start in range(len(padded) - 2):
            _add(vector, crc32(padded[start : start + 3], 2), RUN)
    length = math.sqrt(math.fsum(value * value for value in vector))
    if length == 0:
        vector[0] = 1.0
        return vector
    return [value / length for value in vector]


def _add(vector: list[float], hashed: int, weight: float) -> None:
    # The sign comes from the hash as well, so that features that meet in one place cancel out as often as they add up.
    vector[hashed % len(vector)] += weight if hashed & _SIGN else -weight


def cosine(first: t.Sequence[float], second: t.Sequence[float]) -> float:
    """How near two vectors of length one are; 1 for the same direction."""
    return math.fsum(a * b for a, b in zip(first, second, strict=True))
