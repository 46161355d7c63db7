"""Colours promise torchvision's result on Pillow pictures, each picture in its own order."""

from __future__ import annotations

import time
from itertools import permutations

import numpy as np
import pytest
import torch

from fastclip.data.color import change_colors_
from fastclip.data.draws import UNCHANGED, Draw, stack
from tests.data.pictures import close, demo_pictures, pil_rgb, reference_pixels, smooth

SIZE = (80, 96)
WHOLE = (0, 0, *SIZE)


@pytest.fixture(scope="module")
def images():
    """Half drawings with much white, half without a grey pixel."""
    drawings = [pil_rgb(data).resize(SIZE[::-1]) for data in demo_pictures(48)]
    return drawings + [smooth(*SIZE, seed) for seed in range(48)]


def compare(images, draws, dtype, mean=2.0):
    ours = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    theirs = np.stack([reference_pixels(i, d, SIZE) for i, d in zip(images, draws, strict=True)])
    result = change_colors_(ours, stack(draws), dtype)
    assert result.data_ptr() == ours.data_ptr()
    close(result.numpy(), theirs, mean=mean)


def rng() -> np.random.Generator:
    seed = int(time.time())
    print("seed", seed)
    return np.random.default_rng(seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("operation", range(4))
def test_each_operation_alone(images, operation, dtype):
    numbers = rng()
    draws = []
    for _ in images:
        factor = numbers.uniform(-0.5, 0.5) if operation == 3 else numbers.uniform(0, 2)
        factors = tuple(factor if i == operation else UNCHANGED[i] for i in range(4))
        draws.append(Draw(WHOLE, False, factors, (0, 1, 2, 3), False, -1))
    compare(images, draws, dtype, mean=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_all_operations_in_every_order(images, dtype):
    numbers = rng()
    orders = list(permutations(range(4)))
    draws = []
    for row, _ in enumerate(images):
        brightness, contrast, saturation = numbers.uniform(0.68, 1.32, 3)
        factors = (brightness, contrast, saturation, numbers.uniform(-0.08, 0.08))
        draws.append(Draw(WHOLE, False, factors, orders[row % 24], row % 3 == 0, -1))
    compare(images, draws, dtype, mean=1.0)


def test_values_are_cut_between_operations(images):
    """White made brighter is white; less contrast afterwards starts from there."""
    draws = [Draw(WHOLE, False, (1.32, 0.68, 1.0, 0.0), (0, 1, 2, 3), False, -1)] * len(images)
    compare(images, draws, torch.float32, mean=0.1)


def test_unchanged_pictures_keep_every_byte(images):
    draws = [Draw(WHOLE, False, UNCHANGED, (3, 1, 0, 2), False, -1) for _ in images]
    draws[1] = draws[1]._replace(gray=True)
    before = np.stack([np.asarray(image) for image in images])
    after = change_colors_(torch.from_numpy(before.copy()), stack(draws)).numpy()
    assert np.array_equal(np.delete(after, 1, 0), np.delete(before, 1, 0))
    assert np.ptp(after[1], axis=-1).max() == 0
    assert np.abs(after[1, ..., 0].astype(int) - np.asarray(images[1].convert("L"))).max() <= 1


def test_empty_batch():
    assert change_colors_(torch.zeros(0, 8, 8, 3, dtype=torch.uint8), stack([])).shape[0] == 0
