"""What evaluation needs of a model, and the one way to get it from a CLIP model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

AutocastFactory = Callable[[], AbstractContextManager[None]]


class PairFeatures(NamedTuple):
    """Features of B pictures and their B captions."""

    image: Tensor  # (B, D), unit norm, fp32
    text: Tensor  # (B, D), unit norm, fp32
    logit_scale: Tensor  # 0-dim, exp'd
    caption_loss: (
        Tensor | None
    )  # 0-dim; captioning models (CoCa) only: mean cross-entropy per token


class Encoder(Protocol):
    """A model in evaluation. Inputs may be on any device; results are on the model's."""

    def images(self, images: Tensor) -> Tensor:
        """Unit-norm fp32 features (B, D) of a batch of pictures."""
        ...

    def texts(self, tokens: Tensor) -> Tensor:
        """Unit-norm fp32 features (B, D) of int64 token ids (B, L)."""
        ...

    def pairs(self, images: Tensor, tokens: Tensor) -> PairFeatures:
        """Both towers on one batch."""
        ...


class ModelEncoder:
    """A CLIP model as an Encoder: no gradients, the run's autocast, fp32 results.

    `model` is the bare model, not its DDP wrapper: evaluation runs on one rank, where DDP's forward
    would wait for the others. Called with (images, tokens) it returns a mapping with
    `image_features`, `text_features`, `logit_scale` and, if it writes captions, `logits` (B, T, V)
    and `labels` (B, T); and it has `encode_image` and `encode_text`, both with `normalize=`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        device: torch.device,
        autocast: AutocastFactory,
        image_dtype: torch.dtype,  # of float pictures; uint8 goes to the model as it is
    ) -> None:
        self._model = model
        self._device = device
        self._autocast = autocast
        self._image_dtype = image_dtype

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The model in eval mode; afterwards each module is in the mode it had (frozen parts)."""
        training = [module for module in self._model.modules() if module.training]
        self._model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        with self._autocast():
            features: Tensor = self._model.encode_image(self._on_device(images), normalize=True)  # type: ignore[operator]
        return features.float()

    @torch.no_grad()
    def texts(self, tokens: Tensor) -> Tensor:
        with self._autocast():
            features: Tensor = self._model.encode_text(tokens.to(self._device), normalize=True)  # type: ignore[operator]
        return features.float()

    @torch.no_grad()
    def pairs(self, images: Tensor, tokens: Tensor) -> PairFeatures:
        with self._autocast():
            outputs: Mapping[str, Tensor] = self._model(
                self._on_device(images), tokens.to(self._device, non_blocking=True)
            )
        caption_loss = None
        if "logits" in outputs and "labels" in outputs:
            # (B, T, V) -> (B, V, T), as cross_entropy wants its classes in dimension 1
            caption_loss = F.cross_entropy(
                outputs["logits"].float().transpose(1, 2), outputs["labels"]
            )
        return PairFeatures(
            outputs["image_features"].float(),
            outputs["text_features"].float(),
            outputs["logit_scale"].float(),
            caption_loss,
        )

    def _on_device(self, images: Tensor) -> Tensor:
        images = images.to(self._device, non_blocking=True)
        return images if images.dtype == torch.uint8 else images.to(self._image_dtype)
