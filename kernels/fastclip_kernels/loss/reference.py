"""The losses as the papers write them: every logit in memory, autograd for the gradients.

This is the specification that the other forms are tested against; it takes any float dtype and one
process. With z_ij = scale · <image_i, text_j> + bias:

    clip    L = 1/(2B) Σ_i [lse_j z_ij - z_ii] + [lse_j z_ji - z_ii]
            Radford et al. 2021, figure 3
    siglip  L = -1/B Σ_ij log σ(y_ij z_ij), y = +1 on the diagonal, else -1
            Zhai et al. 2023, equation 1
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def clip_loss_reference(
    image_features: Tensor,  # (B, D)
    text_features: Tensor,  # (B, D)
    logit_scale: Tensor | float,
    logit_bias: Tensor | float | None = None,
) -> Tensor:
    """The symmetric softmax loss of B pairs, 0-dim."""
    logits = logit_scale * (image_features @ text_features.T)
    if logit_bias is not None:
        logits = logits + logit_bias
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def siglip_loss_reference(
    image_features: Tensor,  # (B, D)
    text_features: Tensor,  # (B, D)
    logit_scale: Tensor | float,
    logit_bias: Tensor | float | None = None,
) -> Tensor:
    """The sigmoid loss of B pairs, 0-dim."""
    logits = logit_scale * (image_features @ text_features.T)
    if logit_bias is not None:
        logits = logits + logit_bias
    sign = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    return -F.logsigmoid(sign * logits).sum() / len(logits)
