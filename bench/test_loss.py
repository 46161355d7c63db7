"""The losses, forward and backward, beside every peer that is here; each right before it is timed."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from bench.contest import Contest
from bench.correctness import ROUNDING, wrong_peers
from bench.loss_call import SCALE, SPECIFICATION, forward_and_backward, leaves, results_of
from bench.loss_peers import Loss, peers
from bench.rows import REFERENCE, Work
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
    calls = {name: partial(results_of, loss, inputs) for name, loss in losses.items()}
    op = f"{kind}_loss {rows}x{width} {dtype}"
    return wrong_peers(op, calls, truth, yardstick, ROUNDING[dtype], floors)


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
        {
            name: forward_and_backward(loss, inputs)
            for name, loss in losses.items()
            if name not in bad
        },
        # one product forward and two backward; features in twice, their gradients out
        Work(rows, flops=3 * 2 * rows * rows * width, bytes=3 * 2 * rows * width * item),
        missing={**missing, **bad},
        rounds=sizes.ops,
        sweep={"name": kind, "over": "pairs", "at": rows},
    )
