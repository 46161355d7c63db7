"""How long an epoch is: the reference's arithmetic, on which its learning-rate curve depends.

Shards: every rounding goes up, so that all workers of all ranks give the same number of full batches; a worker that
runs out of samples starts again. Rows (csv, synthetic): each rank drops what does not fill its last batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastclip.errors import DataError, UserError


@dataclass(frozen=True, slots=True)
class EpochPlan:
    """`num_batches` is per rank; `num_samples` is what the log and the schedule call one epoch, over all ranks."""

    num_batches: int
    num_samples: int

    def batches_of_worker(self, worker: int, workers: int) -> int:
        """Batches are taken from the workers in turn, the first one first."""
        return len(range(worker, self.num_batches, workers))


def plan_shards(num_samples: int, batch_size: int, world_size: int, workers: int) -> EpochPlan:
    """Epoch over shards; `batch_size` is per rank, `workers` per rank with 0 counting as 1."""
    workers = max(1, workers)
    global_batch_size = batch_size * world_size
    num_batches = math.ceil(num_samples / global_batch_size)
    num_batches = math.ceil(num_batches / workers) * workers
    return EpochPlan(num_batches, num_batches * global_batch_size)


def plan_rows(num_rows: int, batch_size: int, world_size: int, flag: str) -> EpochPlan:
    """Epoch over the rows of a table. Raises DataError where the reference would train on nothing."""
    per_rank = math.ceil(num_rows / world_size)
    if per_rank < batch_size:
        ranks = f" for each of {world_size} processes" if world_size > 1 else ""
        raise DataError(
            f"{flag} has {per_rank} rows{ranks}, fewer than --batch-size {batch_size}: not one full batch"
        )
    return EpochPlan(per_rank // batch_size, num_rows)


def check_enough_shards(num_shards: int, workers: int, world_size: int) -> None:
    """Every worker of every rank needs a shard of its own unless shards are drawn with replacement.

    Raises UserError with the largest `--workers` that fits. It is not lowered silently: the number of workers is part
    of the rounding above, and so of the learning-rate curve.
    """
    needed = max(1, workers) * world_size
    if num_shards >= needed:
        return
    have = f"{num_shards} shard{'s' if num_shards != 1 else ''}"
    if num_shards >= world_size:
        raise UserError(
            f"--workers {workers}: {needed} loader processes ({world_size} x {max(1, workers)}) need a shard each and "
            f"--train-data has {have}; use --workers {num_shards // world_size}, or add --dataset-resampled"
        )
    raise UserError(
        f"--train-data has {have} for {world_size} processes, and each needs its own: "
        "cut the data into more shards, or add --dataset-resampled"
    )
