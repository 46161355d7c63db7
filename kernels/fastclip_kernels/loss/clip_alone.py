"""The softmax loss on one process, as an op of torch: one sweep forward, one backward.

Saved for backward: the features as they came, and six sums of each row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .chunks import make_chunks
from .op import custom_op, op_body, refuse_second_derivative
from .sweeps import Softmax, inner_product, square_gradients, square_softmax


@custom_op("clip_alone")
def clip_alone(
    image: Tensor, text: Tensor, scale: Tensor, dtype: torch.dtype, backend: str
) -> tuple[Tensor, Tensor]:
    """(loss (), sums (3, 2, B)) of features (B, D) that are multiplied in `dtype`."""
    with op_body(image):
        chunks = make_chunks(backend, image.device, dtype)
        softmax = square_softmax(chunks, image.to(dtype), text.to(dtype), scale)
        return softmax.surprise.mean(), softmax.kept()


@clip_alone.register_fake
def _(
    image: Tensor, text: Tensor, scale: Tensor, dtype: torch.dtype, backend: str
) -> tuple[Tensor, Tensor]:
    return scale.new_empty(()), scale.new_empty(3, 2, len(image))


@custom_op("clip_alone_backward")
def clip_alone_backward(
    upstream: Tensor,
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    sums: Tensor,
    dtype: torch.dtype,
    backend: str,
    to_image: bool,
    to_text: bool,
    to_scale: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of what is asked for, the features' in their own dtype; else empty tensors."""
    with op_body(image):
        chunks = make_chunks(backend, image.device, dtype)
        image_product, text_product = image.to(dtype), text.to(dtype)
        by_image, by_text = square_gradients(
            chunks, image_product, text_product, scale, Softmax.saved(sums),
            wanted=(to_image or (to_scale and not to_text), to_text),
        )  # fmt: skip
        factor = upstream / (2 * len(image))
        by_scale = sums.new_empty(0)
        if to_scale:
            # Euler: the loss depends on scale · image, so d/d scale = <image, d/d(scale · image)>
            pair = (image_product, by_image) if by_image is not None else (text_product, by_text)
            by_scale = factor * inner_product(*pair)
        factor = factor * scale
        return (
            _scaled(by_image, factor, image.dtype) if to_image else image.new_empty(0),
            _scaled(by_text, factor, text.dtype) if to_text else text.new_empty(0),
            by_scale,
        )


def _scaled(gradient: Tensor | None, factor: Tensor, dtype: torch.dtype) -> Tensor:
    assert gradient is not None
    return gradient.mul_(factor).to(dtype)


@clip_alone_backward.register_fake
def _(
    upstream: Tensor,
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    sums: Tensor,
    dtype: torch.dtype,
    backend: str,
    to_image: bool,
    to_text: bool,
    to_scale: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(image, memory_format=torch.contiguous_format)
        if to_image
        else image.new_empty(0),
        torch.empty_like(text, memory_format=torch.contiguous_format)
        if to_text
        else text.new_empty(0),
        scale.new_empty(()) if to_scale else scale.new_empty(0),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    image, text, scale, ctx.dtype, ctx.backend = inputs
    ctx.save_for_backward(image, text, scale, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, upstream: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 5
    wanted = ctx.needs_input_grad[:3]
    gradients = clip_alone_backward(upstream, *ctx.saved_tensors, ctx.dtype, ctx.backend, *wanted)
    return (*(g if w else None for g, w in zip(gradients, wanted, strict=True)), None, None)


clip_alone.register_autograd(_backward, setup_context=_setup)
clip_alone_backward.register_autograd(refuse_second_derivative)
