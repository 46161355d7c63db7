"""One call of a loss, as every benchmark of the losses makes it: inputs, results, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fastclip_kernels.loss.reference import clip_loss_reference, siglip_loss_reference

SPECIFICATION = {"clip": clip_loss_reference, "siglip": siglip_loss_reference}
SCALE, BIAS = 14.3, -10.0


def leaves(
    rows: int, width: int, dtype: torch.dtype, device: torch.device, seed: int
) -> list[Tensor]:
    """(image, text, scale, bias), each requiring a gradient: unit rows (rows, width) in `dtype`, and fp32 scalars."""
    generator = torch.Generator(device).manual_seed(seed)
    features = [
        F.normalize(torch.randn(rows, width, generator=generator, device=device), dim=1).to(dtype)
        for _ in range(2)
    ]
    scalars = [torch.tensor(value, device=device) for value in (SCALE, BIAS)]
    return [each.requires_grad_() for each in (*features, scalars[0], scalars[1])]


def results_of(loss: Callable[..., Tensor], inputs: list[Tensor]) -> dict[str, Tensor]:
    """The loss, and its gradient by each of `leaves` that it has, by name."""
    value = loss(*inputs)
    gradients = torch.autograd.grad(value, inputs, allow_unused=True)
    named = dict(zip(("d image", "d text", "d scale", "d bias"), gradients, strict=True))
    return {"loss": value.detach(), **{name: g for name, g in named.items() if g is not None}}


def forward_and_backward(loss: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[[], None]:
    """What is timed. Gradients are let go first, as an optimiser's `zero_grad` does."""

    def step() -> None:
        for each in inputs:
            each.grad = None
        loss(*inputs).backward()

    return step
