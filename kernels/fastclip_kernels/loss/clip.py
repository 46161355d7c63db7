"""The softmax loss of CLIP, on one process and across ranks. Derivation: README.md, section 2.

    tensor                        shape   dtype
    image_features, text_features (B, D)  float64, float32, bfloat16, float16; any strides
    result                        ()      float32, or float64 for float64 features
Saved for backward: both feature blocks as they were multiplied (gathered ones across ranks) and
O(N) sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..backend import BackendName, resolve
from .checks import as_scalar, check_features, product_dtype
from .chunked import (
    Softmax,
    pair_coefficient,
    row_gradient,
    row_softmax,
    square_gradients,
    square_softmax,
)
from .distributed import BatchAgreement, World, agreement_of, gather, join_world, start_gather
from .first_order import first_order_only

OP = "clip_loss"


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
    backend: BackendName = "auto",
    agreement: BatchAgreement | None = None,
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

    A bias shifts all logits alike and cancels: it changes neither value nor gradients; its own
    gradient is 0. `agreement` holds the batch size that the ranks agreed on; without it, there is
    one for each group. Not differentiable twice.

    Raises:
        ValueError, TypeError: an argument is unusable, or ranks bring different shapes (see
        BatchAgreement).
        BackendUnavailable: the backend named cannot run here.
    """
    check_features(OP, ("image_features", "text_features"), image_features, text_features)
    resolve(OP, backend, image_features.device)
    world = join_world(OP, rank, world_size, group)
    scale = as_scalar(OP, "logit_scale", logit_scale, image_features)
    dtype = product_dtype(image_features)
    loss: Tensor
    if world is None:
        loss = _ClipAlone.apply(image_features, text_features, scale, dtype)
    else:
        (agreement or agreement_of(world)).check(OP, image_features.to(dtype), world)
        across = _Across(world, local_loss, gather_with_grad)
        loss = _ClipAcrossRanks.apply(image_features, text_features, scale, dtype, across)
    if logit_bias is not None:
        loss = loss + 0 * as_scalar(OP, "logit_bias", logit_bias, image_features)
    return loss


def _without_autocast(like: Tensor) -> torch.autocast:
    """Autocast would round what the sweeps keep in `sum_dtype`."""
    return torch.autocast(like.device.type, enabled=False)


class _ClipAlone(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image_features: Tensor, text_features: Tensor, scale: Tensor, dtype: torch.dtype
    ) -> Tensor:
        with _without_autocast(scale):
            image, text = image_features.to(dtype), text_features.to(dtype)
            rows, columns = square_softmax(image, text, scale)
            pairs = 2 * len(image)
            ctx.save_for_backward(image, text, scale, *rows, *columns)
            ctx.dtypes = image_features.dtype, text_features.dtype
            return (rows.surprise.sum() + columns.surprise.sum()) / pairs

    @staticmethod
    @first_order_only
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        image, text, scale, *sums = ctx.saved_tensors
        rows, columns = Softmax(*sums[:4]), Softmax(*sums[4:])
        with _without_autocast(scale):
            to_image = to_text = to_scale = None
            factor = upstream / (2 * len(image))
            if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
                to_image, to_text = square_gradients(image, text, scale, rows, columns)
                to_image = (to_image * (factor * scale)).to(ctx.dtypes[0])
                to_text = (to_text * (factor * scale)).to(ctx.dtypes[1])
            if ctx.needs_input_grad[2]:
                to_scale = factor * (rows.gap.sum() + columns.gap.sum())
        return to_image, to_text, to_scale, None


@dataclass(frozen=True)
class _Across:
    """A loss across ranks: who takes part, and the reference's two flags."""

    world: World
    local_loss: bool
    gather_with_grad: bool

    @property
    def one_sided(self) -> bool:
        """The reference's incomplete gradient: other ranks' features are constants to this rank's
        loss.
        """
        return self.local_loss and not self.gather_with_grad


