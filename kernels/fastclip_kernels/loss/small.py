"""Losses of few pairs on a CPU, all of whose logits fit into the cache.

Calls are what a small batch costs, so there are few: gradients are made in forward, while the logits
are at hand, from three GEMMs; and they are functions of autograd, for an op of torch costs as much
as ten of the passes below.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..onednn import close_product, product
from .checks import autocast_is_on, sum_dtype
from .cpu import multiplies, softplus_sum
from .op import kept_gradients
from .sweeps import LOG2_E, Sums, finished, inner_product

# A few matrices of so many float32 logits stay in a CPU's cache.
MOST_LOGITS = 1 << 19


def fits(image: Tensor, text: Tensor, backend: str) -> bool:
    on_cpu = image.device.type == "cpu"
    return on_cpu and backend == "torch" and len(image) * len(text) <= MOST_LOGITS


def softmax_loss(image: Tensor, text: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`clip_loss` of one process; features are multiplied in `dtype`."""
    return _loss(_Softmax, _softmax, image, text, scale, dtype)


def sigmoid_loss(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, first: int | None, dtype: torch.dtype
) -> Tensor:
    """What `siglip_block` returns first."""
    return _loss(_Sigmoid, _sigmoid, image, text, scale, bias, first, dtype)


def _loss(function: Any, formula: Any, *arguments: Any) -> Tensor:
    inputs = (each for each in arguments if isinstance(each, Tensor))
    wanted = torch.is_grad_enabled() and any(each.requires_grad for each in inputs)
    if not autocast_is_on("cpu"):
        loss: Tensor = function.apply(*arguments) if wanted else formula(*arguments, False)[0]
        return loss
    with torch.autocast("cpu", enabled=False):  # which would round what is kept in `sum_dtype`
        return _loss(function, formula, *arguments)


# Each formula gives the loss, and if asked for B times its derivatives by the scalars, in `sum_dtype`,
# and B / scale times those by image and text (B, D), in that or the dtype that they will be rounded to.


def _softmax(
    image: Tensor, text: Tensor, scale: Tensor, dtype: torch.dtype, gradients: bool
) -> tuple[Tensor, ...]:
    (image, text), operands = _widened(image, text, dtype)
    u = _logits(image * (scale * LOG2_E), text, dtype)
    both = torch.stack([u, u.T])  # images over texts, texts over images
    top = both.amax(2, keepdim=True)
    weight = both.sub_(top).exp2_()
    weight.diagonal(dim1=1, dim2=2).zero_()
    softmax = finished(Sums(top.squeeze(2), weight.sum(2), None), u.diagonal(), scale)
    loss = softmax.surprise.mean()
    if not gradients:
        return (loss,)
    weight.mul_(softmax.inverse.unsqueeze(2))
    c = weight[0].add_(weight[1].T).mul_(0.5)
    pairs = -softmax.missed.mean(0).unsqueeze(1)
    to_image, to_text = _products(c, *operands)
    to_image = to_image.to(c.dtype).addcmul_(pairs, text)
    to_text = to_text.to(c.dtype).addcmul_(pairs, image)
    return loss, inner_product(image, to_image), to_image, to_text


def _sigmoid(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    first: int | None,
    dtype: torch.dtype,
    gradients: bool,
) -> tuple[Tensor, ...]:
    (image, text), operands = _widened(image, text, dtype)
    x = _logits(image, text, dtype)
    z = (x * scale).add_(bias)
    if first is not None:  # a positive is a negative whose logit has the other sign
        z.diagonal(first).neg_()
    slope = z.sigmoid()
    loss = softplus_sum(z) / len(image)
    if not gradients:
        return (loss,)
    if first is not None:
        slope.diagonal(first).neg_()
    by_bias = slope.sum()
    # not torch.dot, which adds one by one: the terms nearly cancel, and `sum` adds by halves
    by_scale = x.mul_(slope).sum()
    return loss, by_scale, by_bias, *_products(slope, *operands)


def _widened(
    image: Tensor, text: Tensor, dtype: torch.dtype
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Both rounded to `dtype`: as operands for logits, and for gradients, whose sums may be rounded."""
    image, text = image.to(dtype), text.to(dtype)
    wide = image.to(sum_dtype(dtype)), text.to(sum_dtype(dtype))
    return wide, (image, text) if multiplies(dtype) else wide


def _logits(image: Tensor, text: Tensor, dtype: torch.dtype) -> Tensor:
    """Of half precision the features' own rounding is larger than a product's."""
    return (close_product if image.dtype == dtype else product)(image, text.T)


def _products(coefficients: Tensor, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    coefficients = coefficients.to(image.dtype)
    return product(coefficients, text), product(coefficients.T, image)


# Not with a `setup_context`, whose calls torch binds to a signature: 30 µs, a tenth of 64 pairs' time.


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        loss, *gradients = _softmax(image, text, scale, dtype, True)
        ctx.save_for_backward(image, text, scale, *gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return kept_gradients(ctx, upstream, 4)


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        bias: Tensor,
        first: int | None,
        dtype: torch.dtype,
    ) -> Tensor:
        loss, *gradients = _sigmoid(image, text, scale, bias, first, dtype, True)
        ctx.save_for_backward(image, text, scale, *gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return kept_gradients(ctx, upstream, 6)
