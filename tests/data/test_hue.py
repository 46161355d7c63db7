"""Hue is turned as Pillow would, for every colour there is."""

import numpy as np
import pytest
from PIL import Image

from fastclip.data.hue import turn_hue
from tests.data.pictures import smooth


def by_pillow(pixels: np.ndarray, steps: int) -> np.ndarray:
    turned = np.array(Image.fromarray(pixels).convert("HSV"))
    turned[..., 0] += np.uint8(steps % 256)
    return np.asarray(Image.fromarray(turned, "HSV").convert("RGB"))


@pytest.mark.parametrize("steps", [0, 20, -20])
def test_every_colour_is_turned_as_by_pillow(steps):
    levels = np.arange(256, dtype=np.uint8)
    pixels = np.empty((256, 256, 3), np.uint8)
    pixels[..., 1], pixels[..., 2] = levels[:, None], levels
    for red in range(256):
        pixels[..., 0] = red
        assert np.array_equal(turn_hue(Image.fromarray(pixels), steps), by_pillow(pixels, steps)), (
            red
        )


@pytest.mark.parametrize("steps", range(-128, 129, 16))
def test_however_far_it_is_turned(steps):
    pixels = np.random.default_rng(steps % 256).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    assert np.array_equal(turn_hue(Image.fromarray(pixels), steps), by_pillow(pixels, steps))


def test_a_picture_of_odd_size_keeps_its_shape_and_mode():
    turned = turn_hue(smooth(31, 47), 5)
    assert (turned.mode, turned.size) == ("RGB", (47, 31))