class _ClipAcrossRanks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image_features: Tensor,
        text_features: Tensor,
        scale: Tensor,
        dtype: torch.dtype,
        across: _Across,
    ) -> Tensor:
        world = across.world
        with _without_autocast(scale):
            image, text = image_features.to(dtype), text_features.to(dtype)
            all_texts, texts_work = start_gather(text, world)
            all_images, images_work = start_gather(image, world)
            first = world.first_row(len(image))
            texts_work.wait()
            rows = row_softmax(image, all_texts, scale, first)
            images_work.wait()
            columns = row_softmax(text, all_images, scale, first)

            sums = torch.stack(
                [
                    rows.surprise.sum() + columns.surprise.sum(),
                    rows.gap.sum() + columns.gap.sum(),
                ]
            )
            pairs = 2 * len(image)
            if not across.local_loss:
                dist.all_reduce(sums, group=world.group)
                pairs *= world.size
            loss, by_scale = (sums / pairs).unbind()

            others: tuple[Tensor, ...] = ()
            if not across.one_sided and any(ctx.needs_input_grad[:2]):
                mine = torch.stack([*rows[:2], *columns[:2]], dim=1)  # (b, 4)
                others = gather(mine, world).unbind(1)
            ctx.save_for_backward(
                image, text, all_images, all_texts, scale, by_scale, *rows, *columns, *others
            )
            ctx.across, ctx.first = across, first
            ctx.dtypes = image_features.dtype, text_features.dtype
            return loss

    @staticmethod
    @first_order_only
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        image, text, all_images, all_texts, scale, by_scale, *sums = ctx.saved_tensors
        rows, columns, others = Softmax(*sums[:4]), Softmax(*sums[4:8]), sums[8:]
        across: _Across = ctx.across
        to_image = to_text = to_scale = None
        with _without_autocast(scale):
            if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
                factor, own_weight, weights = _upstream_weights(across, upstream, len(image))
                column_side = row_side = None
                row_pair = own_weight * pair_coefficient(rows)
                column_pair = own_weight * pair_coefficient(columns)
                if others:
                    row_top, row_inverse, column_top, column_inverse = others
                    row_side = (row_top, row_inverse, weights)
                    column_side = (column_top, column_inverse, weights)
                    row_pair = column_pair = row_pair + column_pair
                factor = factor * scale
                if ctx.needs_input_grad[0]:
                    to_image = factor * row_gradient(
                        image, all_texts, scale, rows, own_weight, column_side, row_pair, ctx.first
                    )
                    to_image = to_image.to(ctx.dtypes[0])
                if ctx.needs_input_grad[1]:
                    to_text = factor * row_gradient(
                        text,
                        all_images,
                        scale,
                        columns,
                        own_weight,
                        row_side,
                        column_pair,
                        ctx.first,
                    )
                    to_text = to_text.to(ctx.dtypes[1])
            if ctx.needs_input_grad[2]:
                to_scale = upstream * by_scale
        return to_image, to_text, to_scale, None, None


def _upstream_weights(
    across: _Across, upstream: Tensor, pairs: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(factor, own weight, weight of each gathered row): the terms' coefficients, weights at most 1
    in size.

    A row's term carries the upstream gradient of the rank whose loss it is part of. The largest is
    taken out into the factor, so that what is rounded to half precision stays a probability.
    """
    world = across.world
    one = torch.ones_like(upstream)
    ones = one.expand(world.size * pairs)
    if not across.gather_with_grad:
        losses = pairs if across.local_loss else world.size * pairs
        return upstream / (2 * losses), one, ones
    everyone = gather(upstream.reshape(1), world)
    if not across.local_loss:
        return everyone.mean() / (2 * pairs), one, ones
    largest = everyone.abs().max()
    weights = torch.where(largest == 0, everyone, everyone / largest)
    return largest / (2 * pairs), weights[world.rank], weights.repeat_interleave(pairs)
