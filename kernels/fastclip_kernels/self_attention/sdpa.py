"""torch's `scaled_dot_product_attention`: any device, any dtype; flash where torch has it.

Packed captions then need a mask, which torch's flash kernels do not take.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .kinds import Attend, Segments, TowerAttention


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


def attend_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every token sees every token."""
    return scaled_dot_product(q, k, v)


def attend_before(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A token sees itself and the tokens before it."""
    return scaled_dot_product(q, k, v, causal=True)


def masked(packed: Segments) -> Attend:
    """Rows side by side, with a mask made once for all layers."""
    mask = block_causal_mask(packed.positions)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product(q, k, v, mask=mask)

    return attend


def block_causal_mask(positions: Tensor) -> Tensor:
    """bool (R, 1, L, L): True where the row's token sees the column's, of its own segment."""
    place = torch.arange(positions.shape[1], device=positions.device)
    start = place - positions  # (R, L): column at which the token's segment starts
    same = start[:, :, None] == start[:, None, :]
    return (same & (place[:, None] >= place)).unsqueeze(1)


SDPA = TowerAttention(attend_all, attend_before, masked)
