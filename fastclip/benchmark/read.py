"""Which layout `--data` has, and its content."""

from __future__ import annotations

from pathlib import Path

from fastclip.benchmark import class_folders, csv_table, shard_pairs, webdataset_folder
from fastclip.benchmark.annotations import read_annotated
from fastclip.benchmark.dataset import Captioned, Labelled
from fastclip.config.eval_options import EvalOptions
from fastclip.data.shard_spec import ARCHIVE_ENDINGS
from fastclip.errors import DataError, InputMissing


def read_labelled(options: EvalOptions, data: Path, split: str) -> Labelled:
    """A webdataset folder, a csv file or class folders. Raises InputMissing, DataError, UserError."""
    _check_exists(data)
    classnames = Path(options.classnames) if options.classnames else None
    templates = Path(options.templates) if options.templates else None
    if data.is_file():
        return csv_table.read_labelled_rows(_csv(data), options)
    if webdataset_folder.has_shards(data, split):
        return webdataset_folder.read_labelled(
            data, split, classnames=classnames, templates=templates
        )
    if class_folders.has_class_folders(data, split):
        return class_folders.read_class_folders(
            data, split, classnames=classnames, templates=templates
        )
    raise DataError(f"--data {data}: neither shards ({split}/0.tar, ...) nor class folders in it")


def read_captioned(options: EvalOptions, data: Path, split: str) -> Captioned:
    """A webdataset folder, shards as training takes them, a csv file, or pictures with an annotation file."""
    if options.annotations is not None:
        _check_exists(data)
        return read_annotated(data, Path(options.annotations), split)
    if data.suffix in csv_table.SUFFIXES:
        _check_exists(data)
        return csv_table.read_captioned_rows(data, options)
    if webdataset_folder.has_shards(data, split):
        return webdataset_folder.read_captioned(data, split)
    if data.is_dir() and not any(path.name.endswith(ARCHIVE_ENDINGS) for path in data.iterdir()):
        raise DataError(
            f"--data {data}: no shards ({split}/0.tar, ... or *.tar) in it; "
            "for a folder of pictures give --annotations"
        )
    return shard_pairs.read_shard_pairs(options.data or "")


def _check_exists(data: Path) -> None:
    if not data.exists():
        raise InputMissing(f"--data {data}: no such file or folder")


def _csv(data: Path) -> Path:
    if data.suffix not in csv_table.SUFFIXES:
        raise DataError(f"--data {data}: a file must be a .csv or .tsv; shards are given by folder")
    return data
