"""`attention`: the functional form, for those who do not keep a `TowerAttention`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..loss.checks import product_dtype
from .dispatch import BackendName, choose, facts_of

OP = "attention"


class _Segments(NamedTuple):
    positions: Tensor
    cu_seqlens: Tensor


def attention(
    q: Tensor,  # (B, T, H, W): H heads of W numbers; as k, v and the result
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    cu_seqlens: Tensor | None = None,  # int32 (segments + 1,), beginning with 0, ending with B * T
    backend: BackendName = "auto",
) -> Tensor:
    """softmax(q kᵀ / √W) v for each head, by flash attention where this machine has one.

    With `cu_seqlens`, the B * T tokens are segments laid end to end, and a token sees its own segment
    only. It must be causal then, and no segment may reach from one of the B rows into the next (neither
    the starts nor that are looked at, which would wait for the device): it is where the form with a mask
    cuts.

    Whether backward is deterministic follows `torch.use_deterministic_algorithms`.

    Raises:
        ValueError, TypeError: an argument is unusable.
        BackendUnavailable: the backend named cannot run here; the message says why.
    """
    for name, given in (("q", q), ("k", k), ("v", v)):
        if given.dim() != 4 or given.shape != q.shape:
            raise ValueError(
                f"{OP}: q, k and v must be (B, T, H, W) alike, got {name} {tuple(given.shape)} "
                f"and q {tuple(q.shape)}"
            )
        if given.dtype != q.dtype or given.device != q.device:
            raise TypeError(
                f"{OP}: q, k and v must have one dtype and device, got {name} {given.dtype} on "
                f"{given.device} and q {q.dtype} on {q.device}"
            )
    dtype = product_dtype(q)
    q, k, v = (each.to(dtype) for each in (q, k, v))  # as torch's own attention under autocast
    chosen = choose(backend, facts_of(q.device, dtype, q.shape[3])).attention
    if cu_seqlens is None:
        return (chosen.causal if causal else chosen.full)(q, k, v)
    if not causal:
        raise ValueError(f"{OP}: segments are causal only: pass causal=True with cu_seqlens")
    if cu_seqlens.dtype != torch.int32 or cu_seqlens.dim() != 1 or cu_seqlens.device != q.device:
        raise TypeError(
            f"{OP}: cu_seqlens must be int32 (segments + 1,) on {q.device}, got {cu_seqlens.dtype} "
            f"{tuple(cu_seqlens.shape)} on {cu_seqlens.device}"
        )
    return chosen.packed(_Segments(_positions(cu_seqlens, q), cu_seqlens))(q, k, v)


def _positions(cu_seqlens: Tensor, q: Tensor) -> Tensor:
    """int32 (B, T): place of each token in its segment."""
    tokens = torch.arange(q.shape[0] * q.shape[1], device=q.device, dtype=torch.int32)
    segment = torch.searchsorted(cu_seqlens, tokens, right=True) - 1
    return (tokens - cu_seqlens[segment]).view(q.shape[:2])
