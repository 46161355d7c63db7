"""Data sets as CLIP_benchmark exports them: SPLIT/0.tar, SPLIT/1.tar, ... beside the class names.

A picture's label is its `.cls` member (`.npy`, one number a class, where `dataset_type.txt` says
multilabel), its captions the lines of its `.txt` (where it says retrieval).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastclip.benchmark.dataset import Captioned, Labelled
from fastclip.benchmark.words import read_classnames, read_lines, read_templates
from fastclip.data.tar_index import IndexedSample, Place, index_tar
from fastclip.errors import DataError, InputMissing

CLASSNAMES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"


def has_shards(folder: Path, split: str) -> bool:
    return any((folder / split).glob("*.tar"))


def read_labelled(
    folder: Path,
    split: str,
    *,
    classnames: Path | None = None,
    templates: Path | None = None,
    metadata_fields: Sequence[str] = (),  # of the `.npy` that goes with each picture
) -> Labelled:
    """Raises InputMissing or DataError; so for a label without a class name."""
    multilabel = _is_multilabel(folder)
    suffixes = ["npy"] if multilabel else ["cls", "npy"] if metadata_fields else ["cls"]
    samples = read_split(folder, split, *suffixes)
    names = read_classnames(classnames or folder / CLASSNAMES)
    return Labelled(
        name=folder.name,
        places=[picture_of(sample) for sample in samples],
        labels=_labels(samples, len(names), multilabel),
        classnames=names,
        templates=read_templates(templates or folder / TEMPLATES),
        metadata=metadata_of(samples, metadata_fields) if metadata_fields else None,
    )


def read_captioned(folder: Path, split: str) -> Captioned:
    """Raises InputMissing or DataError."""
    samples = read_split(folder, split, "txt")
    return Captioned(
        name=folder.name,
        places=[picture_of(sample) for sample in samples],
        captions=[_text(sample, "txt").splitlines() for sample in samples],
    )


def read_split(folder: Path, split: str, *suffixes: str) -> list[IndexedSample]:
    """The samples of all shards of a split, each with a picture and members of all `suffixes`."""
    wanted = frozenset(suffixes)
    samples = [sample for path in shard_paths(folder, split) for sample in index_tar(path, wanted)]
    for sample in samples:
        missing = [suffix for suffix in suffixes if suffix not in sample.fields]
        if sample.picture is None or missing:
            what = "picture" if sample.picture is None else f".{missing[0]} member"
            raise DataError(f"{folder / split}: {sample.key} has no {what}")
    if not samples:
        raise DataError(f"{folder / split}: the shards hold no samples")
    return samples


def shard_paths(folder: Path, split: str) -> list[Path]:
    """0.tar, 1.tar, ... as many as `nshards.txt` says; without that file all there are, by number."""
    root = folder / split
    count = root / "nshards.txt"
    if not count.is_file():
        found = sorted(root.glob("*.tar"), key=lambda p: (len(p.name), p.name))
        if not found:
            raise InputMissing(f"{root}: no such folder, or no .tar files in it")
        return found
    words = read_lines(count)
    if len(words) != 1 or not words[0].isdecimal():
        raise DataError(f"{count}: one number was expected, got {words[0]!r}")
    paths = [root / f"{number}.tar" for number in range(int(words[0]))]
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        first = missing[0] if missing else root / "0.tar"
        raise InputMissing(
            f"{first}: no such file, though {count} says there are {len(paths)} shards"
        )
    return paths


def picture_of(sample: IndexedSample) -> Place:
    assert sample.picture is not None  # `read_split` has seen to that
    return sample.picture


def _is_multilabel(folder: Path) -> bool:
    kind = folder / "dataset_type.txt"
    return kind.is_file() and read_lines(kind)[0].lower() == "multilabel"


def _labels(samples: Sequence[IndexedSample], num_classes: int, multilabel: bool) -> Tensor:
    if multilabel:
        rows = [_array(sample) for sample in samples]
        odd = next(
            (s.key for s, row in zip(samples, rows, strict=True) if len(row) != num_classes), None
        )
        if odd is not None:
            raise DataError(f"{odd}: its .npy has not one number for each of {num_classes} classes")
        return torch.from_numpy(np.stack(rows)) > 0
    labels = []
    for sample in samples:
        text = _text(sample, "cls").strip()
        if not text.isdecimal() or int(text) >= num_classes:
            raise DataError(
                f"{sample.key}: class {text!r}, but {CLASSNAMES} has {num_classes} names: 0 to {num_classes - 1}"
            )
        labels.append(int(text))
    return torch.tensor(labels)


def metadata_of(samples: Sequence[IndexedSample], fields: Sequence[str]) -> Tensor:
    """int64 (N, fields) from the `.npy` of each sample; DataError for one of another shape."""
    rows = []
    for sample in samples:
        row = _array(sample)
        if row.shape != (len(fields),):
            raise DataError(
                f"{sample.key}: its .npy has shape {row.shape}, not one number for each of: {', '.join(fields)}"
            )
        rows.append(row.astype(np.int64))
    return torch.from_numpy(np.stack(rows))


def _array(sample: IndexedSample) -> np.ndarray:
    try:
        array: np.ndarray = np.load(io.BytesIO(sample.fields["npy"]), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{sample.key}: its .npy is no array of numbers: {error}") from None
    return array


def _text(sample: IndexedSample, suffix: str) -> str:
    try:
        return sample.fields[suffix].decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{sample.key}: its .{suffix} is not UTF-8 text: {error}") from None
