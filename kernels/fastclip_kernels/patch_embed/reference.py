"""The specification of `patch_embed`: float pixels in memory, autograd for the gradients."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def patch_embed_reference(
    pixels: Tensor,  # uint8 (B, H, W, 3)
    weight: Tensor,  # (D, 3, p, p), of any float dtype: that of the products and of the result
    class_token: Tensor,  # (D,)
    positions: Tensor,  # (1 + P, D); P whole patches, row by row
    *,
    mean: Tensor,  # (3,), of pixels / 255
    std: Tensor,  # (3,)
    bias: Tensor | None = None,  # (D,)
    kept: Tensor | None = None,  # int64 (B, K): patches that are computed, in this order
) -> Tensor:  # (B, 1 + P, D), or (B, 1 + K, D)
    """Normalised as torchvision's ToTensor and Normalize do, in float32 (float64 for float64 weights),
    then rounded to the weight's dtype, as the reference's tower is given its pictures.
    """
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    normalised = ((pixels.to(wide) / 255 - mean.to(wide)) / std.to(wide)).to(weight.dtype)
    x = F.conv2d(normalised.permute(0, 3, 1, 2), weight, bias, stride=weight.shape[-1])
    x = x.flatten(2).transpose(1, 2)  # (B, P, D)
    head = class_token.to(x.dtype).expand(len(x), 1, -1)
    x = torch.cat((head, x), dim=1) + positions.to(x.dtype)
    if kept is None:
        return x
    chosen = x[:, 1:].gather(1, kept[..., None].expand(-1, -1, x.shape[-1]))
    return torch.cat((x[:, :1], chosen), dim=1)
