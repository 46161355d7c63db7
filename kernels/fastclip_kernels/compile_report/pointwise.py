"""The kernels of `pointwise`, compiled as a training step specialises them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..pointwise import triton_kernels as kernels
from .build import Argument, Built, compile_kernel


def compiled(
    archs: Sequence[str], dtypes: Sequence[str] = ("bf16", "fp16", "fp32")
) -> Iterator[tuple[str, Built]]:
    """Every kernel for every chip and dtype: its name, and what came out."""
    launch = kernels.LAUNCH
    blocks = {
        "BLOCK_M": Argument("constexpr", value=launch.block_m),
        "BLOCK_N": Argument("constexpr", value=launch.block_n),
    }
    for arch in archs:
        for dtype in dtypes:
            matrix = Argument("*" + dtype, divisible=True)
            sizes = {
                "sums": Argument("*fp32", divisible=True),
                "M": Argument("i32"),
                "N": Argument("i32", divisible=True),  # widths are multiples of 16
                "rows_each": Argument("i32"),
            }
            for name, kernel, inputs, flags in (
                ("GELU", kernels.activation_backward_kernel, ("gradient", "x", "out"), {"QUICK": False}),
                ("QuickGELU", kernels.activation_backward_kernel, ("gradient", "x", "out"), {"QUICK": True}),
                ("heads", kernels.heads_backward_kernel, ("of_q", "of_k", "of_v", "side_by_side"), {}),
            ):  # fmt: skip
                arguments = {
                    **dict.fromkeys(inputs, matrix),
                    **sizes,
                    **blocks,
                    **{flag: Argument("constexpr", value=on) for flag, on in flags.items()},
                }
                built = compile_kernel(
                    kernel, arguments, int(arch.removeprefix("sm_")), launch.warps, stages=3
                )
                yield f"{arch} {name} backward {dtype}", built
