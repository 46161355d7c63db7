"""Shards of JPEGs that cost a decoder what photographs of 640 x 480 pixels do."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (480, 640)  # height, width
_QUALITY = 85


def photograph(seed: int) -> bytes:
    """A JPEG of noise whose amplitude falls as 1/frequency, as that of natural pictures does (Field, 1987); about
    155 kB, rather more than a camera's picture of this size."""
    rng = np.random.default_rng(seed)
    height, width = SIZE
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    amplitude = 1 / np.maximum(np.hypot(rows, columns), 1 / width)
    gray, *colors = (
        _standard(np.fft.irfft2(amplitude * np.fft.rfft2(rng.standard_normal(SIZE)), s=SIZE))
        for _ in range(4)
    )
    pixels = np.stack([128 + 50 * gray + 15 * color for color in colors], axis=2)
    buffer = io.BytesIO()
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _standard(field: np.ndarray) -> np.ndarray:
    return (field - field.mean()) / field.std()


def write_shards(folder: Path, pictures: int, shards: int) -> str:
    """As `--train-data` takes them. Captions have 12 words."""
    caption = b"a photograph of nothing in particular with twelve words in its caption"
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:04d}.tar", "w") as archive:
            for number in range(shard, pictures, shards):
                for suffix, content in (("jpg", photograph(number)), ("txt", caption)):
                    header = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    header.size = len(content)
                    archive.addfile(header, io.BytesIO(content))
    return str(folder / f"{{0000..{shards - 1:04d}}}.tar")
