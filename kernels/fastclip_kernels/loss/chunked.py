"""The sweeps over logits that the losses are made of: a chunk of logits at a time, never all of
them.

    queries (M, D), keys (K, D)   rounded to the product dtype by the caller
    x = queries · keysᵀ           products, in `sum_dtype`: float32, or float64 for float64 features
    z = scale · x                 logits; a bias would cancel in a softmax and is left out of it

Row i of a query block has its pair in column `first + i` of the keys. Extra memory: one chunk of
`_CHUNK_BYTES` and its exponentials, plus O(M + K) sums. Exponents are never positive beyond
rounding, because the largest logit of the row is subtracted first (Milakov and Gimelshein 2018,
online softmax). Gradients are derived in README.md, section 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import sum_dtype

# Of one chunk of float32 logits: half of a core's cache on a CPU, enough to fill the device
# elsewhere.
_CHUNK_BYTES_CPU = 4 << 20
_CHUNK_BYTES = 32 << 20


class Softmax(NamedTuple):
    """What is kept of each row of logits: p_ij = exp(z_ij - top_i) · inverse_i."""

    top: Tensor  # (M,) the row's largest logit
    inverse: Tensor  # (M,) 1 / Σ_j exp(z_ij - top_i)
    surprise: Tensor  # (M,) -log p of the row's pair
    gap: Tensor  # (M,) Σ_j p_ij x_ij - x of the pair: the derivative of `surprise` by the scale


def wide_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, accumulated and returned in `sum_dtype`. `b` has the product dtype; `a` may be wider.

    A CUDA GEMM on half-precision inputs rounds `a` to the dtype of `b` and returns float32.
    Elsewhere a GEMM's result has its inputs' dtype, so half-precision inputs are widened first:
    exact products, no rounding.
    """
    if b.is_cuda and torch.version.hip is None and b.dtype in (torch.float16, torch.bfloat16):
        return torch.mm(a.to(b.dtype), b, out_dtype=torch.float32)
    wide = sum_dtype(b.dtype)
    return a.to(wide) @ b.to(wide)


def float16_lift(keys: Tensor) -> int:
    """Factor that keeps small coefficients out of float16's subnormal range in a GEMM; divide it out after.

    Coefficients are at most 2, so that nothing overflows; a softmax over 86,000 keys has probabilities of 1e-5, and
    a sigmoid starts at exp(-10).
    """
    return 1024 if keys.dtype == torch.float16 else 1


