"""The same model twice: the reference's, and ours."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from fastclip.model.clip import CLIP, CustomTextCLIP
from fastclip.model.factory import create_model
from fastclip.model.model_config import parse_config

# sizes that are no multiples of each other, so that a mixed-up axis cannot pass
TINY: dict[str, Any] = {
    "embed_dim": 40,
    "vision_cfg": {
        "image_size": 64,
        "layers": 3,
        "width": 96,
        "head_width": 32,
        "patch_size": 16,
    },
    "text_cfg": {"context_length": 13, "vocab_size": 97, "width": 48, "heads": 3, "layers": 3},
}


def tiny(
    vision: Mapping[str, Any] | None = None, text: Mapping[str, Any] | None = None, **top: Any
) -> dict[str, Any]:
    raw = copy.deepcopy(TINY)
    raw["vision_cfg"].update(vision or {})
    raw["text_cfg"].update(text or {})
    return {**raw, **top}


def tiny_pair(
    raw: Mapping[str, Any] | None = None, seed: int = 0, **options: Any
) -> tuple[nn.Module, Any]:
    """(reference, ours), each made by its `create_model` from the same torch seed."""
    raw = raw or TINY
    torch.manual_seed(seed)
    reference = open_clip.create_model("ViT-B-32", **options, **copy.deepcopy(dict(raw)))
    torch.manual_seed(seed)
    ours = create_model("ViT-B-32", **options, **copy.deepcopy(dict(raw)))
    return reference, ours


def on_meta(raw: Mapping[str, Any], custom_text: bool = False) -> tuple[nn.Module, Any]:
    """(reference, ours) without storage: for names and shapes of models of any size."""
    raw = copy.deepcopy(dict(raw))
    with torch.device("meta"):
        kind = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
        reference = kind(**copy.deepcopy(raw))
        ours = (CustomTextCLIP if custom_text else CLIP)(parse_config(raw, "test"))
    return reference, ours


def filled_pair(raw: Mapping[str, Any], seed: int) -> tuple[nn.Module, Any]:
    """(reference, ours) sharing random weights in memory; much faster than to initialise both."""
    reference, ours = on_meta(raw)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1_000_003, generator=generator)  # a prime: rows of no width repeat
    state = {}
    for name, value in reference.state_dict().items():
        flat = noise.repeat(value.numel() // noise.numel() + 1)[: value.numel()]
        tensor = (
            flat.reshape(value.shape).clone()
            if value.numel() <= noise.numel()
            else flat.reshape(value.shape)
        )
        if value.ndim >= 2:
            tensor *= value.shape[-1] ** -0.5
        elif ("ln_" in name and name.endswith("weight")) or name.endswith("gamma"):
            tensor = 1 + 0.1 * tensor
        else:
            tensor *= 0.1
        state[name] = tensor
        noise = noise.roll(1)
    state["logit_scale"] = torch.tensor(2.5)
    mask = reference.attn_mask
    reference.load_state_dict(state, assign=True)
    if mask is not None:  # not in the state dict, so still without storage
        reference.attn_mask = torch.full(mask.shape, float("-inf")).triu_(1)
    ours.load_state_dict(state, assign=True)
    ours.visual.set_preprocess_cfg(ours.visual.preprocess_cfg)
    return reference, ours


def pictures(model: Any, batch: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, *model.visual.image_size, generator=generator)


def captions(model: Any, batch: int, seed: int, eos_id: int | None = None) -> Tensor:
    """Random ids, zero after an end token at a random place: the largest id, or `eos_id`."""
    rng = random.Random(seed)
    text = torch.zeros(batch, model.context_length, dtype=torch.int64)
    end = model.vocab_size - 1 if eos_id is None else eos_id
    for row in text:
        length = rng.randint(1, model.context_length - 1)
        row[:length] = torch.tensor([rng.randint(3, model.vocab_size - 2) for _ in range(length)])
        row[length] = end
    return text


def each_encoder(reference: Any, ours: Any, seed: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Features of both models for the same input, tower by tower."""
    images = pictures(ours, 2, seed)
    eos_id = ours.config.text_cfg.eos_id if ours.config.text_cfg.pool_type == "eos" else None
    text = captions(ours, 2, seed, eos_id)
    yield "image", reference.encode_image(images), ours.encode_image(images)
    yield "text", reference.encode_text(text), ours.encode_text(text)
