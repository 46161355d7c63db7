"""What a plan counts is what a real step does: FLOPs, and every byte that ranks send, to the last one."""

from __future__ import annotations

import secrets
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastclip.config.train_config import TrainConfig
from fastclip.data.packing import TextPacker
from fastclip.model.factory import create_training_model
from fastclip.plan import traffic
from fastclip.plan.counted_step import count_step
from fastclip.plan.estimate import loss_flops
from fastclip.plan.prepared import prepared_on_meta
from fastclip.plan.traffic import Transfer, transfers_of
from fastclip.train.distributed import World
from fastclip.train.parts import prepare_for_training, wrap
from fastclip_kernels import flops
from fastclip_kernels.loss import clip
from tests.distributed.collectives import Collective, Collectives
from tests.distributed.launch import run_ranks
from tests.e2e.tiny_run import MODEL, model_folder
from tests.e2e.trajectories import learnable_batches, our_config, our_run

BATCH = 6
BASE = f"--train-data unused --warmup 5 --lr 1e-5 --batch-size {BATCH} --epochs 1"
CASES = [
    "--precision amp_bf16 --local-loss --gather-with-grad --grad-checkpointing --ddp-static-graph",
    "--precision fp32 --gather-with-grad --allreduce-dtype bf16 --recompute pointwise",
    "--precision fp32 --local-loss --gather-with-grad --accum-freq 3 --lock-image",
    "--precision amp_bf16 --siglip",
]
MORE_CASES = [
    "--precision fp32",
    "--precision fp32 --local-loss",
    "--precision amp_bf16 --local-loss --no-packed-text --no-prune-last-block --no-fused-patch-embed",
    "--precision pure_bf16 --local-loss --gather-with-grad --force-patch-dropout 0.5",
    "--precision fp32 --local-loss --gather-with-grad --lock-text",
    *(f"--precision amp_bf16 --siglip --loss-dist-impl {w}" for w in ("shift", "reduce", "gather")),
]
RING = ["--precision fp32 --local-loss --gather-with-grad"]

# as torch names what passes through a process group
NAMES = {
    "all-reduce": "allreduce_",
    "all-gather": "_allgather_base_",
    "reduce-scatter": "alltoall_base_",  # which stands in for it where a group has none
    "send": "send",
    "broadcast": "broadcast_",
    "reduce": "reduce_",
}


def measured(config: TrainConfig, rank: int, ranks: int) -> tuple[list[Collective], int, Any]:
    """Of a step of the trainer: what it sent, its FLOPs; and its packer."""
    world, accum = World(rank=rank, local_rank=rank, size=ranks), config.optim.accum_freq
    model: Any = create_training_model(config.model, config.precision, "cpu", config.loss.siglip)
    prepare_for_training(model, config.model)
    seed = secrets.randbits(31)
    print(f"rank {rank}: seed {seed}")
    batches = learnable_batches(MODEL, 5 * accum, BATCH, seed)
    run = our_run(model, wrap(model, config, world), batches, config, world)
    groups = list(run.batches(0))
    steps = [groups[at : at + accum] for at in range(0, len(groups), accum)]
    for number, step in enumerate(steps[:3]):  # DDP learns the order of gradients
        run.before_step(number)
        run.step(step)
    flops.register()
    with Collectives() as seen:
        run.step(steps[3])
    with FlopCounterMode(display=False) as counter:
        run.step(steps[4])
    texts = groups[0].texts
    rows = None if isinstance(texts, torch.Tensor) else len(texts.ids)
    return seen.calls, counter.get_total_flops(), rows


def planned(config: TrainConfig, rows: int | None, ranks: int) -> tuple[list[Transfer], int]:
    model, pack = prepared_on_meta(config, for_cpu=True)
    step = count_step(model, config, None if pack is None else TextPacker(pack, rows or 0))
    of_towers = step.tally.flops("products", "attention")
    transfers = transfers_of(step, config.loss, config.distributed, ranks, config.optim.accum_freq)
    return transfers, of_towers + loss_flops(config, step, ranks)


def both(rank: int, ranks: int, model: str, cases: list[str], ring: bool) -> list[dict[str, Any]]:
    found = []
    with pytest.MonkeyPatch.context() as patch:
        if ring:
            patch.setattr(clip, "RING_BYTES", 1)
            patch.setattr(traffic, "RING_BYTES", 1)
        for case in cases:
            config = our_config([*BASE.split(), "--model", model, *case.split()])
            calls, real_flops, rows = measured(config, rank, ranks)
            transfers, planned_flops = planned(config, rows, ranks)
            sent: Counter[str] = Counter()
            for call in calls:
                if not call.name.startswith("recv"):
                    sent[call.name] += call.bytes
            told: Counter[str] = Counter()
            for transfer in transfers:
                told[NAMES[transfer.collective]] += transfer.bytes
            flops_of = {"real": real_flops, "told": planned_flops}
            found.append({"case": case, "sent": sent, "told": told, "flops": flops_of})
    return found


def check(folder: Path, ranks: int, cases: list[str], ring: bool = False) -> None:
    model = model_folder(folder / "model")
    for of_rank in run_ranks(both, ranks, args=(model, cases, ring), timeout=300):
        assert len(of_rank) == len(cases)
        for found in of_rank:
            assert found["told"] == found["sent"], found
            assert found["flops"]["told"] == found["flops"]["real"] > 0, found


def test_flops_and_traffic_are_those_of_two_ranks(tmp_path: Path) -> None:
    check(tmp_path, 2, CASES)


@pytest.mark.slow
def test_with_every_loss(tmp_path: Path) -> None:
    check(tmp_path, 2, MORE_CASES)


@pytest.mark.slow
def test_three_ranks_in_a_ring(tmp_path: Path) -> None:
    check(tmp_path, 3, [*RING, MORE_CASES[0], "--precision fp32 --siglip"], ring=True)


def test_one_rank_sends_nothing(tmp_path: Path) -> None:
    words = ["--model", model_folder(tmp_path / "model"), "--precision", "fp32"]
    transfers, of_step = planned(our_config([*BASE.split(), *words]), rows=2, ranks=1)
    assert transfers == []
    assert of_step > 0
