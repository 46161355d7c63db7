"""Backward passes with column sums: Triton's interpreter and the torch form against fp64, eager and compiled."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastclip_kernels.pointwise import activation_after_bias, heads_after_bias, op
from tests.distributed.launch import run_ranks
from tests.kernels.mutants import Planted, plant

# one element; a stripe and one past it; primes; with PROGRAMS, several turns and shares of unequal size
SHAPES = [(1, 1), (7, 256), (33, 257), (61, 5)]
PROGRAMS = 5  # in place of the thousand that the interpreter would take one by one
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
KERNELS = "pointwise/triton_kernels.py"
PLANTED = [
    Planted("density dropped", KERNELS, " + x * _DENSITY_AT_0 * tl.exp(-0.5 * x * x)", ""),
    Planted("steepness dropped", KERNELS, "share + steep * share", "share + x * share"),
    Planted("sums of the last rows only", KERNELS, "        total += rounded.to", "        total = rounded.to"),
    Planted("keys for values", KERNELS, "        source = of_v", "        source = of_k"),
    Planted("last rows left out", KERNELS, "(row < end)[:, None] & (column < N)[None, :]\n        at = row",
            "(row < end - 1)[:, None] & (column < N)[None, :]\n        at = row"),
]  # fmt: skip


@pytest.fixture
def seed() -> int:
    seed = secrets.randbits(31)
    print(f"seed {seed}")
    return seed


def plain(x: Tensor, quick: bool) -> Tensor:
    return x * torch.sigmoid(1.702 * x) if quick else F.gelu(x)


def exact(gradient: Tensor, x: Tensor, quick: bool) -> Tensor:
    """By autograd through the formula in fp64, which none of the code under test does."""
    x = x.double().requires_grad_()
    normal = torch.distributions.Normal(0.0, 1.0)
    out = x * torch.sigmoid(1.702 * x) if quick else x * normal.cdf(x)
    return torch.autograd.grad(out, x, gradient.double())[0]


def worst(ours: Tensor, theirs: Tensor, truth: Tensor) -> float:
    """Our error over what it may be: twice the eager one in this dtype, and a few roundings of the largest value."""
    floor = 2 * torch.finfo(theirs.dtype).eps * truth.abs().max()
    allowed = 2 * (theirs.double() - truth).abs().max() + floor
    return float((ours.double() - truth).abs().max() / allowed)


def errors(
    kernels: Any, backend: str, seed: int, dtypes: tuple[torch.dtype, ...] = DTYPES
) -> dict[str, float]:
    """`worst` of every case."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for rows, columns in SHAPES:
        for dtype in dtypes:
            for quick in (False, True):
                x = (4 * torch.randn(rows, columns, generator=generator)).to(dtype)
                gradient = torch.randn(rows, columns, generator=generator).to(dtype)
                truth = exact(gradient, x, quick)
                leaf = x.clone().requires_grad_()
                (theirs,) = torch.autograd.grad(plain(leaf, quick), leaf, gradient)
                ours, sums = kernels.activation_backward(gradient, x, quick, backend)
                name = f"{rows} x {columns} {dtype} {'quick' if quick else 'gelu'}"
                found[name] = worst(ours, theirs, truth)
                rounded = ours.double().sum(0)  # what the sums are of
                found[name + " sums"] = worst(sums, ours.float().sum(0), rounded)
            drawn = torch.randn(3, 1, rows, 1, columns, generator=generator).to(dtype)
            parts = list(drawn.unbind(0))
            ours, sums = kernels.heads_backward(*parts, backend)
            wanted = torch.cat(parts, -1).view(1, rows, -1)
            found[f"{rows} x {columns} {dtype} heads"] = float(not torch.equal(ours, wanted)) * 9
            truth = wanted.double().sum((0, 1))
            found[f"{rows} x {columns} {dtype} heads' sums"] = worst(
                sums, wanted[0].float().sum(0), truth
            )
    return found


def interpreted(rank: int, world_size: int, seed: int, folder: str) -> dict[str, dict[str, float]]:
    def with_few_programs(package: str) -> Any:
        launches = importlib.import_module(f"{package}.pointwise.triton_kernels")
        launches.LAUNCH = launches.LAUNCH._replace(programs=PROGRAMS)
        return importlib.import_module(f"{package}.pointwise.op")

    found = {"nothing": errors(with_few_programs("fastclip_kernels"), "triton", seed)}
    for error in PLANTED:
        mutant = plant(error, Path(folder))
        kernels = with_few_programs(mutant.__name__)
        found[error.name] = errors(kernels, "triton", seed, (torch.float32,))
    return found


def test_triton_is_right_and_planted_errors_are_seen(tmp_path, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        found = run_ranks(interpreted, 1, (seed, str(tmp_path)), timeout=300)[0]
    right = found.pop("nothing")
    assert max(right.values()) <= 1, {k: v for k, v in right.items() if v > 1}
    for error, values in found.items():
        assert max(values.values()) > 1, error


def test_torch_form_is_right(seed):
    found = errors(op, "torch", seed)
    assert max(found.values()) <= 1, {k: v for k, v in found.items() if v > 1}


def layer(fused: bool, quick: bool) -> Callable[..., Tensor]:
    """A projection to heads, and one with an activation, each with a bias."""

    def plainly(x: Tensor, weight: Tensor, bias: Tensor, up: Tensor, up_bias: Tensor) -> Tensor:
        q, k, v = F.linear(x, weight, bias).view(*x.shape[:2], 3, 2, -1).unbind(2)
        return plain(F.linear((q * k + v).flatten(2), up, up_bias), quick)

    def fusing(x: Tensor, weight: Tensor, bias: Tensor, up: Tensor, up_bias: Tensor) -> Tensor:
        projected = F.linear(x, weight, bias.detach())
        q, k, v = heads_after_bias(projected, bias, heads=2)
        hidden = F.linear((q * k + v).flatten(2), up, up_bias.detach())
        return activation_after_bias(hidden, up_bias, quick=quick)

    return fusing if fused else plainly


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_are_those_of_ordinary_layers(quick, compiled, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 5, 8), (24, 8), (24,), (14, 8), (14,)]
    inputs = [
        torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes
    ]
    upstream = torch.randn(3, 5, 14, generator=generator, dtype=torch.float64)
    function = layer(True, quick)
    if compiled:
        function = torch.compile(function, backend="aot_eager", fullgraph=True)
    out, wanted = function(*inputs), layer(False, quick)(*inputs)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(out, inputs, upstream), torch.autograd.grad(wanted, inputs, upstream)
    )


def test_ops_are_proper_ops(seed):
    x, gradient = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    torch.library.opcheck(op.activation_backward, (gradient, x, True, "torch"))
    parts = [torch.randn(2, 3, 2, 4) for _ in range(3)]
    torch.library.opcheck(op.heads_backward, (*parts, "torch"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: activation_after_bias(x, torch.ones(3)), r"bias must be \(12,\)"),
        (lambda x: heads_after_bias(x, torch.ones(12), heads=5), "multiple of 5 heads"),
        (lambda x: heads_after_bias(x, torch.ones(3), heads=2), r"bias must be \(12,\)"),
        (lambda x: activation_after_bias(x, torch.ones(12), backend="cuda"), "backend must be"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.ones(2, 3, 12))
