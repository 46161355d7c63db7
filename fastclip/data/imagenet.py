"""Labelled pictures in class folders, for zero-shot classification: ImageNet's validation set and ImageNet-V2."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastclip.data.bad_samples import BadSampleNotes
from fastclip.data.decode_pillow import EvalDecoder
from fastclip.data.row_source import Division, RowSource, read_picture
from fastclip.errors import DataError, InputMissing

# torchvision's list, by which the reference tells pictures from other files
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# Where the package imagenetv2_pytorch, and the archive it downloads, put the pictures under the given folder.
_V2_FOLDERS = ("ImageNetV2-matched-frequency", "imagenetv2-matched-frequency-format-val")


class LabelledBatch(NamedTuple):
    images: Tensor  # uint8 (B, H, W, 3)
    labels: Tensor  # int64 (B,): class index


class LabelledFile(NamedTuple):
    path: str
    label: int


class LabelledSample(NamedTuple):
    image: bytes
    label: int
    key: str


def imagenet_files(root: str, flag: str) -> list[LabelledFile]:
    """Every picture under the class folders of `root`; the label is a folder's place in the sorted names.

    Raises InputMissing or DataError, also for an empty class, which would shift nothing but is no complete copy.
    """
    classes = _class_folders(Path(root), flag)
    files = []
    for label, folder in enumerate(classes):
        pictures = _pictures(folder)
        if not pictures:
            raise DataError(f"{flag} {root}: class folder {folder.name} holds no pictures")
        files += [LabelledFile(path, label) for path in pictures]
    return files


def imagenet_v2_files(root: str, flag: str) -> list[LabelledFile]:
    """Every picture of ImageNet-V2; the label is the NUMBER that names its folder (10 follows 9, not 1)."""
    base = next((Path(root, name) for name in _V2_FOLDERS if Path(root, name).is_dir()), Path(root))
    folders = _class_folders(base, flag)
    names = [folder.name for folder in folders]
    odd = [name for name in names if not name.isdecimal()]
    if odd:
        raise DataError(
            f"{flag} {base}: class folders must be named by class number, 0 to 999; found {odd[0]!r}"
        )
    folders.sort(key=lambda folder: int(folder.name))
    files = [
        LabelledFile(path, int(folder.name)) for folder in folders for path in _pictures(folder)
    ]
    if not files:
        raise DataError(f"{flag} {base}: the class folders hold no pictures")
    return files


class LabelledSource(RowSource):
    """Labelled files in order, as encoded samples."""

    def __init__(self, name: str, files: list[LabelledFile], division: Division) -> None:
        super().__init__(name, len(files), division)
        self._files = files

    def sample(self, index: int, turn: str, notes: BadSampleNotes) -> LabelledSample | None:
        path, label = self._files[index]
        image = read_picture(path, path, notes)
        return None if image is None else LabelledSample(image, label, path)


class LabelledPreparer:
    """Decodes labelled pictures for evaluation."""

    def __init__(self, decoder: EvalDecoder) -> None:
        self._decoder = decoder

    def prepare(self, sample: LabelledSample, epoch: int) -> tuple[np.ndarray, int]:
        return self._decoder(sample.image), sample.label

    def collate(self, items: list[Any]) -> LabelledBatch:
        images = torch.from_numpy(np.stack([image for image, _ in items]))
        return LabelledBatch(images, torch.tensor([label for _, label in items]))


def _class_folders(root: Path, flag: str) -> list[Path]:
    if not root.is_dir():
        raise InputMissing(f"{flag} {root}: no such folder")
    folders = sorted((entry for entry in root.iterdir() if entry.is_dir()), key=lambda f: f.name)
    if not folders:
        raise InputMissing(f"{flag} {root}: no class folders in it")
    return folders


def _pictures(folder: Path) -> list[str]:
    return [
        str(Path(parent, name))
        for parent, _, names in sorted(os.walk(folder, followlinks=True))
        for name in sorted(names)
        if name.lower().endswith(IMAGE_ENDINGS)
    ]
