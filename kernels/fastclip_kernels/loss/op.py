"""What every custom op of this room shares: its namespace, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor

NAMESPACE = __name__.partition(".")[0]


def custom_op(name: str) -> Callable[[Callable[..., Any]], Any]:
    """`torch.library.custom_op` in this package's namespace; arguments are never mutated."""
    return torch.library.custom_op(f"{NAMESPACE}::{name}", mutates_args=())


@contextmanager
def op_body(like: Tensor) -> Iterator[None]:
    """Around the body of an op on tensors like this one.

    Autocast would round what the sweeps keep in `sum_dtype`; and Triton launches on the current
    device, which need not be the tensors'.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(like.device.type, enabled=False))
        if like.is_cuda:
            stack.enter_context(torch.cuda.device(like.device))
        yield


def refuse_second_derivative(ctx: Any, *upstream: Any) -> NoReturn:
    """The autograd formula of an op that is itself a backward."""
    raise RuntimeError(
        f"{NAMESPACE}: this op cannot be differentiated twice; use the formula of its reference.py"
        " where second derivatives are needed"
    )


def _scaled_gradients(
    upstream: Tensor,
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    to_image: Tensor,
    to_text: Tensor,
    by_scalars: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of image and text, each in its own dtype, and of the scalars, from what forward made:
    B / scale times the loss's by the features, in `sum_dtype` (or nothing, of shape (0,)), and B
    times the loss's by each scalar.
    """
    share = upstream / len(image)
    factor, scalars = share * scale, torch.stack(by_scalars) * share
    return (to_image * factor).to(image.dtype), (to_text * factor).to(text.dtype), scalars


# Where backward is itself to be differentiated: an op of its own, so that this is refused and the
# second derivative not taken as zero.
scaled_gradients = custom_op("scaled_gradients")(_scaled_gradients)


@scaled_gradients.register_fake
def _(
    upstream: Tensor,
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    to_image: Tensor,
    to_text: Tensor,
    by_scalars: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        image.new_empty(to_image.shape),
        text.new_empty(to_text.shape),
        scale.new_empty(len(by_scalars)),
    )


scaled_gradients.register_autograd(refuse_second_derivative)


def keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """The set-up of an op of (image, text, scale, ...) whose output is (loss, derivatives by scalars,
    to_image, to_text).
    """
    ctx.save_for_backward(*inputs[:3], *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def kept_gradients(ctx: Any, upstream: Tensor | None, inputs: int) -> tuple[Tensor | None, ...]:
    """The gradients of such an op's `inputs`: image, text, the scalars, and nothing for the rest.

    Saved are its first three inputs, and all but the first of its outputs.
    """
    if upstream is None:
        return (None,) * inputs
    image, text, scale, *by_scalars, to_image, to_text = ctx.saved_tensors
    of_gradients = scaled_gradients if torch.is_grad_enabled() else _scaled_gradients
    *features, scalars = of_gradients(upstream, image, text, scale, to_image, to_text, by_scalars)
    if not any(ctx.needs_input_grad[:2]):
        features = [None, None]
    return *features, *scalars.unbind(), *(None,) * (inputs - 2 - len(by_scalars))
