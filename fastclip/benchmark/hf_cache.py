"""Rows of data sets that Hugging Face's `datasets` has put into its cache: Arrow files.

Pictures are not copied: their place in the file is found, and they are read like a shard's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
            for index in range(batch.num_rows):
                cells = {name: batch.column(name)[index] for name in columns}
                yield {
                    name: _value(arrow, cell, path, whole.address) for name, cell in cells.items()
                }
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a whole Arrow file: {error}") from error


def _value(arrow: Any, cell: Any, path: Path, start: int) -> Any:
    """A cell as Python's own; pictures (structs of bytes and path) as Places."""
    if isinstance(cell, arrow.StructScalar):
        content = cell["bytes"]
        if not content.is_valid:  # `datasets` then has the path of a file in its cache
            return Place(str(cell["path"].as_py()))
        data = content.as_buffer()
        return Place(str(path), data.address - start, data.size)
    if isinstance(cell, arrow.ListScalar) and arrow.types.is_struct(cell.type.value_type):
        return [_value(arrow, item, path, start) for item in cell.values]
    return cell.as_py()
