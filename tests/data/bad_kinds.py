"""Every kind of odd or bad sample that the matrix mixes into good ones, with what must become of it.

A kind writes the members of one sample whose caption is `caption NUMBER` where it is usable.
"""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastclip.data.bad_samples import (
    BAD_CAPTION,
    BAD_PICTURE,
    EMPTY_CAPTION,
    LARGE_MEMBER,
    NO_CAPTION,
    NO_PICTURE,
)
from tests.data import bad_pictures
from tests.data.shard_files import Member, jpeg

Members = list[Member | tarfile.TarInfo]
MAX_MEMBER = 12_000_000  # what the matrix sets as the limit, to stay small


class Kind(NamedTuple):
    members: Callable[[int], Members]
    used: int  # samples that training sees: 0, 1 or 2
    causes: tuple[str, ...] = ()  # each is counted once


def all_kinds() -> dict[str, Kind]:
    kinds = {
        name: Kind(lambda n, make=make: _pair(n, make(n)), used=1)
        for name, make in bad_pictures.usable_pictures().items()
    }
    broken = bad_pictures.unusable_pictures() | bad_pictures.found_by_the_decoder_alone()
    for name, make in broken.items():
        kinds[name] = Kind(lambda n, make=make: _pair(n, make(n)), used=0, causes=(BAD_PICTURE,))
    return kinds | _captions() | _members()


def _captions() -> dict[str, Kind]:
    def caption(make: Callable[[bytes], bytes]) -> Callable[[int], Members]:
        return lambda n: [(f"c{n}.jpg", jpeg(n)), (f"c{n}.txt", make(f"caption {n}".encode()))]

    return {
        "no caption": Kind(lambda n: [(f"c{n}.jpg", jpeg(n))], 0, (NO_CAPTION,)),
        "caption under another suffix": Kind(
            lambda n: [(f"c{n}.jpg", jpeg(n)), (f"c{n}.caption", b"x")], 0, (NO_CAPTION,)
        ),
        "empty caption": Kind(caption(lambda c: b""), 1, (EMPTY_CAPTION,)),
        "caption of white space": Kind(caption(lambda c: b" \n\t "), 1),
        "two captions": Kind(
            lambda n: [*_pair(n, jpeg(n)), (f"{n:06d}.txt", b"another")], 1, (NO_PICTURE,)
        ),
        "caption of 10 MB": Kind(caption(lambda c: c + b" word" * 2_000_000), 1),
        "caption that is not UTF-8": Kind(caption(lambda c: c + b"\xff\xfe"), 0, (BAD_CAPTION,)),
        "caption in UTF-16": Kind(
            caption(lambda c: c.decode().encode("utf-16")), 0, (BAD_CAPTION,)
        ),
        "caption with control characters": Kind(caption(lambda c: c + b"\0\x1b[2J\r\n"), 1),
    }


def _members() -> dict[str, Kind]:
    return {
        "no picture": Kind(lambda n: [(f"m{n}.txt", b"alone")], 0, (NO_PICTURE,)),
        "the same key twice": Kind(lambda n: [*_pair(n, jpeg(n)), *_pair(n, jpeg(n + 1))], 2),
        "key of spaces, quotes, control characters and Unicode": Kind(
            lambda n: _named(n, f"a b/-' \"$({n})\n\x1b[2J é猫\U0001f600"), 1
        ),
        "key with a dot": Kind(lambda n: _named(n, f"m{n}.v1"), 0, (NO_PICTURE,)),
        "key of 100,000 characters": Kind(
            lambda n: [(f"{'k' * 100_000}{n}.jpg", jpeg(n))], 0, (NO_CAPTION,)
        ),
        "suffixes in capitals": Kind(
            lambda n: [(f"M{n}.JPG", jpeg(n)), (f"M{n}.TXT", f"caption {n}".encode())], 1
        ),
        "file without a suffix": Kind(lambda n: [("README", b"hello"), *_pair(n, jpeg(n))], 1),
        "folders between the files": Kind(
            lambda n: [_special(f"d{n}.jpg", tarfile.DIRTYPE), *_pair(n, jpeg(n))], 1
        ),
        "symbolic link as picture": Kind(
            lambda n: [
                _special(f"m{n}.jpg", tarfile.SYMTYPE, "/etc/hostname"),
                (f"m{n}.txt", b"x"),
            ],
            0,
            (NO_PICTURE,),
        ),
        "hard link as caption": Kind(
            lambda n: [
                (f"m{n}.jpg", jpeg(n)),
                _special(f"m{n}.txt", tarfile.LNKTYPE, f"m{n}.jpg"),
            ],
            0,
            (NO_CAPTION,),
        ),
        "device as picture": Kind(
            lambda n: [_special(f"m{n}.jpg", tarfile.CHRTYPE), (f"m{n}.txt", b"x")],
            0,
            (NO_PICTURE,),
        ),
        "named pipe as caption": Kind(
            lambda n: [(f"m{n}.jpg", jpeg(n)), _special(f"m{n}.txt", tarfile.FIFOTYPE)],
            0,
            (NO_CAPTION,),
        ),
        "path that leads out of the folder": Kind(lambda n: _named(n, f"../../../up{n}"), 1),
        "absolute path": Kind(lambda n: _named(n, f"/tmp/abs{n}"), 1),
        "members that would run code if loaded (.pyd, .pickle, .pth, .npy)": Kind(_with_code, 1),
        "picture larger than the limit for a file": Kind(
            lambda n: _pair(n, bytes(MAX_MEMBER + 1)), 0, (LARGE_MEMBER,)
        ),
    }


def _pair(number: int, picture: bytes) -> Members:
    return [(f"{number:06d}.jpg", picture), (f"{number:06d}.txt", f"caption {number}".encode())]


def _named(number: int, key: str) -> Members:
    return [(f"{key}.jpg", jpeg(number)), (f"{key}.txt", f"caption {number}".encode())]


def _special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.type, header.linkname = kind, target
    return header


class _Runs:
    """Raises when a pickle of it is loaded."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return exec, ("raise SystemExit('a pickle was loaded')",)


def _with_code(number: int) -> Members:
    code = pickle.dumps(_Runs())
    array = io.BytesIO()
    np.save(array, np.array([_Runs()], dtype=object), allow_pickle=True)
    suffixes = ("pyd", "pickle", "pth", "cls", "json")
    dangerous = [(f"{number:06d}.{suffix}", code) for suffix in suffixes]
    return [*dangerous, (f"{number:06d}.npy", array.getvalue()), *_pair(number, jpeg(number))]
