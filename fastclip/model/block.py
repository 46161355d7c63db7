"""The transformer that both towers are made of: pre-norm blocks of attention and MLP.

Parameter names, their order, and the order in which random numbers are drawn are the reference's,
so that checkpoints, optimiser states and freshly initialised weights are interchangeable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastclip.model.pooled_rows import PooledRows
from fastclip.model.recompute import (
    Choose,
    Pointwise,
    Product,
    Projection,
    Recompute,
    applied,
    choose,
    product_of,
)
from fastclip_kernels.self_attention.kinds import Attend, PackedAttention, TowerAttention
from fastclip_kernels.self_attention.sdpa import SDPA

Heads = tuple[Tensor, Tensor, Tensor]  # queries, keys, values: (B, T, H, D / H) each


def to_heads(attention: Attention, x: Tensor, norm: Pointwise) -> Heads:
    """Of the normed rows of x (B, T, D)."""
    linear = Projection(attention.in_proj_weight, attention.in_proj_bias)
    qkv = attention.product(norm, x, linear)
    q, k, v = qkv.view(*qkv.shape[:2], 3, attention.heads, -1).unbind(2)
    return q, k, v


def both_layers(mlp: MLP, x: Tensor, norm: Pointwise) -> Tensor:
    """The MLP of the normed rows of x (..., D)."""
    x = mlp.product(norm, x, mlp.c_fc)
    return mlp.product(mlp.activation, x, mlp.c_proj)


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.product: Product = product_of
        self.project: Callable[[Attention, Tensor, Pointwise], Heads] = to_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        # draws before in_proj_weight does, as in the reference
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        x: Tensor,  # (B, T, D)
        norm: Pointwise,  # of x, before the products
        attend: Attend,
        pooled: PooledRows | None = None,  # b rows to compute; None: all
    ) -> Tensor:  # (B, T, D), or (b, D)
        if pooled is not None:
            return self._of_rows(x, norm, pooled)
        q, k, v = self.project(self, x, norm)
        return applied(self.out_proj, attend(q, k, v).flatten(2))

    def _of_rows(self, x: Tensor, norm: Pointwise, pooled: PooledRows) -> Tensor:
        width = x.shape[-1]
        weight_q, weight_kv = self.in_proj_weight.split([width, 2 * width])
        bias_q, bias_kv = self.in_proj_bias.split([width, 2 * width])
        kv = self.product(norm, x, Projection(weight_kv, bias_kv))
        k, v = kv.view(*kv.shape[:2], 2, self.heads, -1).unbind(2)
        q = self.product(norm, pooled.pick(x), Projection(weight_q, bias_q))
        out = pooled.attend(q.view(q.shape[0], self.heads, -1), k, v)  # (b, H, D / H)
        return applied(self.out_proj, out.flatten(1))


def gelu(x: Tensor) -> Tensor:
    return F.gelu(x)


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, activation: Pointwise) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.c_proj = nn.Linear(hidden, width)
        self.activation: Pointwise = activation
        self.product: Product = product_of
        self.run: Callable[[MLP, Tensor, Pointwise], Tensor] = both_layers

    def forward(
        self,
        x: Tensor,  # (..., D), as the result
        norm: Pointwise,  # of x, before the products
    ) -> Tensor:
        return self.run(self, x, norm)


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
        use_quick_gelu: bool,
        norm: type[nn.LayerNorm],
    ) -> None:
        super().__init__()
        self.ln_1 = norm(width)
        self.attn = Attention(width, heads)
        self.ls_1 = nn.Identity() if ls_init_value is None else LayerScale(width, ls_init_value)
        self.ln_2 = norm(width)
        self.mlp = MLP(width, int(width * mlp_ratio), quick_gelu if use_quick_gelu else gelu)
        self.ls_2 = nn.Identity() if ls_init_value is None else LayerScale(width, ls_init_value)

    def forward(
        self,
        x: Tensor,  # (B, T, D)
        attend: Attend,
        pooled: PooledRows | None = None,  # b rows to compute; None: all
    ) -> Tensor:  # (B, T, D), or (b, D)
        kept = x if pooled is None else pooled.pick(x)
        x = kept + self.ls_1(self.attn(x, self.ln_1, attend, pooled))
        x = x + self.ls_2(self.mlp(x, self.ln_2))
        return x


class Transformer(nn.Module):
    """A stack of blocks, recomputed in the backward pass as `set_recompute` says.

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
        self.causal = causal
        self.choose: Choose = choose
        self.use_attention(SDPA)  # right on any device
        self.prune_last_block = False
        self.resblocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, ls_init_value, quick_gelu, norm) for _ in range(layers)
        )
        self.set_recompute("none")

    def use_attention(self, attention: TowerAttention) -> None:
        """Attend by `attention` from here on."""
        self.attend: Attend = attention.causal if self.causal else attention.full
        self.packed_attention: PackedAttention = attention.packed

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

    def set_recompute(self, way: Recompute) -> None:
        self.recompute = way
        self._ways = self.choose(way)
        for block in self.blocks:
            block.attn.product = block.mlp.product = self._ways.product

    @property
    def grad_checkpointing(self) -> bool:
        """The reference's name for `full`."""
        return self.recompute != "none"

    @grad_checkpointing.setter
    def grad_checkpointing(self, enable: bool) -> None:
        self.set_recompute("full" if enable else "none")

    def __getstate__(self) -> dict[str, Any]:
        # compiled functions can be neither copied nor pickled
        return {name: each for name, each in self.__dict__.items() if name != "_ways"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.set_recompute(self.recompute)

    def _run(self, block: Block, x: Tensor, attend: Attend, pooled: PooledRows | None) -> Tensor:
        run = self._ways.training if self.training else self._ways.evaluating
        return run(block, x, attend, pooled)
