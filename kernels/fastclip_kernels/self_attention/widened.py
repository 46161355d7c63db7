"""Half-precision attention on a CPU, computed in float32.

torch's attention for CPUs takes 4 times as long for backward in bfloat16 as in float32 (2 x 12 x 64 heads of 65 tokens:
115 and 29 ms on 2 cores), and its forward no less. So queries, keys and values are widened, which is exact, and
results rounded to their dtype once. Scores and probabilities are float32, and no gradient is rounded on the way: closer
to the true gradients than torch's own (1.7e-3 for 3.1e-3, the former being the rounding of the result).

    tensor    shape                dtype       note
    q, k, v   (B, T, H, D / H)     half        saved for backward as they came, not widened
    mask      (B, 1, T, T)         float32     0 or -inf, added to scores; or None
    out       as q                 as q        saved
    lse       (B, H, T)            float32     log-sum-exp of each row of scores; saved
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..loss.op import NAMESPACE, custom_op, op_body, refuse_second_derivative
from .kinds import Attend, Segments, TowerAttention
from .sdpa import block_causal_mask

_aten = torch.ops.aten


def missing() -> str | None:
    """Why this cannot run with this torch, whose private ops it calls; None if it can."""
    for name in ("", "_backward"):
        op = f"_scaled_dot_product_flash_attention_for_cpu{name}"
        if not hasattr(_aten, op):
            return f"this torch has no {op}"
    return None


def _heads_first(x: Tensor) -> Tensor:
    return x.transpose(1, 2).float()


@custom_op("attention_widened")
def attention_widened(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool
) -> tuple[Tensor, Tensor]:
    """(out, lse)."""
    with op_body(q):
        out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(
            _heads_first(q), _heads_first(k), _heads_first(v), 0.0, causal, attn_mask=mask
        )
        return _rounded(out, q.dtype), lse.contiguous()


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, H, T, W) float32 to dense (B, T, H, W) of `dtype`."""
    return x.transpose(1, 2).to(dtype, memory_format=torch.contiguous_format)


@attention_widened.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> tuple[Tensor, Tensor]:
    b, t, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty(b, heads, t, dtype=torch.float32)


@custom_op("attention_widened_backward")
def attention_widened_backward(
    upstream: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Tensor | None,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    with op_body(q):
        wide = (_heads_first(x) for x in (upstream, q, k, v, out))
        gradients = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *wide, lse, 0.0, causal, attn_mask=mask
        )
        to_q, to_k, to_v = (_rounded(each, q.dtype) for each in gradients)
        return to_q, to_k, to_v


@attention_widened_backward.register_fake
def _(
    upstream: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Tensor | None,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


attention_widened_backward.register_autograd(refuse_second_derivative)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, mask, ctx.causal = inputs
    ctx.save_for_backward(q, k, v, *output, mask)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, upstream: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 5
    q, k, v, out, lse, mask = ctx.saved_tensors
    gradients = attention_widened_backward(upstream, q, k, v, out, lse, mask, ctx.causal)
    return *gradients, None, None


attention_widened.register_autograd(_backward, setup_context=_save)


_ops = getattr(torch.ops, NAMESPACE)


def _product(q: Sequence[int]) -> int:
    """FLOPs of scores, or of anything else of that shape."""
    b, t, heads, w = q
    return 2 * b * heads * t * t * w


@register_flop_formula(_ops.attention_widened)
def _(q: Sequence[int], *_: Any, **__: Any) -> int:
    """Scores, and their product with the values."""
    return 2 * _product(q)


@register_flop_formula(_ops.attention_widened_backward)
def _(upstream: Sequence[int], *_: Any, **__: Any) -> int:
    """Scores again, and a product for each of their gradient, values, queries and keys."""
    return 5 * _product(upstream)


def attend_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every token sees every token."""
    out: Tensor = attention_widened(q, k, v, None, False)[0]
    return out


def attend_before(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A token sees itself and the tokens before it."""
    out: Tensor = attention_widened(q, k, v, None, True)[0]
    return out


def masked(packed: Segments) -> Attend:
    """Rows side by side, with a mask made once for all layers."""
    seen = block_causal_mask(packed.positions)
    mask = torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, float("-inf"))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = attention_widened(q, k, v, mask, False)[0]
        return out

    return attend


WIDENED = TowerAttention(attend_all, attend_before, masked)
