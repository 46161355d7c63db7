"""The softmax loss over several ranks, ours beside OpenCLIP's: time of a step, bytes that a rank sends."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from bench.correctness import ROUNDING, require_right, wrongs
from bench.loss_call import SCALE, leaves, results_of
from bench.loss_peers import reference_losses
from bench.paired import in_turn, time_once
from bench.rows import OURS, REFERENCE
from fastclip_kernels import ClipLoss
from fastclip_kernels.testing import SCALAR_FLOOR, feature_floor
from tests.distributed.collectives import Collectives

CPU = torch.device("cpu")
REPEATS = 8  # calls in a round


class OnRank(NamedTuple):
    seconds: dict[str, list[float]]  # of each round, by whose loss
    bytes: dict[str, int]  # that this rank puts into collectives in one step


def measure(rank: int, world_size: int, pairs: int, width: int, rounds: int) -> OnRank:
    """Local loss with gradients through the gather, as large runs have it; fp32 on CPUs, with gloo.

    Raises WrongResult on the rank that sees one.
    """
    options: dict[str, Any] = {
        "local_loss": True, "gather_with_grad": True, "rank": rank, "world_size": world_size,
    }  # fmt: skip
    theirs, mine = reference_losses().ClipLoss(**options), ClipLoss(**options)
    inputs = leaves(pairs, width, torch.float32, CPU, seed=rank)
    inputs[3].requires_grad_(False)  # this loss has no bias here

    def step(loss: Any, given: list[Tensor]) -> dict[str, Tensor]:
        return results_of(lambda image, text, scale, bias: loss(image, text, scale), given)

    given = [*inputs[:3], inputs[3].detach().requires_grad_()]
    wide = [each.detach().double().requires_grad_() for each in given]
    floors = {name: feature_floor(SCALE, pairs) for name in ("d image", "d text")}
    floors |= {"loss": SCALAR_FLOOR, "d scale": SCALAR_FLOOR}
    truth, yardstick = step(theirs, wide), step(theirs, given)
    found = wrongs(step(mine, given), truth, yardstick, ROUNDING[torch.float32], floors)
    require_right(f"ClipLoss on {world_size} ranks", found)

    ways = {OURS: lambda: step(mine, given), REFERENCE: lambda: step(theirs, given)}
    sent = {}
    for name, call in ways.items():
        with Collectives() as noted:
            call()
        sent[name] = sum(each.bytes for each in noted.calls)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name in in_turn(list(ways), turn):
            if world_size > 1:
                dist.barrier()
            seconds[name].append(time_once(ways[name], CPU, REPEATS))
    return OnRank(seconds, sent)
