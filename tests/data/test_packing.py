"""Captions end to end: every token in its place, nothing lost, shapes of two sizes only."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from fastclip.data.ahead import tensors
from fastclip.data.batch import Batch, PackedText
from fastclip.data.packing import PackRule, TextPacker, place, rows_for
from fastclip.data.tokenizer import ClipTokenizer

LENGTH = 13
TOKENIZER = ClipTokenizer(context_length=LENGTH)
END = TOKENIZER.eot_token_id
CAPTIONS = ["", "a", "a cat", "word " * 10, "word " * 11, "word " * 50, "two dogs and a bird", ""]


def unpacked(packed: PackedText, segments: int) -> list[list[int]]:
    """The captions as `cu_seqlens` cuts them, in the order of `ends`."""
    flat, starts = packed.ids.flatten().tolist(), packed.cu_seqlens.tolist()
    assert len(starts) == segments + 1
    assert starts == sorted(starts)
    assert (starts[0], starts[-1]) == (0, len(flat))
    assert max(np.diff(starts)) <= packed.ids.shape[1]
    by_end = {
        stop - 1: flat[start:stop] for start, stop in itertools.pairwise(starts) if stop > start
    }
    for start, stop in itertools.pairwise(starts):
        assert packed.positions.flatten()[start:stop].tolist() == list(range(stop - start))
    return [by_end[end] for end in packed.ends.tolist()]


def wanted(texts: Tensor) -> list[list[int]]:
    rows = texts.tolist()
    return [row[: row.index(END) + 1] for row in rows]


@pytest.mark.parametrize("captions", [CAPTIONS, CAPTIONS * 5, ["word " * 50] * 3, [""], [""] * 6])
def test_packing_loses_nothing(captions: list[str]) -> None:
    texts = TOKENIZER(captions)
    needed = len(place(PackRule(eos_id=None).lengths(texts.numpy()), LENGTH).used)
    for rows in {needed, needed + 3}:
        packed = TextPacker(PackRule(eos_id=None), rows)(texts)
        assert packed.ids.shape == packed.positions.shape == (rows, LENGTH)
        assert unpacked(packed, len(captions) + rows) == wanted(texts)


def test_random_lengths_pack_tightly() -> None:
    rng = np.random.default_rng()
    for _ in range(20):
        lengths = rng.integers(2, 40, 200)
        rows = place(lengths, 77)
        assert (rows.used <= 77).all()
        assert rows.used.sum() == lengths.sum()
        assert len(rows.used) <= -(-lengths.sum() // 77) + 1
        taken = np.zeros((len(rows.used), 77), int)
        for row, column, length in zip(rows.row, rows.column, lengths, strict=True):
            taken[row, column : column + length] += 1
        assert taken.max() == 1, "two captions in one place"


def test_what_does_not_fit_takes_one_row_a_caption() -> None:
    texts = TOKENIZER(["word " * 50] * 6)
    packed = TextPacker(PackRule(eos_id=None), 2)(texts)
    assert torch.equal(packed.ids, texts)
    assert unpacked(packed, 12) == wanted(texts)


def test_the_end_is_where_the_tower_pools() -> None:
    texts = np.array([[5, 9, 2, 9, 2], [5, 2, 0, 0, 0], [5, 6, 7, 0, 0]])
    assert PackRule(eos_id=None).lengths(texts).tolist() == [2, 1, 3]  # the first largest
    assert PackRule(eos_id=2).lengths(texts).tolist() == [3, 2, 1]  # none: the first token is read


def test_dense_ids_come_along_where_somebody_wants_them() -> None:
    texts = TOKENIZER(CAPTIONS)
    assert TextPacker(PackRule(eos_id=None), 8)(texts).dense is None
    assert TextPacker(PackRule(eos_id=None, keep_dense=True), 8)(texts).dense is texts


def test_tensors_of_nested_tuples() -> None:
    batch = Batch(torch.zeros(1), TextPacker(PackRule(eos_id=None), 8)(TOKENIZER(CAPTIONS)))
    assert isinstance(batch.texts, PackedText)
    parts = [batch.images, *batch.texts[:4]]
    assert all(a is b for a, b in zip(tensors(batch), parts, strict=True))


@pytest.mark.parametrize(("batch_size", "padding"), [(896, 0.12), (128, 0.25)])
def test_the_static_size_is_rarely_too_small_and_never_wasteful(
    batch_size: int, padding: float
) -> None:
    rng = np.random.default_rng()
    lengths = np.clip(rng.gamma(6, 1.9, 20_000).astype(int), 2, 77)  # mean 11, as alt-text's
    rows = rows_for(lengths[:1024], batch_size, 77)
    needed = [len(place(rng.choice(lengths, batch_size), 77).used) for _ in range(100)]
    assert max(needed) <= rows
    used = batch_size * lengths.mean() / (rows * 77)
    print(f"batch of {batch_size}: {rows} rows, {1 - used:.1%} padding")
    assert 1 - used <= padding


def test_the_size_is_at_most_one_row_a_caption() -> None:
    assert rows_for(np.full(100, 77), 16, 77) == 16
    assert rows_for(np.array([2, 77, 77, 77]), 8, 77) == 8
    assert rows_for(np.full(10, 2), 1, 77) == 1
