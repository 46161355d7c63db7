"""The patch embedding on a CPU: values, gradients, what is refused, and what torch's tools make of it."""

from __future__ import annotations

import importlib
import secrets
import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from fastclip_kernels import BackendUnavailable, patch_embed
from fastclip_kernels.patch_embed.ops import choose, patch_embed_backward, patch_embed_op
from fastclip_kernels.patch_embed.reference import patch_embed_reference
from tests.kernels.mutants import Planted, plant
from tests.kernels.patch_cases import (
    MEAN,
    STD,
    PatchCase,
    compare,
    draw,
    failures,
    patches_and_widths,
    ratios,
    results,
)

FP64, FP32, BF16, FP16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
FOLDED, TORCH, OPS = (f"patch_embed/{name}.py" for name in ("folded", "torch_form", "ops"))
SMALL = PatchCase(4, 20, FP64, grid=(3, 2), batch=3, bias=True, spare=1)

PLANTED = [
    Planted("mean not taken off", FOLDED, "(centre - mean) * SCALE", "0 * mean"),
    Planted("std of another channel", FOLDED, "1 / (std * SCALE)", "1 / (std.roll(1) * SCALE)"),
    Planted("bytes in planes", FOLDED, "weight.permute(0, 2, 3, 1)", "weight.permute(0, 2, 3, 1).flip(3)"),
    Planted("positions one off", FOLDED, "positions[1:]", "positions[:-1]"),
    Planted("bias left out", FOLDED, "offset + bias.to(offset.dtype)", "offset"),
    Planted("mean left in the gradient", FOLDED, "by_bytes + total", "by_bytes + 0 * total"),
    Planted("gradient transposed", FOLDED, "permute(0, 3, 1, 2)", "permute(0, 3, 2, 1)"),
    Planted("kept gradient shifted", FOLDED, "torch.arange(patches + 1", "torch.arange(1, patches + 2"),
    Planted("patches by columns", TORCH, ".transpose(2, 3)", ".permute(0, 3, 1, 2, 4, 5)"),
    Planted("kept patches of one column", TORCH, ":, kept % columns]", ":, kept * 0]"),
    Planted("all positions for kept patches", TORCH, "table[kept]", "table[kept * 0]"),
    Planted("class token's gradient", TORCH, "grad[:, 1:]", "grad[:, :-1]"),
    Planted("class token without position", OPS, ".dtype) + positions[0]", ".dtype)"),
]  # fmt: skip


@pytest.fixture
def seed():
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    return seed


@pytest.mark.parametrize(("patch", "width"), patches_and_widths())
def test_as_exact_as_the_reference_for_every_model(patch, width, seed):
    """And more exact on average, in float32, bfloat16 and under autocast to bfloat16."""
    whole = PatchCase(patch, width, FP32)
    some = replace(whole, grid=(4, 3), kept=5, bias=True)
    for case in (some, replace(whole, dtype=BF16), replace(some, autocast=BF16)):
        found = compare(case, patch_embed, seed)
        assert not failures(case, found)
        assert statistics.geometric_mean(ratios(found)) <= 1


@pytest.mark.parametrize(("patch", "width"), [(14, 384), (16, 512), (32, 384)])
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_tokens_in_bfloat16_are_closer_than_the_references(patch, width, dtype, seed):
    """1.7e-3 · √2 (weights, result) against 1.7e-3 · √4 (pixels, weights, product, sum), or √3 where
    the weights are bfloat16 themselves."""
    case = PatchCase(patch, width, dtype, autocast=BF16, grid=(4, 4), batch=3)
    tokens = compare(case, patch_embed, seed)[0]
    print(f"{tokens.ours:.2e}, reference {tokens.reference:.2e}")
    assert tokens.ours < 0.95 * tokens.reference


def some_cases(dtype: torch.dtype) -> list[PatchCase]:
    small = replace(SMALL, dtype=dtype)
    # of a single column nothing but float64 tells: few numbers round by luck
    fewest = replace(small, dtype=FP64, kept=4, width=1, patch=1, spare=0)
    return [
        small,
        fewest,
        replace(small, kept=1, batch=1),
        replace(small, grid=(1, 1), spare=0, bias=False),
        *(replace(small, layout=layout) for layout in ("planes", "cut out", "columns")),
        *(replace(small, layout="cut out", kept=kept) for kept in (2, 6)),
        replace(small, hard=True, batch=9),
    ]


@pytest.mark.parametrize("dtype", [FP64, FP32, BF16, FP16])
def test_small_and_strided_and_hard_cases(dtype, seed):
    for case in some_cases(dtype):
        assert not failures(case, compare(case, patch_embed, seed))


@pytest.mark.parametrize("error", PLANTED, ids=lambda error: error.name)
def test_planted_errors_are_seen(error, seed, tmp_path):
    def found(run: Any) -> list[str]:
        kept = replace(SMALL, kept=4)
        return [line for case in (SMALL, kept) for line in failures(case, compare(case, run, seed))]

    assert not found(patch_embed)
    assert found(plant(error, tmp_path).patch_embed)


