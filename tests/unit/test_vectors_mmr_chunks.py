"""MMR keeps its own order, and chunks give back the very text."""

from __future__ import annotations

import math

import pytest

hypothesis = pytest.importorskip("hypothesis")
pytest.importorskip("shannon.services.vectors")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from shannon.services.vectors import chunks, mmr  # noqa: E402


def test_mmr_prefers_what_is_new() -> None:
    near, twin, other = [1.0, 0.0], [0.999, 0.04], [0.6, 0.8]
    assert mmr.rerank([0.95, 0.94, 0.7], [near, twin, other], 3, 0.5) == [0, 2, 1]


def test_mmr_order_is_not_that_of_relevance() -> None:
    """The original sorted by relevance afterwards, which undid it."""
    relevance = [0.9, 0.89, 0.6]
    order = mmr.rerank(relevance, [[1, 0], [1, 0], [0, 1]], 3, 0.7)
    assert order == [0, 2, 1]
    assert [relevance[item] for item in order] != sorted(relevance, reverse=True)


def test_mmr_with_full_weight_is_relevance() -> None:
    assert mmr.rerank([0.1, 0.9, 0.5], [[1, 0], [1, 0], [0, 1]], 2, 1.0) == [1, 2]


@pytest.mark.parametrize(("scores", "vectors", "weight"), [([1.0], [], 0.7), ([1.0], [[1.0]], 1.5)])
def test_mmr_refuses(scores: list[float], vectors: list[list[float]], weight: float) -> None:
    with pytest.raises(ValueError, match=r"scores for|lambda"):
        mmr.rerank(scores, vectors, 1, weight)


def test_mmr_of_zero_and_unequal_vectors() -> None:
    assert mmr.cosine([0.0, 0.0], [1.0, 0.0]) == 0.0
    assert math.isclose(mmr.cosine([3.0, 0.0], [5.0, 0.0]), 1.0)
    with pytest.raises(ValueError, match="dimensions"):
        mmr.cosine([1.0], [1.0, 2.0])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=0, max_size=12), st.integers(0, 15), st.floats(0, 1), st.randoms())
def test_mmr_takes_each_once(scores: list[float], count: int, weight: float, random: object) -> None:
    vectors = [[random.uniform(-1, 1) for _turn in range(3)] for _turn in scores]  # type: ignore[attr-defined]
    order = mmr.rerank(scores, vectors, count, weight)
    assert len(order) == len(set(order)) == min(count, len(scores))


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=400), st.integers(2, 20), st.data())
def test_chunks_join_exactly(text: str, tokens: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, tokens - 1))
    minimum = data.draw(st.integers(1, 30))
    pieces = chunks.split(text, tokens, overlap, minimum)
    assert chunks.join(reversed(pieces)) == text
    assert all(len(piece.text) <= 4 * (tokens + minimum) for piece in pieces)


def test_chunks_of_the_facts() -> None:
    text = "".join(chr(97 + i % 26) for i in range(40_000))
    pieces = chunks.split(text)
    assert [piece.start for piece in pieces] == [0, 14400, 28800]
    assert pieces[0].text[-1600:] == pieces[1].text[:1600]
    assert chunks.join(pieces) == text


def test_a_short_rest_is_no_chunk() -> None:
    assert len(chunks.split("x" * (16000 + 799))) == 1
    assert len(chunks.split("x" * (16000 + 800))) == 2


def test_a_missing_chunk_is_noticed() -> None:
    pieces = chunks.split("abcdefgh" * 10, 4, 1, 1)
    with pytest.raises(ValueError, match="chunk 1 is missing"):
        chunks.join(pieces[:1] + pieces[2:])


@pytest.mark.parametrize("sizes", [(10, 10, 1), (10, -1, 1), (10, 2, 0)])
def test_chunks_refuse(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"overlap|least"):
        chunks.split("x", *sizes)
