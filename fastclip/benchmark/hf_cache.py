"""Rows of data sets that Hugging Face's `datasets` has put into its cache: Arrow files.

Pictures are not copied: their place in the file is found, and they are read like a shard's.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fastclip import optional
from fastclip.data.tar_index import Place
from fastclip.errors import DataError, InputMissing

INSTALL = "pip install 'fastclip[datacomp]'"


def rows(folder: Path, split: str, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """`columns` of each row; pictures, and lists of them, as Places.

    InputMissing without such files, EnvironmentProblem without pyarrow, DataError for files that are
    damaged or lack a column.
    """
    paths = sorted(folder.glob(f"**/*-{split}.arrow")) or sorted(
        folder.glob(f"**/*-{split}-*-of-*.arrow")
    )
    if not paths:
        raise InputMissing(f"{folder}: no such folder, or no {split} split in it")
    arrow = optional.require("pyarrow", f"{folder} (Arrow files)", INSTALL)
    for path in paths:
        yield from _rows_of(arrow, path, columns)


def _rows_of(arrow: Any, path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    try:
        whole = arrow.memory_map(str(path)).read_buffer()
        for batch in arrow.ipc.open_stream(whole):
            missing = [name for name in columns if name not in batch.schema.names]
            if missing:
                raise DataError(f"{path}: no column {missing[0]!r}")
            values = [_values(arrow, batch.column(name), path, whole) for name in columns]
            for row in zip(*values, strict=True):
                yield dict(zip(columns, row, strict=True))
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a whole Arrow file: {error}") from error


def _values(arrow: Any, column: Any, path: Path, whole: Any) -> list[Any]:
    """A column as Python's own values; pictures (structs of bytes and path) as Places."""
    if arrow.types.is_struct(column.type):
        return _places(arrow, column, path, whole)
    if arrow.types.is_list(column.type) and arrow.types.is_struct(column.type.value_type):
        places = _places(arrow, column.values, path, whole)
        return [places[a:b] for a, b in pairwise(column.offsets.to_pylist())]
    found: list[Any] = column.to_pylist()
    return found


def _places(arrow: Any, pictures: Any, path: Path, whole: Any) -> list[Place]:
    """From where the values lie in the mapped file: one buffer end to end, and where each starts."""
    contents, paths = pictures.field("bytes"), pictures.field("path").to_pylist()
    kind = np.int64 if arrow.types.is_large_binary(contents.type) else np.int32
    _, starts, data = contents.buffers()
    empty = data is None or data.size == 0  # it then has no place in the file
    first = 0 if empty else data.address - whole.address
    if not empty and not 0 <= first <= whole.size - data.size:
        raise DataError(f"{path}: its pictures are compressed a second time, by Arrow")
    ends = np.frombuffer(starts, kind)[contents.offset :][: len(contents) + 1].tolist()
    return [
        # without bytes `datasets` has the path of a file in its cache
        Place(str(path), first + a, b - a) if there else Place(str(file))
        for (a, b), there, file in zip(
            pairwise(ends), contents.is_valid().to_pylist(), paths, strict=True
        )
    ]
