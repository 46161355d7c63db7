"""Two public kernels whose speed others have published: the model must know them before it is believed.

Written anew here; the algorithms are those of the Triton tutorials "Matrix Multiplication" and "Fused
Softmax". Where a page does not name its chip, `chip_named` is False, and the chip is our assumption:
such a figure is shown, and decides nothing by itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .build import Argument, Built, compile_kernel
from .chips import CHIPS
from .model import Modelled, model


@triton.jit
def product_kernel(
    a, b, c, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """c (M, N) = a (M, K) · b (K, N), fp16; sizes are multiples of the blocks."""
    program, wide, high = tl.program_id(0), N // BLOCK_N, M // BLOCK_M
    band = program // (GROUP * wide)
    height = tl.minimum(high - band * GROUP, GROUP)
    within = program % (GROUP * wide)
    row = (band * GROUP + within % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = (within // height) * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    left = a + row[:, None] * K + depth[None, :]
    right = b + depth[:, None] * N + column[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(0, K, BLOCK_K):
        total = tl.dot(tl.load(left), tl.load(right), total)
        left += BLOCK_K
        right += BLOCK_K * N
    tl.store(c + row[:, None] * N + column[None, :], total.to(tl.float16))


@triton.jit
def rows_kernel(out, x, N, BLOCK: tl.constexpr):
    """Softmax of one row of N float32 numbers; N is at most BLOCK."""
    at = tl.arange(0, BLOCK)
    begin = tl.program_id(0).to(tl.int64) * N
    row = tl.load(x + begin + at, mask=at < N, other=float("-inf"))
    power = tl.exp(row - tl.max(row, 0))
    tl.store(out + begin + at, power / tl.sum(power, 0), mask=at < N)


class Published(NamedTuple):
    kernel: str
    arch: str
    seconds: float
    figure: str
    source: str
    chip_named: bool


def _product_seconds(tflops: float) -> float:
    return 2 * 4096**3 / (tflops * 1e12)


def _softmax_seconds(columns: int, gigabytes: float) -> float:
    return 2 * 4 * 4096 * columns / (gigabytes * 1e9)


_TUTORIAL = "triton-lang.org/main/getting-started/tutorials/"
# No published time of either kernel was found for a named H100 that excludes launch latency.
PUBLISHED = (
    Published(
        "product", "sm_80", _product_seconds(245), "245 TFLOP/s with grouped order, size not given",
        _TUTORIAL + "03-matrix-multiplication.html, section L2 Cache Optimizations", True,
    ),
    Published(
        "product", "sm_80", _product_seconds(220.0), "220.0 TFLOP/s at 4,096",
        _TUTORIAL + "03-matrix-multiplication.html, its printed table", False,
    ),
    Published(
        "softmax", "sm_80", _softmax_seconds(4096, 1395.7), "1,395.7 GB/s at 4,096 columns",
        _TUTORIAL + "02-fused-softmax.html, its printed table", False,
    ),
)  # fmt: skip


class Prediction(NamedTuple):
    published: Published
    modelled: Modelled

    @property
    def ratio(self) -> float:
        """Predicted time / published time."""
        return self.modelled.seconds / self.published.seconds

    @property
    def within(self) -> bool:
        return abs(self.ratio - 1) <= 0.25


def compile_public(kernel: str, arch: str) -> Built:
    size = Argument("i32", divisible=True)
    capability = int(arch.removeprefix("sm_"))
    if kernel == "product":
        half = Argument("*fp16", divisible=True)
        blocks = {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 64, "GROUP": 8}
        sizes = {"M": size, "N": size, "K": size}
        return compile_kernel(
            product_kernel,
            {**dict.fromkeys("abc", half), **sizes, **_constants(blocks)},
            capability,
            8,
            3,
        )
    number = Argument("*fp32", divisible=True)
    arguments = {"out": number, "x": number, "N": size, **_constants({"BLOCK": 4096})}
    return compile_kernel(rows_kernel, arguments, capability, 8, 1)


def _constants(values: dict[str, Any]) -> dict[str, Argument]:
    return {name: Argument("constexpr", value=value) for name, value in values.items()}


def predict(published: Published, built: Built) -> Prediction:
    chip = CHIPS[published.arch]
    if published.kernel == "product":
        modelled = model(
            built, chip, blocks=512, flops_of_block=2.0 * 128 * 256 * 4096,
            l2_bytes=512 * (128 + 256) * 4096 * 2 + 2 * 4096**2, hbm_bytes=3 * 2 * 4096**2,
        )  # fmt: skip
    else:
        moved = 2.0 * 4 * 4096 * 4096
        modelled = model(
            built, chip, blocks=4096, flops_of_block=0, l2_bytes=moved, hbm_bytes=moved
        )
    return Prediction(published, modelled)
