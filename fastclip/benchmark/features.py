"""Features of pictures and texts, kept in parts on disk so that a killed evaluation goes on."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from fastclip.benchmark.dataset import causes
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


class Share(NamedTuple):
    """The pictures of one device, and where their features go."""

    name: str  # what the pictures are called in messages
    places: Sequence[Place]  # of all pictures
    numbers: Sequence[int]  # those of the share
    folder: Path
    device: int  # which of the devices
    part_pictures: int  # written at once
    batch_size: int
    workers: int


class Helper(Protocol):
    """Another device: it is told to start, and asked for its result while others work too."""

    def start(self, share: Share) -> None: ...

    def result(self) -> dict[str, int]: ...


class Parts:
    """Features in the files of a folder, each written whole: numbers int64 (n,), features (n, D).

    Processes may add to one folder at a time if their `device` differs.
    """

    def __init__(self, folder: Path, device: int = 0) -> None:
        self.folder, self._device = folder, device

    def read(self) -> list[tuple[Tensor, Tensor]]:
        """All parts, of all devices. One that cannot be read is removed, and its pictures are done again."""
        found = []
        for path in sorted(self.folder.glob("part-*.safetensors")):
            try:
                content = load_file(path)
                found.append((content["numbers"], content["features"]))
            except (SafetensorError, KeyError, OSError):
                logger.warning("%s cannot be read: its pictures are done again", path)
                path.unlink(missing_ok=True)
        return found

    def add(self, numbers: Tensor, features: Tensor) -> None:
        """Raises CannotWrite."""
        path = self.folder / f"part-{self._device}-{int(numbers[0]):09d}.safetensors"
        write_whole(path, save({"numbers": numbers, "features": features.contiguous()}))

    def remove(self) -> None:
        """All of them: they have served."""
        shutil.rmtree(self.folder, ignore_errors=True)


def picture_features(
    subject: Subject,
    name: str,
    places: Sequence[Place],
    parts: Parts,
    *,
    batch_size: int,
    workers: int,
    others: Sequence[Helper] = (),
) -> PictureFeatures:
    """Features of all pictures; of those in `parts` the ones found there. Raises DataError where no
    picture can be decoded, CannotWrite, and what a helper raises."""
    done = {number for numbers, _ in parts.read() for number in numbers.tolist()}
    left = [number for number in range(len(places)) if number not in done]
    size = _part_pictures(len(left), 1 + len(others), batch_size)
    pieces = [left[start : start + size] for start in range(0, len(left), size)]
    shares = [
        Share(
            name=name,
            places=places,
            numbers=list(chain.from_iterable(pieces[device :: 1 + len(others)])),
            folder=parts.folder,
            device=device,
            part_pictures=size,
            batch_size=batch_size,
            workers=workers,
        )
        for device in range(1 + len(others))
    ]
    asked = [
        (other, share) for other, share in zip(others, shares[1:], strict=True) if share.numbers
    ]
    for other, share in asked:
        other.start(share)
    own = len(shares[0].numbers)
    label = f"{name}, device 1 of {1 + len(asked)}" if asked else name
    with tqdm(
        total=len(done) + own, initial=len(done), desc=label, unit="picture", disable=None
    ) as progress:
        bad = Counter(encode_share(subject, shares[0], progress.update))
    for other, _ in asked:
        bad.update(other.result())
    found = parts.read()
    if not found:
        raise DataError(f"{name}: nothing to evaluate on ({causes(bad) or 'it holds no samples'})")
    # (Unique: a process that was still writing while its main one was started again may have given some twice.)
    numbers, rows = np.unique(torch.cat([part for part, _ in found]).numpy(), return_index=True)
    features = torch.cat([part for _, part in found])[torch.from_numpy(rows)]
    if not features.isfinite().all():
        raise DataError(f"{name}: the image tower gives values that are infinite or not a number")
    return PictureFeatures(torch.from_numpy(numbers), features, dict(bad))


def encode_share(
    subject: Subject, share: Share, progress: Callable[[int], object] = lambda pictures: None
) -> dict[str, int]:
    """Write the parts of a share; returns the pictures left out, by cause. Raises DataError, CannotWrite."""
    if not share.numbers:
        return {}
    loader = picture_loader(
        share.name,
        share.places,
        share.numbers,
        subject.preprocess,
        batch_size=share.batch_size,
        workers=share.workers,
        device=subject.device,
    )
    parts = Parts(share.folder, share.device)
    waiting: list[tuple[Tensor, Tensor]] = []
    try:
        for images, numbers in loader:
            waiting.append((numbers, subject.encoder.images(images)))
            progress(len(numbers))
            if sum(len(numbers) for numbers, _ in waiting) >= share.part_pictures:
                _flush(waiting, parts)
    except DataError:
        if loader.bad.kept or loader.bad.dropped < len(share.numbers):
            raise  # else: none of these decodes, but others may
    if waiting:
        _flush(waiting, parts)
    return loader.bad.counts


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


def _part_pictures(left: int, devices: int, batch_size: int) -> int:
    """Whole batches, so that they are the same on any number of devices, and a part for each device if there are
    as many batches."""
    wanted = min(PART_PICTURES, -(-left // devices))
    return batch_size * max(1, -(-wanted // batch_size))


def _flush(waiting: list[tuple[Tensor, Tensor]], parts: Parts) -> None:
    parts.add(
        torch.cat([numbers for numbers, _ in waiting]).cpu(),
        torch.cat([features for _, features in waiting]).cpu(),
    )
    waiting.clear()
