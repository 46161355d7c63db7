"""Architectures: OpenCLIP's model JSON as frozen dataclasses, and where each one comes from.

Behaviour elsewhere follows these fields, never a model's name.
"""

from __future__ import annotations

import difflib
import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from fastclip import optional
from fastclip.config.tokenizers import TokenizerSpec
from fastclip.errors import InputMissing, UserError
from fastclip.model.one_line import first_line

VisionPool = Literal["tok", "avg", "none"]
TextPool = Literal["first", "last", "argmax", "eos", "none"]

OPENCLIP_INSTALL = "pip install 'fastclip[openclip]'"
DEFAULT_LOGIT_SCALE = math.log(1 / 0.07)
CONFIG_FILE_NAME = "open_clip_config.json"

_CONFIG_FOLDER = Path(__file__).parent / "configs"


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionConfig:
    """`vision_cfg` of a native ViT tower; names and defaults are the reference's."""

    image_size: int | tuple[int, int] = 224  # pixels; a pair is (height, width)
    patch_size: int = 16
    layers: int = 12
    width: int = 768
    head_width: int = 64
    mlp_ratio: float = 4.0
    ls_init_value: float | None = None  # None: no LayerScale
    patch_dropout: float = 0.0  # share of patches left out in training
    no_ln_pre: bool = False
    pool_type: VisionPool = "tok"
    final_ln_after_pool: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.image_size, list):  # JSON has no tuples
            object.__setattr__(self, "image_size", tuple(self.image_size))
        _check_choice("vision_cfg.pool_type", self.pool_type, get_args(VisionPool))
        if min(self.grid_size) < 1:
            raise UserError(
                f"image size {self.image_size}: smaller than one patch of {self.patch_size} pixels"
            )
        if not 0 <= self.patch_dropout < 1:
            raise UserError(f"patch_dropout {self.patch_dropout}: must be at least 0 and below 1")
        _check_heads("vision_cfg", self.width, self.heads)

    @property
    def heads(self) -> int:
        return self.width // self.head_width

    @property
    def image_size_pair(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of whole patches."""
        height, width = self.image_size_pair
        return height // self.patch_size, width // self.patch_size

    @property
    def pools_one_row(self) -> bool:
        """True when the class token of the last block is read, and no other."""
        return self.pool_type == "tok"


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """`text_cfg` of a native text tower; names and defaults are the reference's."""

    context_length: int = 77
    vocab_size: int = 49408
    width: int = 512
    heads: int = 8
    layers: int = 12
    mlp_ratio: float = 4.0
    ls_init_value: float | None = None
    no_causal_mask: bool = False
    pool_type: TextPool = "argmax"
    eos_id: int = 2  # read by pool_type "eos" only
    proj_type: Literal["linear", "none"] = "linear"
    proj_bias: bool = False
    hf_tokenizer_name: str | None = None
    tokenizer_mode: str | None = None
    tokenizer_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_choice("text_cfg.pool_type", self.pool_type, get_args(TextPool))
        _check_choice("text_cfg.proj_type", self.proj_type, ("linear", "none"))
        _check_heads("text_cfg", self.width, self.heads)

    @property
    def pools_one_row(self) -> bool:
        """True when one token of the last block is read, and no other."""
        return self.pool_type != "none"

    @property
    def can_pack(self) -> bool:
        """True when nothing after a text's end is ever read, so that texts may lie end to end."""
        return self.causal and self.pool_type in ("argmax", "eos")

    @property
    def causal(self) -> bool:
        """True when a token sees only itself and the tokens before it."""
        return not self.no_causal_mask


@dataclass(frozen=True, kw_only=True, slots=True)
class CLIPConfig:
    """One native ViT CLIP model."""

    embed_dim: int
    vision_cfg: VisionConfig
    text_cfg: TextConfig
    quick_gelu: bool = False
    custom_text: bool = False  # text tower under `text.` in the state dict
    init_logit_scale: float = DEFAULT_LOGIT_SCALE  # natural logarithm of the scale
    init_logit_bias: float | None = None
    nonscalar_logit_scale: bool = False  # shape (1,) instead of ()


class NativeFolder(NamedTuple):
    """What a `local-dir:` folder says about a native model."""

    config: CLIPConfig
    preprocess: Mapping[str, Any]


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"model config: {name} {value!r}: choose {', '.join(choices)}")


