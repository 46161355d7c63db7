"""The products of `patch_embed` in Triton: tiles, and launches of the kernels in triton_kernels.py.

The interface is that of torch_form.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backend import interpreting
from . import triton_kernels as kernels
from .folded import Folded

# Programs that the sum over patches is shared out to: twice the multiprocessors of a large chip.
PROGRAMS = 256


class Tile(NamedTuple):
    """Of a kernel: patches, columns of the width, bytes of a patch."""

    block_m: int
    block_d: int
    block_k: int
    warps: int
    stages: int

    def constants(self) -> dict[str, int]:
        """Keyword arguments of a launch."""
        return {
            "BLOCK_M": self.block_m,
            "BLOCK_D": self.block_d,
            "BLOCK_K": self.block_k,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


def forward_tile(dtype: torch.dtype, patch: int, width: int) -> Tile:
    """Chosen by what compiles without a spill, not yet by measurement."""
    if dtype == torch.float32:
        return Tile(128, 128, 32, warps=8, stages=2)
    if width % 16:  # tokens are written number by number, and their addresses take registers
        return Tile(64, 128, 32, warps=8, stages=3)
    # the smaller the block, the less of the last one is padding: 588 bytes are 18.4 blocks of 32
    return Tile(128, 128, 64 if 3 * patch * patch % 64 == 0 else 32, warps=8, stages=3)


def backward_tile(dtype: torch.dtype, patch: int) -> Tile:
    if dtype == torch.float32:
        return Tile(16, 128, 128, warps=8, stages=1)
    return Tile(64, 128, 128, warps=8, stages=3)


GROUP = 8  # tile rows that share weights in L2


def add_patches(
    out: Tensor,  # (B, 1 + K, D), dense; all but the first row of each picture is written
    pixels: Tensor,
    folded: Folded,
    centre: Tensor,
    kept: Tensor | None,
    patch: int,
) -> None:
    weight = _exact(folded.weight)
    operands = _Operands(pixels, kept, out, patch)
    tile = forward_tile(weight.dtype, patch, operands.width)
    written = _exact(out)
    padded = F.pad(weight, (0, -weight.shape[1] % tile.block_k))
    grid = (-(-operands.rows // tile.block_m) * -(-operands.width // tile.block_d),)
    kernels.patch_embed_kernel[grid](
        operands.pixels, padded, _shifts(centre, padded.shape[1]), folded.table.contiguous(),
        operands.kept, written, *operands.sizes(),
        PATCH=patch, HAS_KEPT=kept is not None, GROUP=GROUP, **tile.constants(),
    )  # fmt: skip
    if written is not out:
        out[:, 1:] = written[:, 1:]


def weight_sums(
    grad: Tensor,  # (B, 1 + K, D), dense
    pixels: Tensor,
    centre: Tensor,
    kept: Tensor | None,
    patch: int,
) -> Tensor:
    grad = _exact(grad)
    tile = backward_tile(grad.dtype, patch)
    operands = _Operands(pixels, kept, grad, patch)
    depth = 3 * patch * patch
    tiles = -(-operands.width // tile.block_d) * -(-depth // tile.block_k)
    blocks = -(-operands.rows // tile.block_m)
    slice_blocks = -(-blocks // max(1, PROGRAMS // tiles))
    slices = -(-blocks // slice_blocks)
    sums = centre.new_empty(slices, operands.width, depth)
    kernels.patch_embed_weight_kernel[tiles, slices](
        grad, operands.pixels, _shifts(centre, depth + -depth % tile.block_k),
        operands.kept, sums, *operands.sizes(), slice_blocks * tile.block_m,
        PATCH=patch, HAS_KEPT=kept is not None, **tile.constants(),
    )  # fmt: skip
    return sums.sum(0)  # in the order of the slices


class _Operands:
    """What both kernels are told of pixels, patches and tokens."""

    def __init__(self, pixels: Tensor, kept: Tensor | None, tokens: Tensor, patch: int) -> None:
        dense_lines = pixels.stride()[2:] == (3, 1)
        self.pixels = pixels if dense_lines else pixels.contiguous()
        self.kept = self.pixels if kept is None else kept.contiguous()  # unread where there is none
        self.patches, self.width = tokens.shape[1] - 1, tokens.shape[2]
        self.rows = len(tokens) * self.patches
        self._columns = pixels.shape[2] // patch

    def sizes(self) -> tuple[int, ...]:
        """M, N, D, columns, picture_stride, line_stride."""
        strides = self.pixels.stride()[:2]
        return self.rows, self.patches, self.width, self._columns, *strides


def _shifts(centre: Tensor, length: int) -> Tensor:
    """2^23 + centre of each byte of a patch, and of the zeros after it."""
    return (centre + (1 << 23)).repeat(-(-length // 3))[:length].contiguous()


def _exact(numbers: Tensor) -> Tensor:
    """The interpreter multiplies and rounds bfloat16 wrongly: it gets the same numbers in float32."""
    return numbers.float() if interpreting() and numbers.dtype == torch.bfloat16 else numbers
