"""What a step multiplies, counted on shapes: the bar of all savings together, and nothing saved where all are off."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.captions import DEMO, caption_lengths, stretched, stretched_ids
from bench.step_flops import our_flops, reference_flops

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


def test_captions_said_again_keep_their_beginning_and_end():
    ids = torch.zeros(3, 20, dtype=torch.int64)
    ids[0, :5] = torch.tensor([90, 4, 5, 6, 99])
    ids[1, :2] = torch.tensor([90, 99])  # no words at all
    ids[2, :9] = torch.tensor([90, 1, 2, 3, 4, 5, 6, 7, 99])
    for mean in (3, 8, 12):
        new = stretched_ids(ids, mean)
        lengths = new.argmax(dim=1) + 1
        assert abs(lengths.double().mean() - mean) < 1
        assert (new[:, 0] == 90).all()
        assert (new.max(dim=1).values == 99).all()
        assert ((new > 0).sum(dim=1) == lengths).all()
