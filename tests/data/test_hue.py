"""Hue is turned as Pillow would, for every colour there is."""

import numpy as np
import pytest
from PIL import Image

from fastclip.data.hue import hsv_to_rgb, turn_hue
from tests.data.pictures import smooth


@pytest.mark.parametrize("steps", [0, 20, -20])
def test_every_colour_comes_back_as_from_pillow(steps):
    bytes_ = np.arange(256, dtype=np.uint8)
    pixels = np.empty((256, 256, 3), np.uint8)
    pixels[..., 1], pixels[..., 2] = bytes_[:, None], bytes_
    for hue in range(256):
        pixels[..., 0] = hue
        ours = hsv_to_rgb(Image.fromarray(pixels, "HSV"), steps)
        pixels[..., 0] = (hue + steps) % 256
        assert np.array_equal(ours, Image.fromarray(pixels, "HSV").convert("RGB")), hue


def test_a_picture_of_odd_size_keeps_its_shape_and_mode():
    turned = turn_hue(smooth(31, 47), 5)
    assert (turned.mode, turned.size) == ("RGB", (47, 31))
