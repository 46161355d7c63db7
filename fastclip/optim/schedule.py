"""Learning rate as a function of the optimiser step (OpenCLIP's three schedules)."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer

from fastclip.config.train_config import OptimConfig

Schedule = Callable[[int], None]
"""Sets the learning rate of the optimiser for the given 0-based step."""


def learning_rate(config: OptimConfig, step: int, total_steps: int, cooldown_steps: int) -> float:
    """Rate at `step`: linear warm-up, then cosine to about 0, constant, or constant with a final decay."""
    assert config.lr is not None
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.lr_scheduler == "cosine":
        angle = math.pi * (step - config.warmup) / (total_steps - config.warmup)
        return 0.5 * (1 + math.cos(angle)) * config.lr
    start_of_cooldown = total_steps - cooldown_steps
    if config.lr_scheduler == "const" or step < start_of_cooldown:
        return config.lr
    decay: float = (1 - (step - start_of_cooldown) / cooldown_steps) ** config.lr_cooldown_power
    return decay * (config.lr - config.lr_cooldown_end) + config.lr_cooldown_end


def build_schedule(
    config: OptimConfig, optimizer: Optimizer, steps_per_epoch: int, epochs: int
) -> Schedule:
    """All parameter groups get the same rate; `--skip-scheduler` leaves the optimiser's own."""
    if config.skip_scheduler:
        return lambda step: None
    total_steps = steps_per_epoch * epochs
    cooldown_steps = steps_per_epoch * (config.epochs_cooldown or 0)

    def set_rate(step: int) -> None:
        rate = learning_rate(config, step, total_steps, cooldown_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate

    return set_rate
