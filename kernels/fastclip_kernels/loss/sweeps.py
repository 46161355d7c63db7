"""The sweeps over logits that the losses are made of: a chunk of logits at a time, never all of them.

    queries (M, D), keys (K, D)   rounded to the product dtype by the caller
    x = queries · keysᵀ           products, in `sum_dtype`: float32, or float64 for float64 features
    u = scale · log2(e) · x       exponents: exp(logit) = 2^u. A bias cancels in a softmax and is left out

Row i of a query block has its pair in column `first + i` of the keys. What happens within a chunk is
the business of `Chunks`, in torch (torch_chunks.py) or in Triton (triton_chunks.py); what follows
from one chunk to the next is here. Exponents are never positive beyond rounding, because the
largest of the row is subtracted first (Milakov and Gimelshein 2018, online softmax). Gradients are
derived in README.md, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

LOG2_E = 1 / math.log(2)

# Features handled at a time where a wider copy of them is needed.
_ROWS = 8192


class Sums(NamedTuple):
    """Of rows over some of their columns, the pair left out of the sums.

    A trained model's pair has a probability close to 1: what is left is then known to full
    precision, where 1 - p would not be.
    """

    top: Tensor  # (M,) the largest exponent, the pair's too
    rest: Tensor  # (M,) Σ 2^(u - top)
    moment: Tensor | None  # (M,) Σ 2^(u - top) u, where asked for


class Chunk(NamedTuple):
    """What one chunk of logits adds to the sums."""

    rows: Sums
    columns: Sums | None
    pairs: Tensor  # exponents of the pairs in it, in order; shorter where some are elsewhere


class Sigmoid(NamedTuple):
    """Sums of the sigmoid loss; not yet divided by the number of queries. 0-dim, in `sum_dtype`."""

    loss: Tensor  # -Σ log σ(±z)
    by_scale: Tensor  # its derivative by the scale
    by_bias: Tensor  # its derivative by the bias


class Chunks(Protocol):
    """How one chunk of M queries by K keys is computed; `first` may lie outside of the chunk.

    The coefficients that are returned live in a buffer that the next call overwrites. They are
    multiplied by `lift`.
    """

    lift: float

    def bounds(self, queries: int, keys: int, *, forward: bool) -> tuple[int, int]:
        """How many queries and how many keys one chunk takes, of so many."""

    def softmax_sums(
        self,
        queries: Tensor,
        keys: Tensor,
        scale2: Tensor,
        first: int,
        *,
        columns: bool,
        moment: bool,
    ) -> Chunk: ...

    def softmax_coefficients(
        self,
        queries: Tensor,
        keys: Tensor,
        scale2: Tensor,
        rows: tuple[Tensor, Tensor],
        columns: tuple[Tensor, Tensor] | None,
        first: int,
    ) -> Tensor:
        """2^(u - top_i) factor_i [+ 2^(u - top_j) factor_j] with (top, factor) of rows and columns,
        and 0 at the pairs, whose coefficients are of another size: they are added apart.
        """

    def sigmoid(
        self,
        queries: Tensor,
        keys: Tensor,
        scale: Tensor,
        bias: Tensor,
        first: int | None,  # None: every pair is a negative
        *,
        slopes: bool,
    ) -> tuple[Sigmoid, Tensor]:
        """The sums, and d(-log σ(±z))/dz of the chunk if asked for."""

    def accumulate(self, total: Tensor, coefficients: Tensor, features: Tensor) -> None:
        """total += coefficients @ features, summed in the dtype of `total`."""


class Softmax(NamedTuple):
    """What is known of each row of logits: p_ij = 2^(u_ij - top_i) · inverse_i."""

    top: Tensor  # (M,) the row's largest exponent
    inverse: Tensor  # (M,) 1 / Σ_j 2^(u_ij - top_i)
    missed: Tensor  # (M,) 1 - p of the row's pair, as the sum of the others
    surprise: Tensor  # (M,) -log p of the row's pair
    gap: Tensor  # (M,) Σ_j p_ij x_ij - x of the pair: d surprise / d scale; empty where not asked for

    def kept(self) -> Tensor:
        """What backward needs, in one tensor."""
        return torch.stack(self[:3])

    @classmethod
    def saved(cls, kept: Tensor) -> Softmax:
        empty = kept.new_empty(0)
        return cls(kept[0], kept[1], kept[2], empty, empty)


def exponent_scale(scale: Tensor) -> Tensor:
    """What products are multiplied by to give exponents.

    Never 0, so that derivatives by the scale can be taken from exponents; 1e-20 has the same loss.
    """
    return torch.where(scale == 0, 1e-20, scale) * LOG2_E


def spans(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def _joined(a: Sums | None, b: Sums) -> Sums:
    """The sums over the columns of both."""
    if a is None:
        return b
    top = torch.maximum(a.top, b.top)
    of_a, of_b = torch.exp2(a.top - top), torch.exp2(b.top - top)
    moment = None
    if a.moment is not None and b.moment is not None:
        moment = a.moment * of_a + b.moment * of_b
    return Sums(top, a.rest * of_a + b.rest * of_b, moment)


def finished(sums: Sums, pairs: Tensor, scale2: Tensor) -> Softmax:
    """The softmax of rows whose sums are complete.

    `pairs`: the exponent of each row's pair, from the GEMM of the others.
    """
    weight = torch.exp2(pairs - sums.top)
    total = sums.rest + weight
    # -log(weight / total): the first form where p is large, the second where weight may be 0
    surprise = torch.where(
        weight > 0.1,
        torch.log1p(sums.rest / weight),
        (sums.top - pairs) / LOG2_E + torch.log(total),
    )
    gap = surprise.new_empty(0)
    if sums.moment is not None:
        gap = (sums.moment - sums.rest * pairs) / (total * scale2)
    inverse = 1 / total
    return Softmax(sums.top, inverse, sums.rest * inverse, surprise, gap)


class SoftmaxRows:
    """The softmax of each query over keys that arrive in blocks."""

    def __init__(self, chunks: Chunks, queries: Tensor, scale: Tensor, first: int) -> None:
        self._chunks, self._queries, self._first = chunks, queries, first
        self._scale2 = exponent_scale(scale)
        self._pairs = scale.new_empty(len(queries))
        self._sums: dict[int, Sums] = {}  # of the queries from this row on

    def add(self, keys: Tensor, at: int) -> None:
        """Keys that begin at column `at`. One GEMM."""
        queries = self._queries
        height, width = self._chunks.bounds(len(queries), len(keys), forward=True)
        for rows in spans(len(queries), height):
            sums = self._sums.get(rows.start)
            for columns in spans(len(keys), width):
                first = self._first + rows.start - at - columns.start
                chunk = self._chunks.softmax_sums(
                    queries[rows], keys[columns], self._scale2, first, columns=False, moment=True
                )
                sums = _joined(sums, chunk.rows)
                start = rows.start + max(-first, 0)
                self._pairs[start : start + len(chunk.pairs)] = chunk.pairs
            assert sums is not None
            self._sums[rows.start] = sums

    def finish(self) -> Softmax:
        parts = [self._sums[start] for start in sorted(self._sums)]
        sums = parts[0] if len(parts) == 1 else Sums(*map(torch.cat, zip(*parts, strict=True)))
        return finished(sums, self._pairs, self._scale2)


def square_softmax(chunks: Chunks, image: Tensor, text: Tensor, scale: Tensor) -> Softmax:
    """Each image over all texts, and each text over all images: fields of shape (2, B).

    One sweep, one GEMM of B·B·D; without `gap`.
    """
    scale2 = scale * LOG2_E
    height, width = chunks.bounds(len(image), len(text), forward=True)
    pairs = scale.new_empty(len(image))
    of_rows: list[Sums] = []
    of_columns: list[Sums | None] = [None] * math.ceil(len(text) / width)
    for rows in spans(len(image), height):
        sums: Sums | None = None
        for i, columns in enumerate(spans(len(text), width)):
            first = rows.start - columns.start
            chunk = chunks.softmax_sums(
                image[rows], text[columns], scale2, first, columns=True, moment=False
            )
            assert chunk.columns is not None
            sums = _joined(sums, chunk.rows)
            of_columns[i] = _joined(of_columns[i], chunk.columns)
            start = rows.start + max(-first, 0)
            pairs[start : start + len(chunk.pairs)] = chunk.pairs
        assert sums is not None
        of_rows.append(sums)
    parts = [*of_rows, *(sums for sums in of_columns if sums is not None)]
    top = torch.cat([sums.top for sums in parts]).view(2, -1)
    rest = torch.cat([sums.rest for sums in parts]).view(2, -1)
    return finished(Sums(top, rest, None), pairs, scale2)


def add_row_gradient(
    chunks: Chunks,
    total: Tensor,  # (M, D), in `sum_dtype`
    queries: Tensor,  # (M, D)
    keys: Tensor,  # (K, D)
    at: int,  # the column where these keys begin
    scale: Tensor,
    own: Softmax,  # of the M queries
    own_weight: Tensor,  # ()
    others: tuple[Tensor, Tensor, Tensor] | None,  # the K keys' softmaxes: top, inverse, weight
    first: int,
) -> None:
    """total += Σ_j c_ij keys_j over all but the pair, with c_ij = own_weight·p_ij [+ weight_j·q_ij].

    q_ij is the probability that key j gives to query i. Two GEMMs of M·K·D. `total` comes out
    multiplied by `chunks.lift`.
    """
    scale2, lift = exponent_scale(scale), chunks.lift
    factor = own.inverse * own_weight * lift
    height, width = chunks.bounds(len(queries), len(keys), forward=False)
    for columns in spans(len(keys), width):
        column_side = None
        if others is not None:
            top, inverse, weight = (each[columns] for each in others)
            column_side = (top, inverse * weight * lift)
        for rows in spans(len(queries), height):
            c = chunks.softmax_coefficients(
                queries[rows],
                keys[columns],
                scale2,
                (own.top[rows], factor[rows]),
                column_side,
                first + rows.start - at - columns.start,
            )
            chunks.accumulate(total[rows], c, keys[columns])


def square_gradients(
    chunks: Chunks,
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    softmax: Softmax,
    *,
    wanted: tuple[bool, bool] = (True, True),
) -> tuple[Tensor | None, Tensor | None]:
    """(Σ_j c_ij text_j, Σ_i c_ij image_i) with c = p + q - 2δ. Three GEMMs of B·B·D.

    `softmax` as from `square_softmax`.
    """
    scale2, lift = scale * LOG2_E, chunks.lift
    row_top, column_top = softmax.top.unbind()
    row_factor, column_factor = (softmax.inverse * lift).unbind()
    to_image = scale.new_zeros(image.shape) if wanted[0] else None
    to_text = scale.new_zeros(text.shape) if wanted[1] else None
    height, width = chunks.bounds(len(image), len(text), forward=False)
    for i in spans(len(image), height):
        for j in spans(len(text), width):
            c = chunks.softmax_coefficients(
                image[i],
                text[j],
                scale2,
                (row_top[i], row_factor[i]),
                (column_top[j], column_factor[j]),
                i.start - j.start,
            )
            if to_image is not None:
                chunks.accumulate(to_image[i], c, text[j])
            if to_text is not None:
                chunks.accumulate(to_text[j], c.T, image[i])
    pairs = -softmax.missed.sum(0)
    for total, features in ((to_image, text), (to_text, image)):
        if total is not None:
            finish_gradient(chunks, total, pairs, features)
    return to_image, to_text


def finish_gradient(chunks: Chunks, total: Tensor, pairs: Tensor, features: Tensor) -> None:
    """What is left of a row's gradient: total / lift + pairs_i features_i, (B, D).

    A pair's coefficient, close to -2, is kept out of the sums over the others, each of about 1/B: there
    it would decide the size of every rounding error, and be rounded to half precision itself.
    """
    for rows in spans(len(total), _ROWS):
        part = total[rows]
        if chunks.lift != 1:
            part.div_(chunks.lift)
        part.addcmul_(pairs[rows].unsqueeze(1), features[rows].to(total.dtype))


def inner_product(features: Tensor, gradient: Tensor | None) -> Tensor:
    """Σ features · gradient, both (B, D), in the gradient's dtype; a few thousand rows at a time."""
    assert gradient is not None
    parts = [
        (features[rows].to(gradient.dtype) * gradient[rows]).sum()
        for rows in spans(len(features), _ROWS)
    ]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum()


