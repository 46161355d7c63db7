"""A save is whole or never taken."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
import torch

from fastclip.errors import CannotWrite, DataError
from fastclip.train.resume_folder import (
    MANIFEST,
    RANKS,
    STATE,
    delete_all,
    find_save,
    is_save,
    open_save,
    read_ranks,
    write_save,
)
from tests.data.shard_files import fresh_seed


def write(folder: Path, step: int) -> Path:
    ranks = {"ranks": [step]}
    return write_save(
        folder, {"w": torch.full((9,), step)}, ranks, epoch=2, step=step, steps_per_epoch=8
    )


def test_the_newest_two_are_kept_and_the_newest_found(tmp_path):
    assert find_save(tmp_path / "resume") is None
    paths = [write(tmp_path / "resume", step) for step in (1, 2, 3)]
    assert sorted((tmp_path / "resume").iterdir()) == paths[1:]
    save = find_save(tmp_path / "resume")
    assert save is not None
    assert (save.folder, save.epoch, save.step, save.epochs) == (paths[2], 2, 3, 2 + 3 / 8)
    assert is_save(str(paths[2]))
    assert read_ranks(save) == {"ranks": [3]}
    delete_all(tmp_path / "resume")
    assert not (tmp_path / "resume").exists()


@pytest.mark.parametrize("file", [STATE, RANKS, MANIFEST])
def test_a_damaged_save_is_passed_over(tmp_path, file, caplog):
    rng = random.Random(fresh_seed())
    older, newer = write(tmp_path, 1), write(tmp_path, 2)
    content = bytearray((newer / file).read_bytes())
    if file == MANIFEST:
        (newer / file).write_bytes(content[: rng.randrange(len(content) - 1)])
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        (newer / file).write_bytes(content)
    with pytest.raises(DataError, match=newer.name):
        open_save(newer)
    save = find_save(tmp_path)
    assert save is not None
    assert save.folder == older
    assert newer.name in caplog.text


def test_what_a_kill_leaves_behind_is_never_taken(tmp_path):
    first = write(tmp_path, 1)
    half = tmp_path / "save_000002.partial"
    half.mkdir()
    for path in first.iterdir():
        (half / path.name).write_bytes(path.read_bytes())
    half_deleted = tmp_path / "save_000003"  # its manifest went first
    half_deleted.mkdir()
    (half_deleted / STATE).write_bytes((first / STATE).read_bytes())
    save = find_save(tmp_path)
    assert save is not None
    assert save.folder == first
    newest = write(tmp_path, 2)
    assert not half.exists()
    save = find_save(tmp_path)
    assert save is not None
    assert save.folder == newest


def test_a_save_that_fails_changes_nothing(tmp_path, monkeypatch):
    first = write(tmp_path, 1)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CannotWrite, match="No space left"):
        write(tmp_path, 2)
    assert list(tmp_path.iterdir()) == [first]
    assert json.loads((first / MANIFEST).read_text())["step"] == 1
