"""A folder of labelled pictures as rows for `--dataset-type csv`: FOLDER/LABEL/PICTURE."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from fastclip.data.imagenet import IMAGE_ENDINGS
from fastclip.errors import CannotWrite, DataError, InputMissing, UserError


def write_csv(folder: Path, out: Path, template: str) -> Mapping[str, int]:
    """A tab-separated file with `filepath` and `title`, the trainer's default columns; pictures by label.

    A label is a sub-folder's name, underscores as blanks, put into `template` for its `{}`. Paths are
    absolute. UserError for a template without `{}`, InputMissing or DataError for the folder, CannotWrite.
    """
    if "{}" not in template:
        raise UserError(f"--template {template!r}: write {{}} where the label goes")
    if not folder.is_dir():
        raise InputMissing(f"{folder}: no such folder")
    rows, counts = [], Counter[str]()
    for label_folder in sorted(path for path in folder.iterdir() if path.is_dir()):
        label = label_folder.name.replace("_", " ")
        for picture in sorted(label_folder.rglob("*")):
            if picture.suffix.lower() in IMAGE_ENDINGS and picture.is_file():
                rows.append((str(picture.absolute()), template.replace("{}", label)))
                counts[label] += 1
    if not rows:
        raise DataError(
            f"{folder}: no pictures in sub-folders; it must be FOLDER/LABEL/PICTURE.jpg"
        )
    partial = out.with_name(out.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerows([("filepath", "title"), *rows])
        partial.replace(out)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise CannotWrite(f"{out}: cannot be written: {error.strerror or error}") from error
    return counts
