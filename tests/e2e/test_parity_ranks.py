"""Two gloo ranks: our trainer under DDP against the reference's model and loss under DDP of our launch.

(The reference's own trainer cannot run two processes on a CPU: it hands DDP a device index.)
"""

import copy
import itertools
import math
from types import SimpleNamespace

import open_clip
import torch
import torch.distributed as dist
from open_clip_train import scheduler as reference_scheduler
from open_clip_train.train import train_one_epoch
from torch.nn.parallel import DistributedDataParallel

from fastclip.train.distributed import World
from fastclip.train.loop import train_epoch
from fastclip.train.parts import prepare_for_training, wrap
from tests.distributed.launch import run_ranks
from tests.e2e.trajectories import (
    REDUCED,
    ReferenceLoader,
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


def _ours(
    rank: int,
    world_size: int,
    weights,
    batches,
    flags: list[str],
    after=lambda model: None,
    raw=REDUCED,
):
    world = World(rank=rank, local_rank=rank, size=world_size)
    config = our_config(flags)
    model = our_model(raw, weights)
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


# small, because there are many runs of it: what is tested is which gradients travel when
SMALL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 200, "width": 64, "heads": 1, "layers": 2},
}
SLOWLY = [*FLAGS, "--lr", "1e-5", "--local-loss", "--gather-with-grad"]
STEPS = 5
Gradients = dict[str, torch.Tensor]


def _gradients(model: torch.nn.Module) -> Gradients:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    for name, gradient in found.items():
        if name.endswith("in_proj_bias"):  # the key third has no true gradient: it is rounding
            gradient.chunk(3)[1].zero_()
    return found


def _same_everywhere(model: torch.nn.Module) -> Gradients:
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    mine = torch.cat(gradients)
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    assert all(torch.equal(mine, other) for other in everyone), "gradients differ between ranks"
    return _gradients(model)


def _reference_gradients(world: int, weights, batches, flags: list[str]) -> list[Gradients]:
    """Of each step of the reference's own loop, its model in DDP."""
    args = parse_reference([flag for flag in flags if flag != "--ddp-static-graph"])
    args.rank, args.world_size, args.distributed = dist.get_rank(), world, True
    model = reference_model(SMALL, 0)
    model.load_state_dict(weights)
    if args.lock_image:
        model.lock_image_tower(args.lock_image_unlocked_groups, args.lock_image_freeze_bn_stats)
    if args.lock_text:
        model.lock_text_tower(args.lock_text_unlocked_layers, args.lock_text_freeze_layer_norm)
    optimizer = reference_optimizer(model, args)
    schedule = reference_scheduler.cosine_lr(optimizer, args.lr, args.warmup, STEPS)
    found: list[Gradients] = []
    optimizer.register_step_pre_hook(lambda *_: found.append(_gradients(model)))
    loader = ReferenceLoader(batches)
    data = {"train": SimpleNamespace(dataloader=loader, set_epoch=lambda epoch: None)}
    loss = open_clip.create_loss(args)
    wrapped = DistributedDataParallel(model)
    train_one_epoch(wrapped, data, loss, 0, optimizer, None, schedule, None, args)
    return found


def _flag_matrix(rank: int, world: int) -> dict:
    """Worst distance of a gradient to the reference's, as a part of it, for each combination."""
    weights = reference_model(SMALL, 0).state_dict()
    results = {}
    for accum, lock in itertools.product([1, 3], LOCKS):
        batches = learnable_batches(SMALL, STEPS * accum, BATCH, seed=rank)
        flags = [*SLOWLY, *LOCKS[lock], "--accum-freq", str(accum)]
        theirs = _reference_gradients(world, weights, batches, flags)
        for static in [False, True]:
            ours: list[Gradients] = []
            _ours(
                rank,
                world,
                weights,
                batches,
                flags + (["--ddp-static-graph"] if static else []),
                lambda model, ours=ours: ours.append(_same_everywhere(model)),
                raw=SMALL,
            )
            assert len(ours) == len(theirs) == STEPS
            assert all(a.keys() == b.keys() for a, b in zip(ours, theirs, strict=True))
            results[static, accum, lock] = max(
                ((a[name] - b[name]).norm() / b[name].norm()).item()
                for a, b in zip(ours, theirs, strict=True)
                for name in a
            )
    return results


def test_gradients_are_the_references_for_static_graph_accumulation_and_locks() -> None:
    for results in run_ranks(_flag_matrix, 2, timeout=300):
        print({key: float(f"{worst:.2g}") for key, worst in results.items()})
        assert all(worst <= 1e-5 for worst in results.values()), results


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
