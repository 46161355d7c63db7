"""The softmax loss as the number of ranks grows, each a process of this machine on its CPU."""

from __future__ import annotations

import pytest

from bench.contest import Contest
from bench.loss_ranks import measure
from bench.paired import Timing
from bench.rows import OURS, REFERENCE, Work
from tests.distributed.launch import run_ranks

WIDTH = 256
ROUNDS = 30
OF_VISIT = 5  # processes are started once; rounds in a row still do not count as so many


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_loss_on_ranks(world_size: int, contest: Contest) -> None:
    pairs = contest.sizes.losses[0][0]
    ranks = contest.once(lambda: run_ranks(measure, world_size, (pairs, WIDTH, ROUNDS)))
    # a step is over when the last rank is
    slowest: dict[str, Timing | str] = {
        who: Timing(
            [max(each) for each in zip(*(r.seconds[who] for r in ranks), strict=True)], None
        )
        for who in (OURS, REFERENCE)
    }
    # of a rank, own rows over all: of both directions forward and backward; alone they share their logits
    products = 6 if world_size > 1 else 3
    contest.record(
        "loss on ranks",
        f"clip, {world_size} x {pairs} pairs of {WIDTH}, gloo",
        slowest,
        Work(pairs * world_size, flops=products * 2 * pairs * pairs * world_size * WIDTH),
        missing={},
        of_visit=OF_VISIT,
        sent_bytes={who: ranks[0].bytes[who] for who in (OURS, REFERENCE)},
        sweep={"name": "clip", "over": "ranks", "at": world_size},
    )
