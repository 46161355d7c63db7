"""Picture paths and captions from the rows of a csv or tsv file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fastclip.data.bad_samples import EMPTY_CAPTION, MISSING_FILE, BadSampleNotes
from fastclip.data.row_source import Division, RowSource, read_picture
from fastclip.data.shards import RawSample
from fastclip.errors import DataError, InputMissing, UserError

# What pandas, with which the reference reads, takes for a missing value; as a caption it becomes "nan".
MISSING_VALUES = frozenset(
    {"", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"}
    | {"<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}
)
_MAX_FIELD_BYTES = 16 << 20


class Row(NamedTuple):
    path: str
    caption: str


def read_rows(
    path: str, *, separator: str, image_key: str, caption_key: str, flag: str
) -> list[Row]:
    """The rows of a csv file with a header line. Raises InputMissing, DataError or UserError, one line each."""
    separator = (
        "\t" if separator == r"\t" else separator
    )  # as typed between single quotes in a shell
    if len(separator) != 1:
        raise UserError(f"--csv-separator {separator!r}: must be one character")
    csv.field_size_limit(_MAX_FIELD_BYTES)
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=separator)
            header = next(reader, None)
            if header is None:
                raise DataError(f"{flag} {path}: the file is empty")
            columns = [
                _column(header, key, of, separator, f"{flag} {path}")
                for key, of in ((image_key, "--csv-img-key"), (caption_key, "--csv-caption-key"))
            ]
            rows = [
                Row(*(_field(fields, column) for column in columns)) for fields in reader if fields
            ]
    except FileNotFoundError:
        raise InputMissing(f"{flag} {path}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{flag} {path}: not UTF-8 text: {error}") from None
    except OSError as error:
        raise InputMissing(f"{flag} {path}: {error.strerror or error}") from None
    except csv.Error as error:
        raise DataError(f"{flag} {path}: line {reader.line_num}: {error}") from None
    if not rows:
        raise DataError(f"{flag} {path}: the file has a header and no rows")
    return rows


class CsvSource(RowSource):
    """Rows of a csv file as samples; pictures are read from paths relative to the working folder."""

    def __init__(self, name: str, rows: Sequence[Row], division: Division) -> None:
        super().__init__(name, len(rows), division)
        self._rows = rows

    def sample(self, index: int, turn: str, notes: BadSampleNotes) -> RawSample | None:
        path, caption = self._rows[index]
        where = f"{path} (row {index + 1})"
        if path in MISSING_VALUES:
            notes.note(MISSING_FILE, f"row {index + 1}", "no path")
            return None
        image = read_picture(path, where, notes)
        if image is None:
            return None
        if caption in MISSING_VALUES:
            notes.note(EMPTY_CAPTION, where)
            caption = "nan"  # reference: str() of pandas' missing value
        return RawSample(image, caption, f"{path}:{index + 1}", turn)


def _column(header: list[str], key: str, flag_of_key: str, separator: str, where: str) -> int:
    if key in header:
        return header.index(key)
    found = ", ".join(header[:20])
    hint = f"name the right one with {flag_of_key}"
    if len(header) == 1:
        others = [other for other in ",;|\t" if other != separator and other in header[0]]
        if others:
            hint = f"the separator is {separator!r} and looks like {others[0]!r}: give --csv-separator {others[0]!r}"
    raise DataError(f"{where}: no column {key!r} among: {found}; {hint}")


def _field(fields: list[str], column: int) -> str:
    return fields[column] if column < len(fields) else ""
