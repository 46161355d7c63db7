"""Draws promise: the reference's distributions; one draw for one (seed, epoch, key)."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare, ks_2samp
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import ColorJitter, RandomResizedCrop

from fastclip.config.images import AugmentConfig, PreprocessConfig
from fastclip.data.draws import (
    NO_ERASE,
    UNCHANGED,
    AugmentSampler,
    augment_warnings,
    stack,
    unstack,
)
from fastclip.errors import UserError

SEED_RUN = AugmentConfig(
    scale=(0.4, 1.0),
    color_jitter=(0.32, 0.32, 0.32, 0.08),
    color_jitter_prob=0.8,
    gray_scale_prob=0.2,
    use_timm=True,
)
PLAIN = AugmentConfig(
    scale=(0.4, 1.0),
    color_jitter=(0.32, 0.32, 0.32, 0.08),
    color_jitter_prob=0.8,
    gray_scale_prob=0.2,
)
PREPROCESS = PreprocessConfig(size=(256, 256))
COUNT = 20_000
SIZES = [(240, 320), (500, 333), (64, 64), (97, 31), (1200, 1600), (100, 700)]


def samples(augment: AugmentConfig, count: int, preprocess: PreprocessConfig = PREPROCESS) -> list:
    """`count` draws for pictures of SIZES in turn."""
    sampler = AugmentSampler(augment, preprocess, seed=7)
    return [sampler(3, f"shard/{i}", *SIZES[i % len(SIZES)]) for i in range(count)]


def crop_features(crops: np.ndarray) -> dict[str, np.ndarray]:
    """Area and ratio of the box, and where it is between the two ends it may slide to."""
    height, width = np.array([SIZES[i % len(SIZES)] for i in range(len(crops))]).T
    top, left, h, w = crops.T
    jitter = np.random.default_rng(0).random((2, len(crops)))  # spreads whole pixels evenly
    return {
        "area": h * w / (height * width),
        "log ratio": np.log(w / h),
        "top": (top + jitter[0]) / (height - h + 1),
        "left": (left + jitter[1]) / (width - w + 1),
    }


def reference_crops(use_timm: bool) -> np.ndarray:
    random.seed(11)
    torch.manual_seed(11)
    pictures = [Image.new("L", (w, h)) for h, w in SIZES]
    crop = RandomResizedCropAndInterpolation if use_timm else RandomResizedCrop
    return np.array(
        [
            crop.get_params(pictures[i % len(SIZES)], SEED_RUN.scale, (3 / 4, 4 / 3))
            for i in range(COUNT)
        ]
    )


@pytest.mark.parametrize("augment", [SEED_RUN, PLAIN], ids=["timm", "plain"])
def test_crops_are_distributed_as_the_references(augment):
    ours = crop_features(np.array([d.crop for d in samples(augment, COUNT)]))
    theirs = crop_features(reference_crops(augment.use_timm))
    for name in ours:
        assert ks_2samp(ours[name], theirs[name]).pvalue > 1e-3, name


def test_colours_are_distributed_as_the_references():
    draws = samples(SEED_RUN, COUNT)
    torch.manual_seed(12)
    jitter = ColorJitter(*SEED_RUN.color_jitter)
    order, *theirs = zip(
        *(
            jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
            for _ in range(COUNT)
        ),
        strict=True,
    )
    for column in range(4):
        ours = [d.factors[column] for d in draws]
        assert ks_2samp(ours, theirs[column]).pvalue > 1e-3, column
    number = {p: i for i, p in enumerate(permutations(range(4)))}
    our_orders = [number[d.order] for d in draws]
    assert ks_2samp(our_orders, [number[tuple(o.tolist())] for o in order]).pvalue > 1e-3
    assert chisquare(np.bincount(our_orders, minlength=24)).pvalue > 1e-3


def test_factors_order_and_crop_are_independent():
    draws = samples(SEED_RUN, COUNT)
    columns = np.array([[*d.factors, d.order[0], d.crop[2] / d.crop[3]] for d in draws])
    correlation = np.corrcoef(columns.T) - np.eye(columns.shape[1])
    assert np.abs(correlation).max() < 5 / np.sqrt(COUNT)


@pytest.mark.parametrize(("height", "width"), [(10, 400), (400, 10), (1, 1), (1, 50), (2, 3)])
@pytest.mark.parametrize("seed", range(20))
def test_every_box_lies_inside_its_picture(height, width, seed):
    sampler = AugmentSampler(AugmentConfig(scale=(0.01, 1.0)), PREPROCESS, seed)
    top, left, h, w = sampler(0, "key", height, width).crop
    assert h > 0
    assert w > 0
    assert 0 <= top <= height - h
    assert 0 <= left <= width - w


@pytest.mark.parametrize(("height", "width"), [(10, 400), (401, 10), (31, 300)])
def test_pictures_no_box_fits_get_the_references_central_crop(height, width):
    whole = AugmentConfig(scale=(1.0, 1.0))
    theirs = RandomResizedCrop.get_params(
        Image.new("L", (width, height)), list(whole.scale), [3 / 4, 4 / 3]
    )
    assert AugmentSampler(whole, PREPROCESS, 0)(0, "key", height, width).crop == theirs


def test_timm_jitter_is_always_on_and_grey_never():
    draws = samples(SEED_RUN, 2000)
    assert all(d.factors != UNCHANGED for d in draws)
    assert not any(d.gray or d.bilinear or d.erase != NO_ERASE for d in draws)


def test_plain_jitter_and_grey_obey_their_probabilities():
    draws = samples(PLAIN, COUNT)
    jittered = np.mean([d.factors != UNCHANGED for d in draws])
    gray = np.mean([d.gray for d in draws])
    sigma = 0.4 / np.sqrt(COUNT)
    assert abs(jittered - 0.8) < 5 * sigma
    assert abs(gray - 0.2) < 5 * sigma


def test_keys_that_the_plain_path_ignores_change_nothing():
    ignored = AugmentConfig(ratio=(0.1, 0.2), re_prob=0.9, re_count=3, color_jitter=0.5)
    linear = PreprocessConfig(size=(256, 256), interpolation="bilinear")
    assert samples(ignored, 100, linear) == samples(AugmentConfig(), 100)


@pytest.mark.parametrize(
    ("interpolation", "share"), [("bicubic", 0.0), ("bilinear", 1.0), ("random", 0.5)]
)
def test_timm_path_resizes_with_the_models_interpolation(interpolation, share):
    preprocess = PreprocessConfig(interpolation=interpolation)
    bilinear = [d.bilinear for d in samples(SEED_RUN, 2000, preprocess)]
    assert abs(np.mean(bilinear) - share) < 5 * 0.5 / np.sqrt(2000) * (share == 0.5) + 1e-9


def test_timm_path_takes_ratio_scalar_jitter_and_erasing():
    augment = AugmentConfig(
        use_timm=True, ratio=(1.0, 1.0), color_jitter=0.3, re_prob=0.25, scale=(0.2, 0.5)
    )
    draws = samples(augment, 4000)
    square = [d for i, d in enumerate(draws) if SIZES[i % len(SIZES)] == (240, 320)]
    assert all(d.crop[2] == d.crop[3] for d in square)
    assert all(d.factors[3] == 0 and d.factors[0] != 1 for d in draws)
    erased = [d.erase for d in draws if d.erase != NO_ERASE]
    assert abs(len(erased) / 4000 - 0.25) < 5 * 0.433 / np.sqrt(4000)
    assert len(set(erased)) == len(erased)


def test_a_draw_depends_on_seed_epoch_and_key_and_nothing_else():
    sampler = AugmentSampler(SEED_RUN, PREPROCESS, 1)
    first = sampler(0, "a/b", 300, 200)
    sampler(5, "x/y", 30, 20)
    assert sampler(0, "a/b", 300, 200) == first
    others = [
        sampler(1, "a/b", 300, 200),
        sampler(0, "a/c", 300, 200),
        AugmentSampler(SEED_RUN, PREPROCESS, 2)(0, "a/b", 300, 200),
    ]
    assert len({first, *others}) == 4
    sampler(0, "lone surrogate \udcff", 300, 200)  # from a tar name that is no UTF-8


def test_another_process_draws_the_same():
    code = (
        "from fastclip.config.images import *; from fastclip.data.draws import AugmentSampler;"
        f"print(AugmentSampler({SEED_RUN!r}, {PREPROCESS!r}, 1)(2, 'a/b', 300, 200))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == str(AugmentSampler(SEED_RUN, PREPROCESS, 1)(2, "a/b", 300, 200))


def test_stack_keeps_every_field():
    draws = samples(PLAIN, 50)
    batch = stack(draws)
    assert [field.dtype for field in batch] == [
        torch.int32, torch.bool, torch.float32, torch.int8, torch.bool, torch.int64
    ]  # fmt: skip
    for draw, back in zip(draws, unstack(batch), strict=True):
        assert back._replace(factors=draw.factors) == draw
        assert back.factors == tuple(float(np.float32(x)) for x in draw.factors)
    assert stack([]).crop.shape == (0, 4)


def test_the_ignored_probabilities_are_said_once():
    (line,) = augment_warnings(SEED_RUN)
    assert "color_jitter_prob=0.8" in line
    assert "always on" in line
    assert "gray_scale_prob=0.2" in line
    assert augment_warnings(PLAIN) == []
    assert augment_warnings(AugmentConfig(use_timm=True, color_jitter=0.4)) == []
    (line,) = augment_warnings(AugmentConfig(ratio=(1.0, 2.0), color_jitter=0.4, re_prob=0.1))
    assert all(name in line for name in ("ratio", "color_jitter", "re_prob"))


@pytest.mark.parametrize(
    "bad",
    [
        {"scale": (1.0, 0.5)},
        {"scale": (-0.1, 0.5)},
        {"use_timm": True, "ratio": (0.0, 1.0)},
        {"use_timm": True, "color_jitter": (0.1, 0.1)},
        {"use_timm": True, "color_jitter": -0.1},
        {"use_timm": True, "color_jitter": (0.1, 0.1, 0.1, 0.6)},
        {"color_jitter": 0.3, "color_jitter_prob": 0.5},
        {"color_jitter_prob": 0.5},
        {"gray_scale_prob": 1.5},
    ],
)
def test_bad_values_are_the_users(bad):
    with pytest.raises(UserError, match="--aug-cfg"):
        AugmentSampler(AugmentConfig(**bad), PREPROCESS, 0)
