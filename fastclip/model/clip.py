"""The pair of towers, in the reference's two layouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastclip.config.images import PreprocessConfig
from fastclip.model.block import Block, Transformer
from fastclip.model.compiled import CompiledChoice
from fastclip.model.fused_bias import sum_biases_in_passing
from fastclip.model.model_config import CLIPConfig, TextConfig
from fastclip.model.packed_ids import PackedIds
from fastclip.model.patch_dropout import PatchDropout
from fastclip.model.precision import LayerNorm
from fastclip.model.recompute import Recompute
from fastclip.model.text import TextParts, TextTransformer, lock_text, prune_text, text_features
from fastclip.model.vision import VisionTransformer
from fastclip_kernels.self_attention.kinds import TowerAttention


class HeadWidths(NamedTuple):
    """Numbers per head of each tower."""

    image: int
    text: int


class _TwoTowers(nn.Module):
    """What both layouts share. Sub-classes set up the text tower and say how to run it."""

    visual: VisionTransformer
    logit_scale: nn.Parameter
    logit_bias: nn.Parameter | None
    writes_captions = False  # True for CoCa, which open_clip builds
    tells_image_features = True  # before its text tower runs; open_clip's models do not

    def __init__(self, config: CLIPConfig, output_dict: bool) -> None:
        super().__init__()
        self.config = config
        self.output_dict = output_dict
        self.context_length = config.text_cfg.context_length
        self.vocab_size = config.text_cfg.vocab_size

    def _set_up_logits(self) -> None:
        shape = (1,) if self.config.nonscalar_logit_scale else ()
        self.logit_scale = nn.Parameter(torch.ones(shape) * self.config.init_logit_scale)
        bias = self.config.init_logit_bias
        self.logit_bias = None if bias is None else nn.Parameter(torch.ones(shape) * bias)

    @property
    def preprocess_cfg(self) -> PreprocessConfig:
        return self.visual.preprocess_cfg

    def encode_image(
        self,
        image: Tensor,  # uint8 (B, H, W, 3) raw, or float (B, 3, H, W) normalised
        normalize: bool = False,
    ) -> Tensor:  # (B, embed_dim)
        features = self.visual(image)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(
        self,
        text: Tensor | PackedIds,  # int64 (B, context_length), or the same captions packed
        normalize: bool = False,
    ) -> Tensor:  # (B, embed_dim)
        features = self._text(text)
        return F.normalize(features, dim=-1) if normalize else features

    def _text(self, text: Tensor | PackedIds) -> Tensor:
        raise AssertionError("a layout defines this")

    def forward(
        self,
        image: Tensor | None = None,
        text: Tensor | PackedIds | None = None,
        on_image_features: Callable[[Tensor], None] | None = None,
    ) -> dict[str, Tensor | None] | tuple[Tensor | None, ...]:
        """Unit-norm features, exp(logit_scale) and, if there is one, logit_bias.

        A dict with those names (`image_features`, `text_features`, ...) if `output_dict`, else a
        tuple in that order. A tower that gets no input gives None. `on_image_features` is called
        with the image features before the text tower runs.
        """
        image_features = None if image is None else self.encode_image(image, normalize=True)
        if on_image_features is not None and image_features is not None:
            on_image_features(image_features)
        text_features = None if text is None else self.encode_text(text, normalize=True)
        outputs = {
            "image_features": image_features,
            "text_features": text_features,
            "logit_scale": self.logit_scale.exp(),
        }
        if self.logit_bias is not None:
            outputs["logit_bias"] = self.logit_bias
        return outputs if self.output_dict else tuple(outputs.values())

    def lock_image_tower(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        """Freeze the image tower but for its last groups; `freeze_bn_stats` has nothing to act on
        here.
        """
        self.visual.lock(unlocked_groups)

    @property
    def has_patch_dropout(self) -> bool:
        return isinstance(self.visual.patch_dropout, PatchDropout)

    def fuse_patch_embed(self) -> bool:
        """Read raw pixels once, normalisation and all; same tokens up to rounding. True: it is so now."""
        return self.visual.fuse_patch_embed()

    def prune_last_block(self) -> tuple[str, ...]:
        """Where only one row of a tower's last block is read, compute no other from here on.

        Same features and gradients; what the last block returns to a hook is then (B, D). Names
        the towers where it is so.
        """
        text = prune_text(self.text_parts, self.config.text_cfg)
        pruned = {"image": self.visual.prune_last_block(), "text": text}
        return tuple(tower for tower, done in pruned.items() if done)

    def set_recompute(self, way: Recompute) -> None:
        """What backward computes again of every block, in both towers."""
        for module in self.modules():
            if isinstance(module, Transformer):
                module.set_recompute(way)

    def compile_blocks(self, backend: str = "inductor", *, sum_biases: bool = False) -> None:
        """Run both towers' blocks through torch.compile from here on, where the model trains.

        Same parameters, same names; in evaluation nothing is compiled. With `sum_biases` two of a
        block's biases get their gradients from kernels of ours, which save a pass each on a GPU.
        """
        compiled = CompiledChoice(backend)
        for module in self.modules():
            if isinstance(module, Transformer):
                module.choose = compiled
                module.set_recompute(module.recompute)
            elif isinstance(module, Block) and sum_biases:
                sum_biases_in_passing(module)

    @property
    def packing_config(self) -> TextConfig | None:
        """What reads packed captions; None where the text tower cannot."""
        text = self.config.text_cfg
        return text if text.can_pack else None

    @property
    def head_widths(self) -> HeadWidths:
        """What `use_attention` is to fit."""
        vision, text = self.config.vision_cfg, self.config.text_cfg
        return HeadWidths(vision.width // vision.heads, text.width // text.heads)

    def use_attention(self, image: TowerAttention, text: TowerAttention) -> None:
        """Attend by these from here on."""
        self.visual.transformer.use_attention(image)
        self.text_parts.transformer.use_attention(text)

    @property
    def text_parts(self) -> TextParts:
        """Whatever carries the parts of the text tower in this layout."""
        raise AssertionError("a layout defines this")

    def set_patch_dropout_seed(self, seed: int) -> None:
        """Make the patches left out from here on a function of `seed`; no effect without patch
        dropout.
        """
        if isinstance(self.visual.patch_dropout, PatchDropout):
            self.visual.patch_dropout.seed(seed)


class CLIP(_TwoTowers):
    """The reference's `CLIP`: the text tower's parts are the model's own attributes."""

    text_projection: nn.Parameter | nn.Linear | None

    def __init__(
        self,
        config: CLIPConfig,
        norm: type[nn.LayerNorm] = LayerNorm,
        output_dict: bool = False,
    ) -> None:
        super().__init__(config, output_dict)
        self.visual = VisionTransformer(
            config.vision_cfg, config.embed_dim, config.quick_gelu, norm
        )
        text = TextTransformer(config.text_cfg, config.embed_dim, config.quick_gelu, norm)
        self.transformer = text.transformer
        self.token_embedding = text.token_embedding
        self.positional_embedding = text.positional_embedding
        self.ln_final = text.ln_final
        self.text_projection = text.text_projection
        self._set_up_logits()

    def _text(self, text: Tensor | PackedIds) -> Tensor:
        return text_features(self, self.config.text_cfg, text)

    @property
    def text_parts(self) -> TextParts:
        return self

    def lock_text_tower(self, unlocked_layers: int = 0, freeze_layer_norm: bool = True) -> None:
        lock_text(self, unlocked_layers, freeze_layer_norm)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.visual.set_grad_checkpointing(enable)
        self.transformer.set_recompute("full" if enable else "none")

    def no_weight_decay(self) -> set[str]:
        """Names that timm's optimisers leave undecayed, beside everything one-dimensional."""
        return {"positional_embedding", *(f"visual.{n}" for n in self.visual.no_weight_decay())}


class CustomTextCLIP(_TwoTowers):
    """The reference's `CustomTextCLIP`: the text tower is a module of its own (keys `text.*`)."""

    def __init__(
        self,
        config: CLIPConfig,
        norm: type[nn.LayerNorm] = LayerNorm,
        output_dict: bool = False,
    ) -> None:
        super().__init__(config, output_dict)
        self.visual = VisionTransformer(
            config.vision_cfg, config.embed_dim, config.quick_gelu, norm
        )
        self.text = TextTransformer(config.text_cfg, config.embed_dim, config.quick_gelu, norm)
        self._set_up_logits()

    def _text(self, text: Tensor | PackedIds) -> Tensor:
        features: Tensor = self.text(text)
        return features

    @property
    def text_parts(self) -> TextParts:
        return self.text

    def lock_text_tower(self, unlocked_layers: int = 0, freeze_layer_norm: bool = True) -> None:
        self.text.lock(unlocked_layers, freeze_layer_norm)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.visual.set_grad_checkpointing(enable)
        self.text.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Names that timm's optimisers leave undecayed, beside everything one-dimensional."""
        return {
            *(f"visual.{n}" for n in self.visual.no_weight_decay()),
            *(f"text.{n}" for n in self.text.no_weight_decay()),
        }
