"""--recompute auto: what is said to be needed is, and the choice follows from it."""

from __future__ import annotations

import logging
from bisect import bisect_left
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastclip.data.packing import PackRule, TextPacker
from fastclip.model.activation_bytes import activation_bytes
from fastclip.train import recompute_choice
from fastclip.train.distributed import World
from fastclip.train.parts import prepare_for_training
from fastclip.train.recompute_choice import recompute_less_if_it_fits
from tests.distributed.launch import run_ranks
from tests.e2e.trajectories import REDUCED, our_config, our_model, reference_model

BATCH, ROWS = 6, 2
FLAGS = f"--train-data unused --model ViT-B-32-256 --batch-size {BATCH} --device cpu --precision amp_bf16".split()


def chosen(memory: int | None, *flags: str, world: World | None = None, model: Any = None) -> str:
    """What a run with these flags recomputes on a device of that many bytes."""
    config = our_config([*FLAGS, *flags])
    if model is None:
        model = our_model(REDUCED, reference_model(REDUCED, 0).state_dict())
    prepare_for_training(model, config.model)
    loader: Any = SimpleNamespace(packer=TextPacker(PackRule(eos_id=None), ROWS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recompute_choice, "total_memory", lambda world: memory)
        recompute_less_if_it_fits(model, None, loader, config, world or World())
    stacks = {model.visual.transformer.recompute, model.transformer.recompute}
    assert len(stacks) == 1
    return str(stacks.pop())


def step_bytes(way: str) -> int:
    """What the step cannot do without: the state, counted in a real optimiser, and what `way` keeps."""
    model = our_model(REDUCED, reference_model(REDUCED, 0).state_dict())
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    tensors = [v for state in optimizer.state.values() for v in state.values() if v.ndim]
    tensors += [t for p in model.parameters() for t in (p, p.grad) if p.ndim and t is not None]
    model.prune_last_block()
    account = activation_bytes(
        model,
        torch.bfloat16,
        torch.device("cpu"),
        samples=BATCH,
        text_tokens=BATCH * 77,  # a batch of the longest captions
        packed=True,
    )
    return sum(t.nbytes for t in tensors) + account.kept(way)  # type: ignore[arg-type]


def test_the_least_recomputing_that_fits() -> None:
    reserve, share = recompute_choice._RESERVE, recompute_choice._RESERVE_SHARE
    needed = {way: step_bytes(way) for way in ("none", "pointwise")}
    least = {way: int((needs + reserve) / (1 - share)) for way, needs in needed.items()}
    margin = 100_000_000  # batch, loss and one block of this small model take less
    memory = range(least["pointwise"], least["none"] + margin)
    order = ("full", "pointwise", "none")
    model = our_model(REDUCED, reference_model(REDUCED, 0).state_dict())

    def place(memory: int) -> int:
        return order.index(chosen(memory, "--grad-checkpointing", model=model))

    first = {way: bisect_left(memory, i, key=place) for i, way in enumerate(order)}
    assert 0 == first["full"] < first["pointwise"] < first["none"] < len(memory)
    between = (first["none"] - first["pointwise"]) * (1 - share)
    assert between == pytest.approx(needed["none"] - needed["pointwise"], abs=2)
    assert chosen(0, "--grad-checkpointing") == "full"
    assert chosen(None, "--grad-checkpointing") == "full"  # no figure: as OpenCLIP does


@pytest.mark.parametrize("memory", [0, 10**12])
def test_whatever_the_memory(memory: int) -> None:
    assert chosen(memory) == "none"
    for way in ("none", "pointwise", "full"):
        assert chosen(memory, "--recompute", way) == way
        assert chosen(memory, "--grad-checkpointing", "--recompute", way) == way


def test_said_once_with_the_bytes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        chosen(80_000_000_000, "--grad-checkpointing")
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("recompute: ")]
    assert line.startswith("recompute: none: activations of a step none ")
    assert "GB free for them: 80 GB, less 8.8 GB in reserve, " in line


def test_models_of_open_clip_recompute_all(caplog: pytest.LogCaptureFixture) -> None:
    calls = []
    model = SimpleNamespace(
        prune_last_block=lambda: (),
        fuse_patch_embed=lambda: False,
        set_grad_checkpointing=lambda: calls.append("full"),
    )
    config = our_config([*FLAGS, "--grad-checkpointing"])
    prepare_for_training(model, config.model)
    with caplog.at_level(logging.INFO):
        recompute_less_if_it_fits(model, None, SimpleNamespace(), config, World())  # type: ignore[arg-type]
    assert calls == ["full"]
    assert "recompute: full: the only way of open_clip's models" in caplog.text


def _on_a_rank(rank: int, world_size: int, memory: list[int]) -> str:
    world = World(rank=rank, local_rank=rank, size=world_size)
    return chosen(memory[rank], "--grad-checkpointing", world=world)


@pytest.mark.slow
def test_the_most_frugal_rank_decides_for_all() -> None:
    assert run_ranks(_on_a_rank, 2, args=([10**12, 10**12],)) == ["none"] * 2
    assert run_ranks(_on_a_rank, 2, args=([10**12, 0],)) == ["full"] * 2
