"""Two gloo ranks: our trainer under DDP against the reference's model and loss under DDP of our launch.

(The reference's own trainer cannot run two processes on a CPU: it hands DDP a device index.)
"""

import copy
import itertools
import math

import open_clip
import torch
import torch.distributed as dist
from open_clip_train import scheduler as reference_scheduler
from torch.nn.parallel import DistributedDataParallel

from fastclip.train.distributed import World
from fastclip.train.loop import train_epoch
from fastclip.train.setup import prepare_for_training, wrap
from tests.distributed.launch import run_ranks
from tests.e2e.trajectories import (
    REDUCED,
    Trajectory,
    _Recorder,
    compare,
    learnable_batches,
    normalised,
    our_config,
    our_model,
    our_run,
    parse_reference,
    reference_model,
    reference_optimizer,
)

BATCH = 8  # per rank
FLAGS = (
    "--train-data unused --model ViT-B-32-256 --warmup 5 --lr 5e-4 --beta1 0.9 --beta2 0.95 --wd 0.2 "
    f"--batch-size {BATCH} --log-every-n-steps 1 --epochs 1 --device cpu --precision fp32"
).split()
PAIRS = {
    (local, gather): (["--local-loss"] if local else [])
    + (["--gather-with-grad"] if gather else [])
    for local, gather in itertools.product([False, True], repeat=2)
}


def _reference(rank: int, world: int, weights, batches, flags: list[str]) -> Trajectory:
    args = parse_reference(flags)
    args.rank, args.world_size, args.distributed = rank, world, True
    model = reference_model(REDUCED, 0)
    model.load_state_dict(weights)
    result = Trajectory(before=copy.deepcopy(model.state_dict()))
    wrapped = DistributedDataParallel(model)
    optimizer = reference_optimizer(wrapped, args)
    schedule = reference_scheduler.cosine_lr(optimizer, args.lr, args.warmup, len(batches))
    loss = open_clip.create_loss(args)
    for step, (images, texts) in enumerate(batches):
        schedule(step)
        optimizer.zero_grad()
        losses = loss(**wrapped(normalised(images), texts), output_dict=True)
        total = sum(losses.values())
        total.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        result.losses.append(total.item())
    result.after = copy.deepcopy(model.state_dict())
    return result


def _ours(rank: int, world_size: int, weights, batches, flags: list[str], after=lambda model: None):
    world = World(rank=rank, local_rank=rank, size=world_size)
    config = our_config(flags)
    model = our_model(REDUCED, weights)
    prepare_for_training(model, config.model)
    result = Trajectory(before=copy.deepcopy(model.state_dict()))
    run = our_run(model, wrap(model, config, world), batches, config, world)
    recorder = _Recorder(run.step, lambda: after(model))
    object.__setattr__(run, "step", recorder)
    train_epoch(run, 0)
    result.losses, result.after = recorder.losses, copy.deepcopy(model.state_dict())
    return result


def _pair_trajectories(rank: int, world: int) -> dict:
    torch.manual_seed(0)
    weights = reference_model(REDUCED, 0).state_dict()
    batches = learnable_batches(REDUCED, 20, BATCH, seed=100 + rank)
    results = {}
    for pair, extra in PAIRS.items():
        theirs = _reference(rank, world, weights, batches, [*FLAGS, *extra])
        ours = _ours(rank, world, weights, batches, [*FLAGS, *extra])
        results[pair] = (ours, theirs)
    return results


def test_all_four_pairs_move_the_weights_as_the_reference() -> None:
    by_rank = run_ranks(_pair_trajectories, 2, timeout=300)
    for pair in PAIRS:
        for rank, results in enumerate(by_rank):
            print("local_loss, gather_with_grad =", pair, "rank", rank)
            figures = compare(*results[pair], loss_tolerance=1e-4)
            assert figures["total"] <= 1e-3
            assert figures["tensor"] <= 1e-2
        one, two = by_rank[0][pair][0].after, by_rank[1][pair][0].after
        assert all(torch.equal(one[k], two[k]) for k in one), "ranks hold different weights"


LOCKS = {
    "none": [],
    "image": ["--lock-image"],
    "text but 1": [
        "--lock-text",
        "--lock-text-unlocked-layers",
        "1",
        "--lock-text-freeze-layer-norm",
    ],
}


def _assert_same_gradients_everywhere(model: torch.nn.Module) -> None:
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    assert gradients
    mine = torch.cat(gradients)
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    assert all(torch.equal(mine, other) for other in everyone), "gradients differ between ranks"


def _flag_matrix(rank: int, world: int) -> dict:
    weights = reference_model(REDUCED, 0).state_dict()
    results = {}
    for static, accum, lock in itertools.product([False, True], [1, 2], LOCKS):
        batches = learnable_batches(REDUCED, 5 * accum, BATCH, seed=rank)
        flags = [*FLAGS, "--local-loss", "--gather-with-grad", *LOCKS[lock], "--grad-checkpointing"]
        flags += ["--accum-freq", str(accum)] + (["--ddp-static-graph"] if static else [])
        steps = _ours(rank, world, weights, batches, flags, _assert_same_gradients_everywhere)
        results[static, accum, lock] = (steps.losses, steps.after)
    return results


def test_gradients_agree_across_ranks_for_static_graph_accumulation_and_locks() -> None:
    by_rank = run_ranks(_flag_matrix, 2, timeout=300)
    for key in by_rank[0]:
        _, accum, lock = key
        assert len(by_rank[0][key][0]) == 5
        plain = by_rank[0][False, accum, lock][1]
        for name, value in by_rank[0][key][1].items():
            torch.testing.assert_close(
                value, plain[name], rtol=1e-6, atol=1e-7, msg=f"{key} {name}"
            )


def test_a_missing_term_is_noticed() -> None:
    """`--local-loss` without `--gather-with-grad` lacks a term of the gradient: the comparison must see it."""
    by_rank = run_ranks(_planted, 2, timeout=300)
    ours, theirs = by_rank[0]
    figures = compare(ours, theirs, loss_tolerance=1.0)
    assert figures["total"] > 1e-2


def _planted(rank: int, world: int) -> tuple[Trajectory, Trajectory]:
    weights = reference_model(REDUCED, 0).state_dict()
    batches = learnable_batches(REDUCED, 6, BATCH, seed=100 + rank)
    theirs = _reference(rank, world, weights, batches, [*FLAGS, *PAIRS[True, True]])
    return _ours(rank, world, weights, batches, [*FLAGS, *PAIRS[True, False]]), theirs
