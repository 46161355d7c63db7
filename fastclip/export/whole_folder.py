"""A folder that is there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from fastclip.errors import CannotWrite, UserError

_PARTIAL = ".partial"


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """An empty folder beside `out`, which gets its name when the block ends well and is removed otherwise.

    What a killed export left there goes first. UserError where `out` holds something, CannotWrite where
    the folder cannot be made or renamed.
    """
    if out.is_symlink() or out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"--out {out}: is there already; remove it, or choose another folder")
    out = out.absolute()
    partial = out.with_name(out.name + _PARTIAL)
    with writing(out):
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
    try:
        yield partial
        with writing(out):
            _flush(partial)
            partial.rename(out)  # onto an empty folder, or a free name
            _sync(out.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Files are being written: what the disk refuses is a CannotWrite."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CannotWrite(f"--out {out}: cannot be written: {reason}; nothing was left") from error


def _flush(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
