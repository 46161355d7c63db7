"""The FLOPs that torch's counter is told of an op are those of the products in its body."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fastclip_kernels import flops
from fastclip_kernels.loss.clip_alone import clip_alone, clip_alone_backward
from fastclip_kernels.loss.siglip_block import siglip_block
from fastclip_kernels.testing import unit_features
from tests.distributed.launch import run_ranks

FP32 = torch.float32


def counted(call: Any, *arguments: Any) -> int:
    # the in-place form has a name of its own, which torch's counter leaves out
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        call(*arguments)
    return counter.get_total_flops()


def both_counts(op: Any, *arguments: Any) -> tuple[int, int]:
    """By the op's formula, and of its body run without the op around it."""
    flops.register()
    return counted(op, *arguments), counted(op._init_fn, *arguments)


def features(rows: int, width: int) -> list[Tensor]:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    generator = torch.Generator().manual_seed(seed)
    return [unit_features(rows, width, generator) for _ in range(2)]


@pytest.mark.parametrize("rows", [37, 1501])  # all logits at once; several chunks
def test_ops_on_one_process(rows):
    image, text = features(rows, 24)
    scale, bias, one = torch.tensor(9.0), torch.tensor(-3.0), torch.tensor(1.0)
    product = 2 * rows * rows * 24
    sums = clip_alone(image, text, scale, FP32, "torch")[1]
    assert both_counts(clip_alone, image, text, scale, FP32, "torch") == (product, product)
    for wanted, products in [
        ((True, True, True), 3),
        ((True, False, False), 2),
        ((False, False, True), 2),
        ((False, True, True), 2),
    ]:
        arguments = (one, image, text, scale, sums, FP32, "torch", *wanted)
        assert both_counts(clip_alone_backward, *arguments) == (products * product,) * 2
    for gradients, products in [(True, 3), (False, 1)]:
        for first in (0, None):
            arguments = (image, text, scale, bias, first, FP32, "torch", gradients)
            assert both_counts(siglip_block, *arguments) == (products * product,) * 2


def test_few_pairs_are_counted_by_their_products():
    """Their losses are no ops: the counter sees what they multiply."""
    from fastclip_kernels import clip_loss, siglip_loss

    image, text = features(37, 24)
    for loss in (clip_loss, siglip_loss):
        assert counted(loss, image, text, 9.0) == 2 * 37 * 37 * 24
        assert counted(loss, image.requires_grad_(), text, 9.0) == 3 * 2 * 37 * 37 * 24
        image.requires_grad_(False)


def counts_across_ranks(rank: int, world_size: int) -> list[tuple[int, int]]:
    from fastclip_kernels import ClipLoss

    image, text = (x.requires_grad_() for x in features(19, 8))
    found = []
    for local, grad, exchange in [
        (True, True, "gather"), (True, True, "ring"), (True, False, "gather"), (False, True, "gather"),
    ]:  # fmt: skip
        loss = ClipLoss(local, grad, rank=rank, world_size=world_size, exchange=exchange)
        flops.register()

        def step(loss: Any = loss) -> None:
            loss(image, text, torch.tensor(9.0)).backward()

        found.append((counted(step), 6 * 2 * 19 * 19 * world_size * 8))
    return found


def test_a_step_of_two_ranks():
    for found in run_ranks(counts_across_ranks, 2, timeout=120):
        assert all(told == needed for told, needed in found)
