"""Normalisation folded into the weights, and out of their gradient. Derivation: README.md, section 2.

A patch is its K = 3·p·p bytes in the order in which they lie in memory: row, column, channel. Backends
multiply c = (byte - centre) / 256, exact in every dtype, by the folded weights.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..loss.checks import sum_dtype

SCALE = 1 / 256  # of a centred byte: products are of the size of the token, so fp16 holds them


class Normalisation(NamedTuple):
    """Of each channel, (3,), in the dtype of sums: pixel = gain · (c + rest)."""

    centre: Tensor  # the integer nearest 255·mean in 0 ... 255
    rest: Tensor  # (centre - 255·mean) / 256
    gain: Tensor  # 256 / (255·std)


class Folded(NamedTuple):
    weight: Tensor  # (D, K), in the dtype of the products
    table: Tensor  # (P, D), in the dtype of sums: what is added to the product of each patch


def normalisation(mean: Tensor, std: Tensor, dtype: torch.dtype) -> Normalisation:
    """`dtype` is that of the products."""
    mean, std = mean.to(sum_dtype(dtype)) * 255, std.to(sum_dtype(dtype)) * 255
    centre = mean.round().clamp(0, 255)
    return Normalisation(centre, (centre - mean) * SCALE, 1 / (std * SCALE))


def fold(
    weight: Tensor,  # (D, 3, p, p)
    bias: Tensor | None,
    positions: Tensor,  # (1 + P, D)
    pixel: Normalisation,
    dtype: torch.dtype,
) -> Folded:
    folded = (weight.permute(0, 2, 3, 1) * pixel.gain).to(dtype)  # (D, p, p, 3)
    # of the rounded weights: what rounding does to the product it then does to the rest too
    offset = folded.sum((1, 2), dtype=pixel.rest.dtype) @ pixel.rest
    if bias is not None:
        offset = offset + bias.to(offset.dtype)
    return Folded(folded.flatten(1), positions[1:].to(offset.dtype) + offset)


def unfold_gradient(
    sums: Tensor,  # (D, K): Σ g·c over all patches, in the dtype of sums
    total: Tensor,  # (D,): Σ g
    pixel: Normalisation,
    patch: int,
) -> Tensor:  # (D, 3, p, p)
    by_bytes = sums.view(-1, patch, patch, 3)
    gradient = (by_bytes + total[:, None, None, None] * pixel.rest) * pixel.gain
    return gradient.permute(0, 3, 1, 2).contiguous()


def table_gradient(
    grad: Tensor,  # (B, 1 + K, D)
    kept: Tensor | None,  # (B, K)
    patches: int,
    dtype: torch.dtype,  # of sums
) -> Tensor:  # (1 + P, D): by the class token with its position, and by each row of the table
    """Added in the order of the batch, whichever patches were kept: the same bits every time on a CPU and
    under CUDA.
    """
    if kept is None:
        return grad.sum(0, dtype=dtype)
    if kept.device.type not in ("cpu", "cuda"):  # torch sums segments on these two alone
        rows = grad[:, 1:].flatten(0, 1).to(dtype)
        by_patch = rows.new_zeros(patches, rows.shape[1]).index_add_(0, kept.flatten(), rows)
        return torch.cat((grad[:, 0].sum(0, dtype=dtype)[None], by_patch))
    patch, order = kept.flatten().sort(stable=True)
    first = torch.searchsorted(patch, torch.arange(patches + 1, device=kept.device))
    rows = grad[:, 1:].flatten(0, 1)[order].to(dtype)
    by_patch = torch.segment_reduce(rows, "sum", offsets=first, initial=0)
    return torch.cat((grad[:, 0].sum(0, dtype=dtype)[None], by_patch))
