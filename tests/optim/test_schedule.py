"""The learning rate of every step equals the reference's own schedulers'."""

import random

import pytest
import torch
from open_clip_train import scheduler as reference

from fastclip.config.train_config import OptimConfig
from fastclip.optim.schedule import build_schedule


def _reference_schedule(config: OptimConfig, optimizer, steps_per_epoch: int, epochs: int):
    total = steps_per_epoch * epochs
    if config.lr_scheduler == "cosine":
        return reference.cosine_lr(optimizer, config.lr, config.warmup, total)
    if config.lr_scheduler == "const":
        return reference.const_lr(optimizer, config.lr, config.warmup, total)
    return reference.const_lr_cooldown(
        optimizer,
        config.lr,
        config.warmup,
        total,
        steps_per_epoch * config.epochs_cooldown,
        config.lr_cooldown_power,
        config.lr_cooldown_end,
    )


@pytest.mark.parametrize("kind", ["cosine", "const", "const-cooldown"])
def test_every_step_has_the_reference_rate(kind: str) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(20):
        config = OptimConfig(
            lr=10 ** rng.uniform(-5, -2),
            warmup=rng.randint(0, 30),
            lr_scheduler=kind,
            epochs_cooldown=rng.randint(1, 2),
            lr_cooldown_end=rng.choice([0.0, 1e-6]),
            lr_cooldown_power=rng.choice([1.0, 2.0]),
        )
        steps_per_epoch, epochs = rng.randint(3, 20), rng.randint(2, 5)
        ours = torch.optim.SGD([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(2)]}], lr=9.0)
        theirs = torch.optim.SGD([torch.zeros(1)], lr=9.0)
        set_ours = build_schedule(config, ours, steps_per_epoch, epochs)
        set_theirs = _reference_schedule(config, theirs, steps_per_epoch, epochs)
        for step in range(steps_per_epoch * epochs):
            set_ours(step)
            set_theirs(step)
            expected = theirs.param_groups[0]["lr"]
            assert [group["lr"] for group in ours.param_groups] == [expected, expected], (
                config,
                step,
            )


def test_skip_scheduler_leaves_the_rate_alone() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.25)
    build_schedule(OptimConfig(skip_scheduler=True), optimizer, 10, 1)(3)
    assert optimizer.param_groups[0]["lr"] == 0.25
