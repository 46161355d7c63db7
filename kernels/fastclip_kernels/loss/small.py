"""Losses of few pairs on a CPU, all of whose logits fit into the cache.

Gradients are made in forward, while the logits are at hand: three GEMMs, and half as many calls as
the sweeps make, which are what a small batch costs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import sum_dtype
from .sweeps import LOG2_E, Sums, finished, inner_product

# A few matrices of so many float32 logits stay in a CPU's cache.
MOST_LOGITS = 1 << 19


def fits(image: Tensor, text: Tensor, backend: str) -> bool:
    on_cpu = image.device.type == "cpu"
    return on_cpu and backend == "torch" and len(image) * len(text) <= MOST_LOGITS


def _widened(features: Tensor, dtype: torch.dtype) -> Tensor:
    return features.to(dtype).to(sum_dtype(dtype))


def softmax(
    image: Tensor, text: Tensor, scale: Tensor, dtype: torch.dtype, gradients: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `clip_small` returns."""
    image, text = _widened(image, dtype), _widened(text, dtype)
    u = (image * (scale * LOG2_E)) @ text.T
    both = torch.stack([u, u.T])  # images over texts, texts over images
    top = both.amax(2, keepdim=True)
    weight = both.sub_(top).exp2_()
    weight.diagonal(dim1=1, dim2=2).zero_()
    softmax = finished(Sums(top.squeeze(2), weight.sum(2), None), u.diagonal(), scale)
    loss = softmax.surprise.mean()
    if not gradients:
        return loss, scale.new_empty(0), scale.new_empty(0), scale.new_empty(0)
    weight.mul_(softmax.inverse.unsqueeze(2))
    c = weight[0].add_(weight[1].T).mul_(0.5)
    pairs = -softmax.missed.mean(0).unsqueeze(1)
    to_image = (c @ text).addcmul_(pairs, text)
    to_text = (c.T @ image).addcmul_(pairs, image)
    return loss, inner_product(image, to_image) / len(image), to_image, to_text


def sigmoid(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    first: int | None,
    dtype: torch.dtype,
    gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `siglip_block` returns."""
    image, text = _widened(image, dtype), _widened(text, dtype)
    x = image @ text.T
    z = torch.add(bias, x, alpha=float(scale))
    if first is not None:  # a positive is a negative whose logit has the other sign
        z.diagonal(first).neg_()
    if float(z.max()) < 40:
        grown = z.exp_()  # of -log s(-z) = log(1 + e^z) and s(z) = e^z / (1 + e^z)
        loss = grown.log1p().sum()
        slope = grown.div_(grown + 1)
    else:
        loss = F.softplus(z, threshold=40).sum()  # e^-40 is nothing beside 40, in float64 too
        slope = z.sigmoid_()
    if first is not None:
        slope.diagonal(first).neg_()
    by_scale, by_bias = x.mul_(slope).sum(), slope.sum()
    sums = loss.div_(len(image)), by_scale.div_(len(image)), by_bias.div_(len(image))
    if not gradients:
        return *sums, scale.new_empty(0), scale.new_empty(0)
    return *sums, slope @ text, slope.T @ image
