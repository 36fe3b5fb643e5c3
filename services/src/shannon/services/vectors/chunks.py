# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Long texts in overlapping pieces that an embedding model can take, and back again."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

#: Characters of a token, about (seed facts 6). Sizes are estimates; what matters is that reassembly is exact.
CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class Chunk:
    """A piece of a text.

    :ivar index: its place, from 0.
    :ivar start: where it begins in the text, in characters; it tells exactly how much two neighbours share.
    """

    index: int
    start: int
    text: str


def split(text: str, tokens: int = 4000, overlap: int = 400, minimum: int = 200) -> list[Chunk]:
    """Chunks of up to C(tokens), each sharing C(overlap) with the one before.

    A rest that would add fewer than C(minimum) tokens is taken into the last chunk instead of becoming one of its own,
    so the last may be larger by that much. An empty text gives one empty chunk.

    :raises ValueError: the overlap is not below the size, or the minimum is not above 0.
    """
    if not 0 <= overlap < tokens:
        raise ValueError(f"an overlap of {overlap} tokens does not fit chunks of {tokens}; expected 0 to {tokens - 1}")
    if minimum < 1:
        raise ValueError(f"the least size of a chunk is {minimum} tokens, expected at least 1")
    size, shared, least = (value * CHARACTERS_PER_TOKEN for value in (tokens, overlap, minimum))
    chunks: list[Chunk] = []
    start = 0
    while True:
        end = start + size
        if len(text) - end < least:
            end = len(text)
        chunks.append(Chunk(len(chunks), start, text[start:end]))
        if end >= len(text):
            return chunks
        start = end - shared


def join(chunks: t.Iterable[Chunk]) -> str:
    """The text that was split; the order in which the chunks come does not matter.

    The original cut a fixed number of characters off each later chunk, and so lost or doubled text.

    :raises ValueError: a chunk is missing.
    """
    parts: list[str] = []
    end = 0
    for number, chunk in enumerate(sorted(chunks, key=lambda item: item.index)):
        if chunk.index != number or chunk.start > end:
            raise ValueError(f"chunk {number} is missing: the next one is {chunk.index} and begins at {chunk.start}")
        parts.append(chunk.text[end - chunk.start :])
        end = max(end, chunk.start + len(chunk.text))
    return "".join(parts)
