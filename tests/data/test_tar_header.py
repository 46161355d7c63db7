"""A tar header that is read without tarfile is what tarfile makes of it, whatever is in it."""

from __future__ import annotations

import random
import tarfile
from typing import Any

import pytest

from fastclip.data.shards import CheckedHeader

NAMES = [
    "000084567.jpg",
    "a/b.c.TXT",
    "x" * 99,
    "y" * 140 + "/z.jpg",
    "bücher.txt",
    "folder/",
    "z" * 300,
]
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}

UNREAD = {*range(100, 124), *range(136, 148), *range(257, 345)}


def outcome(kind: type[tarfile.TarInfo], block: bytes) -> Any:
    try:
        header = kind.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError) as error:
        return type(error)
    return header.name, header.size, header.type, header.isreg(), type(header.name)


def blocks(layout: str) -> list[bytes]:
    found = []
    for size, name in enumerate(NAMES):
        for kind in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE):
            header = tarfile.TarInfo(name)
            header.size, header.type, header.uid = size * 12345, kind, 3
            try:
                buffer = header.tobuf(FORMATS[layout])
            except ValueError:  # a name too long for ustar
                continue
            found += [buffer[at : at + 512] for at in range(0, len(buffer), 512)]
    return found


def with_checksum(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("layout", FORMATS)
def test_every_header_is_read_as_by_tarfile(layout: str) -> None:
    for block in blocks(layout):
        assert outcome(CheckedHeader, block) == outcome(tarfile.TarInfo, block)
        for length in (0, 1, 157, 511):
            assert outcome(CheckedHeader, block[:length]) == outcome(
                tarfile.TarInfo, block[:length]
            )


@pytest.mark.parametrize("mended", [False, True], ids=["checksum wrong", "checksum mended"])
def test_a_header_with_any_byte_changed_is_read_as_by_tarfile(mended: bool) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    header = tarfile.TarInfo("0123.jpg")
    header.size = 98765
    whole = header.tobuf(tarfile.USTAR_FORMAT)
    for position in range(512):
        for value in {0, 32, 45, 56, 128, 255, rng.randrange(256), rng.randrange(48, 58)}:
            block = bytearray(whole)
            block[position] = value
            changed = with_checksum(block) if mended else bytes(block)
            mine, tarfiles = (outcome(kind, changed) for kind in (CheckedHeader, tarfile.TarInfo))
            if tarfiles is tarfile.InvalidHeaderError and mended and position in UNREAD:
                continue  # a mode, an owner or a time that is no number: whose it is does not matter
            assert mine == tarfiles, (position, value)