def chunks(length: int, across: Tensor) -> Iterator[tuple[int, int]]:
    """Bounds that cut `length` rows or columns so that a chunk against all rows of `across` fits
    the cache.
    """
    budget = _CHUNK_BYTES_CPU if across.device.type == "cpu" else _CHUNK_BYTES
    step = max(1, budget // (4 * len(across)))
    for start in range(0, length, step):
        yield start, min(start + step, length)


class _Sums:
    """Running maximum, and Σ exp and Σ exp·x over all but the pair, of rows that arrive in pieces.

    The pair is left out because a trained model's p is close to 1: what is left is then known to
    full precision, where 1 - p would not be.
    """

    def __init__(self, rows: int, like: Tensor) -> None:
        self.top = like.new_full((rows,), float("-inf"))
        self.rest = like.new_zeros(rows)
        self.moment = like.new_zeros(rows)

    def add(self, x: Tensor, scale: Tensor, dim: int, pairs: int) -> None:
        """One more piece of each row along `dim`: products `x`, pairs on the diagonal `pairs`."""
        z = x * scale
        top = torch.maximum(self.top, z.amax(dim))
        shrink = torch.exp(self.top - top)
        weights = torch.exp(z - top.unsqueeze(dim))
        weights.diagonal(pairs).zero_()
        self.rest = self.rest * shrink + weights.sum(dim)
        self.moment = self.moment * shrink + (weights * x).sum(dim)
        self.top = top

    def finish(self, pair: Tensor, scale: Tensor) -> Softmax:
        """`pair` (rows,): the product of each row with its pair, from the GEMM of the others."""
        z = scale * pair
        weight = torch.exp(z - self.top)
        total = self.rest + weight
        # -log(weight / total): the first form where p is large, the second where weight may be 0
        surprise = torch.where(
            weight > 0.1, torch.log1p(self.rest / weight), (self.top - z) + torch.log(total)
        )
        gap = (self.moment - self.rest * pair) / total
        return Softmax(self.top, 1 / total, surprise, gap)


def row_softmax(queries: Tensor, keys: Tensor, scale: Tensor, first: int) -> Softmax:
    """The softmax of each query over all keys. One GEMM of M·K·D."""
    sums = _Sums(len(queries), scale)
    pair = scale.new_empty(len(queries))
    for start, stop in chunks(len(keys), queries):
        x = wide_product(queries, keys[start:stop].T)  # (M, chunk)
        sums.add(x, scale, dim=1, pairs=first - start)
        rows = slice(max(start - first, 0), max(stop - first, 0))
        pair[rows] = x.diagonal(first - start)
    return sums.finish(pair, scale)


def square_softmax(image: Tensor, text: Tensor, scale: Tensor) -> tuple[Softmax, Softmax]:
    """Each image over all texts and each text over all images, in one sweep. One GEMM of B·B·D."""
    columns = _Sums(len(text), scale)
    pair = scale.new_empty(len(image))
    rows = []
    for start, stop in chunks(len(image), text):
        x = wide_product(image[start:stop], text.T)  # (chunk, B)
        pair[start:stop] = x.diagonal(start)
        sums = _Sums(stop - start, scale)
        sums.add(x, scale, dim=1, pairs=start)
        rows.append(sums.finish(pair[start:stop], scale))
        columns.add(x, scale, dim=0, pairs=start)
    return Softmax(*map(torch.cat, zip(*rows, strict=True))), columns.finish(pair, scale)


def row_gradient(
    queries: Tensor,  # (M, D)
    keys: Tensor,  # (K, D)
    scale: Tensor,
    own: Softmax,  # of the M queries
    own_weight: Tensor,  # ()
    others: tuple[Tensor, Tensor, Tensor]
    | None,  # top, inverse and weight of the K keys' softmaxes
    diagonal: Tensor,  # (M,) the coefficient of each query's own pair
    first: int,
) -> Tensor:
    """Σ_j c_ij keys_j, (M, D), with c_ij = own_weight·p_ij [+ weight_j·q_ij] and `diagonal` at the
    pairs.

    q_ij is the probability that key j gives to query i. Two GEMMs of M·K·D.
    """
    gradient = scale.new_zeros(queries.shape)
    lift = float16_lift(keys)
    row_factor = (own.inverse * own_weight * lift).unsqueeze(1)
    for start, stop in chunks(len(keys), queries):
        z = wide_product(queries, keys[start:stop].T) * scale  # (M, chunk)
        c = torch.exp(z - own.top.unsqueeze(1)) * row_factor
        if others is not None:
            top, inverse, weight = (each[start:stop] for each in others)
            c += torch.exp(z - top) * (inverse * weight * lift)
        rows = slice(max(start - first, 0), max(stop - first, 0))
        c.diagonal(first - start).copy_(diagonal[rows] * lift)
        gradient += wide_product(c, keys[start:stop])
    return gradient / lift


def square_gradients(
    image: Tensor, text: Tensor, scale: Tensor, rows: Softmax, columns: Softmax
) -> tuple[Tensor, Tensor]:
    """(Σ_j c_ij text_j, Σ_i c_ij image_i) with c = p + q - 2δ. Three GEMMs of B·B·D."""
    lift = float16_lift(text)
    diagonal = (pair_coefficient(rows) + pair_coefficient(columns)) * lift
    row_factor, column_factor = rows.inverse * lift, columns.inverse * lift
    to_image = scale.new_empty(image.shape)
    to_text = scale.new_zeros(text.shape)
    for start, stop in chunks(len(image), text):
        z = wide_product(image[start:stop], text.T) * scale  # (chunk, B)
        c = torch.exp(z - rows.top[start:stop, None]) * row_factor[start:stop, None]
        c += torch.exp(z - columns.top) * column_factor
        c.diagonal(start).copy_(diagonal[start:stop])
        to_image[start:stop] = wide_product(c, text)
        to_text += wide_product(c.T, image[start:stop])
    return to_image / lift, to_text / lift


def pair_coefficient(softmax: Softmax) -> Tensor:
    """p - 1 of each row's own pair, (M,): exact near p = 1, where exp(z - top) - 1 is not."""
    return torch.expm1(-softmax.surprise)


class Sigmoid(NamedTuple):
    """Sums of a block of the sigmoid loss over its M queries; not yet divided by M."""

    loss: Tensor  # () -Σ log σ(±z)
    by_scale: Tensor  # () its derivative by the scale
    by_bias: Tensor  # () its derivative by the bias


def sigmoid_sums(
    queries: Tensor, keys: Tensor, scale: Tensor, bias: Tensor, first: int | None
) -> Sigmoid:
    """The sigmoid loss of each query against all keys; `first` None: every pair is a negative. One
    GEMM.
    """
    loss, by_scale, by_bias = (scale.new_zeros(len(queries)) for _ in range(3))
    for start, stop in chunks(len(keys), queries):
        x = wide_product(queries, keys[start:stop].T)
        z = x * scale + bias
        terms = F.logsigmoid(-z)  # a negative
        if first is not None:
            terms.diagonal(first - start).copy_(F.logsigmoid(z.diagonal(first - start)))
        slope = _sigmoid_slope(z, first, start)
        loss -= terms.sum(1)
        by_scale += (slope * x).sum(1)
        by_bias += slope.sum(1)
    return Sigmoid(loss.sum(), by_scale.sum(), by_bias.sum())


def sigmoid_gradients(
    queries: Tensor, keys: Tensor, scale: Tensor, bias: Tensor, first: int | None
) -> tuple[Tensor, Tensor]:
    """(Σ_j c_ij keys_j, Σ_i c_ij queries_i) with c the derivative of the loss by the logit. Three
    GEMMs.
    """
    to_queries = scale.new_zeros(queries.shape)
    to_keys = scale.new_empty(keys.shape)
    lift = float16_lift(keys)
    for start, stop in chunks(len(keys), queries):
        z = wide_product(queries, keys[start:stop].T) * scale + bias
        c = _sigmoid_slope(z, first, start) * lift
        to_queries += wide_product(c, keys[start:stop])
        to_keys[start:stop] = wide_product(c.T, queries)
    return to_queries / lift, to_keys / lift


def _sigmoid_slope(z: Tensor, first: int | None, start: int) -> Tensor:
    """d(-log σ(±z))/dz for a chunk of logits whose columns begin at `start`."""
    slope = torch.sigmoid(z)
    if first is not None:
        slope.diagonal(first - start).copy_(-torch.sigmoid(-z.diagonal(first - start)))
    return slope
