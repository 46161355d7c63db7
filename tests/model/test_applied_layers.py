"""Whose `forward` a block runs: a plain layer's product may be oneDNN's; every other layer is called as a module."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from fastclip.model.block import Transformer
from fastclip.model.recompute import applied


def tower() -> nn.Module:
    return Transformer(32, 2, 4, 4.0, None, False, nn.LayerNorm, False)


class Wrapped(nn.Module):
    """An adapter around a layer, with no weight of its own."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.calls = base, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.base(x)


def test_a_layer_without_a_weight():
    model, x = tower(), torch.randn(2, 5, 32)
    plain = model(x)
    block = model.resblocks[0]
    block.attn.out_proj, block.mlp.c_proj = Wrapped(block.attn.out_proj), Wrapped(block.mlp.c_proj)
    torch.testing.assert_close(model(x), plain)
    assert (block.attn.out_proj.calls, block.mlp.c_proj.calls) == (1, 1)


def test_a_forward_that_someone_has_put_on_the_layer():
    model, calls = tower(), []
    layer = model.resblocks[0].mlp.c_proj
    before = layer.forward
    layer.forward = lambda x: calls.append(x) or before(x)
    model(torch.randn(2, 5, 32))
    assert len(calls) == 1


def test_hooks_on_all_modules():
    model, seen = tower(), []
    handle = register_module_forward_hook(
        lambda module, *_: seen.append(module) if isinstance(module, nn.Linear) else None
    )
    try:
        model(torch.randn(2, 5, 32))
    finally:
        handle.remove()
    assert len(seen) == 6  # of two blocks: the projection, and both layers of the MLP


def test_transforms_of_torch_func():
    model, x = tower(), torch.randn(2, 5, 32)
    parameters = dict(model.named_parameters())

    def loss(values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, values, (x,)).square().mean()

    found = torch.func.grad(loss)(parameters)
    model(x).square().mean().backward()
    for name, each in parameters.items():
        torch.testing.assert_close(found[name], each.grad)


def test_a_traced_tower():
    model, x = tower().eval(), torch.randn(2, 5, 32)
    traced = torch.jit.trace(model, x, check_trace=False)
    torch.testing.assert_close(traced(x), model(x))


@pytest.mark.parametrize("shape", [(7,), (2, 7)])
def test_a_single_row_and_a_vector(shape):
    layer, x = nn.Linear(7, 3), torch.randn(*shape)
    torch.testing.assert_close(applied(layer, x), layer(x))
