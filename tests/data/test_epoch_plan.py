"""Epoch arithmetic promises: the reference's numbers, from the reference's own functions."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
from open_clip_train import data as reference
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from fastclip.data.epoch_plan import check_enough_shards, plan_rows, plan_shards
from fastclip.errors import DataError, UserError
from tests.data.shard_files import fresh_seed


def reference_plan(
    num_samples: int, batch_size: int, world_size: int, workers: int
) -> tuple[int, int]:
    args = SimpleNamespace(
        train_data="x.tar",
        train_num_samples=num_samples,
        dataset_resampled=True,
        train_data_upsampling_factors=None,
        batch_size=batch_size,
        world_size=world_size,
        workers=workers,
        seed=0,
    )
    loader = reference.get_wds_dataset(args, None, is_train=True).dataloader
    return loader.num_batches, loader.num_samples


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_shards_give_the_references_batches_and_samples():
    rng = random.Random(fresh_seed())
    cases = [(100, 8, 1, 2), (1_398_270_000, 896, 96, 8), (1, 64, 1, 0), (64, 64, 1, 1)]
    for _ in range(300):
        size = 10 ** rng.randint(0, 10)
        cases.append(
            (rng.randint(1, size), rng.randint(1, 2000), rng.randint(1, 128), rng.randint(0, 12))
        )
    for case in cases:
        num_samples, batch_size, world_size, workers = case
        plan = plan_shards(num_samples, batch_size, world_size, workers)
        # the reference's loader would start no process before it is iterated
        assert (plan.num_batches, plan.num_samples) == reference_plan(*case), case
        shares = [plan.batches_of_worker(w, max(1, workers)) for w in range(max(1, workers))]
        assert shares == [plan.num_batches // max(1, workers)] * max(1, workers)


def test_rows_give_the_references_batches():
    rng = random.Random(fresh_seed())
    for _ in range(300):
        rows, batch_size, world_size = rng.randint(1, 5000), rng.randint(1, 200), rng.randint(1, 8)
        data = range(rows)
        sampler = None
        if world_size > 1:
            sampler = DistributedSampler(
                data, num_replicas=world_size, rank=rng.randrange(world_size)
            )
        expected = len(DataLoader(data, batch_size, sampler=sampler, drop_last=True))
        if expected == 0:
            with pytest.raises(DataError, match=f"fewer than --batch-size {batch_size}"):
                plan_rows(rows, batch_size, world_size, "--train-data x.csv")
            continue
        plan = plan_rows(rows, batch_size, world_size, "--train-data x.csv")
        assert (plan.num_batches, plan.num_samples) == (expected, rows)
        workers = rng.randint(1, 9)
        assert sum(plan.batches_of_worker(w, workers) for w in range(workers)) == expected


def test_more_workers_than_shards_is_refused_with_the_largest_number_that_fits():
    check_enough_shards(8, 4, 2)
    check_enough_shards(2, 0, 2)  # no worker counts as one
    with pytest.raises(UserError, match=r"8 loader processes \(2 x 4\).*7 shards; use --workers 3"):
        check_enough_shards(7, 4, 2)
    with pytest.raises(UserError, match="1 shard for 2 processes"):
        check_enough_shards(1, 0, 2)


def test_every_refusal_names_a_number_that_is_accepted():
    rng = random.Random(fresh_seed())
    for _ in range(200):
        shards, workers, world = rng.randint(1, 40), rng.randint(0, 12), rng.randint(1, 6)
        try:
            check_enough_shards(shards, workers, world)
        except UserError as error:
            assert shards < max(1, workers) * world
            if "use --workers" in str(error):
                fits = int(str(error).split("use --workers ")[1].split(",")[0])
                check_enough_shards(shards, fits, world)
                assert shards < (fits + 1) * world
            else:
                assert shards < world
        else:
            assert shards >= max(1, workers) * world