def sigmoid(
    chunks: Chunks,
    queries: Tensor,
    keys: Tensor,
    scale: Tensor,
    bias: Tensor,
    first: int | None,
    *,
    gradients: bool,
) -> tuple[Sigmoid, Tensor, Tensor]:
    """The sigmoid loss of each query against all keys, and, if asked for, (Σ_j c_ij keys_j,
    Σ_i c_ij queries_i) with c the derivative of the loss by the logit; else empty tensors.

    All in one sweep, for no term needs the sum of others: one GEMM, three with gradients. `first`
    None: every pair is a negative.
    """
    to_queries = scale.new_zeros(queries.shape if gradients else (0,))
    to_keys = scale.new_zeros(keys.shape if gradients else (0,))
    height, width = chunks.bounds(len(queries), len(keys), forward=not gradients)
    blocks = [(i, j) for i in spans(len(queries), height) for j in spans(len(keys), width)]
    # in one tensor: small ones that outlive a chunk would settle in the memory that the next one's needs
    found = scale.new_empty(3, len(blocks))
    for at, (i, j) in enumerate(blocks):
        offset = None if first is None else first + i.start - j.start
        sums, c = chunks.sigmoid(queries[i], keys[j], scale, bias, offset, slopes=gradients)
        for kept, value in zip(found, sums, strict=True):
            kept[at] = value
        if gradients:
            chunks.accumulate(to_queries[i], c, keys[j])
            chunks.accumulate(to_keys[j], c.T, queries[i])
    if gradients and chunks.lift != 1:
        to_queries, to_keys = to_queries.div_(chunks.lift), to_keys.div_(chunks.lift)
    return Sigmoid(*(each.sum() for each in found)), to_queries, to_keys
