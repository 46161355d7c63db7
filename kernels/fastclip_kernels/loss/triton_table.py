"""Which tiles a kernel takes. Chosen by the cost model of compile_report.py, not yet by measurement.

128 x 64 with 4 warps leaves room for two or more blocks on each multiprocessor, so that the sums of
one tile overlap with the products of another; 128 x 128 would read shared memory less often, but runs alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


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


FUSED = Launch(128, 64, 64, warps=4, stages=3)
FUSED_NARROW = Launch(128, 64, 32, warps=4, stages=4)  # widths that 64 does not divide
GIVEN = Launch(32, 128, 32, warps=4, stages=1)  # one pass over products that are there already


def launch_for(dtype: torch.dtype, width: int) -> Launch:
    """The launch for features of `dtype` and `width` columns."""
    if dtype == torch.float32:
        return GIVEN
    return FUSED if width % 64 == 0 else FUSED_NARROW
