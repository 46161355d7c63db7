"""What is recomputed changes memory and work, never a bit of a gradient."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, get_args

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.utils.flop_counter import FlopCounterMode

from fastclip.model.block import Transformer
from fastclip.model.pooled_rows import LastRow
from fastclip.model.precision import LayerNorm, LayerNormFp32
from fastclip.model.recompute import Recompute, product_of, product_of_recomputed
from tests.model.model_pairs import tiny, tiny_pair
from tests.model.test_packed_text import captions, packed

WAYS: tuple[Recompute, ...] = get_args(Recompute)


class Case(NamedTuple):
    ls_init_value: float | None = None
    quick_gelu: bool = False
    norm: type[nn.LayerNorm] = LayerNorm
    causal: bool = False
    autocast: bool = False
    weights: torch.dtype = torch.float32
    pruned: bool = False
    frozen: tuple[str, ...] = ()  # parts of names

    def stack(self, seed: int) -> Transformer:
        torch.manual_seed(seed)
        out = Transformer(
            32, 2, 2, 4.0, self.ls_init_value, self.quick_gelu, self.norm, self.causal
        )
        for name, parameter in out.named_parameters():
            parameter.requires_grad_(not any(part in name for part in self.frozen))
            if parameter.ndim == 2:
                parameter.data = parameter.data.to(self.weights)
        return out


CASES = {
    "plain": Case(),
    "causal": Case(causal=True),
    "autocast": Case(autocast=True),
    "quick_gelu": Case(quick_gelu=True, autocast=True),
    "layer scale": Case(ls_init_value=1e-1),
    "one row of the last block": Case(pruned=True),
    "one row, autocast": Case(pruned=True, autocast=True, ls_init_value=1e-1),
    "norms in fp32, the rest not": Case(norm=LayerNormFp32, weights=torch.bfloat16),
    "first block frozen": Case(frozen=("resblocks.0",)),
    "weights frozen": Case(frozen=("weight",)),
    "norms frozen": Case(frozen=("ln_",)),
}


def gradients_and_products(
    case: Case, way: Recompute, seed: int, *, x_has_gradient: bool = True
) -> tuple[list[Tensor | None], int]:
    """Gradients of input and parameters, and the FLOPs of matrix products in both passes."""
    stack = case.stack(seed)
    stack.set_recompute(way)
    if case.weights != torch.float32:  # biases with their weights, as the precision has it
        for name, parameter in stack.named_parameters():
            if "ln_" not in name:
                parameter.data = parameter.data.to(case.weights)
    stack.prune_last_block = case.pruned
    x = torch.randn(3, 7, 32, dtype=case.weights).requires_grad_(x_has_gradient)
    with FlopCounterMode(display=False) as counter:
        with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
            out = stack(x, LastRow() if case.pruned else None)
        (out.float() * torch.randn(out.shape)).sum().backward()
    return [x.grad, *(p.grad for p in stack.parameters())], counter.get_total_flops()


def same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_same_bits_and_no_product_is_made_twice(name, seed):
    case = CASES[name]
    wanted, products = gradients_and_products(case, "none", seed)
    for way in ("pointwise", "full"):
        got, found = gradients_and_products(case, way, seed)
        assert all(same(a, b) for a, b in zip(got, wanted, strict=True)), way
        assert (found > products) if way == "full" else (found == products)


def test_an_input_without_gradient(seed):
    for name in ("plain", "first block frozen"):
        wanted, _ = gradients_and_products(CASES[name], "none", seed, x_has_gradient=False)
        got, _ = gradients_and_products(CASES[name], "pointwise", seed, x_has_gradient=False)
        assert all(same(a, b) for a, b in zip(got, wanted, strict=True))


def test_without_gradients_nothing_is_kept(seed):
    stack, x = CASES["plain"].stack(seed), torch.randn(2, 5, 32)
    outs = []
    for way in WAYS:
        stack.set_recompute(way)
        with torch.no_grad():
            outs.append(stack(x))
    assert all(torch.equal(out, outs[0]) and not out.requires_grad for out in outs)


def test_the_second_time_is_under_the_same_autocast(seed):
    """A GPU's autocast computes norms in another dtype; here something whose dtype a CPU's changes."""
    torch.manual_seed(seed)
    x, mix = torch.randn(5, 32, requires_grad=True), torch.randn(32, 32)
    linear = nn.Linear(32, 48)
    gradients = []
    for product in (product_of, product_of_recomputed):
        x.grad = linear.weight.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            out = product(lambda x: x @ mix, x, linear)
        out.float().square().sum().backward()
        gradients.append((x.grad, linear.weight.grad))
    assert all(map(same, *gradients))


def test_hooks_on_modules_see_forward_once(seed):
    counts = {}
    for way in ("none", "pointwise"):
        stack, calls = CASES["plain"].stack(seed), []
        stack.set_recompute(way)
        for name, module in stack.named_modules():
            module.register_forward_hook(lambda m, i, o, name=name, calls=calls: calls.append(name))
        stack(torch.randn(2, 5, 32)).sum().backward()
        counts[way] = calls
    assert counts["pointwise"] == counts["none"]
    assert counts["none"].count("resblocks.1.mlp.c_fc") == 1


def test_what_was_changed_in_between_is_an_error(seed):
    """As without recomputing: a product of other values than forward's would be a wrong gradient."""
    stack = CASES["plain"].stack(seed)
    stack.set_recompute("pointwise")
    out = stack(torch.randn(2, 5, 32))
    with torch.no_grad():
        stack.blocks[1].ln_2.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_a_whole_model_with_dropped_patches_and_packed_captions(seed):
    """Gradients of every parameter, under autocast; the same patches are dropped in each way."""
    raw = tiny(vision={"patch_dropout": 0.4})
    results: dict[Recompute, Any] = {}
    for way in WAYS:
        _, model = tiny_pair(raw, seed, output_dict=True)
        model.set_recompute(way)
        model.prune_last_block()
        model.train().set_patch_dropout_seed(seed)
        text = packed(model.packing_config, captions(model.packing_config, seed))
        torch.manual_seed(seed)
        images = torch.randn(len(text.ends), 3, 64, 64)
        with torch.autocast("cpu", torch.bfloat16):
            out = model(images, text)
            (out["image_features"] @ out["text_features"].T * out["logit_scale"]).sum().backward()
        results[way] = [p.grad for p in model.parameters()]
    for way in ("pointwise", "full"):
        assert all(same(a, b) for a, b in zip(results[way], results["none"], strict=True)), way


