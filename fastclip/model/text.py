"""The text tower: token ids to features.

The reference has it in two layouts: its parts directly on the model (`CLIP`), or a module of its
own (`CustomTextCLIP`, keys `text.*`). Both are made here, and both run through `text_features`.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastclip.model.block import Transformer
from fastclip.model.model_config import TextConfig
from fastclip.model.packed_ids import PackedIds, PackedRows
from fastclip.model.pooled_rows import FirstRow, LastRow, PooledRows, RowAt


class TextParts(Protocol):
    """Whatever carries the parts of a text tower under the reference's names."""

    transformer: Transformer
    token_embedding: nn.Embedding
    positional_embedding: nn.Parameter
    ln_final: nn.LayerNorm
    text_projection: nn.Parameter | nn.Linear | None


class TextTransformer(nn.Module):
    """Token ids (B, T), T at most `context_length`, to features (B, output_dim); not normalised."""

    text_projection: nn.Parameter | nn.Linear | None

    def __init__(
        self, config: TextConfig, output_dim: int, quick_gelu: bool, norm: type[nn.LayerNorm]
    ) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.context_length = config.context_length
        self.vocab_size = config.vocab_size
        self.output_dim = output_dim
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, width))
        self.transformer = Transformer(
            width,
            config.layers,
            config.heads,
            config.mlp_ratio,
            config.ls_init_value,
            quick_gelu,
            norm,
            causal=config.causal,
        )
        self.ln_final = norm(width)
        if config.proj_type == "none":
            self.text_projection = None
        elif config.proj_bias:
            self.text_projection = nn.Linear(width, output_dim)
        else:
            self.text_projection = nn.Parameter(torch.empty(width, output_dim))
        self._init_parameters()

    def _init_parameters(self) -> None:
        width, blocks = self.config.width, self.transformer.blocks
        narrow = width**-0.5 * (2 * len(blocks)) ** -0.5  # what is added to the residual stream
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        for block in blocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=narrow)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=narrow)
        if isinstance(self.text_projection, nn.Linear):
            nn.init.normal_(self.text_projection.weight, std=width**-0.5)
            nn.init.zeros_(self.text_projection.bias)
        elif self.text_projection is not None:
            nn.init.normal_(self.text_projection, std=width**-0.5)

    def forward(self, text: Tensor | PackedIds) -> Tensor:
        return text_features(self, self.config, text)

    def lock(self, unlocked_layers: int = 0, freeze_layer_norm: bool = True) -> None:
        lock_text(self, unlocked_layers, freeze_layer_norm)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.transformer.set_recompute("full" if enable else "none")

    def no_weight_decay(self) -> set[str]:
        """Names that timm's optimisers leave undecayed, beside everything one-dimensional."""
        return {"positional_embedding"}


def text_features(parts: TextParts, config: TextConfig, text: Tensor | PackedIds) -> Tensor:
    """The tower's forward pass; (B, output_dim), or (B, T, output_dim) with `pool_type` "none".

    Packed captions give the features of the same captions laid out one a row. Only a config with
    `can_pack` takes them.
    """
    # a norm works token by token: pooling first changes nothing but the work
    pooled = _dense(parts, config, text) if isinstance(text, Tensor) else _packed(parts, text)
    x: Tensor = parts.ln_final(pooled)
    if isinstance(parts.text_projection, nn.Linear):
        x = parts.text_projection(x)
    elif parts.text_projection is not None:
        x = x @ parts.text_projection
    return x


def _dense(
    parts: TextParts,
    config: TextConfig,
    text: Tensor,  # (B, T)
) -> Tensor:  # (B, D), or (B, T, D)
    dtype = parts.transformer.product_dtype
    x: Tensor = parts.token_embedding(text).to(dtype)
    x = x + parts.positional_embedding[: text.shape[1]].to(dtype)
    out: Tensor = parts.transformer(x, pooled_rows(text, config))
    return out


def _packed(parts: TextParts, text: PackedIds) -> Tensor:  # (b, D)
    dtype = parts.transformer.product_dtype
    x: Tensor = parts.token_embedding(text.ids).to(dtype)
    x = x + F.embedding(text.positions, parts.positional_embedding).to(dtype)
    attend = parts.transformer.packed_attention(text)
    out: Tensor = parts.transformer(x, PackedRows(text.ends, attend), attend)
    return out


def pooled_rows(
    text: Tensor,  # (B, T)
    config: TextConfig,
) -> PooledRows | None:
    """The row of each text that the tower reads at its end; None: all of them."""
    if config.pool_type == "none":
        return None
    if config.pool_type == "first":
        return FirstRow(config.causal)
    if config.pool_type == "last":
        return LastRow()
    # Two ways to find the end-of-text token: by its id, or (argmax) as the largest id there is.
    ends = (text == config.eos_id).int() if config.pool_type == "eos" else text
    return RowAt(ends.argmax(dim=-1), config.causal)


def prune_text(parts: TextParts, config: TextConfig) -> bool:
    """Compute only the pooled row in the last block, if that is all that is read of it."""
    parts.transformer.prune_last_block = config.pools_one_row
    return config.pools_one_row


def lock_text(parts: TextParts, unlocked_layers: int, freeze_layer_norm: bool) -> None:
    """Freeze a text tower but for its last `unlocked_layers` groups.

    Groups: embeddings, each block but the last, last block with ln_final, projection. Without
    `freeze_layer_norm` the norms of frozen blocks stay trainable, as in the reference's Hugging
    Face towers (its native ones refuse).
    """
    blocks = parts.transformer.blocks
    projection = parts.text_projection
    groups = [
        [*parts.token_embedding.parameters(), parts.positional_embedding],
        *(list(block.parameters()) for block in blocks[:-1]),
        [*blocks[-1].parameters(), *parts.ln_final.parameters()],
    ]
    if projection is not None:
        groups.append(
            list(projection.parameters()) if isinstance(projection, nn.Module) else [projection]
        )
    first_unlocked = len(groups) - unlocked_layers
    for index, group in enumerate(groups):
        for parameter in group:
            parameter.requires_grad_(index >= first_unlocked)
    if not freeze_layer_norm:
        for module in (*parts.transformer.modules(), parts.ln_final):
            if isinstance(module, nn.LayerNorm):
                module.requires_grad_(True)
