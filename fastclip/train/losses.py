"""The loss that a configuration asks for, from fastclip-kernels."""

from __future__ import annotations

from typing import Any

from torch import nn

from fastclip.config.train_config import LossConfig
from fastclip.train.distributed import World
from fastclip_kernels import ClipLoss, CoCaLoss, DistillClipLoss, SigLipLoss


def make_loss(config: LossConfig, world: World, *, captions: bool) -> nn.Module:
    """Same order of choice as the reference: distillation, captioning models (CoCa), SigLIP, CLIP."""
    world_options: dict[str, Any] = {
        "rank": world.rank,
        "world_size": world.size,
        "backend": config.backend,
    }
    if config.siglip and not config.distill and not captions:
        return SigLipLoss(dist_impl=config.loss_dist_impl, **world_options)
    options: dict[str, Any] = {
        "local_loss": config.local_loss,
        "gather_with_grad": config.gather_with_grad,
        "cache_labels": True,
        **world_options,
    }
    if config.distill:
        return DistillClipLoss(**options)
    if captions:
        return CoCaLoss(
            caption_loss_weight=config.coca_caption_loss_weight,
            clip_loss_weight=config.coca_contrastive_loss_weight,
            **options,
        )
    return ClipLoss(**options)
