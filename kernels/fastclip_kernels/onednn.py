"""float32 products on a CPU by oneDNN, which torch has beside MKL and uses for bfloat16 only.

MKL leaves AVX-512 unused on CPUs that are not Intel's. On two cores of an EPYC (Zen 5) `torch.mm` makes 205
GFLOP/s of float32 at D = 512, oneDNN 460 from 256 rows on, 330 at 128 and as many as MKL at 64. Both sum in
float32; the numbers differ by rounding. `torch.backends.mkldnn.flags(enabled=False)` switches it off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import flop_registry, register_flop_formula

# The op is one that torch's compiler calls, with no public name: it may be gone one day, and MKL does then.
AVAILABLE = (
    torch.backends.cpu.get_cpu_capability() == "AVX512"
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)

_FEW_TERMS, _FEW_SUMS = 256, 128 * 128

_PLAIN = (Tensor, torch.nn.Parameter)


def takes(*matrices: Tensor) -> bool:
    """Whether the product of these, of two dimensions or more, is one that oneDNN is faster at.

    None of tensors with a life of their own (subclasses, sparse ones), and none while a graph is traced or where a
    derivative is taken in a way that the op does not know.
    """
    return (
        AVAILABLE
        and not torch.compiler.is_compiling()
        and all(
            type(each) in _PLAIN
            and each.dtype == torch.float32
            and each.device.type == "cpu"
            and each.layout == torch.strided
            and each.ndim > 1
            for each in matrices
        )
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
        and not torch.jit.is_tracing()
        and torch._C._functorch.maybe_current_level() is None
        and torch.autograd.forward_ad._current_level < 0
    )


def product(a: Tensor, b: Tensor) -> Tensor:
    """(M, K) @ (K, N), of one dtype; without gradients. A dense `a` is not copied."""
    return _by_onednn(a, b.T, None) if takes(a, b) else torch.mm(a, b)


def close_product(a: Tensor, b: Tensor) -> Tensor:
    """`product` with no larger errors than MKL's, for results that a factor or an exponential magnifies.

    oneDNN adds one term after the other, and the error of a sum grows with their number: at K = 512 it is 1.7 times
    MKL's. So no more than 256 are added that way, and then their sums. Few results are left to MKL: two products
    and a sum would take longer.
    """
    if not takes(a, b) or len(a) * b.shape[1] <= _FEW_SUMS:
        return torch.mm(a, b)
    pieces = zip(a.split(_FEW_TERMS, 1), b.split(_FEW_TERMS), strict=True)
    total, *others = (_by_onednn(x, y.T, None) for x, y in pieces)
    for each in others:
        total += each
    return total


def linear(
    x: Tensor,  # (..., K)
    weight: Tensor,  # (N, K)
    bias: Tensor | None,  # (N,)
) -> Tensor:  # (..., N)
    """`torch.nn.functional.linear` where `takes(x, weight)`, differentiable as often as that is."""
    out: Tensor = _Linear.apply(x.flatten(0, -2), weight, bias)
    return out.view(*x.shape[:-1], len(weight))


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if 0 in (*x.shape, *weight.shape):  # which it refuses
        return F.linear(x, weight, bias)
    if bias is not None:
        bias = bias.contiguous()  # it ignores the stride, and would read past the end
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, dense(weight), bias, "none", [], "")
    return out


def dense(weight: Tensor) -> Tensor:
    """Copied where neither rows nor columns are dense: oneDNN then takes 2,000 times as long."""
    return weight if weight.is_contiguous() or weight.T.is_contiguous() else weight.contiguous()


def _flops(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * weight[0]


if AVAILABLE and torch.ops.mkldnn._linear_pointwise not in flop_registry:
    register_flop_formula(torch.ops.mkldnn._linear_pointwise)(_flops)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        to_x, to_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if to_weight else None, weight if to_x else None)
        return _by_onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            _Linear.apply(grad, weight.T, None) if to_x else None,
            _Linear.apply(grad.T, x.T, None) if to_weight else None,
            grad.sum(0) if to_bias else None,
        )
