"""transformers' CLIPModel: which of our models are one, under which names, and its files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fastclip import optional
from fastclip.errors import UserError
from fastclip.export.clip_tokenizer_files import write_clip_tokenizer
from fastclip.export.source import Source
from fastclip.model.clip import CLIP, CustomTextCLIP
from fastclip.model.model_config import OPENCLIP_INSTALL, CLIPConfig

_RESAMPLE = {"bicubic": 3, "random": 3, "bilinear": 2}  # Pillow's numbers
_TOWERS = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
_PARTS = (
    ("visual.ln_pre.", "vision_model.pre_layrnorm."),  # so spelled there
    ("visual.ln_post.", "vision_model.post_layernorm."),
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("transformer.resblocks.", "text_model.encoder.layers."),
    ("ln_final.", "text_model.final_layer_norm."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".attn.", ".self_attn."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
)
_TRANSPOSED = ("visual.proj", "text_projection")  # x @ W there, a linear layer's weight here


def check_is_clip_model(source: Source) -> None:
    """UserError with the first reason why transformers' CLIPModel cannot compute what this model does."""
    reason = _why_not(source)
    if reason:
        raise UserError(
            f"--to transformers: CLIPModel has no {reason}; --to open_clip takes every model"
        )


def _why_not(source: Source) -> str | None:
    model, preprocess = source.model, source.preprocess
    if not isinstance(model, (CLIP, CustomTextCLIP)):
        return f"such towers as {source.config.name}'s"
    vision, text = model.config.vision_cfg, model.config.text_cfg
    height, width = vision.image_size_pair
    reasons = {
        "pictures that are not square": height != width,
        "'longest' resizing of pictures": preprocess.resize_mode == "longest",
        f"{vision.pool_type!r} pooling of pictures": vision.pool_type != "tok",
        "image tower without its first LayerNorm": vision.no_ln_pre,
        "LayerNorm after pooling": vision.final_ln_after_pool,
        "LayerScale": vision.ls_init_value is not None or text.ls_init_value is not None,
        "text tower without a causal mask": text.no_causal_mask,
        f"{text.pool_type!r} pooling of texts": text.pool_type != "argmax",
        "text projection with a bias, or none at all": text.proj_bias or text.proj_type == "none",
        "other tokenizer than CLIP's": source.spec.kind != "clip" or bool(source.spec.kwargs),
        f"vocabulary of {text.vocab_size}": text.vocab_size != source.tokenizer.vocab_size,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def write_transformers(source: Source, folder: Path) -> None:
    """The model by transformers itself, tokenizer and preprocessing by us. Raises OSError, SafetensorError.

    A logit bias (SigLIP's loss) has no place there and is left out: features are the same.
    """
    transformers = optional.require("transformers", "--to transformers", OPENCLIP_INSTALL)
    model: Any = source.model
    made = transformers.CLIPModel(transformers.CLIPConfig(**clip_config(model.config)))
    made.load_state_dict(renamed(source.model.state_dict()))
    made.save_pretrained(folder)
    write_clip_tokenizer(folder, source.tokenizer.context_length)
    text = json.dumps(preprocessor_json(source), indent=2)
    (folder / "preprocessor_config.json").write_text(text + "\n", encoding="utf-8")


def clip_config(config: CLIPConfig) -> dict[str, Any]:
    """Arguments of transformers' CLIPConfig."""
    vision, text = config.vision_cfg, config.text_cfg
    shared = {
        "hidden_act": "quick_gelu" if config.quick_gelu else "gelu",
        "projection_dim": config.embed_dim,
    }
    return {
        "projection_dim": config.embed_dim,
        "logit_scale_init_value": config.init_logit_scale,
        "vision_config": {
            **shared,
            "hidden_size": vision.width,
            "intermediate_size": int(vision.width * vision.mlp_ratio),
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "image_size": vision.image_size_pair[0],
            "patch_size": vision.patch_size,
        },
        "text_config": {
            **shared,
            "hidden_size": text.width,
            "intermediate_size": int(text.width * text.mlp_ratio),
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "max_position_embeddings": text.context_length,
            "vocab_size": text.vocab_size,
            "bos_token_id": text.vocab_size - 2,
            "eos_token_id": text.vocab_size - 1,
            "pad_token_id": text.vocab_size - 1,
        },
    }


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict, of either layout, under transformers' names and in its shapes."""
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.removeprefix("text.")
        if name == "logit_bias":
            continue
        if name == "logit_scale":
            value = value.reshape(())
        if name in _TRANSPOSED:
            value = value.T.contiguous()
        new = _TOWERS.get(name) or _rename_part(name)
        joined = re.fullmatch(r"(.*\.)in_proj_(weight|bias)", new)
        if joined is None:
            result[new] = value
            continue
        for letter, part in zip("qkv", value.chunk(3), strict=True):
            result[f"{joined[1]}{letter}_proj.{joined[2]}"] = part.contiguous()
    return result


def _rename_part(name: str) -> str:
    for ours, theirs in _PARTS:
        if ours in name and (ours.startswith(".") or name.startswith(ours)):
            name = name.replace(ours, theirs, 1)
    return name


def preprocessor_json(source: Source) -> dict[str, Any]:
    """preprocessor_config.json of a CLIPImageProcessor."""
    preprocess = source.preprocess
    height, width = preprocess.size
    squash = preprocess.resize_mode == "squash"
    area = {"height": height, "width": width}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": area if squash else {"shortest_edge": height},
        "resample": _RESAMPLE[preprocess.interpolation],
        "do_center_crop": not squash,
        "crop_size": area,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }
