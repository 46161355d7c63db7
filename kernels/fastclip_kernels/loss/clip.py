"""The softmax loss of CLIP, on one process and across ranks. Derivation: README.md, section 2.

tensor                        shape   dtype
image_features, text_features (B, D)  float64, float32, bfloat16, float16; any strides
result                        ()      float32, or float64 for float64 features
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..backend import BackendName, resolve
from . import small
from .checks import as_scalar, check_features, product_dtype
from .clip_alone import clip_alone
from .clip_ranks import clip_ranks
from .distributed import BatchAgreement, BegunGather, World, agree, join_world

OP = "clip_loss"

Exchange = Literal["auto", "gather", "ring"]

# Gathered features of one kind above which "auto" takes the ring: 2 of these are kept for backward
RING_BYTES = 1 << 30


def clip_loss(
    image_features: Tensor,  # (B, D)
    text_features: Tensor,  # (B, D)
    logit_scale: Tensor | float,
    logit_bias: Tensor | float | None = None,
    *,
    local_loss: bool = False,
    gather_with_grad: bool = False,
    rank: int = 0,
    world_size: int = 1,
    group: Any = None,
    exchange: Exchange = "auto",
    backend: BackendName = "auto",
    agreement: BatchAgreement | None = None,
    begun: BegunGather | None = None,
) -> Tensor:
    """The mean of the image-to-text and text-to-image cross-entropies of scale·I·Tᵀ, 0-dim.

    Features are expected normalised and `logit_scale` already exponentiated, as a model returns
    them. Values and gradients are those of `open_clip.loss.ClipLoss` 3.3.0 on every rank, for each
    pair of flags:

    - `local_loss`: the loss of this rank's rows against all; otherwise of all rows, the same on
      every rank.
    - `gather_with_grad`: gradients of all ranks' losses reach this rank's features; otherwise only
      those of this rank's own loss, and with `local_loss` only through this rank's side of each
      product.

    `exchange` says how features reach the other ranks: `gather` keeps all N of them for backward;
    `ring` passes blocks from neighbour to neighbour, once forward and once backward, and keeps
    none; `auto` takes the ring where gathered images alone exceed 1 GiB. The numbers are the same
    up to the order of sums.

    A bias shifts all logits alike and cancels: it changes neither value nor gradients; its own
    gradient is 0. `agreement` holds the batch size that the ranks agreed on; without it, there is
    one for each group. `begun` is what `begin_clip_gather` gave for these images, if it was called;
    with other images it is of no use, and no harm. Not differentiable twice.

    Raises:
        ValueError, TypeError: an argument is unusable, or ranks bring different shapes (see
        BatchAgreement).
        BackendUnavailable: the backend named cannot run here.
    """
    check_features(OP, ("image_features", "text_features"), image_features, text_features)
    _check_exchange(exchange)
    dtype = product_dtype(image_features)
    chosen = resolve(OP, backend, image_features.device, dtype).backend
    world = join_world(OP, rank, world_size, group)
    scale = as_scalar(OP, "logit_scale", logit_scale, image_features)
    loss: Tensor
    if world is None:
        if small.fits(image_features, text_features, chosen):
            loss = small.softmax_loss(image_features, text_features, scale, dtype)
        else:
            loss = clip_alone(image_features, text_features, scale, dtype, chosen)[0]
    else:
        gathered = None if begun is None else begun.finish(image_features, dtype, world)
        ring = gathered is None and _takes_ring(exchange, image_features, dtype, world)
        key = 0 if agreement is None else agreement.key
        loss = clip_ranks(
            image_features, text_features, scale, dtype, chosen, world.name, key,
            local_loss, gather_with_grad, ring, gathered,
        )[0]  # fmt: skip
    if logit_bias is not None:
        loss = loss + 0 * as_scalar(OP, "logit_bias", logit_bias, image_features)
    return loss


def begin_clip_gather(
    image_features: Tensor,  # (B, D)
    *,
    rank: int = 0,
    world_size: int = 1,
    group: Any = None,
    exchange: Exchange = "auto",
    agreement: BatchAgreement | None = None,
) -> BegunGather | None:
    """Send the images to all ranks while the texts are still computed, to be given to `clip_loss`.

    A collective: all ranks call it, at the same place among their collectives, under the autocast
    that the loss will run under. The loss is the same to the bit. None where there is nothing to
    send ahead: a single process, a ring. Arguments and errors as those of `clip_loss`.
    """
    check_features(OP, ("image_features", "image_features"), image_features, image_features)
    _check_exchange(exchange)
    world = join_world(OP, rank, world_size, group)
    dtype = product_dtype(image_features)
    if world is None or _takes_ring(exchange, image_features, dtype, world):
        return None
    rows = image_features.detach().to(dtype)
    agree(OP, agreement, rows, world)
    return BegunGather(image_features, rows, world)


def _check_exchange(exchange: str) -> None:
    if exchange not in get_args(Exchange):
        raise ValueError(f"{OP}: exchange must be one of {get_args(Exchange)}, got {exchange!r}")


def _takes_ring(exchange: Exchange, features: Tensor, dtype: torch.dtype, world: World) -> bool:
    gathered = world.size * features.numel() * dtype.itemsize
    return exchange == "ring" or (exchange == "auto" and gathered > RING_BYTES)
