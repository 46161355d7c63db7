"""Is a result right? What is wrong is not timed.

Two rules for each tensor of a result, against the same in float64 on the same rounded inputs:

- its error, ‖x - truth‖ / ‖truth‖, is at most twice that of the yardstick (the reference in the same dtype), plus what
  rounding alone may add where the yardstick happens to be exact;
- the multiple of the truth in it, <x, truth> / ‖truth‖², is 1: rounding averages out there, so that a factor of 1.01
  shows in half precision too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from bench.paired import reason
from bench.rows import OURS, REFERENCE
from fastclip_kernels.testing import error_against_fp64

Results = Mapping[str, Tensor]

# What rounding alone may add where the yardstick happens to be exact, where accuracy is the question.
ALLOWANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-3, torch.float16: 1e-4}
SCALE_ALLOWANCE = 5e-3  # half of what a factor of 1.01 would show
# In float32 ten times as much: a chance of rounding must not stop a run whose question is speed.
ROUNDING = {**ALLOWANCE, torch.float32: 1e-5}
_TINY = 1e-6  # norms below count as zero


class WrongResult(Exception):
    """An op's result is wrong; the message names op, whose it is, and what of it."""


def wrongs(
    got: Results,
    truth: Results,  # float64
    yardstick: Results,
    allowance: float,
    floors: Mapping[str, float] | None = None,  # norms of the truth below which it counts as zero
    scale_allowance: float = SCALE_ALLOWANCE,
) -> list[str]:
    """What is wrong with `got`; of what it does not have nothing is said."""
    found = []
    for what, value in got.items():
        floor = (floors or {}).get(what, _TINY)
        error = error_against_fp64(value, truth[what], floor)
        has = what in yardstick  # open_clip's softmax loss has no bias
        theirs = error_against_fp64(yardstick[what], truth[what], floor) if has else 0.0
        if not error <= 2 * theirs + allowance:
            found.append(f"{what}: error {error:.2e}, the reference's {theirs:.2e}")
        elif float(truth[what].norm()) > floor:
            times = multiple(value, truth[what])
            if not abs(times - 1) <= scale_allowance:
                found.append(f"{what}: {times:.4f} times what it should be")
    return found


def multiple(value: Tensor, truth: Tensor) -> float:
    """Of the truth in `value`, by least squares."""
    value, truth = value.detach().double().flatten(), truth.detach().double().flatten()
    return float(torch.dot(value, truth) / torch.dot(truth, truth))


def require_right(op: str, found: list[str]) -> None:
    """Raise WrongResult with the op's name if anything is wrong with it."""
    if found:
        raise WrongResult(f"{op}: WRONG RESULT, so it is not timed: {'; '.join(found)}")


def with_gradients(
    form: Callable[..., Tensor],
    inputs: Mapping[str, Tensor],  # by the names of what gets a gradient, in the form's order
) -> Results:
    """The result of `form(*inputs)`, and the gradients by all inputs, of one upstream gradient for all dtypes and
    devices.
    """
    leaves = [each.detach().requires_grad_() for each in inputs.values()]
    out = form(*leaves)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(out, leaves, upstream.to(out.device, out.dtype))
    named = {f"d {name}": g for name, g in zip(inputs, gradients, strict=True)}
    return {"result": out.detach(), **named}


def backward_of(form: Callable[..., Tensor], inputs: Mapping[str, Tensor]) -> Callable[[], None]:
    """What is timed: forward, and backward from an upstream gradient that is there already."""
    leaves = [each.detach().requires_grad_() for each in inputs.values()]
    upstream = torch.randn_like(form(*leaves))

    def call() -> None:
        torch.autograd.grad(form(*leaves), leaves, upstream)

    return call


def check_forms(
    op: str,
    forms: Mapping[str, Callable[..., Tensor]],  # "fastclip" and peers, each of `inputs`
    truth_of: Callable[..., Tensor],  # the formula, for float64
    inputs: Mapping[str, Tensor],
    allowance: float,
) -> dict[str, str]:
    """`wrong_peers` of forms by their result and gradients. The yardstick is the reference."""
    truth = with_gradients(truth_of, {name: each.double() for name, each in inputs.items()})
    yardstick = with_gradients(forms[REFERENCE], inputs)
    calls = {name: partial(with_gradients, form, inputs) for name, form in forms.items()}
    return wrong_peers(op, calls, truth, yardstick, allowance)


def wrong_peers(
    op: str,
    calls: Mapping[str, Callable[[], Results]],  # ours, peers, and the reference
    truth: Results,  # float64
    yardstick: Results,
    allowance: float,
    floors: Mapping[str, float] | None = None,
) -> dict[str, str]:
    """Peers that are wrong, and in what; the reference is taken to be right. WrongResult, by the op's name and ours,
    where it is one of ours.
    """
    bad: dict[str, str] = {}
    for name, call in calls.items():
        if name == REFERENCE:
            continue
        ours = name.startswith(OURS)
        try:
            got = call()
        except Exception as error:
            if ours:
                raise
            bad[name] = reason(error)  # a peer may fail in any way
            continue
        found = wrongs(got, truth, yardstick, allowance, floors)
        if ours:
            require_right(f"{op}, {name}", found)
        elif found:
            bad[name] = f"wrong, so not timed: {'; '.join(found)}"
    return bad
