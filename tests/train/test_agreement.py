"""What ranks agree on: as many steps an epoch, and when to save or to stop."""

from __future__ import annotations

import pytest

from fastclip.errors import RanksDisagree
from fastclip.train.distributed import World, agree_on_steps
from fastclip.train.stop_request import Agreement
from tests.distributed.launch import run_ranks


def agree(rank: int, world_size: int) -> None:
    world = World(rank=rank, size=world_size)
    agree_on_steps(7, world)
    with pytest.raises(RanksDisagree, match="7 batches on rank 0 and 8 on rank 1"):
        agree_on_steps(7 + rank, world)
    agreed = Agreement(world)
    said = [[0, 0, 1], [0, 2, 0]]
    assert [agreed(wish) for wish in said[rank]] == [0, 0, 2]
    agreed.forget()  # the 1
    assert [agreed(0), agreed(0)] == [0, 0]


def test_ranks_agree() -> None:
    run_ranks(agree, 2)


def test_a_single_process_is_heard_at_once() -> None:
    agreed = Agreement(World())
    assert [agreed(wish) for wish in (0, 2, 1)] == [0, 2, 1]
