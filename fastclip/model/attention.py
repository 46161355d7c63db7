"""Attention over heads: every kind that the towers use, behind one call."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from torch.nn import functional as F


class Attend(Protocol):
    """Mixes values by queries and keys; which token sees which is the implementation's."""

    def __call__(
        self,
        q: Tensor,  # (B, T, H, D / H), as k, v and the result
        k: Tensor,
        v: Tensor,
    ) -> Tensor: ...


def attend_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every token sees every token."""
    return scaled_dot_product(q, k, v)


def attend_before(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A token sees itself and the tokens before it."""
    return scaled_dot_product(q, k, v, causal=True)


def scaled_dot_product(
    q: Tensor,  # (B, Q, H, D / H), as the result
    k: Tensor,  # (B, T, H, D / H), as v
    v: Tensor,
    mask: Tensor | None = None,  # bool, broadcasts to (B, H, Q, T); True: is seen
    causal: bool = False,
) -> Tensor:
    """torch's own attention, in the layout in which the towers keep their heads."""
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, is_causal=causal
    )
    return out.transpose(1, 2)
