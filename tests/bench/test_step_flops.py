"""What a step multiplies, counted on shapes: the bar of all savings together, and nothing saved where all are off."""

from __future__ import annotations

import numpy as np
import pytest

from bench.step_flops import DEMO, caption_lengths, our_flops, reference_flops, stretched

MODEL = "ViT-B-32-256"


@pytest.fixture(scope="module")
def lengths():
    return caption_lengths(DEMO, MODEL)


def test_savings_halve_the_work(lengths):
    reference = reference_flops(MODEL, 32, checkpointing=True)
    off = our_flops(MODEL, 32, None, recompute="full", prune=False)
    # the loss makes its logits once for both directions, and once more in backward: 4 products for 6
    assert off + 2 * (2 * 32 * 32 * 512) == reference
    on = our_flops(MODEL, 32, lengths, recompute="pointwise", prune=True)
    print(f"{on / reference:.4f} of the reference's FLOPs")
    assert on <= 0.56 * reference


def test_stretched_captions(lengths):
    for mean in (8, 20, 35, 77):
        new = stretched(lengths, mean, 77)
        assert abs(new.mean() - mean) < 0.5
        assert new.max() <= 77
        assert (
            np.diff(new[np.argsort(lengths)]) >= 0
        ).all()  # longer captions stay the longer ones
