"""What every custom op of this room shares: its namespace, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

NAMESPACE = __name__.partition(".")[0]


def custom_op(name: str) -> Callable[[Callable[..., Any]], Any]:
    """`torch.library.custom_op` in this package's namespace; arguments are never mutated."""
    return torch.library.custom_op(f"{NAMESPACE}::{name}", mutates_args=())


def without_autocast(like: Tensor) -> torch.autocast:
    """Autocast would round what the sweeps keep in `sum_dtype`."""
    return torch.autocast(like.device.type, enabled=False)


def refuse_second_derivative(ctx: Any, *upstream: Any) -> NoReturn:
    """The autograd formula of an op that is itself a backward."""
    raise RuntimeError(
        f"{NAMESPACE}: this loss cannot be differentiated twice; use"
        f" {NAMESPACE}.loss.reference where second derivatives are needed"
    )


@custom_op("scaled_gradients")
def scaled_gradients(
    upstream: Tensor, image: Tensor, text: Tensor, scale: Tensor, to_image: Tensor, to_text: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of image and text, each in its own dtype, from those that forward made: B / scale
    times the loss's, in `sum_dtype`.

    An op of its own so that a second derivative is refused, not taken as zero.
    """
    factor = upstream * scale / len(image)
    return (to_image * factor).to(image.dtype), (to_text * factor).to(text.dtype)


@scaled_gradients.register_fake
def _(
    upstream: Tensor, image: Tensor, text: Tensor, scale: Tensor, to_image: Tensor, to_text: Tensor
) -> tuple[Tensor, Tensor]:
    return image.new_empty(image.shape), text.new_empty(text.shape)


scaled_gradients.register_autograd(refuse_second_derivative)


def keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """The set-up of an op of (image, text, scale, ...) whose output is (loss, derivatives by scalars,
    to_image, to_text).
    """
    ctx.save_for_backward(*inputs[:3], *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def kept_gradients(ctx: Any, upstream: Tensor | None, inputs: int) -> tuple[Tensor | None, ...]:
    """The gradients of such an op's `inputs`: image, text, the scalars, and nothing for the rest."""
    if upstream is None:
        return (None,) * inputs
    image, text, scale, *by_scalars, to_image, to_text = ctx.saved_tensors
    features: tuple[Tensor | None, Tensor | None] = (None, None)
    if any(ctx.needs_input_grad[:2]):
        features = scaled_gradients(upstream, image, text, scale, to_image, to_text)
    scalars = [upstream * each for each in by_scalars]
    return *features, *scalars, *(None,) * (inputs - 2 - len(scalars))
