"""CLIP's loss and the distillation loss beside it, with every logit in memory and autograd for the
gradients.

    distill = mean over both directions of -Σ_j softmax(teacher)_ij · log_softmax(student)_ij
Extra memory: a few (B, N) blocks of float32 (N = B · ranks), as the reference's. One GEMM per
block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backend import BackendName, BackendUnavailable, resolve
from .checks import as_scalar, check_features, product_dtype, sum_dtype
from .distributed import (
    BatchAgreement,
    GradientTo,
    World,
    agree,
    gather_with_gradient,
    join_world,
)

OP = "distill_clip_loss"


def distill_clip_loss(
    image_features: Tensor,  # (B, D)
    text_features: Tensor,  # (B, D)
    logit_scale: Tensor | float,
    dist_image_features: Tensor,  # (B, E): the teacher's
    dist_text_features: Tensor,  # (B, E)
    dist_logit_scale: Tensor | float,
    *,
    local_loss: bool = False,
    gather_with_grad: bool = False,
    rank: int = 0,
    world_size: int = 1,
    group: Any = None,
    backend: BackendName = "auto",
    agreement: BatchAgreement | None = None,
) -> tuple[Tensor, Tensor]:
    """(contrastive loss, distillation loss), each 0-dim; flags and errors as those of `clip_loss`.

    Values and gradients are those of `open_clip.loss.DistillClipLoss` 3.3.0, the teacher's
    gradients included where its features require them.
    """
    teacher_names = ("dist_image_features", "dist_text_features")
    check_features(OP, ("image_features", "text_features"), image_features, text_features)
    check_features(OP, teacher_names, dist_image_features, dist_text_features)
    if len(image_features) != len(dist_image_features):
        raise ValueError(
            f"{OP}: dist_image_features must have {len(image_features)} rows like image_features,"
            f" got {tuple(dist_image_features.shape)}"
        )
    resolve(OP, "auto" if backend == "triton" else backend)
    if backend == "triton":
        raise BackendUnavailable(
            f"{OP}: backend='triton' cannot run: it has no Triton form. Use backend='torch' or 'auto'"
        )
    world = join_world(OP, rank, world_size, group)
    if world is not None:
        rounded = image_features.to(product_dtype(image_features))
        agree(OP, agreement, rounded, world)

    def both_logits(image: Tensor, text: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        return _logits(image, text, scale, world, local_loss, gather_with_grad)

    scale = as_scalar(OP, "logit_scale", logit_scale, image_features)
    dist_scale = as_scalar(OP, "dist_logit_scale", dist_logit_scale, dist_image_features)
    student = both_logits(image_features, text_features, scale)
    teacher = both_logits(dist_image_features, dist_text_features, dist_scale)

    target = torch.arange(len(student[0]), device=image_features.device)
    if world is not None and local_loss:
        target = target + world.first_row(len(target))
    contrastive = F.cross_entropy(student[0], target) + F.cross_entropy(student[1], target)
    distill = _soft_cross_entropy(teacher[0], student[0])
    distill = distill + _soft_cross_entropy(teacher[1], student[1])
    return contrastive / 2, distill / 2


def _soft_cross_entropy(teacher: Tensor, student: Tensor) -> Tensor:
    return -(teacher.softmax(dim=1) * student.log_softmax(dim=1)).sum(dim=1).mean()


def _logits(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    world: World | None,
    local_loss: bool,
    gather_with_grad: bool,
) -> tuple[Tensor, Tensor]:
    """(image to text, text to image) logits in `sum_dtype`: of this rank's rows, or of all rows."""
    dtype, came_as = product_dtype(image), image.dtype
    image, text = image.to(dtype), text.to(dtype)
    all_images, all_texts = image, text
    if world is not None:
        gradient_to: GradientTo = "every rank"
        if not gather_with_grad:
            gradient_to = "nobody" if local_loss else "own rows"
        # they travel as they came, and so are their gradients summed
        all_images = gather_with_gradient(image.to(came_as), world, gradient_to)
        all_texts = gather_with_gradient(text.to(came_as), world, gradient_to)
        if not local_loss:
            image, text = all_images, all_texts
    wide = sum_dtype(dtype)
    with torch.autocast(scale.device.type, enabled=False):
        to_texts = scale * (image.to(wide) @ all_texts.to(wide).T)
        if image is all_images:
            return to_texts, to_texts.T
        return to_texts, scale * (text.to(wide) @ all_images.to(wide).T)
