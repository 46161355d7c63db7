"""The products of `patch_embed` by torch's own kernels, on any device and in any float dtype.

Pixels are read once as bytes, and become centred numbers in the dtype of the products in two passes over
those: no float32 copy, and none in another memory order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .folded import SCALE, Folded


def add_patches(
    out: Tensor,  # (B, 1 + K, D); all but the first row of each picture is written
    pixels: Tensor,  # (B, H, W, 3)
    folded: Folded,
    centre: Tensor,  # (3,)
    kept: Tensor | None,  # (B, K)
    patch: int,
) -> None:
    """out[:, 1:] = c · Wᵀ + table."""
    table = folded.table.to(out.dtype)
    added = table.repeat(len(out), 1) if kept is None else table[kept].flatten(0, 1)
    numbers = _centred(pixels, centre, kept, patch, out.dtype)
    # the GEMM adds before it rounds: half the rounding error of an addition after it
    tokens = torch.addmm(added, numbers, folded.weight.T)
    out[:, 1:] = tokens.view(len(out), -1, out.shape[2])


def weight_sums(
    grad: Tensor,  # (B, 1 + K, D)
    pixels: Tensor,
    centre: Tensor,
    kept: Tensor | None,
    patch: int,
) -> Tensor:  # (D, 3·p·p), in the dtype of sums
    """Σ g·c over all patches."""
    rows = grad[:, 1:].flatten(0, 1)
    bytes_of_rows = _centred(pixels, centre, kept, patch, grad.dtype)
    if rows.is_cuda and rows.dtype in (torch.float16, torch.bfloat16):
        return torch.mm(rows.T, bytes_of_rows, out_dtype=torch.float32)
    return torch.mm(rows.T, bytes_of_rows).to(centre.dtype)


def _centred(
    pixels: Tensor, centre: Tensor, kept: Tensor | None, patch: int, dtype: torch.dtype
) -> Tensor:
    """(byte - centre) / 256 of each patch: (patches, 3·p·p)."""
    rows, columns = pixels.shape[1] // patch, pixels.shape[2] // patch
    whole = pixels[:, : rows * patch, : columns * patch]
    by_patch = whole.unflatten(2, (columns, patch)).unflatten(1, (rows, patch))
    if kept is None:
        by_patch = by_patch.transpose(2, 3)
    else:
        picture = torch.arange(len(kept), device=kept.device)[:, None]
        by_patch = by_patch[picture, kept // columns, :, kept % columns]
    numbers = torch.empty(by_patch.shape, dtype=dtype, device=pixels.device).copy_(by_patch)
    numbers = numbers.view(-1, 3 * patch * patch)
    shift = (centre * -SCALE).to(dtype).repeat(patch * patch)
    return torch.add(shift, numbers, alpha=SCALE, out=numbers)
