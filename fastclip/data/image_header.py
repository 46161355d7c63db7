"""Size and kind of an encoded picture, read without decoding it; and why a picture cannot be used.

What the reference keeps is kept and what it drops is dropped: it decodes with Pillow, so Pillow
reads the header here too (about 40 µs a picture). Its limit on the number of pixels is the guard
against decompression bombs.
"""

from __future__ import annotations

import functools
import io
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from fastclip.errors import DataError

MAX_PIXELS = 178_956_970  # Pillow's own limit, beyond which it refuses to decode
# Pillow would also try formats that run other programs (EPS) or are no raster pictures: not from a
# shard.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")


class BadImage(DataError):
    """One picture cannot be used; `cause` says why in a few words, for the log."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


class ImageHeader(NamedTuple):
    format: str  # Pillow's name: "JPEG", "MPO" (several pictures in one JPEG), "PNG", "WEBP", ...
    mode: str  # Pillow's name: "RGB", "L", "P", "RGBA", "CMYK", ...
    height: int  # pixels, before any rotation that EXIF asks for (the reference ignores it)
    width: int


def read_header(data: bytes) -> ImageHeader:
    """Kind and size of the picture in `data`. Raises BadImage where it is certain that it cannot be
    decoded.
    """
    with open_image(data) as image:
        return header_of(image, data)


def header_of(image: Image.Image, data: bytes) -> ImageHeader:
    """`read_header`, of `data` that is open already."""
    width, height = image.size
    header = ImageHeader(image.format or "", image.mode, height, width)
    if header.format in ("JPEG", "MPO") and not _jpeg_ends(data):
        raise BadImage("JPEG cut short: no end marker")
    return header


def open_image(data: bytes) -> Image.Image:
    """The picture in `data`, not yet decoded. Raises BadImage if it is none, or has too many
    pixels.
    """
    if not data:
        raise BadImage("empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
    except UnidentifiedImageError:
        raise BadImage(f"not a picture: starts with {data[:12]!r}") from None
    except Image.DecompressionBombError:
        raise BadImage(f"more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # a damaged header makes Pillow raise nearly anything
        raise BadImage(f"unreadable header: {_in_words(error)}") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage(f"more than {MAX_PIXELS:,} pixels ({width} x {height})")
    return image


def decode_rgb(data: bytes) -> Image.Image:
    """The picture in `data` as 8-bit RGB, alpha dropped and palettes resolved as Pillow does.
    Raises BadImage.
    """
    return to_rgb(open_image(data))


def to_rgb(image: Image.Image) -> Image.Image:
    """`decode_rgb`, of a picture that is open already."""
    try:
        image.load()
        return as_rgb(image)
    except Exception as error:
        raise BadImage(f"cannot be decoded: {_in_words(error)}") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """`image.convert("RGB")`, which would copy a picture that is RGB already."""
    return image if image.mode == "RGB" else image.convert("RGB")


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `_FORMATS` that this build of Pillow reads."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _jpeg_ends(data: bytes) -> bool:
    """Whether an end marker follows the first scan of a JPEG file; bytes after it do no harm.

    Only what follows the scan counts: a thumbnail inside the header has an end marker of its own.
    """
    position = 2  # after the start marker
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # padding
            position += 1
        elif marker == 0xDA:  # start of scan
            # Inside coded data 0xFF is always followed by 0 or a restart number, so this is a
            # marker. Looked for from the end, where it nearly always is.
            return data.rfind(b"\xff\xd9", position) >= 0
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return data.find(b"\xff\xd9", position) >= 0  # odd header: let the decoder judge it


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
