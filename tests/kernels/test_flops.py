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
from fastclip_kernels.patch_embed.ops import patch_embed_backward, patch_embed_op
from fastclip_kernels.self_attention.widened import attention_widened, attention_widened_backward
from fastclip_kernels.testing import unit_features
from tests.distributed.launch import run_ranks

FP32 = torch.float32


def counted(call: Any, *arguments: Any) -> int:
    with FlopCounterMode(display=False) as counter:
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


@pytest.mark.parametrize("kept", [None, 3], ids=["all patches", "some"])
def test_patch_embedding(kept):
    b, width, patch, side = 5, 11, 4, 12
    patches = 9 if kept is None else kept
    pixels = torch.randint(0, 256, (b, side, side, 3), dtype=torch.uint8)
    chosen = None if kept is None else torch.arange(3).repeat(b, 1)
    weight, mean, std = torch.randn(width, 3, patch, patch), torch.rand(3), torch.rand(3) + 0.5
    forward = (pixels, weight, None, torch.randn(width), torch.randn(10, width), mean, std, chosen)
    product = 2 * b * patches * width * 3 * patch**2
    assert both_counts(patch_embed_op, *forward, FP32, "torch") == (product, product)
    grad = torch.randn(b, 1 + patches, width)
    for to_weight, products in [(True, 1), (False, 0)]:
        backward = (grad, pixels, mean, std, chosen, patch, to_weight, "torch")
        assert both_counts(patch_embed_backward, *backward) == (products * product,) * 2


def test_attention_of_cpus():
    b, t, heads, width = 3, 13, 2, 8
    q, k, v, upstream = (torch.randn(b, t, heads, width).bfloat16() for _ in range(4))
    product = 2 * b * heads * t * t * width
    for mask, causal in [(None, False), (None, True), (torch.zeros(b, 1, t, t), False)]:
        out, lse = attention_widened(q, k, v, mask, causal)
        assert both_counts(attention_widened, q, k, v, mask, causal) == (2 * product,) * 2
        backward = (upstream, q, k, v, out, lse, mask, causal)
        assert both_counts(attention_widened_backward, *backward) == (5 * product,) * 2


@pytest.mark.parametrize(("to_image", "to_text"), [(True, True), (True, False), (False, True)])
def test_losses_across_ranks_are_what_their_ops_add_up_to(to_image, to_text):
    rows, width, ranks = 7, 5, 3
    side = 2 * rows * width * ranks * rows
    wanted = 2 * side + 2 * side * (to_image + to_text)
    assert flops.clip_across_ranks(rows, width, ranks, to_image=to_image, to_text=to_text) == wanted
    one_block = 3 * 2 * rows * rows * width
    assert flops.siglip_across_ranks(rows, width, ranks) == ranks * one_block
