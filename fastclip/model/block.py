"""The transformer that both towers are made of: pre-norm blocks of attention and MLP.

Parameter names, their order, and the order in which random numbers are drawn are the reference's,
so that checkpoints, optimiser states and freshly initialised weights are interchangeable.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
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
        causal: bool,
    ) -> Tensor:  # (B, T, D)
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        split = qkv.view(*qkv.shape[:2], 3, self.heads, -1)
        q, k, v = split.permute(2, 0, 3, 1, 4)  # (B, H, T, D / H) each
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        out = out.transpose(1, 2).flatten(2)
        projected: Tensor = self.out_proj(out)
        return projected


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, quick_gelu: bool) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.c_proj = nn.Linear(hidden, width)
        self.quick_gelu = quick_gelu

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)
        x = x * torch.sigmoid(1.702 * x) if self.quick_gelu else F.gelu(x)
        x = self.c_proj(x)
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

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        x = x + self.ls_1(self.attn(self.ln_1(x), causal))
        x = x + self.ls_2(self.mlp(self.ln_2(x)))
        return x


class Transformer(nn.Module):
    """A stack of blocks, each recomputed in the backward pass where `grad_checkpointing` is set."""

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
        self.grad_checkpointing = False
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

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) both
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                # nothing in a block is random, so there is no generator state to keep
                x = checkpoint(block, x, self.causal, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, self.causal)
        return x
