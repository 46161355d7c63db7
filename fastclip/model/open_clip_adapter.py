"""Models that are not native ViTs, built by open_clip and made to behave like ours.

The model stays open_clip's object, so its state dict, parameter order and printed form are the
reference's; what our trainer calls and open_clip lacks is added beside it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastclip import optional
from fastclip.config.images import PreprocessConfig
from fastclip.errors import EnvironmentProblem, UserError
from fastclip.model.checkpoint_file import read_checkpoint
from fastclip.model.model_config import OPENCLIP_INSTALL, schema_of
from fastclip.model.one_line import first_line
from fastclip.model.precision import input_dtype
from fastclip.model.preprocess import resolve_preprocess
from fastclip.model.pretrained import find_pretrained
from fastclip.model.state_dict import bare_state_dict, load_state
from fastclip.model.stem import PixelNormalize

logger = logging.getLogger(__name__)


class TrainerMethods:
    """What the trainer calls on a model, on top of open_clip's own classes."""

    visual: Any
    text: Any

    has_patch_dropout = True  # these towers may drop patches, paths or activations: see below
    writes_captions = False
    tells_image_features = False
    packing_config = None  # open_clip's towers take no packed captions
    head_widths = None  # and attend in their own way

    def set_patch_dropout_seed(self, seed: int) -> None:
        """Make all draws from here on a function of `seed`; they use torch's global generators."""
        torch.manual_seed(seed)

    def fuse_patch_embed(self) -> bool:
        """Not so: these towers are open_clip's own."""
        return False

    def prune_last_block(self) -> tuple[str, ...]:
        """No tower: these are open_clip's own, and compute what it computes."""
        return ()

    def lock_image_tower(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        self.visual.lock(unlocked_groups=unlocked_groups, freeze_bn_stats=freeze_bn_stats)

    def lock_text_tower(self, unlocked_layers: int = 0, freeze_layer_norm: bool = True) -> None:
        """As the reference; its native text towers refuse trainable norms, ours allow them."""
        from open_clip.hf_model import HFTextEncoder
        from open_clip.transformer import lock_text_tower

        tower: Any = getattr(self, "text", self)
        if isinstance(tower, HFTextEncoder):
            tower.lock(unlocked_layers, freeze_layer_norm)
            return
        lock_text_tower(self, unlocked_layers)
        if not freeze_layer_norm:
            for module in (*tower.transformer.modules(), tower.ln_final):
                if isinstance(module, nn.LayerNorm):
                    module.requires_grad_(True)


class CaptionerMethods(TrainerMethods):
    """CoCa: its outputs also hold `logits` and `labels` for the caption loss."""

    output_dict = True
    writes_captions = True

    @property
    def vocab_size(self) -> int:
        return int(self.text.vocab_size)


@functools.cache
def _extended(kind: type[nn.Module], captioner: bool) -> type[nn.Module]:
    methods = CaptionerMethods if captioner else TrainerMethods
    return type(kind.__name__, (methods, kind), {"__module__": kind.__module__})


def create_open_clip_model(
    name: str,
    *,
    pretrained: str | None,
    image_flags: Mapping[str, Any],
    unsafe_load: bool,
    load_weights: bool,
    force_image_size: int | tuple[int, int] | None,
    output_dict: bool | None,
    require_pretrained: bool,
    precision: str,
    cache_dir: str | None,
    pretrained_image: bool,
    **options: Any,
) -> nn.Module:
    """`open_clip.create_model` with our errors, our reading of weight files, and the methods above.

    EnvironmentProblem if open_clip, or something that it needs (a package, a download), is not
    there.
    """
    open_clip = optional.require("open_clip", f"--model {name}", OPENCLIP_INSTALL)
    path: Path | None = None
    own_settings: Mapping[str, Any] = {}
    if pretrained:
        found = find_pretrained(name, pretrained, cache_dir)
        path, own_settings = found.path, found.preprocess
    if require_pretrained and path is None and not schema_of(name):
        raise UserError(f"{name}: pretrained weights are required, and none were given")
    # reference: a timm tower is resized only after the weights, made for its own size, are in it
    resize_last = path is not None and _has_timm_tower(open_clip, name)
    create = functools.partial(
        open_clip.create_model,
        name,
        precision=precision,
        force_image_size=None if resize_last else force_image_size,
        pretrained_image=pretrained_image and path is None,
        pretrained_text=path is None,
        load_weights=load_weights,
        cache_dir=cache_dir,
        output_dict=output_dict,
        weights_only=not unsafe_load,
        **options,
    )
    model = _run(create, name)
    captioner = isinstance(model, open_clip.CoCa)
    if path is not None:
        _load(model, path, unsafe_load)
    elif captioner and not schema_of(name):
        _init_caption_projection(model)
    if resize_last and force_image_size is not None:
        model.visual.set_input_size(force_image_size)

    if schema_of(name):  # what the folder or repository says about its pictures, found by open_clip
        own_settings = dict(model.visual.preprocess_cfg)
    preprocess = resolve_preprocess(model.visual.image_size, own_settings, image_flags)
    model.__class__ = _extended(model.__class__, captioner)
    _accept_pixels(model.visual, preprocess, input_dtype(precision))
    adapted: nn.Module = model
    return adapted


def use_preprocess(model: Any, config: PreprocessConfig) -> None:
    """Normalise raw pixels by `config` from here on; for native models and open_clip's alike."""
    if hasattr(model.visual, "set_preprocess_cfg"):
        model.visual.set_preprocess_cfg(config)
        return
    device = model.visual.pixels.mean.device
    model.visual.pixels = PixelNormalize(config.mean, config.std).to(device)
    model.visual.preprocess_cfg = config


def _accept_pixels(visual: Any, config: PreprocessConfig, dtype: torch.dtype) -> None:
    """Normalise raw pixels before the tower sees them; a hook, so that state-dict names stay."""

    def normalize(tower: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        images, *rest = arguments
        return (tower.pixels(images, dtype), *rest)

    device = next(visual.parameters()).device
    visual.pixels = PixelNormalize(config.mean, config.std).to(device)
    visual.preprocess_cfg = config
    visual.register_forward_pre_hook(normalize)


def _init_caption_projection(model: Any) -> None:
    """The reference leaves CoCa's output layer as the memory was found, NaN or not; draw it.

    From a generator of its own, so that what is drawn next is the same as after the reference's.
    """
    generator = torch.Generator().manual_seed(torch.initial_seed())
    projection = model.text_decoder.text_projection
    drawn = torch.empty(projection.shape).normal_(
        std=projection.shape[0] ** -0.5, generator=generator
    )
    projection.data.copy_(drawn)


def _has_timm_tower(open_clip: Any, name: str) -> bool:
    raw = open_clip.get_model_config(name) or {}
    return "timm_model_name" in raw.get("vision_cfg", {})


def _load(model: nn.Module, path: Path, unsafe: bool) -> None:
    from open_clip import convert

    if path.suffix in (".npz", ".npy"):  # big_vision's weights
        convert.load_big_vision_weights(model, str(path))
        return
    state = bare_state_dict(read_checkpoint(path, unsafe), str(path))
    load_state(model, convert.convert_state_dict(model, state), str(path), fit=True)
    logger.info("weights: %s", path)


def _run(create: Callable[[], Any], name: str) -> Any:
    """Call open_clip; what it raises for a missing package or download becomes one line."""
    try:
        return create()
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        raise EnvironmentProblem(
            f"--model {name}: open_clip cannot build it here: {first_line(error)}"
        ) from error
