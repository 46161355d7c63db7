"""Data whose samples are numbered: csv rows, files of class folders, synthetic samples.

Order and division over ranks are those of the reference's samplers; over workers, those of torch's DataLoader: batches
in turn. The reference stops at the first sample that fails; here it is noted and the next one takes its place.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import DistributedSampler

from fastclip.data.bad_samples import MISSING_FILE, BadSampleNotes
from fastclip.data.shards import Position


class Division(NamedTuple):
    """How numbered samples are put in order and divided; without `shuffle` every rank reads all, in order."""

    batch_size: int
    shuffle: bool = False  # training
    seed: int = 0
    rank: int = 0
    world_size: int = 1


class RowSource:
    """`num_rows` samples; a subclass says in `sample` what number `index` is."""

    def __init__(self, name: str, num_rows: int, division: Division) -> None:
        self.name, self.num_rows, self._division = name, num_rows, division

    def of_rank(self, rank: int, world_size: int) -> RowSource:
        other = copy.copy(self)
        other._division = self._division._replace(rank=rank, world_size=world_size)
        return other

    def sample(self, index: int, turn: str, notes: BadSampleNotes) -> Any:
        """Sample number `index`, or None and a note."""
        raise TypeError("a subclass gives the samples")

    def read(self, at: Position, notes: BadSampleNotes) -> Iterator[Any]:
        """The samples of this worker's batches, batch after batch, then those of the last, partial one if it is its."""
        order = self.order(at.epoch)
        size = self._division.batch_size
        turn = str(at.turn) if at.turn else ""
        first = at.worker * size
        if self._division.shuffle and first >= len(order):
            first = 0  # no batch of its own: what it gives only fills up for others' bad samples
        for start in range(first, len(order), at.workers * size):
            for index in order[start : start + size]:
                sample = self.sample(index, turn, notes)
                if sample is not None:
                    yield sample

    def order(self, epoch: int) -> list[int]:
        """The sample numbers of this rank in `epoch`, in order: a function of seed and epoch."""
        _, shuffle, seed, rank, world_size = self._division
        if not shuffle:
            return list(range(self.num_rows))
        if world_size > 1:
            # reference: seed 0 whatever --seed says; ranks are filled up with rows from the start
            sampler: DistributedSampler[int] = DistributedSampler(
                range(self.num_rows),  # type: ignore[arg-type]
                num_replicas=world_size,
                rank=rank,
            )
            sampler.set_epoch(epoch)
            return list(sampler)
        # The reference's order comes from the global generator here, so that no epoch can be repeated.
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        return torch.randperm(self.num_rows, generator=generator).tolist()


def read_picture(path: str, where: str, notes: BadSampleNotes) -> bytes | None:
    """The bytes of a picture file, or None and a note."""
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        notes.note(MISSING_FILE, where, getattr(error, "strerror", None) or str(error))
        return None
