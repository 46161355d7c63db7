"""Writing one shard: the same samples make the same bytes, and a file is there whole or not at all."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from fastclip.curate.manifest import PackedShard
from fastclip.curate.whole_file import whole_file


class PackedSample(NamedTuple):
    picture: bytes  # encoded
    suffix: str  # of the picture: "jpg", "png", "webp"
    caption: str


def write_shard(path: Path, first: int, samples: Iterable[PackedSample]) -> PackedShard:
    """Write `samples`, whose keys are their numbers from `first` on, one at a time. Raises CannotWrite."""
    count = 0
    with whole_file(path) as file:
        output = _Measured(file)
        with tarfile.open(fileobj=output, mode="w|", format=tarfile.USTAR_FORMAT) as archive:  # type: ignore[call-overload]
            for count, sample in enumerate(samples, 1):
                key = f"{first + count - 1:010d}"
                for suffix, content in (
                    (sample.suffix, sample.picture),
                    ("txt", sample.caption.encode()),
                ):
                    header = tarfile.TarInfo(f"{key}.{suffix}")  # without time and owner
                    header.size = len(content)
                    archive.addfile(header, io.BytesIO(content))
    return PackedShard(path.name, count, output.bytes, output.sha256.hexdigest())


class _Measured:
    """Passes on what is written, and keeps its length and its hash."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.bytes, self.sha256 = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.bytes += len(data)
        self.sha256.update(data)
        return self._file.write(data)