def _check_heads(name: str, width: int, heads: int) -> None:
    if heads < 1 or width % heads:
        raise UserError(f"model config: {name}: width {width} cannot be cut into {heads} heads")


def _unknown_keys(kind: type, raw: Mapping[str, Any]) -> list[str]:
    return sorted(set(raw) - {f.name for f in fields(kind)})


def parse_config(raw: Mapping[str, Any], source: str) -> CLIPConfig:
    """`raw` (OpenCLIP's model JSON) as a CLIPConfig; UserError names `source` and the first thing
    wrong.
    """
    for key in ("embed_dim", "vision_cfg", "text_cfg"):
        if key not in raw:
            raise UserError(f"{source}: model config has no {key!r}")
    unknown = [
        *_unknown_keys(CLIPConfig, raw),
        *(f"vision_cfg.{key}" for key in _unknown_keys(VisionConfig, raw["vision_cfg"])),
        *(f"text_cfg.{key}" for key in _unknown_keys(TextConfig, raw["text_cfg"])),
    ]
    if unknown:
        raise UserError(f"{source}: not fields of a native ViT model: {', '.join(unknown)}")
    towers = {
        "vision_cfg": VisionConfig(**raw["vision_cfg"]),
        "text_cfg": TextConfig(**raw["text_cfg"]),
    }
    return CLIPConfig(**{**raw, **towers})


def describes_native_model(raw: Mapping[str, Any]) -> bool:
    """True if our own towers cover every field of this OpenCLIP model JSON."""
    vision, text = raw.get("vision_cfg", {}), raw.get("text_cfg", {})
    return not (
        _unknown_keys(CLIPConfig, raw)
        or _unknown_keys(VisionConfig, vision)
        or _unknown_keys(TextConfig, text)
        or not isinstance(vision.get("layers", 12), int)  # four numbers: a ResNet
    )


@functools.cache
def native_models() -> tuple[str, ...]:
    """Names of the built-in models that run on our own towers, sorted."""
    return tuple(sorted(path.stem for path in _CONFIG_FOLDER.glob("*.json")))


@functools.cache
def reference_only_models() -> frozenset[str]:
    """Names of OpenCLIP 3.3.0's other built-in models.

    A plain list, so that a mistyped name gets good suggestions, and a right one the right advice,
    on a machine without open_clip.
    """
    path = Path(__file__).parent / "reference_names.txt"
    return frozenset(path.read_text(encoding="utf-8").split())


def canonical_name(name: str) -> str:
    """`ViT-B/32` and `ViT-B-32` are one model. Names with a schema (`hf-hub:`, `local-dir:`) stay
    as given.
    """
    return name if schema_of(name) else name.replace("/", "-")


def schema_of(name: str) -> Literal["hf-hub", "local-dir"] | None:
    """The schema before the colon, or None for a built-in name."""
    if name.startswith("hf-hub:"):
        return "hf-hub"
    return "local-dir" if name.startswith("local-dir:") else None


def location_of(name: str) -> str:
    """What follows the schema; UserError if nothing does."""
    location = name.partition(":")[2]
    if not location:
        raise UserError(f"--model {name}: nothing follows the colon")
    return location


def unknown_model(name: str) -> UserError:
    """The error for a name that is nowhere, with the three nearest that are somewhere."""
    known = [*native_models(), *reference_only_models()]
    folded = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(canonical_name(name).lower(), folded, n=3, cutoff=0.0)
    return UserError(
        f"--model {name}: unknown model; nearest names: {', '.join(folded[n] for n in near)}"
    )


