"""The ops, their autograd, and the two public functions; README.md beside this has the formulas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backend import Backend, resolve
from ..loss.op import custom_op, op_body


def _backend(op: str, backend: str, like: Tensor) -> Backend:
    return resolve(op, backend, like.device, like.dtype).backend


@custom_op("activation_backward")
def activation_backward(
    gradient: Tensor,  # (..., N), as x
    x: Tensor,
    quick: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:  # as x; its sums over all axes but the last, (N,) fp32 or fp64
    columns = x.shape[-1]
    gradient, rows = gradient.reshape(-1, columns).contiguous(), x.reshape(-1, columns).contiguous()
    with op_body(x):
        if _backend("activation_after_bias", backend, x) == "triton":
            from .triton_kernels import activation_backward_triton

            out, sums = activation_backward_triton(gradient, rows, quick)
            return out.view(x.shape), sums
        if quick:
            share = torch.sigmoid(1.702 * rows)
            out = gradient * (share + 1.702 * rows * share * (1 - share))
        else:
            out = torch.ops.aten.gelu_backward(gradient, rows)
        return out.view(x.shape), _sums(out)


@activation_backward.register_fake
def _(gradient: Tensor, x: Tensor, quick: bool, backend: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(
        x.shape[-1], dtype=_sum_dtype(x)
    )


@custom_op("heads_backward")
def heads_backward(
    of_q: Tensor,  # (B, T, H, D / H), as the others
    of_k: Tensor,
    of_v: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor]:  # (B, T, 3 D); its sums over B and T, (3 D,) fp32 or fp64
    batch, tokens = of_q.shape[:2]
    parts = [part.reshape(batch * tokens, -1).contiguous() for part in (of_q, of_k, of_v)]
    with op_body(of_q):
        if _backend("heads_after_bias", backend, of_q) == "triton":
            from .triton_kernels import heads_backward_triton

            out, sums = heads_backward_triton(*parts)
        else:
            out = torch.cat(parts, 1)
            sums = _sums(out)
        return out.view(batch, tokens, -1), sums


@heads_backward.register_fake
def _(of_q: Tensor, of_k: Tensor, of_v: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, width = of_q.shape
    return (
        of_q.new_empty(batch, tokens, 3 * heads * width),
        of_q.new_empty(3 * heads * width, dtype=_sum_dtype(of_q)),
    )


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _sums(rows: Tensor) -> Tensor:
    return rows.sum(0, dtype=_sum_dtype(rows))


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, quick: bool, backend: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.quick, ctx.backend, ctx.bias_dtype = quick, backend, bias.dtype
        return x * torch.sigmoid(1.702 * x) if quick else F.gelu(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (x,) = ctx.saved_tensors
        out, sums = activation_backward(gradient, x, ctx.quick, ctx.backend)
        return out, sums.to(ctx.bias_dtype), None, None


class _Heads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor, heads: int, backend: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.backend, ctx.bias_dtype = backend, bias.dtype
        q, k, v = x.view(*x.shape[:2], 3, heads, -1).unbind(2)
        return q, k, v

    @staticmethod
    def backward(
        ctx: Any, of_q: Tensor, of_k: Tensor, of_v: Tensor
    ) -> tuple[Tensor, Tensor, None, None]:
        out, sums = heads_backward(of_q, of_k, of_v, ctx.backend)
        return out, sums.to(ctx.bias_dtype), None, None


def activation_after_bias(
    x: Tensor,  # (..., N), with the bias in it, detached
    bias: Tensor,  # (N,): what the sums of x's gradient go to
    *,
    quick: bool = False,  # x * sigmoid(1.702 x) in place of GELU
    backend: str = "auto",
) -> Tensor:  # as x
    """GELU of a linear layer's output; its backward also makes the gradient of that layer's bias.

    ValueError for a bias of another width or an unknown backend, BackendUnavailable for one that is
    named and cannot run here.
    """
    if bias.shape != x.shape[-1:]:
        raise ValueError(
            f"activation_after_bias: bias must be {tuple(x.shape[-1:])}, got {tuple(bias.shape)}"
        )
    _backend("activation_after_bias", backend, x)
    out: Tensor = _Activation.apply(x, bias, quick, backend)
    return out


def heads_after_bias(
    x: Tensor,  # (B, T, 3 D), with the bias in it, detached
    bias: Tensor,  # (3 D,): what the sums of x's gradient go to
    *,
    heads: int,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:  # (B, T, H, D / H) each
    """Queries, keys and values as views of a projection; backward also makes its bias's gradient.

    ValueError for a bias of another width, a width that 3 * heads does not divide, or an unknown
    backend; BackendUnavailable for one that is named and cannot run here.
    """
    if x.ndim != 3 or x.shape[-1] % (3 * heads):
        raise ValueError(
            f"heads_after_bias: x must be (B, T, 3 D) with D a multiple of {heads} heads, "
            f"got {tuple(x.shape)}"
        )
    if bias.shape != x.shape[-1:]:
        raise ValueError(
            f"heads_after_bias: bias must be {tuple(x.shape[-1:])}, got {tuple(bias.shape)}"
        )
    _backend("heads_after_bias", backend, x)
    q, k, v = _Heads.apply(x, bias, heads, backend)
    return q, k, v
