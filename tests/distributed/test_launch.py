"""The launcher itself: a rank that fails or hangs ends the run and is named."""

from __future__ import annotations

import time

import pytest
import torch.distributed as dist

from tests.distributed.launch import RankFailed, run_ranks


def fail_on_rank_one(rank: int, world_size: int) -> None:
    if rank == 1:
        raise ValueError("planted in rank one")
    dist.barrier()


def hang(rank: int, world_size: int) -> None:
    time.sleep(600)


def test_the_rank_that_failed_is_reported():
    with pytest.raises(RankFailed, match=r"(?s)rank 1 of 2 failed.*planted in rank one"):
        run_ranks(fail_on_rank_one, 2)


def test_ranks_that_hang_are_ended_and_shown():
    with pytest.raises(RankFailed, match=r"(?s)still ran after 1 s.*in hang"):
        run_ranks(hang, 1, timeout=1)