def test_a_patch_may_be_kept_twice(seed):
    inputs = draw(replace(SMALL, kept=4), torch.Generator().manual_seed(seed))
    inputs.constants["kept"] = torch.tensor([[5, 0, 5, 5], [1, 1, 2, 2], [3, 4, 0, 3]])
    ours, truth = (
        results(run, inputs, inputs.parameters, inputs.upstream)
        for run in (patch_embed, patch_embed_reference)
    )
    for what, value in truth.items():
        torch.testing.assert_close(ours[what], value, rtol=1e-10, atol=1e-12)


def test_only_the_gradients_that_are_wanted(seed, monkeypatch):
    inputs = draw(SMALL, torch.Generator().manual_seed(seed))
    whole = results(patch_embed, inputs, inputs.parameters, inputs.upstream)
    module = importlib.import_module("fastclip_kernels.patch_embed.torch_form")
    sums: list[None] = []
    monkeypatch.setattr(module, "weight_sums", lambda *_: sums.append(None))
    names = ("d weight", "d class", "d positions", "d bias")
    for wanted in range(1, 4):
        leaves = [p.detach().requires_grad_(i == wanted) for i, p in enumerate(inputs.parameters)]
        tokens = patch_embed(inputs.pixels, *leaves[:3], bias=leaves[3], **inputs.constants)
        tokens.backward(inputs.upstream)
        gradients = [leaf.grad for leaf in leaves]
        assert torch.equal(gradients.pop(wanted), whole[names[wanted]])
        assert gradients == [None] * 3
    assert not sums
    constants = [p.detach() for p in inputs.parameters[:3]]
    assert not patch_embed(inputs.pixels, *constants, **inputs.constants).requires_grad


def test_gradients_share_no_memory(seed):
    """Clipping and accumulation change each of them in place."""
    inputs = draw(SMALL, torch.Generator().manual_seed(seed))
    gradients = results(patch_embed, inputs, inputs.parameters, inputs.upstream)
    del gradients["tokens"]
    assert len({each.untyped_storage().data_ptr() for each in gradients.values()}) == 4


def test_bytes_are_all_that_is_saved(seed):
    inputs = draw(replace(SMALL, dtype=FP32, kept=4), torch.Generator().manual_seed(seed))
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        patch_embed(inputs.pixels, *inputs.parameters[:3], **inputs.constants)
    assert [t.dtype for t in saved] == [torch.uint8, FP32, FP32, torch.int64]
    assert saved[0].data_ptr() == inputs.pixels.data_ptr()
    assert sum(t.nbytes for t in saved[1:]) == 2 * 12 + inputs.constants["kept"].nbytes


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("kept", [None, 4])
def test_opcheck(dtype, kept, seed):
    inputs = draw(replace(SMALL, dtype=dtype, kept=kept), torch.Generator().manual_seed(seed))
    weight, class_token, positions, bias = inputs.parameters
    constants = list(inputs.constants.values())
    opcheck(
        patch_embed_op,
        (inputs.pixels, weight, bias, class_token, positions, *constants, dtype, "torch"),
    )
    for to_weight in (True, False):
        arguments = (inputs.upstream, inputs.pixels, *constants, SMALL.patch, to_weight, "torch")
        opcheck(patch_embed_backward, arguments)


@pytest.mark.parametrize("kept", [None, 4])
def test_compiled_without_a_break(kept, seed):
    inputs = draw(replace(SMALL, dtype=FP32, kept=kept), torch.Generator().manual_seed(seed))
    compiled = torch.compile(patch_embed, fullgraph=True, backend="aot_eager")
    eager, ours = (
        results(run, inputs, inputs.parameters, inputs.upstream) for run in (patch_embed, compiled)
    )
    assert all(torch.equal(ours[what], value) for what, value in eager.items())


@pytest.mark.parametrize("kept", [None, 4])
def test_flops_are_counted_as_those_of_its_products(kept, seed):
    """And are the convolution's, of the patches that are computed."""
    inputs = draw(replace(SMALL, dtype=FP32, kept=kept), torch.Generator().manual_seed(seed))
    weight, class_token, positions, bias = inputs.parameters
    constants = list(inputs.constants.values())
    forward = (inputs.pixels, weight, bias, class_token, positions, *constants, FP32, "torch")
    backward = (inputs.upstream, inputs.pixels, *constants, SMALL.patch, True, "torch")
    counts = []
    with torch.no_grad():
        for op, arguments in ((patch_embed_op, forward), (patch_embed_backward, backward)):
            for run in (op, op._init_fn):  # as an op, and its body alone
                with FlopCounterMode(display=False) as counter:
                    run(*arguments)
                counts.append(counter.get_total_flops())
    assert counts == [2 * SMALL.batch * (kept or 6) * SMALL.width * 3 * SMALL.patch**2] * 4


