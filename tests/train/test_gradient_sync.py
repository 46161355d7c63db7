"""What ranks send in a step: each gradient once, features once, and nothing that nobody needs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastclip.config.train_config import DistributedConfig
from fastclip.train import setup
from fastclip.train.distributed import World
from fastclip.train.gradient_sync import in_ddp
from fastclip.train.parts import wrap
from tests.distributed.collectives import Collective, Collectives
from tests.distributed.launch import run_ranks
from tests.e2e.trajectories import (
    learnable_batches,
    our_config,
    our_model,
    our_run,
    reference_model,
)

WORLD = 2
BATCH, ACCUM, STEPS = 3, 4, 4
RAW: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 99, "width": 64, "heads": 1, "layers": 1},
}
FLAGS = (
    "--train-data unused --model ViT-B-32-256 --warmup 5 --lr 1e-5 --precision fp32 "
    f"--batch-size {BATCH} --epochs 1 --local-loss --gather-with-grad"
).split()
CASES = list(itertools.product([1, ACCUM], [False, True], ["fp32", "bf16"]))

TRACED = [("fp32", 1, False), ("fp32", 1, True), ("amp_bf16", 1, False), ("fp32", 2, True)]


def collectives_of_steps(
    rank: int, accum: int, static: bool, dtype: str
) -> tuple[list[list[Collective]], Tensor]:
    """Of each step, what went through the process group; and the gradients after the last."""
    flags = [*FLAGS, "--accum-freq", str(accum), "--allreduce-dtype", dtype]
    config = our_config(flags + (["--ddp-static-graph"] if static else []))
    world = World(rank=rank, local_rank=rank, size=WORLD)
    model = our_model(RAW, reference_model(RAW, 0).state_dict())
    batches = learnable_batches(RAW, STEPS * accum, BATCH, seed=rank)
    run = our_run(model, wrap(model, config, world), batches, config, world)
    groups = list(run.batches(0))
    found = []
    for step in range(STEPS):
        run.before_step(step)
        with Collectives() as seen:
            run.step(groups[step * accum : (step + 1) * accum])
        found.append(seen.calls)
    return found, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def traces_of_steps(
    rank: int, precision: str, accum: int, static: bool, early: bool
) -> tuple[list[list[str]], int, list[Tensor]]:
    """Of each step, when towers ran and features left; collectives of rank 0's evaluation after each;
    the weights at the end.
    """
    flags = [*FLAGS, "--accum-freq", str(accum), "--precision", precision]
    config = our_config(flags + (["--ddp-static-graph"] if static else []))
    world = World(rank=rank, local_rank=rank, size=WORLD)
    model = our_model(RAW, reference_model(RAW, 0).state_dict())
    batches = learnable_batches(RAW, STEPS * accum, BATCH, seed=rank)
    with pytest.MonkeyPatch.context() as patch:
        if not early:
            patch.setattr(setup, "gather_early", lambda towers, *_, **__: towers)
        run = our_run(model, wrap(model, config, world), batches, config, world)
    groups = list(run.batches(0))
    seen = Collectives()
    model.visual.register_forward_pre_hook(lambda *_: seen.mark("images"))
    model.token_embedding.register_forward_pre_hook(lambda *_: seen.mark("texts"))
    found, evaluating = [], 0
    for step in range(STEPS):
        run.before_step(step)
        with seen:
            run.step(groups[step * accum : (step + 1) * accum])
        found.append(
            [each for each in seen.trace if each not in ("comm: allreduce_", "comm: broadcast_")]
        )
        if rank == 0:  # would wait for rank 1 forever if it gathered
            with Collectives() as alone, torch.no_grad():
                model(*groups[0])
            evaluating += len(alone.calls)
        seen.trace.clear()
    return found, evaluating, [p.detach().clone() for p in model.parameters()]


class Normed(nn.Module):
    """A constant that no state dict holds, and, if asked for, running statistics."""

    def __init__(self, running_statistics: bool) -> None:
        super().__init__()
        self.register_buffer("constant", torch.ones(3), persistent=False)
        self.norm = nn.BatchNorm1d(3) if running_statistics else nn.LayerNorm(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x) * self.constant
        return y


def broadcasts_in_steady_steps(rank: int) -> dict[bool, int]:
    found = {}
    for running in (False, True):
        wrapped = in_ddp(Normed(running), DistributedConfig(device="cpu"), torch.device("cpu"))
        for step in range(4):
            with Collectives() as seen:
                wrapped(torch.randn(4, 3) + rank).square().mean().backward()
            if step == 1:  # in its forward DDP sorts its buckets anew, and tells all ranks how
                found[running] = 0
            elif step > 1:
                found[running] += len(seen.named("broadcast_"))
    return found


def on_each_rank(rank: int, world_size: int) -> dict[str, Any]:
    return {
        "steps": {case: collectives_of_steps(rank, *case) for case in CASES},
        "broadcasts": broadcasts_in_steady_steps(rank),
        "traces": {
            (*case, early): traces_of_steps(rank, *case, early)
            for case in TRACED
            for early in (False, True)
        },
    }


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_ranks(on_each_rank, WORLD)


SIZE = sum(p.numel() for p in our_model(RAW, reference_model(RAW, 0).state_dict()).parameters())


@pytest.mark.parametrize(("accum", "static", "dtype"), CASES)
def test_a_step_sends_each_gradient_once(
    ranks: list[dict[str, Any]], accum: int, static: bool, dtype: str
) -> None:
    for rank in ranks:
        steps, _ = rank["steps"][accum, static, dtype]
        for number, step in enumerate(steps):
            reduced = [
                c for c in step if c.name == "allreduce_" and c.tensors[0][1].is_floating_point
            ]
            times = accum if static and number == 0 else 1
            assert sum(c.bytes for c in reduced) == times * SIZE * (2 if dtype == "bf16" else 4)
        names = [c.name for c in steps[-1]]
        assert set(names) == {"allreduce_", "_allgather_base_"}
        assert names.count("_allgather_base_") == 3  # images, texts; sums of softmaxes in backward


def test_only_buffers_that_training_changes_travel(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["broadcasts"][False] == 0
        assert rank["broadcasts"][True] >= 2  # one for each dtype in each step


@pytest.mark.parametrize(("accum", "static"), list(itertools.product([1, ACCUM], [False, True])))
def test_bf16_gradients_agree_and_are_close(
    ranks: list[dict[str, Any]], accum: int, static: bool
) -> None:
    exact, rounded = (ranks[0]["steps"][accum, static, dtype][1] for dtype in ("fp32", "bf16"))
    assert torch.equal(rounded, ranks[1]["steps"][accum, static, "bf16"][1])
    # each rank's share is rounded, and their sum: 3 roundings of at most 2^-9
    error = ((rounded - exact).norm() / exact.norm()).item()
    assert 2**-14 < error < 3 * 2**-9, error


SENT = "comm: _allgather_base_"  # images, texts, and in backward the sums of the softmaxes


@pytest.mark.parametrize(("precision", "accum", "static"), TRACED)
def test_images_leave_before_the_text_tower_runs(
    ranks: list[dict[str, Any]], precision: str, accum: int, static: bool
) -> None:
    for rank in ranks:
        steps, evaluating, weights = rank["traces"][precision, accum, static, True]
        first, *later = steps
        wanted = ["images", SENT, "texts", SENT, SENT]
        if accum > 1:
            wanted = [*["images", "texts"] * accum, SENT, SENT, SENT, *["images", "texts"] * accum]
        assert all(step == wanted for step in later), later
        # the first step of all agrees on the batch size; and with a static graph DDP hands on copies
        # of its outputs there, so that the images are sent once more
        assert len(first) == len(wanted) + 1 + (static and accum == 1), first
        assert evaluating == 0
        _, _, weights_without = rank["traces"][precision, accum, static, False]
        assert all(torch.equal(a, b) for a, b in zip(weights, weights_without, strict=True))
