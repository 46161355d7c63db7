"""Small synthetic data sets in the layouts that the public tools write."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from bench.benchmark_layout import write_shards

NOUNS = (
    *("owl", "map", "drum", "sail", "apple", "iris", "kite", "oak", "urn"),
    *("violin", "ear", "jug", "net", "quilt", "rope", "tulip", "yak", "zebra"),
)


def picture(rng: np.random.Generator) -> Image.Image:
    """Noise of a colour, as large as it comes."""
    size = rng.integers(34, 60, 2)
    colour = rng.integers(0, 256, 3)
    noise = rng.integers(-80, 80, (*size, 3))
    return Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, form)
    return stream.getvalue()


@dataclass
class Mini:
    """What was written, for the test to compute with."""

    images: list[Image.Image] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    captions: list[list[str]] = field(default_factory=list)
    metadata: list[list[int]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    templates: list[str] = field(default_factory=list)


def labelled(
    folder: Path,
    rng: np.random.Generator,
    *,
    count: int = 13,
    classes: int = 6,
    split: str = "test",
    metadata: list[int] | None = None,  # how many values each field has
    names: list[str] | None = None,
    templates: list[str] | None = None,
) -> Mini:
    mini = Mini(
        names=names or list(NOUNS[:classes]),
        templates=templates or ["a photo of a {c}.", "the {c}"],
    )
    samples = []
    for _ in range(count):
        mini.images.append(picture(rng))
        mini.labels.append(int(rng.integers(len(mini.names))))
        members = {"png": encoded(mini.images[-1]), "cls": str(mini.labels[-1]).encode()}
        if metadata is not None:
            mini.metadata.append([int(rng.integers(values)) for values in metadata])
            stream = io.BytesIO()
            np.save(stream, np.array(mini.metadata[-1]))
            members["npy"] = stream.getvalue()
        samples.append(members)
    write_shards(folder, split, samples)
    (folder / "classnames.txt").write_text("\n".join(mini.names) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(mini.templates) + "\n")
    return mini


def captioned(folder: Path, rng: np.random.Generator, *, count: int = 13) -> Mini:
    mini = Mini()
    samples = []
    for number in range(count):
        mini.images.append(picture(rng))
        some = [
            f"{rng.choice(NOUNS)} {rng.choice(NOUNS)} {number} {i}"
            for i in range(rng.integers(1, 6))
        ]
        mini.captions.append(some)
        samples.append({"png": encoded(mini.images[-1]), "txt": "\n".join(some).encode()})
    write_shards(folder, "test", samples)
    (folder / "dataset_type.txt").write_text("retrieval\n")
    return mini


def save_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path
