"""The torch form's own arithmetic on a CPU, against torch's and against float64."""

from __future__ import annotations

import math

import pytest
import torch

from fastclip_kernels.loss.cpu import log1p_sum, softplus_sum

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
