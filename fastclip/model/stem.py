"""From pixels to the tokens of an image tower: `embed_normalised` as the reference does, `embed_raw` fused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastclip.model.patch_dropout import AllPatches, PatchDropout
from fastclip_kernels import patch_embed


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
        _check_layout(images)
        # the order of operations is torchvision's ToTensor and Normalize, so that rounding is the
        # same
        scaled = images.to(torch.float32).div_(255).sub_(self.mean).div_(self.std)
        return scaled.permute(0, 3, 1, 2).to(dtype)


class StemParts(Protocol):
    """Whatever carries the parts of an image tower before its first norm."""

    image_size: tuple[int, int]  # (height, width) in pixels
    pixels: PixelNormalize
    conv1: nn.Conv2d
    class_embedding: nn.Parameter  # (D,)
    positional_embedding: nn.Parameter  # (1 + N, D)
    patch_dropout: PatchDropout | AllPatches


def embed_normalised(
    parts: StemParts,
    images: Tensor,  # uint8 (B, H, W, 3) raw, or float (B, 3, H, W) normalised
) -> Tensor:  # (B, 1 + kept, D)
    """Operation for operation as the reference; raw pixels are normalised before."""
    x = parts.pixels(images, parts.conv1.weight.dtype)
    _check_size(parts, x.shape[-2:])
    x = parts.conv1(x).flatten(2).transpose(1, 2)  # (B, N, D)
    head = parts.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
    x = torch.cat((head, x), dim=1) + parts.positional_embedding.to(x.dtype)
    tokens: Tensor = parts.patch_dropout(x)
    return tokens


def embed_raw(parts: StemParts, images: Tensor) -> Tensor:
    """The same tokens; raw pixels are read once, and patches that are dropped not at all."""
    if images.dtype != torch.uint8:
        return embed_normalised(parts, images)
    _check_layout(images)
    _check_size(parts, images.shape[1:3])
    patches = len(parts.positional_embedding) - 1
    return patch_embed(
        images,
        parts.conv1.weight,
        parts.class_embedding,
        parts.positional_embedding,
        mean=parts.pixels.mean,
        std=parts.pixels.std,
        bias=parts.conv1.bias,
        kept=parts.patch_dropout.kept(len(images), patches, images.device),
    )


def _check_layout(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f"uint8 images must be (B, H, W, 3), got {tuple(images.shape)}; "
            "float images are (B, 3, H, W)"
        )


def _check_size(parts: StemParts, size: Sequence[int]) -> None:
    if tuple(size) != parts.image_size:
        raise ValueError(
            f"images must be {parts.image_size} pixels (height, width), got {tuple(size)}"
        )
