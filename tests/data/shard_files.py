"""Shards made for the tests of this room."""

from __future__ import annotations

import io
import secrets
import tarfile
from collections.abc import Iterable
from pathlib import Path

from tests.data.pictures import encode, smooth

Member = tuple[str, bytes]


def fresh_seed() -> int:
    """A new seed for this run, printed so that a failure can be repeated."""
    seed = secrets.randbelow(2**31)
    print(f"seed {seed}")
    return seed


def jpeg(number: int, size: int = 24) -> bytes:
    return encode(smooth(size, size, number), "JPEG")


def tar_bytes(members: Iterable[Member | tarfile.TarInfo], ending: str = "") -> bytes:
    """An archive of regular files, and of whatever the given headers say; `ending` "gz" packs it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{ending}") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            header = tarfile.TarInfo(member[0])
            header.size = len(member[1])
            archive.addfile(header, io.BytesIO(member[1]))
    return buffer.getvalue()


def sample_members(number: int, key: str | None = None) -> list[Member]:
    key = key or f"{number:06d}"
    return [
        (f"{key}.jpg", jpeg(number)),
        (f"{key}.txt", f"caption {number}".encode()),
        (f"{key}.json", b"{}"),
    ]


def write_shards(folder: Path, counts: list[int]) -> list[Path]:
    """One shard per count, of good samples numbered through all shards; captions are `caption NUMBER`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, number = [], 0
    for shard, count in enumerate(counts):
        members = [m for i in range(number, number + count) for m in sample_members(i)]
        number += count
        path = folder / f"{shard:04d}.tar"
        path.write_bytes(tar_bytes(members))
        paths.append(path)
    return paths
