"""The sigmoid loss of a block of images against a block of texts, as an op of torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .chunks import make_chunks
from .op import custom_op, refuse_second_derivative, without_autocast
from .sweeps import sigmoid_gradients, sigmoid_sums


@custom_op("siglip_block")
def siglip_block(
    image: Tensor,  # (M, D)
    text: Tensor,  # (K, D)
    scale: Tensor,
    bias: Tensor,
    first: int | None,
    dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(-1/M Σ_ij log σ(±z_ij) (), its derivatives by scale and bias); pairs are (i, first + i), or
    nowhere.
    """
    with without_autocast(image):
        chunks = make_chunks(backend, image.device, dtype)
        sums = sigmoid_sums(chunks, image.to(dtype), text.to(dtype), scale, bias, first)
        loss, by_scale, by_bias = (each / len(image) for each in sums)
        return loss, by_scale, by_bias


@siglip_block.register_fake
def _(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    first: int | None,
    dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return scale.new_empty(()), scale.new_empty(()), scale.new_empty(())


@custom_op("siglip_block_backward")
def siglip_block_backward(
    upstream: Tensor,
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    first: int | None,
    dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of image and text, each in its own dtype."""
    with without_autocast(image):
        chunks = make_chunks(backend, image.device, dtype)
        to_image, to_text = sigmoid_gradients(
            chunks, image.to(dtype), text.to(dtype), scale, bias, first
        )
        factor = upstream * scale / len(image)
        return to_image.mul_(factor).to(image.dtype), to_text.mul_(factor).to(text.dtype)


@siglip_block_backward.register_fake
def _(
    upstream: Tensor,
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    first: int | None,
    dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return image.new_empty(image.shape), text.new_empty(text.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    image, text, scale, bias, *ctx.constants = inputs
    ctx.save_for_backward(image, text, scale, bias, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 7
    image, text, scale, bias, by_scale, by_bias = ctx.saved_tensors
    gradients: tuple[Tensor | None, Tensor | None] = (None, None)
    if any(ctx.needs_input_grad[:2]):
        gradients = siglip_block_backward(upstream, image, text, scale, bias, *ctx.constants)
    return (*gradients, upstream * by_scale, upstream * by_bias, None, None, None)


siglip_block.register_autograd(_backward, setup_context=_setup)
siglip_block_backward.register_autograd(refuse_second_derivative)
