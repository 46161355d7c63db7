"""Half-precision attention on a CPU by way of float32: closer to float64 than torch's own, and a citizen of torch."""

from __future__ import annotations

import secrets
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from fastclip_kernels.self_attention import sdpa, widened
from fastclip_kernels.self_attention.widened import attention_widened, attention_widened_backward

BF16, FP16 = torch.bfloat16, torch.float16
SHAPES = [(1, 1, 1, 8), (2, 65, 3, 64), (3, 77, 2, 32), (5, 7, 1, 80)]  # B, T, H, D / H


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """q, k, v as views of one buffer, as a tower has them, and an upstream gradient."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    generator = torch.Generator().manual_seed(seed)
    b, t, h, w = shape
    qkv = torch.randn(b, t, 3, h, w, generator=generator).to(dtype)
    upstream = torch.randn(b, t, h, w, generator=generator).to(dtype)
    return [*qkv.unbind(2), upstream]


def results(attend: Any, q: Tensor, k: Tensor, v: Tensor, upstream: Tensor) -> list[Tensor]:
    leaves = [each.detach().requires_grad_() for each in (q, k, v)]
    out = attend(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def of_segments(module: Any, rows: int, length: int) -> Any:
    """Attention over rows of three segments each; the last row has one of length 1."""
    cut = torch.tensor([0, length // 3, max(length // 3, length - 1)])
    place = torch.arange(length)
    segment_start = cut[torch.bucketize(place, cut, right=True) - 1]
    return module.masked(SimpleNamespace(positions=(place - segment_start).expand(rows, -1)))


@pytest.mark.parametrize("kind", ["full", "causal", "segments"])
@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_errors_against_float64(shape, dtype, kind):
    ways = {
        "full": lambda module: module.attend_all,
        "causal": lambda module: module.attend_before,
        "segments": lambda module: of_segments(module, shape[0], shape[1]),
    }[kind]
    given = inputs(shape, dtype)
    truth = results(ways(sdpa), *(each.double() for each in given))
    ours, torchs = results(ways(widened), *given), results(ways(sdpa), *given)
    for mine, theirs, true in zip(ours, torchs, truth, strict=True):
        assert mine.dtype == dtype
        floor = 1e-3 * true.numel() ** 0.5
        scale = max(true.norm().item(), floor)
        error, reference = ((each.double() - true).norm().item() / scale for each in (mine, theirs))
        # rounding the result to `dtype` alone: up to half a unit in the last place
        assert error <= 1.05 * reference + torch.finfo(dtype).eps / 8


def test_what_is_saved_is_not_widened():
    q, k, v, _ = (each.requires_grad_() for each in inputs((2, 9, 3, 16), BF16))
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        attention_widened(q, k, v, None, False)
    assert sorted(each.dtype != BF16 for each in saved) == [False] * 4 + [True]  # log-sum-exp


def test_opcheck_and_whole_graph():
    q, k, v, upstream = inputs((2, 5, 3, 8), BF16)
    mask = torch.zeros(2, 1, 5, 5)
    leaves = [each.detach().requires_grad_() for each in (q, k, v)]
    for causal, given in ((False, None), (True, None), (False, mask)):
        opcheck(attention_widened, (*leaves, given, causal))
        out, lse = attention_widened(q, k, v, given, causal)
        opcheck(attention_widened_backward, (upstream, q, k, v, out, lse, given, causal))
    compiled = torch.compile(widened.attend_all, backend="aot_eager", fullgraph=True)
    for eager, whole in zip(
        results(widened.attend_all, q, k, v, upstream),
        results(compiled, q, k, v, upstream),
        strict=True,
    ):
        assert torch.equal(eager, whole)


def test_second_derivatives_are_refused():
    q, k, v, _ = (each.requires_grad_() for each in inputs((1, 3, 1, 8), BF16))
    out = widened.attend_all(q, k, v)
    (first,) = torch.autograd.grad(out.float().square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        first.float().sum().backward()


def test_the_bits_are_the_same_every_time():
    given = inputs((4, 65, 3, 64), BF16)
    first = results(widened.attend_all, *given)
    for _ in range(3):
        again = results(widened.attend_all, *given)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_autocast_rounds_nothing_inside():
    given = inputs((2, 9, 3, 16), BF16)
    plain = results(widened.attend_all, *given)
    with torch.autocast("cpu", BF16):
        inside = results(widened.attend_all, *given)
    assert all(torch.equal(a, b) for a, b in zip(plain, inside, strict=True))


def test_this_torch_can():
    assert widened.missing() is None
