"""CLIP's contrastive losses, exact and lean. See the README of the distribution."""

from .backend import BackendUnavailable
from .loss.clip import begin_clip_gather, clip_loss
from .loss.distill import distill_clip_loss
from .loss.distributed import BatchAgreement
from .loss.modules import ClipLoss, CoCaLoss, DistillClipLoss, SigLipLoss
from .loss.siglip import siglip_loss
from .patch import patch_open_clip

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailable",
    "BatchAgreement",
    "ClipLoss",
    "CoCaLoss",
    "DistillClipLoss",
    "SigLipLoss",
    "begin_clip_gather",
    "clip_loss",
    "distill_clip_loss",
    "patch_open_clip",
    "siglip_loss",
]
