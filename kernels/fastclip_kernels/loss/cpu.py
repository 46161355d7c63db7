"""What a CPU is fast and slow at, in torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LOG2_E = 1 / math.log(2)

# Elsewhere torch multiplies bf16 on a CPU no faster than float32, or many times slower.
_BF16_PRODUCTS = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def multiplies(dtype: torch.dtype) -> bool:
    """Whether this CPU has instructions for products of this half precision dtype.

    torch's products of it sum in float32 and round once, at the end.
    """
    return dtype == torch.bfloat16 and _BF16_PRODUCTS


def log1p_sum(grown: Tensor, more: Tensor, scratch: Tensor) -> Tensor:
    """Σ log(1 + grown), 0-dim, with more = 1 + grown as rounded; `scratch`, of that shape, is lost.

    log(1 + g) = log(y) + log(1 + δ/y) with y = 1 + g rounded and δ = g - (y - 1) what that lost, and
    |δ/y| < 2^-24, so that δ/y is its own logarithm. torch.log1p says the same; on a CPU it takes
    10 ns an element, this 1.5 ns.
    """
    torch.sub(more, 1, out=scratch)
    torch.sub(grown, scratch, out=scratch).div_(more)
    lost = scratch.sum()
    return torch.log(more, out=scratch).sum() + lost


def softplus_sum(z: Tensor) -> Tensor:
    """Σ log(1 + e^z), 0-dim; `z` is lost. As above, of g = e^-|z|: then δ may stand for δ/y."""
    over = z.relu().sum()  # log(1 + e^z) = max(z, 0) + log(1 + e^-|z|)
    grown = z.abs_().mul_(-_LOG2_E).exp2_()
    more = grown + 1
    lost = torch.sub(more, 1).sub_(grown)
    return more.log_().sub_(lost).sum().add_(over)