def test_a_compiler_is_given_the_plain_form(seed):
    """In one graph, without a product made twice, and with the same gradients but for rounding."""
    products = {"forward": 0, "backward": 0}

    def count(graph: Any, _inputs: Any, *, way: str) -> Any:
        names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        products[way] = sum(name.startswith(("aten.mm.", "aten.addmm.")) for name in names)
        return make_boxed_func(graph.forward)

    case = CASES["plain"]
    wanted, _ = gradients_and_products(case, "none", seed)
    stack = case.stack(seed)
    stack.set_recompute("pointwise")
    backend = aot_autograd(
        fw_compiler=partial(count, way="forward"),
        bw_compiler=partial(count, way="backward"),
        partition_fn=min_cut_rematerialization_partition,
    )
    x = torch.randn(3, 7, 32, requires_grad=True)
    out = torch.compile(stack, backend=backend, fullgraph=True)(x)
    (out * torch.randn(out.shape)).sum().backward()
    assert products == {"forward": 4 * 2, "backward": 2 * 4 * 2}
    for a, b in zip([x.grad, *(p.grad for p in stack.parameters())], wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


class WithAdapter(nn.Linear):
    """A layer that is more than its weight and bias."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features)
        self.load_state_dict(layer.state_dict())
        self.narrow = nn.Parameter(torch.randn(3, layer.in_features))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (x @ self.narrow.t()).sum(-1, keepdim=True)


def test_a_layer_with_more_parameters_keeps_its_gradients(seed):
    torch.manual_seed(seed)
    stack = Case().stack(seed)
    stack.blocks[0].mlp.c_fc = WithAdapter(stack.blocks[0].mlp.c_fc)
    x = torch.randn(2, 5, 32)
    found = {}
    for way in WAYS:
        stack.set_recompute(way)
        stack.zero_grad()
        stack(x).square().sum().backward()
        found[way] = [p.grad.clone() for p in stack.parameters()]
    for way in WAYS:
        assert all(torch.equal(a, b) for a, b in zip(found[way], found["none"], strict=True)), way


def test_a_hook_that_changes_a_result_keeps_its_gradient(seed):
    stack, x = Case().stack(seed), torch.randn(2, 5, 32)
    factor = torch.ones((), requires_grad=True)
    stack.blocks[0].mlp.c_fc.register_forward_hook(lambda module, given, out: out * factor)
    found = []
    for way in WAYS:
        stack.set_recompute(way)
        found += torch.autograd.grad(stack(x).square().sum(), factor)
    assert found[0] == found[1] == found[2] != 0
