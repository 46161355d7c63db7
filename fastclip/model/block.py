"""The transformer that both towers are made of: pre-norm blocks of attention and MLP.

Parameter names, their order, and the order in which random numbers are drawn are the reference's,
so that checkpoints, optimiser states and freshly initialised weights are interchangeable.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastclip.model.attention import Attend, PackedAttention, attend_all, attend_before, masked
from fastclip.model.pooled_rows import PooledRows
from fastclip.model.recompute import WAYS, Recompute, RunBlock


def to_heads(
    x: Tensor,  # (B, T, D)
    weight: Tensor,  # (3 D, D)
    bias: Tensor,
    heads: int,
) -> tuple[Tensor, Tensor, Tensor]:  # (B, T, H, D / H) each
    """Queries, keys and values."""
    qkv = F.linear(x, weight, bias)
    q, k, v = qkv.view(*qkv.shape[:2], 3, heads, -1).unbind(2)
    return q, k, v


def activated(x: Tensor, linear: nn.Linear, quick_gelu: bool) -> Tensor:
    """What the MLP has between its two layers."""
    x = linear(x)
    return x * torch.sigmoid(1.702 * x) if quick_gelu else F.gelu(x)


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = to_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(
            width, width
        )  # draws before in_proj_weight does, as in the reference
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        x: Tensor,  # (B, T, D)
        attend: Attend,
        pooled: PooledRows | None = None,  # b rows to compute; None: all
    ) -> Tensor:  # (B, T, D), or (b, D)
        if pooled is not None:
            return self._of_rows(x, pooled)
        q, k, v = self.project(x, self.in_proj_weight, self.in_proj_bias, self.heads)
        projected: Tensor = self.out_proj(attend(q, k, v).flatten(2))
        return projected

    def _of_rows(self, x: Tensor, pooled: PooledRows) -> Tensor:
        width = x.shape[-1]
        weight_q, weight_kv = self.in_proj_weight.split([width, 2 * width])
        bias_q, bias_kv = self.in_proj_bias.split([width, 2 * width])
        kv = F.linear(x, weight_kv, bias_kv)
        k, v = kv.view(*kv.shape[:2], 2, self.heads, -1).unbind(2)
        q = F.linear(pooled.pick(x), weight_q, bias_q)
        out = pooled.attend(q.view(q.shape[0], self.heads, -1), k, v)  # (b, H, D / H)
        projected: Tensor = self.out_proj(out.flatten(1))
        return projected


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, quick_gelu: bool) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.c_proj = nn.Linear(hidden, width)
        self.quick_gelu = quick_gelu
        self.activate = activated

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_proj(self.activate(x, self.c_fc, self.quick_gelu))
        return x


class LayerScale(nn.Module):
    """A learnt factor per channel."""

    def __init__(self, width: int, init_value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(init_value * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        ls_init_value: float | None,
        quick_gelu: bool,
        norm: type[nn.LayerNorm],
    ) -> None:
        super().__init__()
        self.ln_1 = norm(width)
        self.attn = Attention(width, heads)
        self.ls_1 = nn.Identity() if ls_init_value is None else LayerScale(width, ls_init_value)
        self.ln_2 = norm(width)
        self.mlp = MLP(width, int(width * mlp_ratio), quick_gelu)
        self.ls_2 = nn.Identity() if ls_init_value is None else LayerScale(width, ls_init_value)

    def forward(
        self,
        x: Tensor,  # (B, T, D)
        attend: Attend,
        pooled: PooledRows | None = None,  # b rows to compute; None: all
    ) -> Tensor:  # (B, T, D), or (b, D)
        kept = x if pooled is None else pooled.pick(x)
        x = kept + self.ls_1(self.attn(self.ln_1(x), attend, pooled))
        x = x + self.ls_2(self.mlp(self.ln_2(x)))
        return x


class Transformer(nn.Module):
    """A stack of blocks, each recomputed in the backward pass as `recompute` says.

    Where `prune_last_block` is set, the last block computes the pooled rows only.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        mlp_ratio: float,
        ls_init_value: float | None,
        quick_gelu: bool,
        norm: type[nn.LayerNorm],
        causal: bool,
    ) -> None:
        super().__init__()
        self.width = width
        self.attend: Attend = attend_before if causal else attend_all
        self.packed_attention: PackedAttention = masked  # of packed captions; right on any device
        self.recompute: Recompute = "none"
        self.ways_in_training: Mapping[Recompute, RunBlock] = WAYS
        self.prune_last_block = False
        self.resblocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, ls_init_value, quick_gelu, norm) for _ in range(layers)
        )

    @property
    def blocks(self) -> list[Block]:
        return cast("list[Block]", list(self.resblocks))

    @property
    def product_dtype(self) -> torch.dtype:
        """dtype of the weights of the matrix products: what embeddings are cast to."""
        return self.blocks[0].mlp.c_fc.weight.dtype

    def forward(
        self,
        x: Tensor,  # (B, T, D)
        pooled: PooledRows | None = None,  # b rows to return; None: all
        attend: Attend | None = None,  # None: the tower's own, full or causal
    ) -> Tensor:  # (B, T, D), or (b, D)
        attend = attend or self.attend
        *blocks, last = self.blocks
        for block in blocks:
            x = self._run(block, x, attend, None)
        if pooled is None or self.prune_last_block:
            return self._run(last, x, attend, pooled)
        return pooled.pick(self._run(last, x, attend, None))

    @property
    def grad_checkpointing(self) -> bool:
        return self.recompute != "none"

    @grad_checkpointing.setter
    def grad_checkpointing(self, enable: bool) -> None:
        self.recompute = "full" if enable else "none"

    def _run(self, block: Block, x: Tensor, attend: Attend, pooled: PooledRows | None) -> Tensor:
        # compiled for few shapes: in evaluation they vary from batch to batch
        ways = self.ways_in_training if self.training else WAYS
        return ways[self.recompute](block, x, attend, pooled)
