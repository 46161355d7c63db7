"""A chunk of logits in Triton; see `sweeps.Chunks`. Launches of the kernels in triton_kernels.py.

Half precision: one kernel multiplies a tile out and finishes it in registers; no logit reaches
memory, and what leaves a backward tile are coefficients in half precision for two vendor GEMMs.
float32: the vendor's GEMM writes a chunk of products (Triton's exact product uses no tensor cores),
and the same kernels read it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backend import interpreting
from . import triton_kernels as kernels
from .sweeps import Chunk, Sigmoid, Sums
from .triton_table import Kernel, Launch, launch_for

# Coefficients of one chunk: well inside half of an A100's 40 MB second-level cache.
COEFFICIENT_BYTES = 16 << 20
# Partial sums of one forward chunk; with 128 x 128 tiles a chunk of 350 million logits.
PARTIAL_BYTES = 64 << 20


class TritonChunks:
    """`dtype` is that of the features as they are multiplied: float32, bfloat16 or float16."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        # The interpreter multiplies bfloat16 wrongly: there it gets the same numbers in float32.
        self._upcast = interpreting() and dtype == torch.bfloat16
        self._dtype = torch.float32 if self._upcast else dtype
        self._given = dtype == torch.float32  # products come from the vendor's GEMM
        self._buffer = torch.empty(0, dtype=self._dtype, device=device)
        self._fused_accumulate = device.type == "cuda" and _addmm_widens(device, self._dtype)
        self.lift = 1024.0 if dtype == torch.float16 else 1.0

    def bounds(self, queries: int, keys: int, *, forward: bool) -> tuple[int, int]:
        if forward and not self._given:
            launch = launch_for(self._dtype, 1 << 20, kernel="sums", keys=keys)
            bytes_per_logit = 12 / launch.block_m + 12 / launch.block_k  # of partial sums
            height = int(PARTIAL_BYTES / bytes_per_logit / keys)
            return min(queries, max(launch.block_m, height - height % launch.block_m)), keys
        budget = COEFFICIENT_BYTES // self._dtype.itemsize
        height = min(queries, 2048)
        width = min(keys, max(128, budget // height // 128 * 128))
        return min(queries, max(128, budget // width // 128 * 128)), width

    def softmax_sums(
        self,
        queries: Tensor,
        keys: Tensor,
        scale2: Tensor,
        first: int,
        *,
        columns: bool,
        moment: bool,
    ) -> Chunk:
        m, k = len(queries), len(keys)
        launch, operands = self._operands("sums", queries, keys)
        kinds = 3 if moment else 2
        row_sums = scale2.new_empty(kinds, -(-k // launch.block_k), m)
        column_sums = scale2.new_empty(kinds, -(-m // launch.block_m), k) if columns else row_sums
        pairs = scale2.new_empty(m)
        kernels.softmax_sums_kernel[launch.grid(m, k)](
            *operands[:3], scale2, row_sums, column_sums, pairs, *operands[3:], first,
            BOTH_WAYS=columns, MOMENT=moment, **launch.constants(self._given),
        )  # fmt: skip
        here = slice(max(-first, 0), max(max(-first, 0), min(m, k - first)))
        return Chunk(_reduced(row_sums), _reduced(column_sums) if columns else None, pairs[here])

    def softmax_coefficients(
        self,
        queries: Tensor,
        keys: Tensor,
        scale2: Tensor,
        rows: tuple[Tensor, Tensor],
        columns: tuple[Tensor, Tensor] | None,
        first: int,
    ) -> Tensor:
        m, k = len(queries), len(keys)
        launch, operands = self._operands("coefficients", queries, keys, writes=True)
        column_side = rows if columns is None else columns
        sums = [each.contiguous() for each in (*rows, *column_side)]
        kernels.softmax_coefficients_kernel[launch.grid(m, k)](
            *operands[:3], scale2, *sums, *operands[3:], first,
            BOTH_WAYS=columns is not None, **launch.constants(self._given),
        )  # fmt: skip
        chunk: Tensor = operands[2]
        return chunk

    def sigmoid(
        self,
        queries: Tensor,
        keys: Tensor,
        scale: Tensor,
        bias: Tensor,
        first: int | None,
        *,
        slopes: bool,
    ) -> tuple[Sigmoid, Tensor]:
        m, k = len(queries), len(keys)
        launch, operands = self._operands("sigmoid", queries, keys, writes=slopes)
        sums = scale.new_empty(3, launch.grid(m, k)[0])
        kernels.sigmoid_kernel[launch.grid(m, k)](
            *operands[:3], scale, bias, sums, self.lift, *operands[3:],
            _NOWHERE if first is None else first, SLOPES=slopes, **launch.constants(self._given),
        )  # fmt: skip
        return Sigmoid(*sums.sum(1).unbind()), operands[2]

    def accumulate(self, total: Tensor, coefficients: Tensor, features: Tensor) -> None:
        if self._fused_accumulate:
            torch.addmm(total, coefficients, features, out_dtype=torch.float32, out=total)
        elif coefficients.is_cuda and self._dtype != torch.float32:
            total += torch.mm(coefficients, features, out_dtype=torch.float32)
        else:
            total.addmm_(coefficients.float(), features.float())

    def _operands(
        self, kernel: Kernel, queries: Tensor, keys: Tensor, *, writes: bool = False
    ) -> tuple[Launch, Any]:
        """The launch, and (queries, keys, chunk, M, K, D, strides of the three)."""
        m, k = len(queries), len(keys)
        chunk = self._buffer
        if self._given or writes:
            if self._buffer.numel() < m * k:
                self._buffer = self._buffer.new_empty(m * k)
            chunk = self._buffer[: m * k].view(m, k)
        if self._given:
            torch.mm(queries, keys.T, out=chunk)
            launch = launch_for(self._dtype, queries.shape[1], kernel=kernel, keys=k)
        else:
            launch = launch_for(self._dtype, queries.shape[1], kernel=kernel, keys=k)
            queries, keys = (_padded(x.to(self._dtype), launch.block_d) for x in (queries, keys))
        strides = (queries.stride(0), keys.stride(0), k)
        return launch, (queries, keys, chunk, m, k, queries.shape[1], *strides)


_NOWHERE = 1 << 30  # a first pair beyond every chunk


def _padded(features: Tensor, block_d: int) -> Tensor:
    """Features of a width that the kernels' blocks divide, rows dense and aligned to 16 bytes."""
    missing = -features.shape[1] % block_d
    if missing:
        return F.pad(features, (0, missing))
    # what Triton asks before it copies 16 bytes at a time; else it loads numbers one by one
    aligned = features.stride(0) % 16 == 0 and features.data_ptr() % 16 == 0
    if features.stride(1) == 1 and aligned:
        return features
    return features.clone(memory_format=torch.contiguous_format)


def _reduced(partial: Tensor) -> Sums:
    """Partial sums (2 or 3, tiles, rows) of tiles, added in their order: the same bits every time."""
    top = partial[0].amax(0)
    weight = torch.exp2(partial[0] - top)
    rest, *moment = (partial[1:] * weight).sum(1)
    return Sums(top, rest, moment[0] if moment else None)


_WIDENS: dict[tuple[torch.device, torch.dtype], bool] = {}


def _addmm_widens(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch adds a half-precision product to a part of a float32 sum in one call."""
    if dtype == torch.float32:
        return False
    if (device, dtype) not in _WIDENS:
        sums = torch.ones(16, 8, device=device)
        total, factor = sums[8:], torch.ones(8, 8, dtype=dtype, device=device)
        try:
            for each in (factor, factor.T):
                torch.addmm(total, each, factor, out_dtype=torch.float32, out=total)
            right = bool((total == 17).all()) and bool((sums[:8] == 1).all())
        except (RuntimeError, TypeError, NotImplementedError):
            right = False
        _WIDENS[device, dtype] = right
    return _WIDENS[device, dtype]
