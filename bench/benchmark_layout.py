"""Data sets in CLIP_benchmark's layout: SPLIT/0.tar, ... and, for classes, their names and sentences."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from bench.clip_benchmark_command import digits

Sample = Mapping[str, bytes]  # suffix to content


def write_shards(folder: Path, split: str, samples: Sequence[Sample], shards: int = 2) -> None:
    root = folder / split
    root.mkdir(parents=True, exist_ok=True)
    size = -(-len(samples) // shards)
    for shard in range(shards):
        with tarfile.open(root / f"{shard}.tar", "w") as archive:
            for number, members in enumerate(samples[shard * size : (shard + 1) * size]):
                for suffix, data in members.items():
                    header = tarfile.TarInfo(f"s{shard * size + number:07d}.{suffix}")
                    header.size = len(data)
                    archive.addfile(header, io.BytesIO(data))
    (root / "nshards.txt").write_text(f"{shards}\n")


def write_classes(folder: Path, samples: Sequence[Sample], names: Sequence[str]) -> None:
    """Every third sample is of `test`, the others of `train`; a sample's `cls` is its number in `names`."""
    train = [sample for number, sample in enumerate(samples) if number % 3]
    write_shards(folder, "train", train)
    write_shards(folder, "test", samples[::3])
    (folder / "classnames.txt").write_text("\n".join(names))
    (folder / "zeroshot_classification_templates.txt").write_text("a picture of {c}\n{c}")


def write_digits(folder: Path, names: Sequence[str]) -> None:
    """scikit-learn's digits in grey, called by `names`."""
    folder.mkdir(parents=True)
    samples = []
    for image, label in zip(*digits(folder), strict=True):
        buffer = io.BytesIO()
        grey = (np.array(image) * 15).astype(np.uint8)
        Image.fromarray(grey).convert("RGB").save(buffer, "PNG")
        samples.append({"png": buffer.getvalue(), "cls": str(label).encode()})
    write_classes(folder, samples, names)
