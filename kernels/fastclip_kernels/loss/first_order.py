"""For derivatives written by hand: a second one is refused, never silently taken as zero."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def first_order_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """The `backward` of an autograd function, which raises where a graph of it is asked for.

    `torch.autograd.function.once_differentiable` notices only an upstream gradient that itself
    requires one, and lets `torch.autograd.grad(loss, x, create_graph=True)` return a constant.
    """

    @functools.wraps(backward)
    def checked(ctx: Any, *upstream: Any) -> Any:
        # torch.compile traces with gradients on, and refuses second derivatives by itself
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "fastclip_kernels: this loss cannot be differentiated twice (create_graph=True);"
                " use fastclip_kernels.loss.reference where second derivatives are needed"
            )
        with torch.no_grad():
            return backward(ctx, *upstream)

    return checked
