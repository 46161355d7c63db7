"""From a model's name to a model: native towers where we have them, open_clip's for the rest."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastclip.config.images import PreprocessConfig
from fastclip.config.train_config import ModelConfig
from fastclip.errors import UserError
from fastclip.model.clip import CLIP, CustomTextCLIP
from fastclip.model.model_config import (
    CLIPConfig,
    canonical_name,
    load_config,
    location_of,
    native_models,
    parse_config,
    read_native_folder,
    reference_only_models,
    schema_of,
    unknown_model,
)
from fastclip.model.open_clip_adapter import create_open_clip_model, use_preprocess
from fastclip.model.precision import cast_parameters, check_precision, layer_norm_for
from fastclip.model.preprocess import resolve_preprocess
from fastclip.model.pretrained import find_folder_weights, find_pretrained, load_pretrained

logger = logging.getLogger(__name__)

SIGLIP_INIT_LOGIT_SCALE = math.log(10)
SIGLIP_INIT_LOGIT_BIAS = -10.0


def create_model(
    name: str,
    pretrained: str | None = None,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
    *,
    load_weights: bool = True,
    force_quick_gelu: bool = False,
    force_custom_text: bool = False,
    force_patch_dropout: float | None = None,
    force_image_size: int | tuple[int, int] | None = None,
    force_context_length: int | None = None,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    image_interpolation: str | None = None,
    image_resize_mode: str | None = None,
    pretrained_image: bool = False,
    cache_dir: str | None = None,
    output_dict: bool | None = None,
    require_pretrained: bool = False,
    unsafe_load: bool = False,
    init_logit_scale: float | None = None,
    init_logit_bias: float | None = None,
    **config_overrides: Any,
) -> nn.Module:
    """A CLIP model, as `open_clip.create_model` makes it: same weights from the same torch seed.

    `name` is a built-in name, `local-dir:PATH` or `hf-hub:ORG/REPO`; with a schema `pretrained` is
    ignored and the weights are those found there. `pretrained` is a file or a tag of the
    reference. `config_overrides` replace top-level entries of the model's JSON
    (`vision_cfg={...}`, `embed_dim=...`). The result has `visual.preprocess_cfg`
    (PreprocessConfig), and takes uint8 (B, H, W, 3) or normalised float (B, 3, H, W) pictures.

    UserError: unknown name, tag or value. InputMissing, DataError: weights that are not there or
    do not fit. EnvironmentProblem: the model needs the `openclip` extra.
    """
    check_precision(precision)
    if schema_of(name) and pretrained:
        logger.warning("pretrained=%s is ignored: %s brings its own weights", pretrained, name)
        pretrained = None
    image_flags = {
        "mean": image_mean,
        "std": image_std,
        "interpolation": image_interpolation,
        "resize_mode": image_resize_mode,
    }
    if init_logit_scale is not None:
        config_overrides["init_logit_scale"] = init_logit_scale
    if init_logit_bias is not None:
        config_overrides["init_logit_bias"] = init_logit_bias

    config, preprocess, weights = _native_source(name)
    if config is None:
        return create_open_clip_model(
            canonical_name(name),
            pretrained=pretrained if load_weights else None,
            image_flags=image_flags,
            unsafe_load=unsafe_load,
            load_weights=load_weights,
            precision=precision,
            device=device,
            force_quick_gelu=force_quick_gelu,
            force_custom_text=force_custom_text,
            force_patch_dropout=force_patch_dropout,
            force_image_size=force_image_size,
            force_context_length=force_context_length,
            pretrained_image=pretrained_image,
            cache_dir=cache_dir,
            output_dict=output_dict,
            require_pretrained=require_pretrained,
            **config_overrides,
        )

    config = replace(
        config,
        quick_gelu=force_quick_gelu or config.quick_gelu,
        custom_text=force_custom_text or config.custom_text,
        vision_cfg=_replace_given(
            config.vision_cfg, patch_dropout=force_patch_dropout, image_size=force_image_size
        ),
        text_cfg=_replace_given(config.text_cfg, context_length=force_context_length),
    )
    if config_overrides:
        plain = {k: asdict(v) if is_dataclass(v) else v for k, v in config_overrides.items()}  # type: ignore[arg-type]
        config = parse_config({**asdict(config), **plain}, name)
    if pretrained:
        found = find_pretrained(canonical_name(name), pretrained, cache_dir)
        weights, preprocess = found.path, found.preprocess
        _warn_of_another_activation(pretrained, found.quick_gelu, config)
    if weights is None and require_pretrained:
        raise UserError(f"{name}: pretrained weights are required, and none were given")
    if weights is None and load_weights and schema_of(name):
        logger.warning("%s holds no weights: the model starts from random ones", name)

    layout = CustomTextCLIP if config.custom_text else CLIP
    model = layout(config, layer_norm_for(precision), output_dict=bool(output_dict))
    cast_parameters(model, precision)
    if weights is not None and load_weights:
        load_pretrained(model, weights, unsafe_load)
    model.visual.set_preprocess_cfg(
        resolve_preprocess(model.visual.image_size, preprocess, image_flags)
    )
    return model.to(device)


def is_native(name: str) -> bool:
    """Whether the towers are fastclip's own and not open_clip's. UserError for a name of neither."""
    return _native_source(name)[0] is not None


def create_training_model(
    config: ModelConfig,
    precision: str,
    device: str | torch.device,
    siglip: bool,
    *,
    load_weights: bool = True,
) -> nn.Module:
    """The model that `--model` and its companions describe, returning dicts.

    Nothing is frozen or checkpointed yet. `siglip` sets the logit scale and bias that its loss
    starts from. Without `load_weights` those of `--pretrained` are looked for and not read.
    """
    return create_model(
        config.name,
        config.pretrained or None,
        precision,
        device,
        load_weights=load_weights,
        force_quick_gelu=config.force_quick_gelu,
        force_custom_text=config.force_custom_text,
        force_patch_dropout=config.force_patch_dropout,
        force_image_size=config.force_image_size,
        force_context_length=config.force_context_length,
        image_mean=config.image_mean,
        image_std=config.image_std,
        image_interpolation=config.image_interpolation,
        image_resize_mode=config.image_resize_mode,
        pretrained_image=config.pretrained_image,
        cache_dir=config.cache_dir,
        output_dict=True,
        unsafe_load=config.unsafe_load,
        init_logit_scale=SIGLIP_INIT_LOGIT_SCALE if siglip else None,
        init_logit_bias=SIGLIP_INIT_LOGIT_BIAS if siglip else None,
    )


def create_teacher(
    name: str | None,
    pretrained: str | None,
    config: ModelConfig,
    *,
    precision: str,
    device: str | torch.device,
    student: nn.Module | None = None,
) -> nn.Module:
    """The frozen model of `--distill-model`, in evaluation mode.

    As in the reference it sees the student's batches: pictures normalised and tokens cut as the
    student's. With `student` given that is checked and set; UserError if the two cannot share a
    batch.
    """
    if not name or not pretrained:
        raise UserError("distillation needs both --distill-model and --distill-pretrained")
    teacher = create_model(
        name,
        pretrained,
        precision,
        device,
        output_dict=True,
        cache_dir=config.cache_dir,
        unsafe_load=config.unsafe_load,
    )
    if student is not None:
        _share_batches(teacher, student, name, config.name)
    return teacher.eval().requires_grad_(False)


def _share_batches(teacher: Any, student: Any, teacher_name: str, student_name: str) -> None:
    pictures: PreprocessConfig = student.visual.preprocess_cfg
    for what, theirs, ours in (
        ("image size", teacher.visual.preprocess_cfg.size, pictures.size),
        ("context length", teacher.context_length, student.context_length),
    ):
        if theirs != ours:
            raise UserError(
                f"--distill-model {teacher_name} has {what} {theirs} and --model {student_name} "
                f"has {ours}: both see the same batches, so they must be equal"
            )
    use_preprocess(teacher, pictures)


def _native_source(name: str) -> tuple[CLIPConfig | None, Mapping[str, Any], Path | None]:
    """Config, what its folder says about pictures, its folder's weights; no config: not native."""
    schema, stem = schema_of(name), canonical_name(name)
    if schema == "local-dir":
        native = read_native_folder(name)
        if native is None:
            return None, {}, None
        weights = find_folder_weights(Path(location_of(name)))
        return native.config, native.preprocess, weights
    if schema is None and stem in native_models():
        return load_config(stem), {}, None
    if schema is None and stem not in reference_only_models():
        raise unknown_model(name)
    return None, {}, None


def _warn_of_another_activation(
    pretrained: str, quick_gelu: bool | None, config: CLIPConfig
) -> None:
    if quick_gelu is not None and quick_gelu != config.quick_gelu:
        logger.warning(
            "--pretrained %s was trained with quick_gelu=%s and this model has quick_gelu=%s: "
            "features will be off%s",
            pretrained,
            quick_gelu,
            config.quick_gelu,
            "; add --force-quick-gelu" if quick_gelu else "",
        )


def _replace_given(config: Any, **changes: Any) -> Any:
    return replace(config, **{key: value for key, value in changes.items() if value is not None})
