"""CLIP's contrastive losses, patch embedding and attention, exact and lean. See the README of the distribution."""

from .backend import BackendUnavailable
from .loss.clip import begin_clip_gather, clip_loss
from .loss.distill import distill_clip_loss
from .loss.distributed import BatchAgreement
from .loss.modules import ClipLoss, CoCaLoss, DistillClipLoss, SigLipLoss
from .loss.siglip import siglip_loss
from .patch import patch_open_clip
from .patch_embed.ops import patch_embed
from .self_attention.functional import attention

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailable",
    "BatchAgreement",
    "ClipLoss",
    "CoCaLoss",
    "DistillClipLoss",
    "SigLipLoss",
    "attention",
    "begin_clip_gather",
    "clip_loss",
    "distill_clip_loss",
    "patch_embed",
    "patch_open_clip",
    "siglip_loss",
]
