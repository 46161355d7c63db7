"""A run that is not started: its parts as set-up makes them, on shapes, and what they need."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from fastclip.config.train_config import TrainConfig
from fastclip.data.build import build_data
from fastclip.data.loader import TrainLoader
from fastclip.errors import CannotWrite
from fastclip.plan.estimate import Estimate, Subject, estimate, subject_of
from fastclip.plan.figure import Figure
from fastclip.plan.prepared import prepared_on_meta
from fastclip.train.checkpoint import open_checkpoint
from fastclip.train.distributed import World
from fastclip.train.parts import check_accumulation, check_vocabulary, tokenizer_of
from fastclip.train.run import find_resume
from fastclip.train.run_folder import choose_folder


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What dry_run.py prints."""

    subject: Subject
    loader: TrainLoader
    start_epoch: int
    resumed_from: str | None
    estimate: Estimate


def make_plan(config: TrainConfig) -> Plan:
    """Raises what a run would raise over its flags and its data; nothing is written, no process started."""
    subject = subject_of(config)
    alone = World()
    folder = choose_folder(config, alone)
    if folder.log_file is not None:
        _check_writable(folder.path)
    resumed_from = find_resume(config, alone, folder)
    start_epoch = 0
    if resumed_from is not None:
        checkpoint = open_checkpoint(resumed_from, unsafe=config.checkpoint.unsafe_load)
        start_epoch = int(checkpoint.get("epoch", 0))

    model, pack = prepared_on_meta(config, for_cpu=subject.chip is None)
    tokenizer = tokenizer_of(config.model)
    check_vocabulary(tokenizer, model, config.model)
    # torch counts the cores of this machine, which are not those of the run
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = build_data(
            config.data,
            model.visual.preprocess_cfg,
            tokenizer,
            seed=config.seed,
            rank=0,
            world_size=subject.world.size,
            device=torch.device("cpu"),
            start_epoch=start_epoch,
            epochs=config.epochs,
            pack=pack,
        )
    assert data.train is not None
    check_accumulation(data.train, config)
    return Plan(
        subject=subject,
        loader=data.train,
        start_epoch=start_epoch,
        resumed_from=resumed_from,
        estimate=estimate(config, subject, model, data.train.packer),
    )


def _check_writable(folder: Path) -> None:
    """CannotWrite where a run could not make its folder, as far as that can be told without trying."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise CannotWrite(
            f"--logs: cannot make {folder}: {existing} is no folder that can be written"
        )


def run_seconds(plan: Plan, config: TrainConfig) -> Figure:
    """Of all epochs that are left."""
    steps = plan.loader.num_batches // config.optim.accum_freq
    epochs = max(0, config.epochs - plan.start_epoch)
    fast, slow = (times.step * steps * epochs for times in plan.estimate.times)
    return Figure(fast, slow, "step time x steps")
