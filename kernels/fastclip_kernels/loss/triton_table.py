"""Which tiles a kernel takes. Chosen by the cost model of compile_report, not yet by measurement.

A tile is as large as its epilogue's registers allow without a spill: products need the fewer bytes of
shared memory and L2 for each logit, the larger it is.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import torch

Kernel = Literal["sums", "coefficients", "sigmoid"]


class Launch(NamedTuple):
    """A choice of the table. Tiles of `block_m` queries by `block_k` keys, features `block_d` at a time."""

    block_m: int
    block_k: int
    block_d: int
    warps: int
    stages: int
    group: int = 8  # tile rows that share keys in L2

    def grid(self, queries: int, keys: int) -> tuple[int]:
        return (-(-queries // self.block_m) * -(-keys // self.block_k),)

    def constants(self, given: bool) -> dict[str, Any]:
        """Keyword arguments of a launch."""
        return {
            "BLOCK_M": self.block_m,
            "BLOCK_K": self.block_k,
            "BLOCK_D": self.block_d,
            "GROUP": self.group,
            "GIVEN": given,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


FUSED = Launch(128, 128, 64, warps=8, stages=3)
FUSED_NARROW = Launch(128, 128, 32, warps=8, stages=4)  # widths that 64 does not divide
LARGE = Launch(256, 128, 64, warps=8, stages=3)  # with less, an H100 waits for L2; an A100 spills
LARGE_NARROW = Launch(256, 128, 32, warps=8, stages=4)
SIGMOID = Launch(128, 64, 64, warps=8, stages=3)  # three results for each logit take registers
SIGMOID_NARROW = Launch(128, 64, 32, warps=8, stages=4)
GIVEN = Launch(32, 128, 32, warps=4, stages=1)  # one pass over products that are there already


def launch_for(
    dtype: torch.dtype,
    width: int,
    *,
    kernel: Kernel,
    keys: int,
    capability: int | None = None,  # 80, 90; None: of the current device
) -> Launch:
    """The launch for features of `dtype` and `width` columns."""
    if dtype == torch.float32:
        return GIVEN
    if capability is None:
        capability = _capability()
    wide = width % 64 == 0
    if kernel == "sigmoid":
        return SIGMOID if wide else SIGMOID_NARROW
    # few keys do not fill a large tile, and a single one, which Triton makes a constant, spills there
    if kernel == "sums" and capability == 90 and keys >= LARGE.block_k:
        return LARGE if wide else LARGE_NARROW
    return FUSED if wide else FUSED_NARROW


def _capability() -> int:
    """Of the current device, which is that of the features (`op.op_body`)."""
    if not torch.cuda.is_available():
        return 80  # interpreting
    return _capability_of(torch.cuda.current_device())


@functools.cache
def _capability_of(device: int) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
