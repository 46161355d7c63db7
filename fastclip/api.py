"""The three calls OpenCLIP's users know, with its arguments in its order; and a model in use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass, replace
from typing import Any

import torch
from torch import nn

from fastclip.config.aug_cfg import make_augment_config
from fastclip.config.images import AugmentConfig, PreprocessConfig
from fastclip.data.tokenizer import Tokenizer, build_tokenizer
from fastclip.data.transforms import EvalTransform, TrainTransform
from fastclip.errors import UserError
from fastclip.inference.encode_to_disk import encode_to_disk, read_features
from fastclip.inference.zero_shot import zero_shot
from fastclip.model import factory
from fastclip.model.model_config import tokenizer_spec

__all__ = [
    "create_model",
    "create_model_and_transforms",
    "encode_to_disk",
    "get_tokenizer",
    "read_features",
    "zero_shot",
]

# The reference loads a single tower from these; what they hold when they ask for nothing.
_ONE_TOWER = {"pretrained_text": True, "pretrained_image_path": None, "pretrained_text_path": None}


def create_model(
    model_name: str,
    pretrained: str | None = None,
    load_weights: bool = True,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
    jit: bool = False,
    *,
    force_preprocess_cfg: Mapping[str, Any] | None = None,
    weights_only: bool = True,
    **options: Any,
) -> nn.Module:
    """The CLIP model called `model_name`, with `encode_image(images, normalize=False)` and
    `encode_text(ids, normalize=False)`.

    `pretrained` is a checkpoint file (ours, the reference's, OpenAI's, safetensors) or a tag of
    the reference. `force_preprocess_cfg` may give mean, std, interpolation and resize_mode, as the
    `image_...` options do. `weights_only=False` allows checkpoints that run code when read.
    `options` are the others of `fastclip.model.factory.create_model`: `force_quick_gelu`,
    `force_image_size`, `force_context_length`, `output_dict`, `cache_dir` and so on.

    Raises UserError for an unknown name or value, InputMissing or DataError for weights that are
    not there or do not fit, EnvironmentProblem where the `openclip` extra is needed.
    """
    if jit:
        raise UserError("jit=True: TorchScript models are not made; use torch.compile(model)")
    for name, default in _ONE_TOWER.items():
        if options.pop(name, default) != default:
            raise UserError(f"{name}: not supported; load the tower's weights into the model made")
    for key, value in (force_preprocess_cfg or {}).items():
        if key not in ("mean", "std", "interpolation", "resize_mode"):
            raise UserError(
                f"force_preprocess_cfg: {key!r}: choose mean, std, interpolation, resize_mode"
            )
        if options.get(f"image_{key}") is None:
            options[f"image_{key}"] = value
    return factory.create_model(
        model_name,
        pretrained,
        precision,
        device,
        load_weights=load_weights,
        unsafe_load=options.pop("unsafe_load", False) or not weights_only,
        **options,
    )


def create_model_and_transforms(
    model_name: str,
    pretrained: str | None = None,
    load_weights: bool = True,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
    jit: bool = False,
    *,
    aug_cfg: Mapping[str, Any] | AugmentConfig | None = None,
    **options: Any,
) -> tuple[nn.Module, TrainTransform, EvalTransform]:
    """(model, transform for training, transform for evaluation).

    Both transforms take a Pillow picture and give a normalised float32 (3, H, W) tensor; training's
    augments by `aug_cfg`, which is what `--aug-cfg` is on the command line. `options` are those of
    `create_model`, and so are the errors.
    """
    augment = _augment_config(aug_cfg)
    model = create_model(
        model_name, pretrained, load_weights, precision, device, jit=jit, **options
    )
    visual: Any = model.visual
    preprocess: PreprocessConfig = visual.preprocess_cfg
    return model, TrainTransform(augment, preprocess), EvalTransform(preprocess)


def _augment_config(aug_cfg: Any) -> AugmentConfig:
    if isinstance(aug_cfg, AugmentConfig):
        return aug_cfg
    if aug_cfg is None:
        return make_augment_config({})
    if is_dataclass(aug_cfg) and not isinstance(aug_cfg, type):  # open_clip.AugmentationCfg
        return make_augment_config(asdict(aug_cfg))
    return make_augment_config(dict(aug_cfg))


def get_tokenizer(
    model_name: str = "",
    context_length: int | None = None,
    cache_dir: str | None = None,
    tokenizer_path: str | None = None,
    **kwargs: Any,
) -> Tokenizer:
    """The tokenizer of the model called `model_name`: texts to int64 (n, context_length).

    `tokenizer_path` is a local tokenizer.json, or a folder with one, for models whose tokenizer is
    not CLIP's. `kwargs` go to the tokenizer (`clean`, `reduction_mask`, ...) over the model's own.
    Without a name: CLIP's. Raises UserError for an unknown name, and EnvironmentProblem where a
    tokenizer is neither given nor to be had through the `openclip` extra.
    """
    spec = tokenizer_spec(
        model_name or "ViT-B-32",
        context_length=context_length,
        tokenizer_file=tokenizer_path,
        cache_dir=cache_dir,
    )
    return build_tokenizer(replace(spec, kwargs={**spec.kwargs, **kwargs}))
