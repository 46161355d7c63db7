"""The losses, forward and backward, beside every peer that is here; each right before it is timed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bench.contest import Contest
from bench.correctness import ROUNDING, require_right, wrongs
from bench.loss_on_device import SCALE, SPECIFICATION, leaves, results_of
from bench.loss_peers import Loss, peers
from bench.paired import reason
from bench.rows import OURS, REFERENCE, Work
from fastclip_kernels.testing import SCALAR_FLOOR, feature_floor

CHECKED = 2048  # rows, at most: every logit is in memory in float64


def check(
    kind: str,
    losses: dict[str, Loss],
    rows: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, str]:
    """Peers that are wrong, and in what. WrongResult where it is one of ours."""
    inputs = leaves(rows, width, dtype, device, seed=rows + width)
    wide = [each.detach().double().requires_grad_() for each in inputs]
    truth = results_of(SPECIFICATION[kind], wide)
    yardstick = results_of(losses.get(REFERENCE, SPECIFICATION[kind]), inputs)
    floors = {
        what: feature_floor(SCALE, rows) if value.ndim else SCALAR_FLOOR
        for what, value in truth.items()
    }
    bad: dict[str, str] = {}
    for name, loss in losses.items():
        if name == REFERENCE:
            continue
        ours = name.startswith(OURS)
        try:
            got = results_of(loss, inputs)
        except Exception as error:
            if ours:
                raise
            bad[name] = reason(error)  # a peer may fail in any way
            continue
        found = wrongs(got, truth, yardstick, ROUNDING[dtype], floors)
        if ours:
            require_right(f"{kind}_loss {rows}x{width} {dtype}, {name}", found)
        elif found:
            bad[name] = f"wrong, so not timed: {'; '.join(found)}"
    return bad


def _step(loss: Loss, inputs: list[Tensor]) -> Callable[[], None]:
    def step() -> None:
        for each in inputs:
            each.grad = None
        loss(*inputs).backward()

    return step


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_loss(kind: str, loss_size: tuple[int, int], contest: Contest) -> None:
    rows, width = loss_size
    sizes, device = contest.sizes, contest.device
    torch._dynamo.reset()  # compiled peers get a graph for this size
    losses, missing = peers(kind, compiled=sizes.compiled)
    if device.type != "cuda":
        del losses["fastclip, torch form"]  # what "fastclip" is there
    bad = check(kind, losses, min(rows, CHECKED), width, sizes.dtype, device)
    inputs = leaves(rows, width, sizes.dtype, device, seed=rows)
    item = sizes.dtype.itemsize
    contest.run(
        "loss",
        f"{kind} {rows} x {width}",
        {name: _step(loss, inputs) for name, loss in losses.items() if name not in bad},
        # one product forward and two backward; features in twice, their gradients out
        Work(rows, flops=3 * 2 * rows * rows * width, bytes=3 * 2 * rows * width * item),
        missing={**missing, **bad},
        sweep={"name": kind, "over": "pairs", "at": rows},
    )
