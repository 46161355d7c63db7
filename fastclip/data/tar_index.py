"""What is where in a tar file: small members with their content, pictures by their place.

Evaluation reads one sample after another from several processes and may start again in the middle;
so a shard is indexed once, and pictures are read by offset.
"""

from __future__ import annotations

import re
import tarfile
from pathlib import Path
from typing import NamedTuple

from fastclip.data.shards import IMAGE_SUFFIXES, MAX_MEMBER_BYTES, CheckedHeader
from fastclip.errors import DataError, InputMissing

_META = re.compile(r"__[^/]*__($|/)")  # members that belong to the archive, not to a sample


class Place(NamedTuple):
    """Where the bytes of one picture are."""

    path: str
    offset: int = 0
    size: int = -1  # -1: to the end of the file


class IndexedSample(NamedTuple):
    key: str  # "shard/key"
    picture: Place | None
    fields: dict[str, bytes]  # the other members that were asked for, by suffix


def index_tar(path: Path, wanted: frozenset[str]) -> list[IndexedSample]:
    """The samples of an uncompressed tar file in order, with the members whose suffix is `wanted`.

    A sample is a run of members with the same name up to the first dot. Raises InputMissing if the
    file cannot be opened, DataError if it is damaged, cut short or compressed.
    """
    samples: list[IndexedSample] = []
    stem: tuple[str, str] | None = None
    try:
        with (
            path.open("rb") as file,
            tarfile.open(fileobj=file, mode="r:", tarinfo=CheckedHeader) as archive,
        ):
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # it would remember every header
                if not member.isreg() or _META.match(member.name):
                    continue
                folder, _, name = member.name.rpartition("/")
                first, _, suffix = name.partition(".")
                if (folder, first) != stem:
                    stem = (folder, first)
                    samples.append(IndexedSample(f"{path.name}/{first}", None, {}))
                suffix = suffix.lower()
                if suffix in IMAGE_SUFFIXES and samples[-1].picture is None:
                    place = Place(str(path), member.offset_data, member.size)
                    samples[-1] = samples[-1]._replace(picture=place)
                elif suffix in wanted and member.size <= MAX_MEMBER_BYTES:
                    file.seek(member.offset_data)
                    samples[-1].fields[suffix] = file.read(member.size)
    except FileNotFoundError:
        raise InputMissing(f"{path}: no such file") from None
    except tarfile.TarError as error:
        raise DataError(f"{path}: not a whole, uncompressed tar file: {error}") from None
    except OSError as error:
        raise InputMissing(f"{path}: cannot be read: {error.strerror or error}") from error
    return samples
