"""The sigmoid loss of SigLIP, on one process and across ranks. Derivation: README.md, section 3.

    tensor                        shape   dtype
    image_features, text_features (B, D)  float64, float32, bfloat16, float16; any strides
    result                        ()      float32, or float64 for float64 features
A rank's loss is that of its own images against the texts of all ranks; `dist_impl` says how those
texts arrive and their gradients return. All four ways give the same numbers up to the order of
sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..backend import BackendName, resolve
from . import small
from .checks import as_scalar, check_features, product_dtype
from .distributed import (
    BatchAgreement,
    World,
    agree,
    broadcast_rows,
    exchange,
    gather_with_gradient,
    join_world,
)
from .siglip_block import siglip_block

OP = "siglip_loss"

DistImpl = Literal["bidir", "shift", "reduce", "gather"]


def siglip_loss(
    image_features: Tensor,  # (B, D)
    text_features: Tensor,  # (B, D)
    logit_scale: Tensor | float,
    logit_bias: Tensor | float | None = None,
    *,
    dist_impl: DistImpl | None = None,
    rank: int = 0,
    world_size: int = 1,
    group: Any = None,
    backend: BackendName = "auto",
    agreement: BatchAgreement | None = None,
) -> Tensor:
    """-1/B Σ_ij log σ(±(scale·<image_i, text_j> + bias)), + for pairs only, over this rank's
    images; 0-dim.

    Values and gradients are those of `open_clip.loss.SigLipLoss` 3.3.0. `dist_impl`:

    - `bidir` (default), `shift`: texts travel round the ring, both ways or one; no rank holds all
      of them.
    - `reduce`: one rank's texts at a time are sent to all.
    - `gather`: all texts are gathered first.

    Raises as `clip_loss` does.
    """
    check_features(OP, ("image_features", "text_features"), image_features, text_features)
    dtype = product_dtype(image_features)
    chosen = resolve(OP, backend, image_features.device, dtype).backend
    ways = get_args(DistImpl)
    if dist_impl is not None and dist_impl not in ways:
        raise ValueError(f"{OP}: dist_impl must be one of {ways}, got {dist_impl!r}")
    world = join_world(OP, rank, world_size, group)
    scale = as_scalar(OP, "logit_scale", logit_scale, image_features)
    bias = as_scalar(OP, "logit_bias", 0.0 if logit_bias is None else logit_bias, image_features)

    def against(texts: Tensor, first: int | None) -> Tensor:
        if small.fits(image_features, texts, chosen):
            return small.sigmoid_loss(image_features, texts, scale, bias, first, dtype)
        gradients = torch.is_grad_enabled() and (
            image_features.requires_grad or texts.requires_grad
        )
        block: Tensor = siglip_block(
            image_features, texts, scale, bias, first, dtype, chosen, gradients
        )[0]
        return block

    if world is None:
        return against(text_features, 0)
    # rounded once, but they travel as they came: their gradients are summed on the way back
    own_texts = text_features.to(dtype).to(text_features.dtype)
    agree(OP, agreement, own_texts, world)
    if dist_impl == "gather":
        texts = gather_with_gradient(own_texts, world, "every rank")
        return against(texts, world.first_row(len(image_features)))
    loss = against(text_features, 0)
    if dist_impl == "reduce":
        for source in range(world.size):
            texts = broadcast_rows(own_texts, world, source)
            # own texts are in the loss already; 0 keeps this rank in the backward collective
            loss = loss + (0 * texts.sum() if source == world.rank else against(texts, None))
        return loss
    ring = _shifted if dist_impl == "shift" else _both_ways
    for texts in ring(own_texts, world):
        loss = loss + against(texts, None)
    return loss


def _shifted(texts: Tensor, world: World) -> Iterator[Tensor]:
    """The texts of the other ranks: the left neighbour's, then those of the one to its left, ..."""
    for _ in range(world.size - 1):
        (texts,) = exchange(world, (1,), texts)
        yield texts


def _both_ways(texts: Tensor, world: World) -> Iterator[Tensor]:
    """The texts of the other ranks, nearest neighbours first, two at a time and the farthest one
    last.
    """
    rightward = leftward = texts
    for _ in range((world.size - 1) // 2):
        rightward, leftward = exchange(world, (1, -1), rightward, leftward)
        yield rightward
        yield leftward
    if (world.size - 1) % 2:
        yield exchange(world, (1,), rightward)[0]
