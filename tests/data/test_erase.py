"""Erasing promises timm's distribution, normal noise, and the same boxes for the same seed."""

from __future__ import annotations

import random

import pytest
import torch
from scipy.stats import ks_2samp, kstest
from timm.data.random_erasing import RandomErasing as TimmErasing

from fastclip.config.images import AugmentConfig, PreprocessConfig
from fastclip.data.erase import RandomErasing, erase_, normalize, random_erasing
from fastclip.errors import UserError

PREPROCESS = PreprocessConfig(size=(64, 64))


def test_normalize_is_torchvisions():
    from torchvision.transforms.functional import normalize as reference

    images = torch.randint(0, 256, (3, 20, 30, 3), dtype=torch.uint8)
    theirs = reference(images.permute(0, 3, 1, 2) / 255, PREPROCESS.mean, PREPROCESS.std)
    torch.testing.assert_close(normalize(images, PREPROCESS), theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count", [1, 3])
def test_boxes_are_distributed_as_timms(count):
    random.seed(3)
    timm = TimmErasing(1.0, mode="pixel", max_count=count, device="cpu")
    ours, theirs = [], []
    for seed in range(3000):
        mine, their = torch.zeros(1, 64, 48), torch.zeros(1, 64, 48)
        erase_(mine, seed, count)
        timm(their)
        for shares, picture in ((ours, mine), (theirs, their)):
            rows, columns = picture[0].nonzero(as_tuple=True)
            shares.append((len(rows) / 64 / 48, int(rows.min()), int(columns.max())))
    for column in range(3):
        a, b = ([share[column] for share in shares] for shares in (ours, theirs))
        assert ks_2samp(a, b).pvalue > 1e-3


def test_noise_is_standard_normal_and_the_rest_untouched():
    erasing = RandomErasing(PREPROCESS, AugmentConfig(use_timm=True, re_prob=0.5))
    images = torch.randint(0, 256, (40, 64, 64, 3), dtype=torch.uint8)
    seeds = torch.tensor([-1 if i % 2 else 1000 + i for i in range(40)])
    clean, erased = normalize(images, PREPROCESS), erasing(images, seeds)
    assert torch.equal(clean[1::2], erased[1::2])
    changed = clean[::2] != erased[::2]
    assert (changed.sum((1, 2, 3)) > 0.015 * 3 * 64 * 64).all()
    assert kstest(erased[::2][changed].numpy(), "norm").pvalue > 1e-4
    assert torch.equal(erasing(images, seeds), erased)


def test_only_timm_with_a_probability_erases():
    assert random_erasing(PREPROCESS, AugmentConfig(re_prob=0.5)) is None
    assert random_erasing(PREPROCESS, AugmentConfig(use_timm=True)) is None
    assert random_erasing(PREPROCESS, AugmentConfig(use_timm=True, re_prob=0.0)) is None
    assert random_erasing(PREPROCESS, AugmentConfig(use_timm=True, re_prob=0.1)) is not None
    with pytest.raises(UserError, match="re_count"):
        random_erasing(PREPROCESS, AugmentConfig(use_timm=True, re_prob=0.1, re_count=0))
