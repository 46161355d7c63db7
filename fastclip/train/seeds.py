"""Every generator of the training process, as a function of (seed, epoch or step, rank)."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """torch (all devices), NumPy and random: what the reference seeds."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def _mixed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def epoch_seed(seed: int, epoch: int, rank: int) -> int:
    return _mixed(seed, 1, epoch, rank)


def step_seed(seed: int, step: int, rank: int) -> int:
    return _mixed(seed, 2, step, rank)
