"""DALI is given files that it reads as Pillow does, and pixels of the others; what nobody reads is refused before."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from fastclip.data.dali_form import dali_form
from fastclip.data.image_header import BadImage
from tests.data.pictures import encode, pil_rgb, smooth


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_usual_files_pass_as_they_are(kind):
    data = encode(smooth(30, 40), kind)
    assert dali_form(data) is data
    assert dali_form(data + b"more") == data + b"more"


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
def test_unusual_files_become_their_pixels(kind):
    data = encode(smooth(30, 40), kind)
    given = dali_form(data)
    assert given.startswith(b"P6")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(given))), np.asarray(pil_rgb(data)))


def test_a_png_is_passed_only_with_its_end_and_right_checksums():
    """Any single changed byte, outside the few that no checksum covers, is found or decoded by Pillow."""
    data = encode(smooth(12, 12), "PNG")
    assert dali_form(data[:-12]).startswith(b"P6")  # without its end Pillow still reads it
    changed = 0
    for place in range(8, len(data) - 12):
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        try:
            changed += dali_form(bytes(damaged)) != bytes(damaged)
        except BadImage:
            changed += 1
    assert changed == len(data) - 20
