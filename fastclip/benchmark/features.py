"""Features of pictures and texts, kept in parts on disk so that a killed evaluation goes on."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from fastclip.benchmark.model import Subject
from fastclip.benchmark.write import write_whole
from fastclip.data.placed_pictures import picture_loader
from fastclip.data.tar_index import Place
from fastclip.errors import DataError

logger = logging.getLogger(__name__)

PART_PICTURES = 1024


class PictureFeatures(NamedTuple):
    """Of those pictures that could be decoded."""

    numbers: Tensor  # int64 (n,), rising: which pictures
    features: Tensor  # fp32 (n, D), unit norm, on the CPU
    bad: dict[str, int]  # pictures left out, by cause


class Parts:
    """Features in the files of a folder, each written whole: numbers int64 (n,), features (n, D)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._next = 0

    def read(self) -> list[tuple[Tensor, Tensor]]:
        """All parts in order. One that cannot be read is removed, and its pictures are done again."""
        found = []
        for path in sorted(self._folder.glob("part-*.safetensors")):
            self._next = max(self._next, int(path.stem.removeprefix("part-")) + 1)
            try:
                content = load_file(path)
                found.append((content["numbers"], content["features"]))
            except (SafetensorError, KeyError, OSError):
                logger.warning("%s cannot be read: its pictures are done again", path)
                path.unlink(missing_ok=True)
        return found

    def add(self, numbers: Tensor, features: Tensor) -> None:
        """Raises CannotWrite."""
        path = self._folder / f"part-{self._next:05d}.safetensors"
        write_whole(path, save({"numbers": numbers, "features": features.contiguous()}))
        self._next += 1

    def remove(self) -> None:
        """All of them: they have served."""
        shutil.rmtree(self._folder, ignore_errors=True)


def picture_features(
    subject: Subject,
    name: str,  # what the pictures are called in messages
    places: Sequence[Place],
    parts: Parts,
    *,
    batch_size: int,
    workers: int,
) -> PictureFeatures:
    """Features of all pictures; of those in `parts` the ones found there. Raises DataError where no
    picture can be decoded, and CannotWrite."""
    found = parts.read()
    done = set(torch.cat([numbers for numbers, _ in found]).tolist()) if found else set()
    left = [number for number in range(len(places)) if number not in done]
    loader = picture_loader(
        name,
        places,
        left,
        subject.preprocess,
        batch_size=batch_size,
        workers=workers,
        device=subject.device,
    )
    waiting: list[tuple[Tensor, Tensor]] = []
    progress = tqdm(total=len(places), initial=len(done), desc=name, unit="picture", disable=None)
    with progress:
        try:
            for images, numbers in loader if left else ():
                waiting.append((numbers, subject.encoder.images(images)))
                progress.update(len(numbers))
                if sum(len(numbers) for numbers, _ in waiting) >= PART_PICTURES:
                    found.append(_flush(waiting, parts))
        except DataError:
            if not done or loader.bad.kept or loader.bad.dropped < len(left):
                raise  # else: only the pictures that do not decode were left to do
    if waiting:
        found.append(_flush(waiting, parts))
    numbers = torch.cat([part for part, _ in found])
    order = numbers.argsort()
    features = torch.cat([part for _, part in found])[order]
    if not features.isfinite().all():
        raise DataError(f"{name}: the image tower gives values that are infinite or not a number")
    return PictureFeatures(numbers[order], features, loader.bad.counts)


def text_features(subject: Subject, texts: Sequence[str], *, batch_size: int) -> Tensor:
    """fp32 (len(texts), D), unit norm, on the device. Equal texts are encoded once, those of like
    length together."""
    distinct = sorted(dict.fromkeys(texts), key=len)
    rows = []
    with tqdm(total=len(distinct), desc="texts", unit="text", disable=None) as progress:
        for start in range(0, len(distinct), batch_size):
            some = distinct[start : start + batch_size]
            rows.append(subject.encoder.texts(subject.tokenizer(some)))
            progress.update(len(some))
    row_of = {text: row for row, text in enumerate(distinct)}
    features = torch.cat(rows)
    return features[torch.tensor([row_of[text] for text in texts], device=features.device)]


def _flush(waiting: list[tuple[Tensor, Tensor]], parts: Parts) -> tuple[Tensor, Tensor]:
    part = (
        torch.cat([numbers for numbers, _ in waiting]).cpu(),
        torch.cat([features for _, features in waiting]).cpu(),
    )
    parts.add(*part)
    waiting.clear()
    return part