def test_repeatable_where_torch_insists_on_it(seed):
    inputs = draw(replace(SMALL, dtype=FP32, kept=4), torch.Generator().manual_seed(seed))
    plain = results(patch_embed, inputs, inputs.parameters, inputs.upstream)
    torch.use_deterministic_algorithms(True)
    try:
        again = results(patch_embed, inputs, inputs.parameters, inputs.upstream)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(again[what], value) for what, value in plain.items())


def arguments(**changed: Any) -> dict[str, Any]:
    right = {
        "pixels": torch.zeros(2, 8, 9, 3, dtype=torch.uint8),
        "weight": torch.zeros(5, 3, 4, 4),
        "class_token": torch.zeros(5),
        "positions": torch.zeros(5, 5),
        "mean": MEAN,
        "std": STD,
    }
    return {**right, **changed}


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        ({"pixels": torch.zeros(2, 8, 8, 3)}, TypeError, "pixels must be torch.uint8, got torch.float32"),
        ({"pixels": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, ValueError, r"pixels must be \(B, H, W, 3\)"),
        ({"pixels": torch.zeros(0, 8, 8, 3, dtype=torch.uint8)}, ValueError, "B at least 1"),
        ({"pixels": torch.zeros(2, 8, 3, 3, dtype=torch.uint8)}, ValueError, "hold no patch of 4"),
        ({"weight": torch.zeros(5, 3, 4, 3)}, ValueError, r"weight must be \(D, 3, p, p\)"),
        ({"weight": torch.zeros(5, 3, 4, 4, dtype=torch.int8)}, TypeError, "weight must be a float"),
        ({"class_token": torch.zeros(4)}, ValueError, r"class_token must be \(5,\), got \(4,\)"),
        ({"positions": torch.zeros(4, 5)}, ValueError, r"positions must be \(5, 5\), got \(4, 5\)"),
        ({"bias": torch.zeros(1)}, ValueError, r"bias must be \(5,\)"),
        ({"mean": (0.5,)}, ValueError, "mean must be 3 numbers"),
        ({"std": torch.ones(3, device="meta")}, ValueError, "std must be on cpu"),
        ({"kept": torch.zeros(2, 1, dtype=torch.int32)}, TypeError, "kept must be torch.int64"),
        ({"kept": torch.zeros(3, 1, dtype=torch.int64)}, ValueError, r"kept must be \(2, K\)"),
        ({"positions": torch.zeros(5, 5, device="meta")}, ValueError, "positions must be on cpu"),
        ({"backend": "cuda"}, ValueError, "backend must be one of"),
        ({"backend": "triton"}, BackendUnavailable, "needs a CUDA device"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_clear_error(changed, kind, message):
    with pytest.raises(kind, match=message) as raised:
        patch_embed(**arguments(**changed))
    assert str(raised.value).startswith("patch_embed: ")


def test_mean_and_std_as_plain_numbers():
    pixels = torch.randint(0, 256, (2, 8, 9, 3), dtype=torch.uint8)
    given = arguments(pixels=pixels, weight=torch.randn(5, 3, 4, 4))
    as_tensors = {**given, "mean": torch.tensor(MEAN), "std": torch.tensor(STD)}
    assert torch.equal(patch_embed(**given), patch_embed(**as_tensors))


def test_a_mean_beyond_white(seed):
    """No byte is near it, and the centre stays a byte."""
    inputs = draw(SMALL, torch.Generator().manual_seed(seed))
    inputs.constants["mean"] = torch.tensor([3.0, -2.0, 0.0])
    ours, truth = (
        results(run, inputs, inputs.parameters, inputs.upstream)
        for run in (patch_embed, patch_embed_reference)
    )
    for what, value in truth.items():
        torch.testing.assert_close(ours[what], value, rtol=1e-10, atol=1e-10)


def test_no_second_derivative_and_no_transform(seed):
    inputs = draw(SMALL, torch.Generator().manual_seed(seed))
    tokens = patch_embed(inputs.pixels, *inputs.parameters[:3], **inputs.constants)
    upstream = inputs.upstream.requires_grad_()
    (gradient,) = torch.autograd.grad(tokens, inputs.parameters[0], upstream, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        gradient.sum().backward()
    with pytest.raises(RuntimeError, match=r"not supported inside torch.func transforms"):
        torch.func.vmap(lambda w: patch_embed(**arguments(weight=w)))(torch.zeros(2, 5, 3, 4, 4))


def test_float32_on_a_gpu_takes_the_vendors_gemm(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert choose("auto", gpu, BF16).backend == "triton"
    choice = choose("auto", gpu, FP32)
    assert choice == ("torch", "Triton's exact float32 product uses no tensor cores")
    assert choose("triton", gpu, FP32).backend == "triton", "a backend that is named is taken"
