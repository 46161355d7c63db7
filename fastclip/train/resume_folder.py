"""LOGS/NAME/resume/: what a run needs to go on inside an epoch. Each save is a folder that is whole or never taken.

A save is written under another name, flushed to the disk, given a manifest with the checksum of each file, and renamed.
`state.pt` is an ordinary checkpoint, `ranks.pt` what each rank adds to it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastclip.errors import CannotWrite, DataError, FastclipError
from fastclip.model.checkpoint_file import read_checkpoint
from fastclip.train.checkpoint import flush_folder, write_checkpoint

logger = logging.getLogger(__name__)

STATE, RANKS, MANIFEST = "state.pt", "ranks.pt", "manifest.json"
KEPT = 2
_NAME = re.compile(r"save_(\d+)")
_PARTIAL = ".partial"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Save:
    """A save whose files are all as its manifest says."""

    folder: Path
    epoch: int  # under way; so many are completed
    step: int  # completed in that epoch
    steps_per_epoch: int

    @property
    def epochs(self) -> float:
        """How far the run had come."""
        return self.epoch + self.step / self.steps_per_epoch

    @property
    def written(self) -> int:
        """Nanoseconds, comparable with the times of other files."""
        return (self.folder / MANIFEST).stat().st_mtime_ns


def write_save(
    folder: Path,
    state: Mapping[str, Any],
    ranks: Mapping[str, Any],
    *,
    epoch: int,
    step: int,
    steps_per_epoch: int,
) -> Path:
    """Add a save to `folder` and delete all but the last KEPT. Raises CannotWrite, and then nothing has changed."""
    before = _numbered(folder)
    number = 1 + max((number for _, number in before), default=0)
    final = folder / f"save_{number:06d}"
    partial = folder / (final.name + _PARTIAL)
    try:
        for left_over in folder.glob(f"*{_PARTIAL}"):
            shutil.rmtree(left_over)
        partial.mkdir(parents=True)
        write_checkpoint(state, partial / STATE)
        write_checkpoint(ranks, partial / RANKS)
        manifest = {
            "epoch": epoch,
            "step": step,
            "steps_per_epoch": steps_per_epoch,
            "sha256": {name: _sha256(partial / name) for name in (STATE, RANKS)},
        }
        with (partial / MANIFEST).open("w") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        flush_folder(partial)
        partial.rename(final)
        flush_folder(folder)
    except (OSError, CannotWrite) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CannotWrite(f"cannot write {final}: {error}") from error
    for old, _ in before[KEPT - 1 :]:
        _delete(old)
    return final


def delete_all(folder: Path) -> None:
    """Of a run that is done, and needs none of them."""
    for old, _ in _numbered(folder):
        _delete(old)
    shutil.rmtree(folder, ignore_errors=True)


def find_save(folder: Path) -> Save | None:
    """The newest one that is whole; warns of those that are not."""
    for path, _ in _numbered(folder):
        try:
            return open_save(path)
        except FastclipError as error:
            logger.warning("Passing over a save that cannot be used: %s", error)
    return None


def is_save(path: str) -> bool:
    return "://" not in path and (Path(path) / MANIFEST).is_file()


def open_save(folder: Path) -> Save:
    """Raises DataError where a file is missing, or is not what the manifest says."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        sums = {name: _sha256(folder / name) for name in (STATE, RANKS)}
        if sums != manifest["sha256"]:
            raise DataError(f"{folder}: damaged: its files do not match {MANIFEST}")
        return Save(folder, *(int(manifest[k]) for k in ("epoch", "step", "steps_per_epoch")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: not a whole save: {error}") from error


def read_ranks(save: Save) -> dict[str, Any]:
    return read_checkpoint(save.folder / RANKS)


def _numbered(folder: Path) -> list[tuple[Path, int]]:
    """Finished saves with their numbers, newest first."""
    found = [(path, match) for path in folder.glob("*") if (match := _NAME.fullmatch(path.name))]
    return sorted(((path, int(match[1])) for path, match in found), key=lambda item: -item[1])


def _delete(save: Path) -> None:
    """The manifest first: what is left by a kill in between is no save any more."""
    (save / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(save, ignore_errors=True)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
