"""The torch form's own arithmetic on a CPU, against torch's and against float64."""

from __future__ import annotations

import math

import pytest
import torch

from fastclip_kernels.loss.cpu import log1p_sum, product, softplus_sum

# of 1 + e^z float32 loses half of what e^-10 is, and all of e^-40
LOGITS = {"far below": (-40, 3), "below": (-10, 1), "around": (0, 4), "above": (30, 10)}


@pytest.mark.parametrize(("mean", "spread"), LOGITS.values(), ids=LOGITS)
def test_sums_of_logarithms_keep_what_one_plus_e_to_the_z_loses(mean, spread):
    z = torch.randn(257, 255) * spread + mean
    truth = torch.nn.functional.softplus(z.double(), threshold=100).sum().item()
    grown = z.exp()
    of_grown = torch.log1p(grown.double()).sum().item()
    # e^z has the rounding of z in units of log 2, which is of its size
    assert math.isclose(softplus_sum(z.clone()).item(), truth, rel_tol=2e-6)
    got = log1p_sum(grown, grown + 1, torch.empty_like(z)).item()
    assert math.isclose(got, of_grown, rel_tol=3e-7)


def test_a_logit_that_is_no_number_is_not_summed_away():
    for bad in (math.nan, math.inf):
        z = torch.zeros(3, 3)
        z[1, 2] = bad
        assert not math.isfinite(softplus_sum(z))


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


def test_products_pass_on_what_is_no_number():
    a, b = torch.ones(5, 40), torch.zeros(40, 3)
    a[2, 7], a[3, 7] = math.nan, math.inf
    spoilt = product(a, b).isnan().any(1)
    assert spoilt.tolist() == [False, False, True, True, False]
