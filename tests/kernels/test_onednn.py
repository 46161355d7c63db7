"""float32 products by oneDNN: what `torch.mm` and `F.linear` give, up to rounding, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from fastclip_kernels import onednn
from fastclip_kernels.onednn import close_product, product

needs_onednn = pytest.mark.skipif(
    not onednn.AVAILABLE, reason="no AVX-512: products are MKL's here"
)


def transposed(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(columns, rows).T


def every_second(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, 2 * columns)[:, ::2]


def one_row_for_all(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(1, columns).expand(rows, columns)


@pytest.mark.parametrize("layout", [torch.randn, transposed, every_second, one_row_for_all])
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 333, 1), (64, 64, 512), (257, 80, 131)])
def test_products_of_any_strides_are_those_of_float64(shape, layout):
    m, k, n = shape
    for a, b in ((layout(m, k), torch.randn(k, n)), (torch.randn(m, k), layout(k, n))):
        truth = a.double() @ b.double()
        error = (product(a, b) - truth).norm() / (a.double().norm() * b.double().norm())
        assert error < 1e-6
        assert torch.equal(product(a, b), product(a, b))


def test_close_products_are_no_farther_off_than_those_of_torch():
    ratios = []
    for k in (256, 512, 1280):
        a, b = (F.normalize(torch.randn(300, k), dim=1) for _ in range(2))
        truth = a.double() @ b.double().T
        ours, torchs = (
            (each - truth).norm().item() for each in (close_product(a, b.T), torch.mm(a, b.T))
        )
        ratios.append(ours / torchs)
    assert max(ratios) < 1.5, ratios


@pytest.mark.parametrize(
    "layout", [every_second, one_row_for_all, lambda *shape: every_second(*shape[::-1]).T]
)
def test_a_matrix_that_is_dense_in_no_order_is_copied_first(layout):
    strided = layout(6, 5)
    copy = onednn.dense(strided)
    assert copy.is_contiguous()
    assert torch.equal(copy, strided)
    for each in (copy, transposed(6, 5), copy[2:4]):
        assert onednn.dense(each) is each


def test_products_pass_on_what_is_no_number():
    a, b = torch.ones(5, 40), torch.zeros(40, 3)
    a[2, 7], a[3, 7] = math.nan, math.inf
    spoilt = product(a, b).isnan().any(1)
    assert spoilt.tolist() == [False, False, True, True, False]


@needs_onednn
@pytest.mark.parametrize("shape", [(6,), (2, 5), (3, 2, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_and_its_gradients_to_the_second(shape, bias):
    x = torch.randn(*shape, 7, dtype=torch.float64)
    weight, offset = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    up = torch.randn(*shape, 5, dtype=torch.float64)

    def results(linear, dtype):
        leaves = [each.to(dtype).requires_grad_() for each in (x, weight, offset)]
        of_linear = leaves if bias else [*leaves[:2], None]
        out = linear(*of_linear)
        inputs = leaves if bias else leaves[:2]
        first = torch.autograd.grad(out, inputs, up.to(dtype), create_graph=True)
        second = torch.autograd.grad(sum((each**2).sum() for each in first), leaves[:2])
        return [each.detach().double() for each in (out, *first, *second)]

    for got, truth in zip(
        results(onednn.linear, torch.float32), results(F.linear, torch.float64), strict=True
    ):
        assert got.shape == truth.shape
        assert (got - truth).norm() <= 1e-6 * truth.norm()


@needs_onednn
def test_taken_are_float32_products_of_eager_code_on_a_cpu():
    x = torch.randn(2, 3)
    assert onednn.takes(x, x)
    assert not onednn.takes(x, x.bfloat16())
    assert not onednn.takes(x.to("meta"), x)
    assert not onednn.takes(x[0], x)  # a vector
    assert not onednn.takes(x, x.to_sparse())
    assert not onednn.takes(x.as_subclass(Own), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not onednn.takes(x, x)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not onednn.takes(x, x)
    with torch.autograd.forward_ad.dual_level():
        assert not onednn.takes(x, x)
    seen = []
    torch.func.grad(lambda w: seen.append(onednn.takes(x, w)) or w.sum())(x)
    assert seen == [False]


class Own(torch.Tensor):
    """A tensor that another package has made its own."""


@needs_onednn
@pytest.mark.parametrize(
    "bias", [torch.randn(10)[::2], torch.randn(1).expand(5), torch.randn(5, 2)[:, 1]]
)
def test_a_bias_of_any_stride(bias):
    x, weight = torch.randn(4, 6), torch.randn(5, 6)
    torch.testing.assert_close(onednn.linear(x, weight, bias), F.linear(x, weight, bias))


@needs_onednn
def test_nothing_to_sum_and_nothing_to_return():
    assert not onednn.linear(torch.randn(4, 0), torch.randn(5, 0), None).any()
    assert onednn.linear(torch.randn(0, 6), torch.randn(5, 6), None).shape == (0, 5)
    weight = torch.randn(5, 6, requires_grad=True)
    onednn.linear(torch.randn(0, 6), weight, torch.randn(5)).sum().backward()
    assert weight.grad is not None
    assert not weight.grad.any()


@needs_onednn
@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)], ids=str)
def test_no_more_is_kept_for_backward_than_torch_keeps(wanted):
    def kept(linear):
        sizes = (64, 32), (16, 32), (16,)
        leaves = [
            torch.randn(*size, requires_grad=bool(each))
            for size, each in zip(sizes, wanted, strict=True)
        ]
        found = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: found.append(t.nbytes), id):
            linear(*leaves)
        return sum(found)

    assert kept(onednn.linear) == kept(F.linear)


@needs_onednn
def test_the_counter_of_flops_knows_them():
    x, weight = torch.randn(4, 6, requires_grad=True), torch.randn(5, 6, requires_grad=True)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        onednn.linear(x, weight, None).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 4 * 6 * 5
