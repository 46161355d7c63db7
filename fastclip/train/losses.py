"""The loss that a configuration asks for, from fastclip-kernels."""

from __future__ import annotations

from torch import nn

from fastclip.config.train_config import LossConfig
from fastclip.train.distributed import World
from fastclip_kernels import ClipLoss, CoCaLoss, DistillClipLoss, SigLipLoss


def make_loss(config: LossConfig, world: World, *, captions: bool) -> nn.Module:
    """Same order of choice as the reference: distillation, captioning models (CoCa), SigLIP, CLIP."""
    if config.distill:
        return DistillClipLoss(
            local_loss=config.local_loss,
            gather_with_grad=config.gather_with_grad,
            cache_labels=True,
            rank=world.rank,
            world_size=world.size,
            backend=config.backend,
        )
    if captions:
        return CoCaLoss(
            caption_loss_weight=config.coca_caption_loss_weight,
            clip_loss_weight=config.coca_contrastive_loss_weight,
            local_loss=config.local_loss,
            gather_with_grad=config.gather_with_grad,
            cache_labels=True,
            rank=world.rank,
            world_size=world.size,
            backend=config.backend,
        )
    if config.siglip:
        return SigLipLoss(
            rank=world.rank,
            world_size=world.size,
            dist_impl=config.loss_dist_impl,
            backend=config.backend,
        )
    return ClipLoss(
        local_loss=config.local_loss,
        gather_with_grad=config.gather_with_grad,
        cache_labels=True,
        rank=world.rank,
        world_size=world.size,
        backend=config.backend,
    )
