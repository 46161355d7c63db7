"""Rates of this machine's CPU, measured in seconds on the operations that the step itself has.

Products and attention are timed on the step's own shapes, the ones with the most FLOPs first, until most of the
work is covered; passes on a LayerNorm, an activation and a residual sum of the image tower's shape, forward and
backward; the update on AdamW over some millions of parameters; the host on operations of a few numbers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from fastclip.plan.figure import Figure
from fastclip.plan.op_counter import Call, Kind, OpCounter, Tally
from fastclip.plan.rates import Rates
from fastclip_kernels import onednn

HERE = "measured here"
_COVERED = 0.9  # of the FLOPs
_BUDGET = 4.0  # seconds a kind, begun calls not counted
_ROUNDS = 3
_UPDATED = 1 << 24  # parameters


def rates_here(tally: Tally, tokens: int, width: int, dtype: torch.dtype) -> Rates:
    """Of this process with its number of threads. There is nobody to send to."""
    return Rates(
        products=_rate_of_calls(tally, "products"),
        attention=_rate_of_calls(tally, "attention"),
        passes=_rate_of_passes(tokens, width, dtype),
        update=_rate_of_update(),
        allreduce=Figure.exactly(float("inf"), "one process sends nothing"),
        per_operation=_seconds_of_an_operation(),
        per_collective=Figure.exactly(0.0, "one process sends nothing"),
        loader=None,
        asynchronous=False,
    )


def _seconds(call: Callable[[], Any], rounds: int = _ROUNDS) -> float:
    """Median, after one that warms up."""
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _rate_of_calls(tally: Tally, kind: Kind) -> Figure:
    calls = sorted(
        (c for c in tally.calls.values() if c.kind == kind and c.flops),
        key=lambda c: -c.flops * c.count,
    )
    flops = seconds = 0.0
    wanted = _COVERED * sum(c.flops * c.count for c in calls)
    started = time.perf_counter()
    for call in calls:
        if flops >= wanted or time.perf_counter() - started > _BUDGET:
            break
        seconds += call.count * _seconds_of_call(call)
        flops += call.count * call.flops
    if not seconds:  # nothing of this kind in the step
        return Figure.exactly(float("inf"), HERE)
    return Figure.exactly(flops / seconds, HERE)


def _seconds_of_call(call: Call) -> float:
    args, kwargs = tree_map(_with_numbers, (call.args, call.kwargs))
    operation = _AS_THE_MODEL_DOES.get(call.operation, call.operation)
    with torch.no_grad():
        return _seconds(lambda: operation(*args, **kwargs))


def _added_product(bias: Tensor, a: Tensor, b: Tensor, **factors: Any) -> Tensor:
    if factors or bias.shape != b.shape[1:] or not onednn.takes(a, b):
        return torch.addmm(bias, a, b, **factors)
    return onednn.linear(a, b.T, bias)


# The step was counted on the meta device, whose products are torch's own.
_AS_THE_MODEL_DOES: dict[Any, Callable[..., Tensor]] = {
    torch.ops.aten.mm.default: onednn.product,
    torch.ops.aten.addmm.default: _added_product,
}


def _with_numbers(value: Any) -> Any:
    """A tensor of that shape and memory order, of small numbers; other values as they are."""
    if not isinstance(value, Tensor):
        return value
    real = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
    return real.normal_(std=0.1) if value.is_floating_point() else real.zero_()


def _rate_of_passes(tokens: int, width: int, dtype: torch.dtype) -> Figure:
    x = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
    wide = torch.randn(tokens, 4 * width, dtype=dtype, requires_grad=True)
    weight = torch.ones(width, dtype=dtype, requires_grad=True)
    upstream, upstream_wide = torch.ones_like(x), torch.ones_like(wide)

    def passes() -> None:
        normed = F.layer_norm(x, (width,), weight, weight) + x
        torch.autograd.backward([normed, F.gelu(wide)], [upstream, upstream_wide])
        x.grad = wide.grad = weight.grad = None

    with OpCounter([]) as counter:
        passes()
    return Figure.exactly(counter.tally.passes / _seconds(passes, 5), HERE)


def _rate_of_update() -> Figure:
    parameter = torch.nn.Parameter(torch.zeros(_UPDATED))
    parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW([parameter], fused=True)
    optimizer.step()
    with OpCounter([]) as counter:
        optimizer.step()
    return Figure.exactly(counter.tally.update / _seconds(optimizer.step), HERE)


def _seconds_of_an_operation() -> Figure:
    x = torch.zeros(8, requires_grad=True)

    def operations() -> None:
        y = x
        for _ in range(100):
            y = F.gelu(y)
        y.sum().backward()

    with OpCounter([]) as counter:
        operations()
    return Figure.exactly(_seconds(operations) / counter.tally.operations, HERE)
