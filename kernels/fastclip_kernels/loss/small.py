"""Losses of few pairs on a CPU, all of whose logits fit into the cache.

Calls are what a small batch costs, so there are few: gradients are made in forward, while the logits
are at hand, from three GEMMs; and they are functions of autograd, for an op of torch costs as much
as ten of the passes below.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .checks import autocast_is_on, sum_dtype
from .cpu import multiplies
from .op import keep_gradients, kept_gradients
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
        outputs = function.apply(*arguments) if wanted else formula(*arguments, False)
        loss: Tensor = outputs[0]
        return loss
    with torch.autocast("cpu", enabled=False):  # which would round what is kept in `sum_dtype`
        return _loss(function, formula, *arguments)


# Each formula gives the loss, and if asked for its derivatives by the scalars, in `sum_dtype`, and
# B / scale times those by image and text (B, D), in that or the dtype that they will be rounded to.


def _softmax(
    image: Tensor, text: Tensor, scale: Tensor, dtype: torch.dtype, gradients: bool
) -> tuple[Tensor, ...]:
    (image, text), operands = _widened(image, text, dtype)
    u = (image * (scale * LOG2_E)) @ text.T
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
    return loss, inner_product(image, to_image) / len(image), to_image, to_text


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
    x = image @ text.T
    z = torch.addcmul(bias, x, scale)
    if first is not None:  # a positive is a negative whose logit has the other sign
        z.diagonal(first).neg_()
    slope = z.sigmoid()
    over = z.clamp(min=0).sum()  # log(1 + e^z) = max(z, 0) + log(1 + e^-|z|)
    grown = z.abs_().mul_(-LOG2_E).exp2_()
    # log(1 + g) = 2 artanh(g / (g + 2)): torch.log1p takes 6 times as long on a CPU
    loss = (over + 2 * grown.div_(grown + 2).atanh_().sum()) / len(image)
    if not gradients:
        return (loss,)
    if first is not None:
        slope.diagonal(first).neg_()
    by_bias = slope.sum() / len(image)
    # not torch.dot, which adds one by one: the terms nearly cancel, and `sum` adds by halves
    by_scale = x.mul_(slope).sum() / len(image)
    return loss, by_scale, by_bias, *_products(slope, *operands)


def _widened(
    image: Tensor, text: Tensor, dtype: torch.dtype
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Both rounded to `dtype`: as operands for logits, and for gradients, whose sums may be rounded."""
    image, text = image.to(dtype), text.to(dtype)
    wide = image.to(sum_dtype(dtype)), text.to(sum_dtype(dtype))
    return wide, (image, text) if multiplies(dtype) else wide


def _products(coefficients: Tensor, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    coefficients = coefficients.to(image.dtype)
    return coefficients @ text, coefficients.T @ image


# Not with a `setup_context`, whose calls torch binds to a signature: 30 µs, a tenth of 64 pairs' time.


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image: Tensor, text: Tensor, scale: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, ...]:
        outputs = _softmax(image, text, scale, dtype, True)
        keep_gradients(ctx, (image, text, scale), outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
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
    ) -> tuple[Tensor, ...]:
        outputs = _sigmoid(image, text, scale, bias, first, dtype, True)
        keep_gradients(ctx, (image, text, scale), outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        return kept_gradients(ctx, upstream, 6)
