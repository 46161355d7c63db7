"""Flash attention's entry points as a tower calls them.

Three packages, three ways to say the same. All take heads last but one, (B, T, H, W) or, with segments,
(tokens, H, W), int32 starts of segments and the longest segment as a number of the host:

    torch        varlen_attn(q, k, v, starts, starts, longest, longest, window_size=(-1, 0))
                 (torch 2.10: is_causal=True); torch's global setting says whether it is deterministic
    flash-attn 2 flash_attn_func(q, k, v, causal=, deterministic=), flash_attn_varlen_func likewise
    flash-attn 3 the same names and arguments; older releases return (out, log-sum-exp)

Checked against the sources of torch 2.14, flash-attn 2.8.3 and its folder `hopper`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from .kinds import Attend, PackedAttention, Segments, TowerAttention
from .sdpa import attend_all, attend_before

VarlenKernel = Callable[..., Tensor]  # (q, k, v, starts, starts, longest, longest)


def by_segments(kernel: VarlenKernel, packed: Segments) -> Attend:
    """Attention within segments by a kernel that is causal."""
    starts, longest = packed.cu_seqlens, packed.positions.shape[1]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        tokens = (t.flatten(0, 1) for t in (q, k, v))  # (R * L, H, D / H) each
        return kernel(*tokens, starts, starts, longest, longest).view(q.shape)

    return attend


def packed_by(kernel: VarlenKernel) -> PackedAttention:
    return partial(by_segments, kernel)


def of_torch(varlen_attn: Callable[..., Any]) -> TowerAttention:
    """torch's kernels alone: `varlen_attn` for packed captions, SDPA for the rest."""
    return TowerAttention(attend_all, attend_before, packed_by(causal_varlen(varlen_attn)))


def causal_varlen(varlen_attn: Callable[..., Any]) -> VarlenKernel:
    """torch's `varlen_attn`, told to be causal: by a flag in 2.10, by a window since."""
    if "is_causal" in inspect.signature(varlen_attn).parameters:
        return partial(varlen_attn, is_causal=True)
    return partial(varlen_attn, window_size=(-1, 0))


def of_flash_attn(
    dense: Callable[..., Any],  # flash_attn_func
    varlen: Callable[..., Any],  # flash_attn_varlen_func
    *,
    deterministic: bool,
) -> TowerAttention:
    """Either flash-attn, 2 or 3."""
    full, causal, packed = (
        partial(_output_of, partial(function, causal=is_causal, deterministic=deterministic))
        for function, is_causal in ((dense, False), (dense, True), (varlen, True))
    )
    return TowerAttention(full, causal, packed_by(packed))


def _output_of(function: Callable[..., Any], *arguments: Any) -> Tensor:
    """Without the log-sum-exp that some releases return beside it."""
    result = function(*arguments)
    out: Tensor = result[0] if isinstance(result, tuple) else result
    return out
