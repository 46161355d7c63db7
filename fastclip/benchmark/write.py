"""Writing files that are either whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

from fastclip.errors import CannotWrite


def write_whole(path: Path, content: bytes | str) -> None:
    """Write beside the name, then rename. Makes the folder. Raises CannotWrite."""
    beside = path.with_name(f"{path.name}.partial")
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(data)
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise CannotWrite(
            f"{path}: {error.strerror or error}; free some space or choose another --out"
        ) from error
