"""Writing files that are either whole or not there."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from fastclip.errors import CannotWrite


def make_folder(folder: Path) -> None:
    """Before anything takes time: CannotWrite if the results could not be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise CannotWrite(
            f"{folder}: {error.strerror or error}; choose another place with --out"
        ) from error


def write_whole(path: Path, content: bytes | str) -> None:
    """Write beside the name, then rename. Makes the folder. Raises CannotWrite."""
    beside = path.with_name(f"{path.name}.partial")
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(data)
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):  # it may be that nothing can be there
            beside.unlink()
        raise CannotWrite(
            f"{path}: {error.strerror or error}; free some space or choose another --out"
        ) from error
