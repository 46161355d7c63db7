"""What the tests of the losses measure with; shipped, so that users may check their own machine."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def unit_features(
    rows: int, width: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Random unit-norm rows, (rows, width), drawn in float64 and rounded to `dtype` once."""
    drawn = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return F.normalize(drawn, dim=1).to(dtype)


def error_against_fp64(value: Tensor, truth: Tensor, floor: float) -> float:
    """‖value - truth‖ / max(‖truth‖, floor); infinite where only one of the two is finite."""
    value, truth = value.detach().double(), truth.detach().double()
    if bool((value.isfinite() != truth.isfinite()).any()):
        return float("inf")
    difference = torch.nan_to_num(value - truth).norm()
    return float(difference / max(float(torch.nan_to_num(truth).norm()), floor))


def feature_floor(scale: float, rows: int) -> float:
    """Below this norm a feature gradient counts as zero: a thousandth of what an untrained model's
    has.
    """
    return 1e-3 * max(1.0, scale) / math.sqrt(rows)


SCALAR_FLOOR = 1e-3
