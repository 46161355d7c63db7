"""Gradients that are written once, and their columns summed on the way; README.md beside this.

    tensor                shape             dtype
    gradient, x, out      (M, N) dense      bf16, fp16, fp32
    of_q, of_k, of_v      (M, N) dense      bf16, fp16, fp32
    side_by_side          (M, 3 N) dense    as these
    sums                  (P, N or 3 N)     fp32

Program (i, p) has the columns from i · BLOCK_N on and `rows_each` rows from p · rows_each on.
Offsets are 64 bits wide: a batch of activations passes 2^31 elements.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_SQRT_HALF: tl.constexpr = tl.constexpr(0.7071067811865476)
_DENSITY_AT_0: tl.constexpr = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2 pi)
_STEEPNESS: tl.constexpr = tl.constexpr(1.702)

# Sizes that no address is the better for knowing; each value of theirs would compile anew.
ROWS = ["M", "rows_each"]


class Launch(NamedTuple):
    block_m: int = 8
    block_n: int = 256
    warps: int = 4
    programs: int = 1024  # about: several for each multiprocessor of any chip, few sums to add


LAUNCH = Launch()


@triton.jit
def gelu_slope(x):
    return 0.5 * (1.0 + tl.erf(x * _SQRT_HALF)) + x * _DENSITY_AT_0 * tl.exp(-0.5 * x * x)


@triton.jit
def quick_gelu_slope(x):
    steep = x * _STEEPNESS
    share = 1.0 / (1.0 + tl.exp(-steep))
    return share + steep * share * (1.0 - share)


@triton.jit(do_not_specialize=ROWS)
def activation_backward_kernel(
    gradient,
    x,
    out,
    sums,
    M,
    N,
    rows_each,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    QUICK: tl.constexpr,
):
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(1) * rows_each
    end = tl.minimum(first + rows_each, M)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(first, end, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        inside = (row < end)[:, None] & (column < N)[None, :]
        at = row.to(tl.int64)[:, None] * N + column[None, :]
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        upstream = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
        slope = quick_gelu_slope(value) if QUICK else gelu_slope(value)
        rounded = (upstream * slope).to(out.dtype.element_ty)
        tl.store(out + at, rounded, mask=inside)
        total += rounded.to(tl.float32)
    place = tl.program_id(1).to(tl.int64) * N + column
    tl.store(sums + place, tl.sum(total, 0), mask=column < N)


@triton.jit(do_not_specialize=ROWS)
def heads_backward_kernel(
    of_q,
    of_k,
    of_v,
    side_by_side,
    sums,
    M,
    N,
    rows_each,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Axis 0 of the grid has the stripes of q, then of k, then of v."""
    stripes = tl.cdiv(N, BLOCK_N)
    which = tl.program_id(0) // stripes
    source = of_q
    if which == 1:
        source = of_k
    elif which == 2:
        source = of_v
    column = tl.program_id(0) % stripes * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(1) * rows_each
    end = tl.minimum(first + rows_each, M)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(first, end, BLOCK_M):
        row = (start + tl.arange(0, BLOCK_M)).to(tl.int64)
        inside = (row < end)[:, None] & (column < N)[None, :]
        value = tl.load(source + row[:, None] * N + column[None, :], mask=inside, other=0.0)
        at = row[:, None] * 3 * N + which * N + column[None, :]
        tl.store(side_by_side + at, value, mask=inside)
        total += value.to(tl.float32)
    place = tl.program_id(1).to(tl.int64) * 3 * N + which * N + column
    tl.store(sums + place, tl.sum(total, 0), mask=column < N)


class _Grid(NamedTuple):
    stripes: int
    shares: int  # P
    rows_each: int


def _grid(rows: int, columns: int, sources: int = 1) -> _Grid:
    """A function of the shape alone, so that sums are taken in the same order everywhere."""
    stripes = triton.cdiv(columns, LAUNCH.block_n) * sources
    steps = triton.cdiv(rows, LAUNCH.block_m)
    shares = max(1, min(steps, LAUNCH.programs // stripes))
    rows_each = triton.cdiv(steps, shares) * LAUNCH.block_m
    return _Grid(stripes, triton.cdiv(rows, rows_each), rows_each)


def activation_backward_triton(
    gradient: Tensor,  # (M, N), as x
    x: Tensor,
    quick: bool,
) -> tuple[Tensor, Tensor]:  # (M, N) in x's dtype, (N,) fp32
    rows, columns = x.shape
    grid = _grid(rows, columns)
    out = torch.empty_like(x)
    sums = torch.empty(grid.shares, columns, dtype=torch.float32, device=x.device)
    activation_backward_kernel[grid.stripes, grid.shares](
        gradient, x, out, sums, rows, columns, grid.rows_each,
        BLOCK_M=LAUNCH.block_m, BLOCK_N=LAUNCH.block_n, QUICK=quick, num_warps=LAUNCH.warps,
    )  # fmt: skip
    return out, sums.sum(0)


def heads_backward_triton(
    of_q: Tensor,  # (M, N), as the others
    of_k: Tensor,
    of_v: Tensor,
) -> tuple[Tensor, Tensor]:  # (M, 3 N), (3 N,) fp32
    rows, columns = of_q.shape
    grid = _grid(rows, columns, sources=3)
    out = of_q.new_empty(rows, 3 * columns)
    sums = torch.empty(grid.shares, 3 * columns, dtype=torch.float32, device=of_q.device)
    heads_backward_kernel[grid.stripes, grid.shares](
        of_q, of_k, of_v, out, sums, rows, columns, grid.rows_each,
        BLOCK_M=LAUNCH.block_m, BLOCK_N=LAUNCH.block_n, num_warps=LAUNCH.warps,
    )  # fmt: skip
    return out, sums.sum(0)
