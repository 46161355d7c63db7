"""Checkpoints are whole or absent, `latest` is the newest whole one, and files go both ways with the reference."""

import os
import random
import resource
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from fastclip.config.train_config import CheckpointConfig
from fastclip.errors import CannotWrite, DataError
from fastclip.train.checkpoint import LATEST, CheckpointWriter, find_latest, write_checkpoint


def _checkpoint(epoch: int) -> dict[str, object]:
    model = nn.Linear(40, 30)
    return {
        "epoch": epoch,
        "name": "run",
        "state_dict": model.state_dict(),
        "optimizer": torch.optim.AdamW(model.parameters()).state_dict(),
    }


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, {"epoch_1.pt", "epoch_2.pt", "epoch_3.pt", "epoch_4.pt", "epoch_5.pt"}),
        ({"save_frequency": 2}, {"epoch_2.pt", "epoch_4.pt", "epoch_5.pt"}),
        ({"save_frequency": 0}, {"epoch_5.pt"}),
        ({"save_frequency": 0, "save_most_recent": True}, {"epoch_5.pt", LATEST}),
        ({"delete_previous_checkpoint": True, "save_frequency": 2}, {"epoch_5.pt"}),
        ({"delete_previous_checkpoint": True, "keep_last": 1}, {"epoch_5.pt"}),
        ({"keep_last": 2}, {"epoch_4.pt", "epoch_5.pt"}),
        ({"keep_last": 2, "save_frequency": 2}, {"epoch_4.pt", "epoch_5.pt"}),
        ({"keep_last": 1, "save_most_recent": True}, {"epoch_5.pt", LATEST}),
        ({"keep_last": 9, "save_frequency": 3}, {"epoch_3.pt", "epoch_5.pt"}),
    ],
)
def test_which_files_are_kept(tmp_path: Path, options: dict, kept: set[str]) -> None:
    writer = CheckpointWriter(CheckpointConfig(**options), tmp_path, epochs=5)
    for epoch in range(1, 6):
        writer.save(_checkpoint(epoch))
    assert _names(tmp_path) == kept


def test_delete_previous_never_leaves_nothing(tmp_path: Path) -> None:
    """The reference deletes epoch_2.pt after epoch 3 although the next file comes with epoch 4."""
    config = CheckpointConfig(save_frequency=2, delete_previous_checkpoint=True)
    writer = CheckpointWriter(config, tmp_path, epochs=5)
    for epoch in range(1, 4):
        writer.save(_checkpoint(epoch))
    assert _names(tmp_path) == {"epoch_2.pt"}


def test_keep_last_deletes_only_what_this_run_wrote(tmp_path: Path) -> None:
    """A run resumed from epoch 10 beside files of other names, of later epochs, and one that is no file."""
    others = {
        "epoch_01.pt",
        "best_epoch_1.pt",
        "epoch_1.pt.bak",
        "epoch_1.txt",
        "epoch_99.pt",
        LATEST,
    }
    for name in others | {"epoch_8.pt", "epoch_9.pt", "epoch_10.pt"}:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "epoch_7.pt").mkdir()  # cannot be unlinked: told, and training goes on
    writer = CheckpointWriter(CheckpointConfig(keep_last=2), tmp_path, epochs=20)
    writer.save(_checkpoint(11))
    assert _names(tmp_path) == others | {"epoch_7.pt", "epoch_10.pt", "epoch_11.pt"}


def test_keep_last_deletes_nothing_when_the_new_file_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = CheckpointWriter(CheckpointConfig(keep_last=1), tmp_path, epochs=5)
    writer.save(_checkpoint(1))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    writer.save(_checkpoint(2))
    assert _names(tmp_path) == {"epoch_1.pt"}


def test_latest_is_the_newest_that_is_whole(tmp_path: Path) -> None:
    for epoch in (1, 2, 10):
        write_checkpoint(_checkpoint(epoch), tmp_path / f"epoch_{epoch}.pt")
    (tmp_path / "tmp.pt").write_bytes(b"left over")
    (tmp_path / "epoch_99.pt.partial").write_bytes(b"left over")
    assert find_latest(tmp_path, unsafe=False) == tmp_path / "epoch_10.pt"
    newest = (tmp_path / "epoch_10.pt").read_bytes()
    (tmp_path / "epoch_10.pt").write_bytes(newest[: len(newest) // 2])
    assert find_latest(tmp_path, unsafe=False) == tmp_path / "epoch_2.pt"
    write_checkpoint(_checkpoint(3), tmp_path / LATEST)
    assert find_latest(tmp_path, unsafe=False) == tmp_path / LATEST


def test_latest_left_behind_by_an_older_run_is_not_taken(tmp_path: Path) -> None:
    write_checkpoint(_checkpoint(1), tmp_path / LATEST)
    os.utime(tmp_path / LATEST, (1, 1))
    write_checkpoint(_checkpoint(5), tmp_path / "epoch_5.pt")
    assert find_latest(tmp_path, unsafe=False) == tmp_path / "epoch_5.pt"


def test_nothing_there_starts_afresh_and_nothing_whole_does_not(tmp_path: Path) -> None:
    assert find_latest(tmp_path, unsafe=False) is None
    (tmp_path / "epoch_1.pt").write_bytes(b"")
    with pytest.raises(DataError, match="none of the 1 checkpoints"):
        find_latest(tmp_path, unsafe=False)


def test_flipped_bits_are_noticed(tmp_path: Path) -> None:
    good, bad = tmp_path / "epoch_1.pt", tmp_path / "epoch_2.pt"
    write_checkpoint(_checkpoint(1), good)
    write_checkpoint(_checkpoint(2), bad)
    whole = bad.read_bytes()
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    # inside members, not between them
    data_start, data_end = len(whole) // 10, len(whole) * 8 // 10
    taken = 0
    for _ in range(40):
        flipped = bytearray(whole)
        flipped[rng.randrange(data_start, data_end)] ^= 1 << rng.randrange(8)
        bad.write_bytes(flipped)
        os.utime(bad)
        taken += find_latest(tmp_path, unsafe=False) == bad
    # A flip between two members (alignment padding) changes nothing that is read.
    assert taken <= 8


def test_full_disk_keeps_the_older_file_and_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = CheckpointWriter(CheckpointConfig(), tmp_path, epochs=3)
    writer.save(_checkpoint(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
        writer.save(_checkpoint(2))
        with pytest.raises(CannotWrite):
            writer.save(_checkpoint(3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert _names(tmp_path) == {"epoch_1.pt"}
    assert "Training goes on" in caplog.text
