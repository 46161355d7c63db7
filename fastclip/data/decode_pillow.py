"""Encoded bytes to pixels with Pillow alone: the training path where DALI is absent, and all of
evaluation.

The operations are the ones torchvision applies to Pillow pictures, in Pillow's own 8-bit
arithmetic, so given the same draws the pixels are the reference's to the last bit; but for a resize by
torch in training (`data/crop_resize.py`).
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance

from fastclip.config.images import PreprocessConfig
from fastclip.data.crop_resize import CropResize, by_pillow, by_torch
from fastclip.data.draws import UNCHANGED, Draw
from fastclip.data.hue import turn_hue
from fastclip.data.image_header import BadImage, as_rgb, decode_rgb, open_image, to_rgb

_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)
_LEVELS = Image.frombytes("L", (256, 1), bytes(range(256)))


class TrainDecoder:
    """Encoded bytes and a draw to augmented uint8 (H, W, 3). Raises BadImage.

    Random erasing needs normalised pixels and is not done here: see `data/erase.py`.
    """

    def __init__(self, size: tuple[int, int], *, fast_resize: bool) -> None:
        """For pictures of `size` (height, width), resized by torch or, to the reference's bits, by Pillow."""
        self._size = size
        self._crop_resize = by_torch if fast_resize else by_pillow

    def __call__(self, data: bytes, draw: Draw) -> np.ndarray:
        return self.augmented(open_image(data), draw)

    def augmented(self, image: Image.Image, draw: Draw) -> np.ndarray:
        """For a caller that has opened the picture, not decoded it, to make the draw."""
        return np.asarray(augment_image(to_rgb(image), draw, self._size, self._crop_resize))


class EvalDecoder:
    """Encoded bytes to uint8 (H, W, 3) as the model wants them at evaluation. Raises BadImage."""

    def __init__(self, preprocess: PreprocessConfig) -> None:
        self._preprocess = preprocess

    def __call__(self, data: bytes) -> np.ndarray:
        return np.asarray(fit_image(decode_rgb(data), self._preprocess))


def augment_image(
    image: Image.Image, draw: Draw, size: tuple[int, int], crop_resize: CropResize = by_pillow
) -> Image.Image:
    """Carry out `draw` on `image`: crop, resize to `size` (height, width), colours in their order,
    grey. RGB.
    """
    image = as_rgb(crop_resize(image, draw, size))
    for operation in draw.order:
        factor = draw.factors[operation]
        if factor != UNCHANGED[operation]:
            image = _adjust(image, operation, factor)
    if draw.gray:
        image = image.convert("L").convert("RGB")
    return image


def fit_image(image: Image.Image, preprocess: PreprocessConfig) -> Image.Image:
    """`image` at `preprocess.size`, as the reference's evaluation transform makes it. RGB."""
    height, width = preprocess.size
    bilinear = preprocess.interpolation == "bilinear"  # reference: "random" evaluates as bicubic
    resample = Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC
    if preprocess.resize_mode == "squash":
        image = _resize(image, (height, width), resample)
    elif preprocess.resize_mode == "longest":
        ratio = max(image.height / height, image.width / width)
        image = _resize(image, (round(image.height / ratio), round(image.width / ratio)), resample)
        image = _center_crop_or_pad(image, height, width, preprocess.fill_color)
    else:
        if height == width:
            short, long = sorted(image.size)
            scaled = int(height * long / short)
            target = (height, scaled) if image.height <= image.width else (scaled, height)
            image = _resize(image, target, resample)
        else:
            # reference: always bicubic where height and width differ
            ratio = min(image.height / height, image.width / width)
            target = (round(image.height / ratio), round(image.width / ratio))
            image = _resize(image, target, Image.Resampling.BICUBIC)
        image = _center_crop_or_pad(image, height, width, fill=0)
    return as_rgb(image)


def _resize(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """Resize to (height, width). Raises BadImage for a picture so thin that nothing would be left
    of it.
    """
    height, width = size
    if height < 1 or width < 1:
        raise BadImage(f"too thin to resize: {image.width} x {image.height} pixels")
    return image.resize((width, height), resample)


def _center_crop_or_pad(image: Image.Image, height: int, width: int, fill: int) -> Image.Image:
    """The central (height, width) of `image`, padded evenly with `fill` where it is smaller."""
    pad_x, pad_y = max(0, width - image.width), max(0, height - image.height)
    if pad_x or pad_y:
        canvas = Image.new(
            image.mode, (image.width + pad_x, image.height + pad_y), _color(image.mode, fill)
        )
        if image.mode == "P":
            canvas.putpalette(image.getpalette() or [])  # reference: `fill` is then a palette index
        canvas.paste(image, (pad_x // 2, pad_y // 2))
        image = canvas
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))


def _color(mode: str, level: int) -> int | tuple[int, ...]:
    bands = len(Image.new(mode, (1, 1)).getbands())
    return level if bands == 1 else (level,) * bands


def _adjust(image: Image.Image, operation: int, factor: float) -> Image.Image:
    """One of the four colour operations, as torchvision's `ColorJitter` does it on a Pillow
    picture.
    """
    if operation == _BRIGHTNESS:
        return _away_from(0, image, factor)
    if operation == _CONTRAST:
        gray = np.asarray(image.convert("L"))
        return _away_from(int(gray.sum() / gray.size + 0.5), image, factor)
    if operation == _SATURATION:
        return ImageEnhance.Color(image).enhance(factor)
    return turn_hue(image, int(factor * 255))  # towards zero


def _away_from(origin: int, image: Image.Image, factor: float) -> Image.Image:
    """`image` blended with a plain picture of level `origin`, as by Pillow's `ImageEnhance`.

    Every pixel's new level depends on its old one alone: Pillow blends the 256 levels, and a table does the rest, which
    takes a third of the time.
    """
    levels = Image.blend(Image.new("L", _LEVELS.size, origin), _LEVELS, factor)
    return image.point(list(levels.tobytes()) * len(image.getbands()))
