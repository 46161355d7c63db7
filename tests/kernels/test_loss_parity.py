"""One process: our losses and their gradients are the reference's, in every dtype and on hard
inputs.
"""

from __future__ import annotations

import math
import secrets

import pytest
import torch

import fastclip_kernels
from fastclip_kernels.loss import small
from tests.kernels.parity import Case, compare, failures, load_reference

FP32, FP64, BF16, FP16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
DTYPES = [(FP64, None), (FP32, None), (BF16, None), (FP32, BF16), (FP32, FP16)]
# one pair; one feature; primes; more rows than a chunk holds; the most that count as few; wider than tall
SHAPES = [(1, 1), (1, 8), (2, 3), (17, 33), (1031, 64), (719, 256), (131, 333), (64, 512)]
HARD = [
    "all equal", "opposite", "matched", "orthogonal", "norm 100", "one huge row", "duplicates",
    "wrong pairs",
]  # fmt: skip

CASES = [
    *(
        Case(loss, rows=rows, width=width, scale=scale, bias=bias, dtype=dtype, autocast=amp)
        for loss in ("ClipLoss", "SigLipLoss")
        for dtype, amp in DTYPES
        for (rows, width), scale, bias in [
            *((shape, 14.3, -3.0) for shape in SHAPES),
            ((37, 24), 1.0, -10.0),
            ((37, 24), 100.0, None),
            ((37, 24), 300.0, 2.0),
        ]
        # four rounded products that cancel say nothing of exactness; float64 tests the formula
        if rows != 2 or dtype == FP64
    ),
    *(
        Case(loss, rows_are=kind, scale=scale, bias=-2.0, dtype=dtype)
        for loss in ("ClipLoss", "SigLipLoss")
        for kind in HARD
        for scale in (14.3, 100.0)
        for dtype in (FP64, FP32)
    ),
    *(
        Case("CoCaLoss", {"caption_loss_weight": 2.0, "clip_loss_weight": weight, "pad_id": 3},
             dtype=dtype, autocast=amp)
        for weight in (1.5, 0.0)
        for dtype, amp in DTYPES
    ),
    *(Case("DistillClipLoss", dtype=dtype, autocast=amp) for dtype, amp in DTYPES),
]  # fmt: skip


@pytest.fixture(scope="module")
def reference():
    return load_reference()


@pytest.mark.parametrize("few", [small.MOST_LOGITS, 0], ids=["few pairs", "sweeps"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_loss_and_gradients_are_the_references(case, few, reference, monkeypatch):
    monkeypatch.setattr(small, "MOST_LOGITS", few)
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    assert not failures(case, compare(case, fastclip_kernels, reference, seed))


@pytest.mark.parametrize("few", [small.MOST_LOGITS, 0], ids=["few pairs", "sweeps"])
@pytest.mark.parametrize("precision", [FP32, BF16, FP16], ids=str)
def test_on_average_no_less_exact_than_the_reference(precision, few, reference, monkeypatch):
    monkeypatch.setattr(small, "MOST_LOGITS", few)
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    ratios = []
    for case in CASES:
        if case.precision == precision and case.rows <= 200:
            for c in compare(case, fastclip_kernels, reference, seed):
                if c.reference > 1e-9 and math.isfinite(c.ours):
                    ratios.append(math.log(max(c.ours, 1e-9) / c.reference))
    mean = math.exp(sum(ratios) / len(ratios))
    print(f"geometric mean of ours/reference over {len(ratios)} errors: {mean:.3f}")
    assert mean <= 1.0


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_fp32_is_as_exact_as_fp32_can_be(scale, reference):
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    case = Case(rows=257, width=512, scale=scale)
    for c in compare(case, fastclip_kernels, reference, seed):
        if c.what != "d bias":
            assert c.ours <= (1e-6 if c.what.startswith("loss") else 2e-6), c
