"""Captions fall into the classes that the table means; fine-tuning by the four commands teaches ten drawn shapes."""

from __future__ import annotations

import io
import math
import random
from colorsys import hsv_to_rgb
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from bench.fine_tuning import HELD_OUT, Labelled, class_of, fastclip, fine_tune, write_folders

ROOT = Path(__file__).resolve().parents[2]
SIZE = 64


@pytest.mark.parametrize(
    ("caption", "label"),
    [
        ("A coral trout.", None),
        ("The letter Q.", "letter"),
        ("The sign for the letter V in American Sign Language.", "hand sign"),
        ("A Canadian 25 cent piece ($.25) called a quarter.", "coin"),
        ("Knight. The only piece that can jump over others.", None),
        ("Tux the penguin in a farm tractor!", "vehicle"),
        ("A farm.", "building"),
        ("A pineapple.", "fruit"),
        ("A pine wreath.", None),
        ("A pair of pants.", None),  # no ant, no pear
        ("A helmeted guinea fowl.", "bird"),
        ("A sea lion.", "mammal"),
    ],
)
def test_classes(caption: str, label: str | None):
    assert class_of(caption) == label


def test_folders(tmp_path):
    samples = [Labelled("sea lion", bytes([n])) for n in range(9)] + [Labelled("owl", b"o")]
    assert write_folders(samples, tmp_path, most=7) == {"sea lion": 7, "owl": 1}
    found = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*.jpg")}
    held_out = {name for name in found if name.startswith("test/")}
    assert held_out == {"test/sea_lion/002.jpg", "test/sea_lion/005.jpg"}
    assert found["train/sea_lion/006.jpg"] == bytes([6])
    assert len(found) == 8


def corners(count: int, turn: float, inner: float = 1.0) -> list[tuple[float, float]]:
    """Of a regular polygon within the unit circle; every other one at `inner`, which makes a star."""
    angles = [turn + 2 * math.pi * i / count for i in range(count)]
    radii = [inner if i % 2 else 1.0 for i in range(count)]
    return [(r * math.cos(a), r * math.sin(a)) for a, r in zip(angles, radii, strict=True)]


def bar(width: float, height: float) -> list[tuple[float, float]]:
    return [(-width, -height), (width, -height), (width, height), (-width, height)]


SHAPES: dict[str, list[list[tuple[float, float]]]] = {
    "disc": [corners(40, 0)],
    "square": [bar(0.7, 0.7)],
    "diamond": [corners(4, 0)],
    "triangle": [corners(3, -math.pi / 2)],
    "arrow down": [corners(3, math.pi / 2)],
    "star": [corners(10, -math.pi / 2, 0.4)],
    "cross": [bar(1, 0.25), bar(0.25, 1)],
    "beam": [bar(1, 0.2)],
    "pole": [bar(0.2, 1)],
    "window": [bar(0.2, 0.2), *([(x + a, y + b) for a, b in bar(0.2, 0.2)] for x in (-0.7, 0.7) for y in (-0.7, 0.7))],
}  # fmt: skip


def drawn(shape: str, rng: random.Random) -> bytes:
    """On a light ground, of any size and place, in shades of a colour that two of the shapes share."""
    image = Image.new("RGB", (SIZE, SIZE), tuple(rng.randrange(190, 256) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    radius = rng.uniform(16, 26)
    x, y = (SIZE / 2 + rng.uniform(-5, 5) for _ in range(2))
    hue = list(SHAPES).index(shape) // 2 / 5 + rng.uniform(-0.04, 0.04)
    colour = tuple(round(255 * c) for c in hsv_to_rgb(hue % 1, 1, rng.uniform(0.5, 0.8)))
    for polygon in SHAPES[shape]:
        draw.polygon([(x + radius * a, y + radius * b) for a, b in polygon], fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.mark.slow
def test_held_out_accuracy_rises(tmp_path):
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    rng = random.Random(seed)
    samples = [Labelled(shape, drawn(shape, rng)) for shape in SHAPES for _ in range(36)]
    counts = write_folders(samples, tmp_path / "shapes", most=36)
    assert counts == dict.fromkeys(SHAPES, 36)
    assert len(list((tmp_path / "shapes/test").rglob("*.jpg"))) == 360 // HELD_OUT
    fastclip(
        *("train", "--model", "local-dir:fastclip/demo/model", "--dataset-type", "webdataset"),
        *("--train-data", "fastclip/demo/train-{0000..0003}.tar", "--train-num-samples", 1536),
        *("--epochs", 1, "--batch-size", 64, "--lr", 1e-3, "--warmup", 8, "--precision", "fp32"),
        *("--workers", 1, "--logs", tmp_path / "logs", "--name", "first"),
    )
    checkpoint = tmp_path / "model"
    fastclip("export", "--run", tmp_path / "logs/first", "--to", "open_clip", "--out", checkpoint)
    before, after = fine_tune(
        tmp_path / "shapes", checkpoint, tmp_path, seed=1, epochs=12, lr=5e-4, batch_size=16
    )
    assert before < 0.4  # ten shapes, of which it has seen none
    assert after > before + 0.25
