"""The losses with the constructors and `forward` of `open_clip.loss` 3.3.0: change the import,
nothing else.

No mathematics here. `cache_labels` is accepted and has no effect: no labels are ever built.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor, nn

from ..backend import BackendName, resolve
from .clip import Exchange, begin_clip_gather, clip_loss
from .distill import distill_clip_loss
from .distributed import BatchAgreement, BegunGather
from .siglip import DistImpl, siglip_loss


class ClipLoss(nn.Module):
    """`clip_loss` as a module.

    `rank` and `world_size` are those of the default process group. With several ranks the loss is
    created before or after `init_process_group`, and called after it. All calls of one object bring
    one batch size (see BatchAgreement); for a shorter evaluation batch use an object with
    world_size=1. `backend` and `exchange` are ours, as `clip_loss` explains them.
    """

    exchanges: tuple[str, ...] = get_args(Exchange)

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        backend: BackendName = "auto",
        exchange: Exchange = "auto",
    ) -> None:
        super().__init__()
        if exchange not in self.exchanges:
            raise ValueError(
                f"{type(self).__name__}: exchange must be one of {self.exchanges}, got {exchange!r}"
            )
        if use_horovod:
            raise ValueError(
                f"{type(self).__name__}: use_horovod=True is not supported; use torch.distributed"
            )
        resolve(type(self).__name__, backend)
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.use_horovod = use_horovod
        self.backend: BackendName = backend
        self.exchange: Exchange = exchange
        self.agreement = BatchAgreement()
        self._begun: BegunGather | None = None

    def begin(self, image_features: Tensor) -> None:
        """Send the images to all ranks while the texts are still computed; ours, not open_clip's.

        The next `forward`, given this tensor, uses what was sent; given another one it sends that,
        as if `begin` had not been called. Never needed, and the same result to the bit; see
        `begin_clip_gather` for what ranks must keep to.
        """
        if self._begun is not None:
            self._begun.wait()
        self._begun = begin_clip_gather(
            image_features,
            rank=self.rank,
            world_size=self.world_size,
            exchange=self.exchange,
            agreement=self.agreement,
        )

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        loss = self._contrastive(image_features, text_features, logit_scale, logit_bias)
        return {"contrastive_loss": loss} if output_dict else loss

    def _contrastive(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
    ) -> Tensor:
        begun, self._begun = self._begun, None
        return clip_loss(
            image_features,
            text_features,
            logit_scale,
            logit_bias,
            local_loss=self.local_loss,
            gather_with_grad=self.gather_with_grad,
            rank=self.rank,
            world_size=self.world_size,
            exchange=self.exchange,
            backend=self.backend,
            agreement=self.agreement,
            begun=begun,
        )


class CoCaLoss(ClipLoss):
    """The contrastive loss and a captioner's cross-entropy, each times its weight."""

    def __init__(
        self,
        caption_loss_weight: float,
        clip_loss_weight: float,
        pad_id: int = 0,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        backend: BackendName = "auto",
        exchange: Exchange = "auto",
    ) -> None:
        super().__init__(
            local_loss,
            gather_with_grad,
            cache_labels,
            rank,
            world_size,
            use_horovod,
            backend,
            exchange,
        )
        self.clip_loss_weight = clip_loss_weight
        self.caption_loss_weight = caption_loss_weight
        self.caption_loss = nn.CrossEntropyLoss(ignore_index=pad_id)

    def forward(  # type: ignore[override]  # the reference's signature
        self,
        image_features: Tensor,
        text_features: Tensor,
        logits: Tensor,  # (B, T, vocabulary)
        labels: Tensor,  # int64 (B, T)
        logit_scale: Tensor | float,
        output_dict: bool = False,
    ) -> tuple[Tensor, Tensor] | dict[str, Tensor]:
        if self.clip_loss_weight:
            contrastive = self.clip_loss_weight * self._contrastive(
                image_features, text_features, logit_scale
            )
        else:
            contrastive = torch.zeros((), dtype=torch.int64, device=logits.device)
        caption = self.caption_loss_weight * self.caption_loss(logits.permute(0, 2, 1), labels)
        if output_dict:
            return {"contrastive_loss": contrastive, "caption_loss": caption}
        return contrastive, caption


class DistillClipLoss(ClipLoss):
    """The contrastive loss and the cross-entropy to a teacher's logits; see `distill_clip_loss`.

    It holds B×N logits, so that a ring would save nothing: `exchange="ring"` raises.
    """

    exchanges = ("auto", "gather")

    def begin(self, image_features: Tensor) -> None:
        """Nothing: here features travel with their gradients."""

    def forward(  # type: ignore[override]  # the reference's signature
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        dist_image_features: Tensor,
        dist_text_features: Tensor,
        dist_logit_scale: Tensor | float,
        output_dict: bool = False,
    ) -> tuple[Tensor, Tensor] | dict[str, Tensor]:
        contrastive, distill = distill_clip_loss(
            image_features,
            text_features,
            logit_scale,
            dist_image_features,
            dist_text_features,
            dist_logit_scale,
            local_loss=self.local_loss,
            gather_with_grad=self.gather_with_grad,
            rank=self.rank,
            world_size=self.world_size,
            backend=self.backend,
            agreement=self.agreement,
        )
        if output_dict:
            return {"contrastive_loss": contrastive, "distill_loss": distill}
        return contrastive, distill


class SigLipLoss(nn.Module):
    """`siglip_loss` as a module; rank, world size and batch size as for ClipLoss."""

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: DistImpl | None = None,
        backend: BackendName = "auto",
    ) -> None:
        super().__init__()
        resolve(type(self).__name__, backend)
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.dist_impl: DistImpl = dist_impl or "bidir"
        if self.dist_impl not in get_args(DistImpl):
            raise ValueError(
                f"SigLipLoss: dist_impl must be one of {get_args(DistImpl)}, got {dist_impl!r}"
            )
        self.backend: BackendName = backend
        self.agreement = BatchAgreement()

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        loss = siglip_loss(
            image_features,
            text_features,
            logit_scale,
            logit_bias,
            dist_impl=self.dist_impl,
            rank=self.rank,
            world_size=self.world_size,
            backend=self.backend,
            agreement=self.agreement,
        )
        return {"contrastive_loss": loss} if output_dict else loss
