"""Cutting a part out of a Pillow picture and giving it the model's size, in two ways: by Pillow, or by torch.

torch has Pillow's antialiasing filter for bytes, with weights of 16 bits in place of 22, and takes a quarter of
Pillow's time: of photographs one value in 200 comes out one level apart, now and then two.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import PIL
import torch
from PIL import Image
from torch.nn.functional import interpolate

from fastclip.data.draws import Draw

_PILLOW_HAS_ORDERS = int(PIL.__version__.partition(".")[0]) >= 13


class CropResize(Protocol):
    def __call__(self, image: Image.Image, draw: Draw, size: tuple[int, int]) -> Image.Image:
        """The crop of `draw` out of `image` at `size` (height, width); of its mode."""
        ...


def by_pillow(image: Image.Image, draw: Draw, size: tuple[int, int]) -> Image.Image:
    """To the bit what torchvision does to a Pillow picture."""
    resample = Image.Resampling.BILINEAR if draw.bilinear else Image.Resampling.BICUBIC
    return _cut(image, draw).resize((size[1], size[0]), resample)


def by_torch(image: Image.Image, draw: Draw, size: tuple[int, int]) -> Image.Image:
    """As `by_pillow` up to a level or two; `image` must be RGB."""
    pixels = torch.from_numpy(np.array(_cut(image, draw)))  # uint8 (h, w, 3)
    turned = _vertical_pass_first(draw, size)
    if turned:
        pixels, size = pixels.transpose(0, 1).contiguous(), size[::-1]
    # Strides of channels last, and so the kernel that takes a pixel at a time.
    resized = interpolate(
        pixels[None].permute(0, 3, 1, 2),
        size=size,
        mode="bilinear" if draw.bilinear else "bicubic",
        antialias=True,
    )[0].permute(1, 2, 0)
    return Image.fromarray((resized.transpose(0, 1).contiguous() if turned else resized).numpy())


def _vertical_pass_first(draw: Draw, size: tuple[int, int]) -> bool:
    """Whether Pillow resizes this crop's columns before its rows; torch never does.

    Each pass rounds and clips, so that the order shows. The rule is that of `ImagingResample` since Pillow 13.
    """
    _, _, height, width = draw.crop
    lower, narrower = height - size[0], width - size[1]
    return _PILLOW_HAS_ORDERS and lower > max(0, 2 * narrower)


def _cut(image: Image.Image, draw: Draw) -> Image.Image:
    top, left, height, width = draw.crop
    return image.crop((left, top, left + width, top + height))
