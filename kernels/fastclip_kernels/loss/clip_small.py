"""The softmax loss of few pairs on one process, as an op of torch that makes gradients in forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import small
from .op import custom_op, keep_gradients, kept_gradients, op_body


@custom_op("clip_small")
def clip_small(
    image: Tensor, text: Tensor, scale: Tensor, dtype: torch.dtype, gradients: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss (), and if asked for its derivative by the scale () and B / scale times those by image
    and text (B, D), in `sum_dtype`; else empty tensors.
    """
    with op_body(image):
        return small.softmax(image, text, scale, dtype, gradients)


@clip_small.register_fake
def _(
    image: Tensor, text: Tensor, scale: Tensor, dtype: torch.dtype, gradients: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        scale.new_empty(()),
        scale.new_empty(() if gradients else (0,)),
        scale.new_empty(image.shape if gradients else (0,)),
        scale.new_empty(text.shape if gradients else (0,)),
    )


def _backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    return kept_gradients(ctx, upstream, 5)


clip_small.register_autograd(_backward, setup_context=keep_gradients)
