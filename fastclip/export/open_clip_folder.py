"""open_clip's layout: `open_clip_config.json`, `open_clip_model.safetensors`, the tokenizer."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from fastclip import optional
from fastclip.data.hf_tokenizer import JsonTokenizer, OpenClipTokenizer
from fastclip.export.clip_tokenizer_files import write_clip_tokenizer
from fastclip.export.source import Source
from fastclip.model.clip import CLIP, CustomTextCLIP
from fastclip.model.model_config import (
    CONFIG_FILE_NAME,
    OPENCLIP_INSTALL,
    canonical_name,
    read_folder_json,
    schema_of,
)

WEIGHTS = "open_clip_model.safetensors"


def write_open_clip(source: Source, folder: Path) -> None:
    """Raises OSError or SafetensorError; EnvironmentProblem for a model whose JSON open_clip has."""
    config = {"model_cfg": model_json(source), "preprocess_cfg": preprocess_json(source)}
    (folder / CONFIG_FILE_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    state = source.model.state_dict()
    save_file(
        {name: value.contiguous() for name, value in state.items()},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )
    write_tokenizer(source, folder)


def model_json(source: Source) -> dict[str, Any]:
    """`model_cfg`: the architecture as it is now, flags of the run included."""
    if isinstance(source.model, (CLIP, CustomTextCLIP)):
        return _without_none(asdict(source.model.config))
    name, flags = source.config.name, source.config
    if schema_of(name) == "local-dir":
        content: Any = read_folder_json(name)["model_cfg"]
    else:
        open_clip = optional.require("open_clip", f"--model {name}", OPENCLIP_INSTALL)
        content = open_clip.get_model_config(canonical_name(name))
    content = copy.deepcopy(dict(content))
    if flags.force_image_size is not None:
        content["vision_cfg"]["image_size"] = flags.force_image_size
    if flags.force_context_length is not None:
        content["text_cfg"]["context_length"] = flags.force_context_length
    if flags.force_quick_gelu:
        content["quick_gelu"] = True
    if flags.force_custom_text:
        content["custom_text"] = True
    if source.has_logit_bias:
        content.setdefault("init_logit_bias", 0.0)  # makes the parameter; the weights follow
    if source.spec.kind == "siglip":  # open_clip goes by the name, which a folder does not have
        content["text_cfg"]["hf_tokenizer_name"] = source.spec.hf_name
        content["text_cfg"]["tokenizer_kwargs"] = {"clean": "canonicalize"}
    return content


def preprocess_json(source: Source) -> dict[str, Any]:
    preprocess = asdict(source.preprocess)
    return {key: preprocess[key] for key in ("mean", "std", "interpolation", "resize_mode")}


def write_tokenizer(source: Source, folder: Path) -> None:
    """The files from which a tokenizer that is not CLIP's is made again; CLIP's for other libraries.

    CLIP's own with `tokenizer_kwargs` has no such files: open_clip makes it from the configuration.
    """
    tokenizer = source.tokenizer
    if isinstance(tokenizer, (JsonTokenizer, OpenClipTokenizer)):
        tokenizer.save(folder)
    elif not source.spec.kwargs:
        write_clip_tokenizer(folder, tokenizer.context_length)


def _without_none(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
