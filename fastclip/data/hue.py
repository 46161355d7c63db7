"""Turning the hue of a Pillow picture: to the bit what Pillow's own way there and back over HSV gives, in half of its
time, since every division of it is looked up.

Pillow's hue is a function of which channel is largest, of chroma (largest less smallest channel) and of the difference
of the other two; saturation is one of value (the largest channel) and chroma (Smith, "Color Gamut Transform Pairs",
1978). Both tables are read off Pillow itself, so that they round as it does.
"""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image

_FULL = 255  # Pillow keeps hue, saturation and value in bytes, and a full turn of the hue is 255 steps here
_LEVELS = 256


def turn_hue(image: Image.Image, steps: int) -> Image.Image:
    """`image` (RGB) with its hue, a byte in Pillow's HSV, moved by `steps`; bytes wrap round at 256.

    With hue h, saturation s and value v in 0..255 every channel of RGB is v - v·s·k(h) / 255², where k, also in
    0..255, is piecewise linear in h. In fp32 and with this order of products that rounds as Pillow rounds, for each
    of the 2²⁴ colours.
    """
    red, green, blue = (np.asarray(band) for band in image.split())
    value = np.maximum(np.maximum(red, green), blue)
    chroma = value - np.minimum(np.minimum(red, green), blue)
    hue = _hues().take(_place_of_hue(red, green, blue, value, chroma), mode="clip").astype(np.intp)
    # "clip", for "raise" would fill a copy first
    reach = _reaches().take((value.astype(np.intp) << 8) | chroma, mode="clip")
    value_and_half = np.add(value, np.float32(0.5), dtype=np.float32)
    turned = np.empty_like(reach)
    channels = []
    for weights in _weights(steps % _LEVELS):
        weights.take(hue, out=turned, mode="clip")
        turned *= reach
        np.subtract(value_and_half, turned, out=turned)
        channels.append(Image.fromarray(turned.astype(np.uint8)))  # which cuts the fraction off
    return Image.merge("RGB", channels)


def _place_of_hue(
    red: np.ndarray, green: np.ndarray, blue: np.ndarray, value: np.ndarray, chroma: np.ndarray
) -> np.ndarray:
    """In `_hues()`, of uint8 channels. Of channels that are equally large the first counts, as in Pillow."""
    wide = np.int16
    by_red = (red == value).view(np.uint8).astype(wide)
    by_green = (green == value).view(np.uint8).astype(wide)
    by_green *= 1 - by_red
    by_blue = 1 - by_red - by_green
    red, green, blue = red.astype(wide), green.astype(wide), blue.astype(wide)
    # Products, for a choice by np.where takes ten times as long.
    difference = (green - blue) * by_red
    difference += (blue - red) * by_green
    difference += (red - green) * by_blue
    place = (by_green + 2 * by_blue).astype(np.intp)
    place <<= 8
    place += chroma
    place <<= 9
    place += difference
    place += _LEVELS
    return place


@functools.cache
def _hues() -> np.ndarray:
    """uint8 (3 * 256 * 512): Pillow's hue by the largest channel, chroma, and 256 + the next channel less the one
    after that, of three in a ring."""
    chroma, difference = np.ogrid[:_LEVELS, -_LEVELS:_LEVELS]
    largest = np.full((_LEVELS, 2 * _LEVELS), _FULL)
    smallest = _FULL - chroma
    following = smallest + np.maximum(difference, 0)
    after_that = smallest + np.maximum(-difference, 0)
    tables = []
    for channel in range(3):
        channels = np.empty((*largest.shape, 3), np.uint8)
        for step, levels in enumerate((largest, following, after_that)):
            channels[..., (channel + step) % 3] = np.minimum(levels, _FULL)
        tables.append(np.asarray(Image.fromarray(channels).convert("HSV"))[..., 0])
    return np.stack(tables).ravel()


@functools.cache
def _reaches() -> np.ndarray:
    """fp32 (256 * 256): v·s / 255² by value and chroma."""
    value, chroma = np.indices((_LEVELS, _LEVELS))
    channels = np.stack((value, *[np.maximum(value - chroma, 0)] * 2), axis=2).astype(np.uint8)
    _, saturation, level = np.moveaxis(np.asarray(Image.fromarray(channels).convert("HSV")), 2, 0)
    reach = np.multiply(saturation, level, dtype=np.float32)
    reach *= np.float32(1 / _FULL**2)
    return reach.ravel()


@functools.cache
def _weights(steps: int) -> np.ndarray:
    """fp32 (3, 256): k of red, green and blue for each hue byte before it is moved by `steps`."""
    sixth, rest = np.divmod(np.arange(_LEVELS) * 6, _FULL)
    sixth %= 6
    falling, rising = _FULL - rest, rest
    none, whole = np.zeros_like(rest), np.full_like(rest, _FULL)
    red = np.choose(sixth, (none, rising, whole, whole, falling, none))
    green = np.choose(sixth, (falling, none, none, rising, whole, whole))
    blue = np.choose(sixth, (whole, whole, falling, none, none, rising))
    return np.roll(np.stack((red, green, blue)), -steps, axis=1).astype(np.float32)
