"""Attention over heads: every kind that the towers use, behind one call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from fastclip import optional


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


class Segments(Protocol):
    """Where captions lie in a packed buffer; `packed_ids.PackedIds` says how."""

    @property
    def positions(self) -> Tensor: ...

    @property
    def cu_seqlens(self) -> Tensor: ...


PackedAttention = Callable[[Segments], Attend]  # called once a batch


class PackedAttentionChoice(NamedTuple):
    attention: PackedAttention
    sentence: str  # what was chosen, and why not what would be faster


def masked(packed: Segments) -> Attend:
    """Any device and dtype: rows side by side, with a mask made once for all layers."""
    mask = block_causal_mask(packed.positions)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product(q, k, v, mask=mask)

    return attend


def by_segments(kernel: Callable[..., Tensor], packed: Segments) -> Attend:
    """Flash attention over the segments; `kernel(q, k, v, starts, starts, longest, longest)`."""
    starts, longest = packed.cu_seqlens, packed.positions.shape[1]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        tokens = (t.flatten(0, 1) for t in (q, k, v))  # (R * L, H, D / H) each
        return kernel(*tokens, starts, starts, longest, longest).view(q.shape)

    return attend


def choose_packed_attention(
    device: torch.device, dtype: torch.dtype, head_width: int, *, deterministic: bool = False
) -> PackedAttentionChoice:
    """The fastest attention over packed captions that this machine has. `dtype`: of the products."""
    refusal = _no_flash(device, dtype, head_width, deterministic)
    if refusal is None:
        reasons = []
        for name, find in (
            ("torch's varlen_attn", _torch_kernel),
            ("flash-attn", _flash_attn_kernel),
        ):
            kernel = find()
            if not isinstance(kernel, str):
                return PackedAttentionChoice(partial(by_segments, kernel), name)
            reasons.append(kernel)
        refusal = "; ".join(reasons)
    return PackedAttentionChoice(masked, f"torch's, with a mask ({refusal})")


def _no_flash(
    device: torch.device, dtype: torch.dtype, head_width: int, deterministic: bool
) -> str | None:
    """Why no flash attention will do here; None if one may."""
    if device.type != "cuda":
        return f"flash attention needs a GPU, this is {device.type}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"flash attention knows no {str(dtype).removeprefix('torch.')}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "flash attention needs an A100 or newer"
    if head_width % 8 or head_width > 256:
        return f"flash attention knows no heads of {head_width}"
    if deterministic:
        return "the gradients of flash attention vary from run to run"
    return None


def _torch_kernel() -> Callable[..., Tensor] | str:
    module = optional.find("torch.nn.attention.varlen")  # torch 2.10 and newer
    return module if isinstance(module, str) else causal_varlen(module.varlen_attn)


def causal_varlen(varlen_attn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch's `varlen_attn`, told to be causal: by a flag in 2.10, by a window since."""
    if "is_causal" in inspect.signature(varlen_attn).parameters:
        return partial(varlen_attn, is_causal=True)
    return partial(varlen_attn, window_size=(-1, 0))


def _flash_attn_kernel() -> Callable[..., Tensor] | str:
    module = optional.find("flash_attn")
    return (
        module if isinstance(module, str) else partial(module.flash_attn_varlen_func, causal=True)
    )


def block_causal_mask(positions: Tensor) -> Tensor:
    """bool (R, 1, L, L): True where the row's token sees the column's, of its own segment."""
    place = torch.arange(positions.shape[1], device=positions.device)
    start = place - positions  # (R, L): column at which the token's segment starts
    same = start[:, :, None] == start[:, None, :]
    return (same & (place[:, None] >= place)).unsqueeze(1)
