"""Pictures for the tests of this room, and the reference's operations with the draws handed in."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.functional as F
from PIL import Image
from torchvision.transforms import InterpolationMode

import fastclip
from fastclip.data.batch import EncodedBatch
from fastclip.data.draws import UNCHANGED, Draw, stack

DEMO = Path(fastclip.__file__).parent / "demo"
ADJUST = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)


def demo_pictures(count: int) -> list[bytes]:
    """The first `count` pictures of the bundled shards, encoded."""
    found: list[bytes] = []
    for shard in sorted(DEMO.rglob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                if len(found) == count:
                    return found
                if member.name.endswith((".jpg", ".png", ".webp")):
                    file = tar.extractfile(member)
                    assert file is not None
                    found.append(file.read())
    raise AssertionError(f"only {len(found)} pictures in {DEMO}")


def smooth(height: int, width: int, seed: int = 0) -> Image.Image:
    """A colourful picture without symmetry: random at 6 x 6, smoothly enlarged."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def without_tables(jpeg: bytes) -> bytes:
    """`jpeg` with a comment where its first quantisation table was: only decoding shows it."""
    return jpeg.replace(b"\xff\xdb", b"\xff\xfe", 1)


def pil_rgb(data: bytes) -> Image.Image:
    """What webdataset's `pilrgb` makes of a member."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image.convert("RGB")


def reference_pixels(image: Image.Image, draw: Draw, size: tuple[int, int]) -> np.ndarray:
    """torchvision's operations on a Pillow picture, told what to do: uint8 (H, W, 3)."""
    mode = InterpolationMode.BILINEAR if draw.bilinear else InterpolationMode.BICUBIC
    image = F.resized_crop(image, *draw.crop, list(size), mode)
    for operation in draw.order:
        if draw.factors[operation] != UNCHANGED[operation]:
            image = ADJUST[operation](image, draw.factors[operation])
    return np.asarray(F.to_grayscale(image, 3) if draw.gray else image)


def encoded_batch(pictures: Sequence[bytes], draws: Sequence[Draw]) -> EncodedBatch:
    return EncodedBatch(
        encoded=torch.frombuffer(bytearray(b"".join(pictures)), dtype=torch.uint8),
        offsets=torch.tensor([0, *map(len, pictures)]).cumsum(0),
        draws=stack(list(draws)),
        texts=torch.zeros(len(pictures), 77, dtype=torch.int64),
        keys=[f"shard/{row}" for row in range(len(pictures))],
    )


def close(ours: np.ndarray, theirs: np.ndarray, mean: float = 2.0, level: int = 10) -> None:
    """The bar: mean difference at most `mean` grey levels, 99.5 % of pixels within `level`."""
    assert ours.shape == theirs.shape
    difference = np.abs(ours.astype(np.int16) - theirs.astype(np.int16))
    assert difference.mean() <= mean, f"mean difference {difference.mean():.2f}"
    within = (difference <= level).mean()
    assert within >= 0.995, f"{within:.4%} of values within {level} levels"
