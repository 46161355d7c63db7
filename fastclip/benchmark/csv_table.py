"""Pictures from the rows of a csv file: with a class each, or with captions."""

from __future__ import annotations

from pathlib import Path

import torch

from fastclip.benchmark.dataset import Captioned, Labelled
from fastclip.benchmark.words import PLAIN_TEMPLATE, read_classnames, read_templates
from fastclip.config.eval_options import EvalOptions
from fastclip.data.csv_source import Row, read_rows
from fastclip.data.tar_index import Place
from fastclip.errors import DataError

SUFFIXES = (".csv", ".tsv")


def read_labelled_rows(path: Path, options: EvalOptions) -> Labelled:
    """The caption column holds class names. Without --classnames those of the file, sorted, are the
    classes."""
    rows = _rows(path, options)
    if options.classnames is not None:
        names = read_classnames(Path(options.classnames))
    else:
        names = tuple(sorted({row.caption for row in rows}))
    number = {name: index for index, name in reversed(list(enumerate(names)))}
    for index, row in enumerate(rows, start=1):
        if row.caption not in number:
            raise DataError(f"{path}: row {index}: {row.caption!r} is none of the class names")
    templates = read_templates(Path(options.templates)) if options.templates else (PLAIN_TEMPLATE,)
    return Labelled(
        name=path.stem,
        places=[Place(row.path) for row in rows],
        labels=torch.tensor([number[row.caption] for row in rows]),
        classnames=names,
        templates=templates,
    )


def read_captioned_rows(path: Path, options: EvalOptions) -> Captioned:
    """Rows of one path are captions of one picture; pictures in the order of their first rows."""
    captions: dict[str, list[str]] = {}
    for row in _rows(path, options):
        captions.setdefault(row.path, []).append(row.caption)
    return Captioned(
        name=path.stem,
        places=[Place(picture) for picture in captions],
        captions=list(captions.values()),
    )


def _rows(path: Path, options: EvalOptions) -> list[Row]:
    return read_rows(
        str(path),
        separator=options.csv_separator,
        image_key=options.csv_img_key,
        caption_key=options.csv_caption_key,
        flag="--data",
    )
