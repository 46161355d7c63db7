"""The loss that a configuration asks for, from fastclip-kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from fastclip.config.train_config import LossConfig
from fastclip.errors import EnvironmentProblem
from fastclip.train.distributed import World
from fastclip_kernels import BackendUnavailable, ClipLoss, CoCaLoss, DistillClipLoss, SigLipLoss
from fastclip_kernels.backend import Choice, resolve


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


def loss_backend(config: LossConfig, device: torch.device, dtype: torch.dtype) -> Choice:
    """Who computes the loss of features of `dtype` on `device`, and why.

    EnvironmentProblem for a `--loss-backend` that cannot run there: else the first step would say so, with a model
    built and a folder made.
    """
    if config.distill:
        if config.backend == "triton":
            raise EnvironmentProblem(
                "--loss-backend triton: the distillation loss has no Triton form; use torch or auto"
            )
        return Choice("torch", "the distillation loss has no other form")
    try:
        return resolve("--loss-backend", config.backend, device, dtype)
    except BackendUnavailable as error:
        reason = str(error).partition("cannot run: ")[2].partition(". Use")[0]
        raise EnvironmentProblem(
            f"--loss-backend {config.backend} cannot run: {reason}; drop the flag"
        ) from error


def gather_early(
    towers: Callable[..., Any], loss: nn.Module, world: World, *, model: Any, accum_freq: int
) -> Callable[..., Any]:
    """`towers`, and where it can be: the gather of the image features begins before the text tower runs.

    Not under accumulation, where the loss is of the features of several forwards, nor with losses other than the
    softmax loss. The loss is the same to the bit. `model` is what `towers` wraps.
    """
    if not (
        world.distributed
        and accum_freq == 1
        and isinstance(loss, ClipLoss)
        and model.tells_image_features
    ):
        return towers
    untraced: Any = torch.compiler.disable
    return partial(towers, on_image_features=untraced(loss.begin))
