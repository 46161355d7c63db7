"""The sigmoid loss of a block of images against a block of texts, as an op of torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .chunks import make_chunks
from .op import custom_op, keep_gradients, kept_gradients, op_body
from .sweeps import sigmoid


@custom_op("siglip_block")
def siglip_block(
    image: Tensor,  # (M, D)
    text: Tensor,  # (K, D)
    scale: Tensor,
    bias: Tensor,
    first: int | None,
    dtype: torch.dtype,
    backend: str,
    gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """-1/M Σ_ij log σ(±z_ij) (), M times its derivatives by scale and bias, and, if asked for, M /
    scale times those by image and text, in `sum_dtype`; else empty.

    Pairs are (i, first + i), or nowhere. Gradients are made here, while the logits are at hand: a
    backward sweep would cost their GEMM again.
    """
    with op_body(image):
        chunks = make_chunks(backend, image.device, dtype)
        sums, to_image, to_text = sigmoid(
            chunks, image.to(dtype), text.to(dtype), scale, bias, first, gradients=gradients
        )
        return sums.loss / len(image), sums.by_scale, sums.by_bias, to_image, to_text


@siglip_block.register_fake
def _(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    first: int | None,
    dtype: torch.dtype,
    backend: str,
    gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        scale.new_empty(()),
        scale.new_empty(()),
        scale.new_empty(()),
        scale.new_empty(image.shape if gradients else (0,)),
        scale.new_empty(text.shape if gradients else (0,)),
    )


def _backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    return kept_gradients(ctx, upstream, 8)


siglip_block.register_autograd(_backward, setup_context=keep_gradients)
