"""FLOPs of a model, counted on shapes alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def counted_flops(model: nn.Module, run: Callable[[Any], Any]) -> int:
    """Products of `run(model)` and of its backward pass. The model must be on the meta device: there
    torch takes attention apart into products that the counter knows (it reports 0 for a CPU's)."""
    assert {p.device.type for p in model.parameters()} == {"meta"}
    with FlopCounterMode(display=False) as counter:
        run(model).sum().backward()
    return counter.get_total_flops()