def load_config(name: str) -> CLIPConfig:
    """The native model `name` (built-in name, or `local-dir:PATH`).

    UserError for an unknown name, and for a model that only the `openclip` extra has.
    """
    if schema_of(name) == "local-dir":
        folder = read_native_folder(name)
        if folder is not None:
            return folder.config
        raise UserError(f"--model {name}: not a native ViT model; it needs {OPENCLIP_INSTALL}")
    stem = canonical_name(name)
    if stem in native_models():
        path = _CONFIG_FOLDER / f"{stem}.json"
        return parse_config(json.loads(path.read_text(encoding="utf-8")), name)
    if stem in reference_only_models() or schema_of(name):
        raise UserError(f"--model {name}: not a native ViT model; it needs {OPENCLIP_INSTALL}")
    raise unknown_model(name)


def read_folder_json(name: str) -> Mapping[str, Any]:
    """`open_clip_config.json` of a `local-dir:` model; InputMissing or UserError if it is not there
    or not one.
    """
    folder = Path(location_of(name))
    path = folder / CONFIG_FILE_NAME
    if not folder.is_dir():
        raise InputMissing(f"--model {name}: no such folder")
    if not path.is_file():
        raise InputMissing(f"--model {name}: the folder has no {CONFIG_FILE_NAME}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("model_cfg"), dict):
        raise UserError(f"{path}: has no 'model_cfg'")
    return content


def read_native_folder(name: str) -> NativeFolder | None:
    """Config and preprocessing of a `local-dir:` model, or None if it is not a native ViT."""
    content = read_folder_json(name)
    raw = content["model_cfg"]
    if not describes_native_model(raw):
        return None
    return NativeFolder(parse_config(raw, name), content.get("preprocess_cfg") or {})


def tokenizer_spec(
    name: str,
    *,
    context_length: int | None = None,
    tokenizer_file: str | None = None,
    cache_dir: str | None = None,
) -> TokenizerSpec:
    """Which tokenizer the model `name` wants, by the reference's rule.

    `context_length` overrides the model's (`--force-context-length`); `tokenizer_file` is a local
    tokenizer.json, or a folder with one. Names that are not native are looked up in open_clip:
    EnvironmentProblem if it is not installed, UserError for an unknown name.
    """
    text = _text_fields(name)
    hf_name = text.get("hf_tokenizer_name")
    schema = schema_of(name)
    if hf_name and schema == "local-dir" and tokenizer_file is None:
        tokenizer_file = location_of(name)  # reference: such a folder holds its tokenizer
    siglip_variant = None if hf_name or schema else _siglip_variant(name)
    length = context_length or text.get("context_length", 77)
    return TokenizerSpec(
        kind="hf" if hf_name else "siglip" if siglip_variant else "clip",
        context_length=length,
        hf_name=hf_name or siglip_variant,
        mode=text.get("tokenizer_mode"),
        kwargs={} if siglip_variant else dict(text.get("tokenizer_kwargs") or {}),
        file=tokenizer_file,
        cache_dir=cache_dir,
    )


def _siglip_variant(name: str) -> str | None:
    """The one thing that the reference reads from a name: SigLIP configs do not say their
    tokenizer.
    """
    lower = name.lower()
    if "siglip" not in lower:
        return None
    return "gemma" if "siglip2" in lower else "mc4" if "i18n" in lower else "c4-en"


def _text_fields(name: str) -> Mapping[str, Any]:
    """`text_cfg` of any model, as far as the tokenizer is concerned."""
    if schema_of(name) == "local-dir":
        folder_text: Mapping[str, Any] = read_folder_json(name)["model_cfg"].get("text_cfg", {})
        return folder_text
    stem = canonical_name(name)
    if stem in native_models():
        text = load_config(name).text_cfg
        return {f.name: getattr(text, f.name) for f in fields(text)}
    if stem not in reference_only_models() and not schema_of(name):
        raise unknown_model(name)
    open_clip = optional.require("open_clip", f"--model {name}", OPENCLIP_INSTALL)
    try:  # hf-hub: may lack a network, or the repository a config
        text_cfg: Mapping[str, Any] = open_clip.get_model_config(stem)["text_cfg"]
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise InputMissing(f"--model {name}: {first_line(error)}") from error
    return text_cfg
