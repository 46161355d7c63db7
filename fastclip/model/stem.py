"""From pixels to what the first layer of an image tower takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class PixelNormalize(nn.Module):
    """uint8 (B, H, W, 3) -> (pixel / 255 - mean) / std as (B, 3, H, W), computed in fp32.

    Float pictures are taken as already normalised (B, 3, H, W). Mean and std are no part of the
    state dict and stay fp32 whatever the weights are cast to. The result shares the pixels' memory
    order (channels last), which convolutions take as it is.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self._values = (tuple(mean), tuple(std))
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PixelNormalize:
        parent: Any = super()
        parent._apply(fn, recurse)
        mean, std = self._values
        if self.mean.dtype != torch.float32:  # model.bfloat16(), model.to(dtype)
            self.mean = torch.tensor(mean, dtype=torch.float32, device=self.mean.device)
            self.std = torch.tensor(std, dtype=torch.float32, device=self.std.device)
        return self

    def forward(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """ValueError for uint8 pictures whose last axis is not RGB."""
        if images.dtype != torch.uint8:
            return images.to(dtype)
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(
                f"uint8 images must be (B, H, W, 3), got {tuple(images.shape)}; "
                "float images are (B, 3, H, W)"
            )
        # the order of operations is torchvision's ToTensor and Normalize, so that rounding is the
        # same
        scaled = images.to(torch.float32).div_(255).sub_(self.mean).div_(self.std)
        return scaled.permute(0, 3, 1, 2).to(dtype)
