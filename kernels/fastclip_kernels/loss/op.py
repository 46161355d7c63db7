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
