"""How long a launch takes if the busiest pipe of the chip is never idle. No factor is free.

time = max over pipes of dynamic count / documented rate. Blocks do not split: the busiest
multiprocessor runs ceil(blocks / multiprocessors) of them. What the model leaves out can only add:
latencies, bank conflicts, clocks below boost, and phases of a block that no other block covers
(`serial` is the time with none of the latter covered). So it tells which launches cannot be fast, and
ranks the others.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from .build import Built
from .chips import Chip
from .sass import Work


class Modelled(NamedTuple):
    """Seconds."""

    pipes: dict[str, float]  # if each were the only one
    serial: (
        float  # the loop, then the rest, each at its busiest pipe; nothing of one under the other
    )

    @property
    def seconds(self) -> float:
        return max(self.pipes.values())

    @property
    def bound_by(self) -> str:
        return max(self.pipes, key=lambda pipe: self.pipes[pipe])


def clocks(work: Work, chip: Chip) -> dict[str, float]:
    """On each pipe of a multiprocessor."""
    return {
        "issue": work.issue / chip.issue,
        "tensor": work.tensor_flops / chip.tensor_flops,
        "fma": max(work.fma / chip.fma_lanes, work.imad / chip.imad_lanes),
        "alu": work.alu / chip.alu_lanes,
        "mufu": work.mufu / chip.mufu_lanes,
        "shared": work.shared / chip.shared_bytes,
    }


def trips(built: Built, flops_of_block: float) -> float:
    """Passes through the loop, from the products that have to be made in it."""
    code = built.code
    if not code.inside.tensor_flops:
        return 0.0
    return (flops_of_block / built.warps - code.outside.tensor_flops) / code.inside.tensor_flops


def model(
    built: Built,
    chip: Chip,
    *,
    blocks: int,
    flops_of_block: float,  # of its matrix product
    l2_bytes: float,  # of the launch, to and from multiprocessors
    hbm_bytes: float,  # of the launch, to and from memory
) -> Modelled:
    count = trips(built, flops_of_block)
    code, times = built.code, math.ceil(blocks / chip.multiprocessors) / chip.clock * built.warps
    total = code.dynamic(count)
    pipes = {pipe: each * times for pipe, each in clocks(total, chip).items()}
    pipes["l2"] = l2_bytes / chip.l2 / chip.clock
    pipes["hbm"] = hbm_bytes / chip.hbm
    loop = Work().plus(code.inside, count)
    in_loop = max(clocks(loop, chip).values()) * times
    rest = max(clocks(code.outside, chip).values()) * times
    return Modelled(pipes, max(in_loop, pipes["l2"], pipes["hbm"]) + rest)
