"""Zero-shot classification of a handful of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from os import PathLike
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from fastclip.errors import UserError
from fastclip.eval.encoder import ModelEncoder
from fastclip.eval.zeroshot import Tokenizer, build_classifier
from fastclip.inference.pictures import Picture, preprocess_of, stack_pixels

DEFAULT_TEMPLATES = ("a photo of a {}.",)


@torch.no_grad()
def zero_shot(
    images: Sequence[Picture] | Picture | Tensor,
    labels: Sequence[str],
    *,
    model: nn.Module,
    tokenizer: Tokenizer,
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    batch_size: int = 64,
) -> Tensor:  # float32 (N, len(labels)) on the CPU; rows sum to 1
    """How well each label fits each picture: softmax over labels of scaled cosines.

    `images` are paths or Pillow pictures, preprocessed as `model` wants, or a tensor: uint8
    (N, H, W, 3), or normalised float (N, 3, H, W). A label's vector is the mean over `templates`,
    sentences with `{}` for the label. The model is in the mode it was afterwards.
    Raises UserError for no label, or a template without `{}`; InputMissing, DataError for a picture.
    """
    if isinstance(labels, str) or not labels:
        raise UserError("labels: give a list of texts, one for each class")
    if isinstance(templates, str) or not templates or any("{}" not in t for t in templates):
        raise UserError("templates: give a list of sentences with {} where the label goes")
    device = next(model.parameters()).device
    encoder = encoder_of(model)
    if isinstance(images, (str, PathLike, Image)):
        images = [images]
    scale: Any = model.logit_scale
    with encoder.evaluating():
        classifier = build_classifier(encoder, tokenizer, labels, templates)  # (D, labels)
        logits = [torch.empty(0, len(labels), device=device)]
        for start in range(0, len(images), batch_size):
            batch = stack_pixels(images[start : start + batch_size], preprocess_of(model))
            logits.append(scale.float().exp() * encoder.images(batch) @ classifier)
    return torch.cat(logits).softmax(dim=-1).cpu()


def encoder_of(model: nn.Module) -> ModelEncoder:
    """`model` as evaluation sees it, where its weights are and in their dtype."""
    weight = next(model.parameters())
    return ModelEncoder(model, device=weight.device, autocast=nullcontext, image_dtype=weight.dtype)
