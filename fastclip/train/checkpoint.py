"""Checkpoints: written whole or not at all, found again, and put back into a run."""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from fastclip.config.train_config import CheckpointConfig
from fastclip.errors import CannotWrite, DataError, FastclipError, InputMissing
from fastclip.model.checkpoint_file import read_checkpoint
from fastclip.model.state_dict import load_state
from fastclip.optim.build import load_optimizer_state, portable_state_dict
from fastclip.optional import require
from fastclip.train.remote_sync import list_remote_checkpoints

logger = logging.getLogger(__name__)

LATEST = "epoch_latest.pt"
_NUMBERED = re.compile(r"epoch_(\d+)\.pt")
_PARTIAL = ".partial"  # not *.pt, so that nobody's search for checkpoints ever finds one


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write beside `path`, flush to the disk, rename. A kill at any moment leaves the old file or the new one."""
    partial = path.with_name(path.name + _PARTIAL)
    try:
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        flush_folder(path.parent)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch's zip writer on a full disk
        partial.unlink(missing_ok=True)
        raise CannotWrite(f"cannot write {path}: {error}") from error


def flush_folder(folder: Path) -> None:
    """Names in it, as files' contents, are safe on the disk only once they are flushed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class CheckpointWriter:
    """What is kept in checkpoints/ after each epoch, by the reference's rules."""

    def __init__(self, config: CheckpointConfig, folder: Path, epochs: int) -> None:
        self._config, self._folder, self._epochs = config, folder, epochs
        for left_over in folder.glob(f"*{_PARTIAL}"):
            left_over.unlink()

    def save(self, checkpoint: Mapping[str, Any]) -> None:
        """`checkpoint["epoch"]` is the number of completed epochs.

        A save that fails is a warning and training goes on; after the last epoch it is a CannotWrite.
        """
        try:
            self._save(checkpoint, int(checkpoint["epoch"]))
        except CannotWrite as error:
            if checkpoint["epoch"] == self._epochs:
                raise
            logger.warning("%s. Training goes on; the next try is after the next epoch.", error)

    def _save(self, checkpoint: Mapping[str, Any], epoch: int) -> None:
        every = self._config.save_frequency
        if epoch == self._epochs or (every > 0 and epoch % every == 0):
            newest = self._folder / f"epoch_{epoch}.pt"
            write_checkpoint(checkpoint, newest)
            if self._config.files_kept:
                self._delete_before(epoch, keep=self._config.files_kept)
        if self._config.save_most_recent:
            write_checkpoint(checkpoint, self._folder / LATEST)

    def _delete_before(self, epoch: int, *, keep: int) -> None:
        """All but the newest `keep` up to `epoch`, whose file is in place; the reference deletes by name
        arithmetic, newer file or not. One that cannot be deleted is a warning."""
        written = [
            path
            for path, number in _numbered(self._folder)
            if number <= epoch and path.name == f"epoch_{number}.pt"  # epoch_01.pt is not ours
        ]
        for path in written[keep:]:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("cannot delete the old checkpoint %s: %s", path, error)


def _numbered(folder: Path) -> list[tuple[Path, int]]:
    """epoch_N.pt files with their N, newest first."""
    found = [
        (path, match) for path in folder.glob("*.pt") if (match := _NUMBERED.fullmatch(path.name))
    ]
    return sorted(((path, int(match[1])) for path, match in found), key=lambda item: -item[1])


def find_latest(folder: Path, *, unsafe: bool) -> Path | None:
    """The newest checkpoint that can be read whole; None where there is none at all.

    epoch_latest.pt is written after the epoch_N.pt of the same epoch, so it is the newest unless its time says
    that a later run without --save-most-recent left it behind.
    Raises DataError where there are checkpoints and none is whole: starting afresh would overwrite them.
    """
    candidates = [path for path, _ in _numbered(folder)]
    latest = folder / LATEST
    if latest.exists():
        stale = bool(candidates) and candidates[0].stat().st_mtime_ns > latest.stat().st_mtime_ns
        candidates.insert(1 if stale else 0, latest)
    for path in candidates:
        try:
            read_checkpoint(path, unsafe=unsafe)
        except FastclipError as error:
            logger.warning("Passing over a checkpoint that cannot be used: %s", error)
        else:
            return path
    if candidates:
        raise DataError(
            f"--resume latest: none of the {len(candidates)} checkpoints in {folder} can be read; "
            "give another --name to start afresh, or --resume with a file that is whole"
        )
    return None


def find_latest_remote(remote_checkpoints: str) -> str | None:
    """Address of the newest epoch_N.pt on the remote."""
    names = [
        name for name in list_remote_checkpoints(remote_checkpoints) if _NUMBERED.fullmatch(name)
    ]
    if not names:
        return None
    return f"{remote_checkpoints.rstrip('/')}/{max(names, key=epochs_of)}"


def epochs_of(checkpoint: str) -> int:
    """The N of an address that ends in epoch_N.pt."""
    match = _NUMBERED.fullmatch(checkpoint.rsplit("/", 1)[-1])
    assert match is not None
    return int(match[1])


def open_checkpoint(source: str, *, unsafe: bool) -> dict[str, Any]:
    """Read a local file, or any address that fsspec knows."""
    if "://" not in source:
        return read_checkpoint(Path(source), unsafe=unsafe)
    fsspec: Any = require("fsspec", f"--resume {source}", "pip install fsspec")
    with tempfile.NamedTemporaryFile(suffix=".pt") as local:
        try:
            with fsspec.open(source, "rb") as remote:
                shutil.copyfileobj(remote, local)
        except (OSError, ValueError, ImportError) as error:
            raise InputMissing(f"--resume {source}: cannot be fetched: {error}") from error
        local.flush()
        return read_checkpoint(Path(local.name), unsafe=unsafe)


def build_checkpoint(
    name: str, epoch: int, model: nn.Module, optimizer: Optimizer, scaler: GradScaler | None
) -> dict[str, Any]:
    """The reference's dictionary. `model` is the possibly DDP-wrapped, never compiled one: keys begin with
    `module.` exactly if the run is distributed."""
    checkpoint = {
        "epoch": epoch,
        "name": name,
        "state_dict": model.state_dict(),
        "optimizer": portable_state_dict(optimizer),
    }
    if scaler is not None:
        checkpoint["scaler"] = scaler.state_dict()
    return checkpoint


def restore(
    source: str,
    model: nn.Module,
    optimizer: Optimizer | None,
    scaler: GradScaler | None,
    *,
    unsafe: bool,
) -> int:
    """Put a training checkpoint (or a bare state dict) into a run; the number of completed epochs.

    `model` is the bare one: `module.` prefixes are taken off, whatever run wrote them.
    """
    checkpoint = open_checkpoint(source, unsafe=unsafe)
    if "epoch" not in checkpoint:
        load_state(model, checkpoint.get("state_dict", checkpoint), source=source)
        logger.info("=> loaded checkpoint '%s' (epoch 0)", source)
        return 0
    load_state(model, checkpoint["state_dict"], source=source)
    if optimizer is not None:
        for line in load_optimizer_state(optimizer, checkpoint["optimizer"], source):
            logger.warning("Resuming with other settings than the checkpoint's: %s", line)
    if scaler is not None and "scaler" in checkpoint:
        scaler.load_state_dict(checkpoint["scaler"])
    epoch = int(checkpoint["epoch"])
    logger.info("=> resuming checkpoint '%s' (epoch %d)", source, epoch)
    return epoch
