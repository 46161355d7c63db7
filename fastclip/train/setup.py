"""From a configuration and the parts to a `Run`: what the loop calls is chosen here, once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fastclip.config.train_config import TrainConfig
from fastclip.optim.build import describe
from fastclip.optim.schedule import build_schedule
from fastclip.optim.update import Update
from fastclip.train.checkpoint import CheckpointWriter, build_checkpoint
from fastclip.train.distributed import World
from fastclip.train.evaluation import Evaluation
from fastclip.train.gradient_sync import syncs_of
from fastclip.train.losses import gather_early, make_loss
from fastclip.train.meters import StepClock
from fastclip.train.mfu import utilisation
from fastclip.train.packed_captions import example_texts, texts_for_teacher
from fastclip.train.parts import Parts
from fastclip.train.precision import autocast_factory, input_dtype
from fastclip.train.profiling import Batches, InPart, ProfiledSteps, UpdateInParts, steps_to_profile
from fastclip.train.progress import Progress, make_progress
from fastclip.train.rank_state import Stateful, gathered
from fastclip.train.report import Guard, Report
from fastclip.train.resume_folder import write_save
from fastclip.train.run_folder import RunFolder
from fastclip.train.saving import Saving, Write
from fastclip.train.seeds import epoch_seed, seed_everything, step_seed
from fastclip.train.step import AccumulateStep, Forward, Loss, PlainStep, Step, Updating
from fastclip.train.stop_request import StopRequest
from fastclip.train.writers import Writers

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What the loop calls. Nothing in it is a flag."""

    start_epoch: int
    epochs: int
    steps_per_epoch: int
    accum_freq: int
    batches: Batches  # of one epoch, on the device
    before_step: Callable[[int], None]  # learning rate, generators; takes the global step
    step: Step
    clock: StepClock
    report: Report
    progress: Progress
    save: Callable[[int], None]  # takes the number of completed epochs
    saving: Saving  # inside an epoch
    evaluate: Callable[[int], None]
    begin_epoch: Callable[[int], int]  # returns how many of its steps were made before


def build_run(
    config: TrainConfig,
    world: World,
    parts: Parts,
    folder: RunFolder,
    writers: Writers,
    stop: StopRequest,
) -> Run:
    """Join the parts into what the loop calls."""
    assert parts.optimizer is not None
    loader = parts.data.train
    assert loader is not None
    steps_per_epoch = loader.num_batches // config.optim.accum_freq
    update = Update(
        parts.optimizer,
        parts.model.logit_scale,  # type: ignore[arg-type]
        clip_norm=config.optim.grad_clip_norm,
        scaler=parts.scaler,
        nonfinite=config.optim.nonfinite,
    )
    step, batches = _step_and_batches(config, world, parts, folder, update, steps_per_epoch)
    clock = StepClock()
    progress = make_progress(steps_per_epoch, first_rank=world.is_first)
    report = _report(config, world, parts, writers, update, clock, steps_per_epoch)
    schedule = build_schedule(config.optim, parts.optimizer, steps_per_epoch, config.epochs)
    evaluation = Evaluation(
        config, world, parts.model, parts.data, parts.tokenizer, folder, writers, stop
    )
    stateful = Stateful(loader=loader, update=update, report=report, device=world.device)
    return Run(
        start_epoch=parts.start_epoch,
        epochs=config.epochs,
        steps_per_epoch=steps_per_epoch,
        accum_freq=config.optim.accum_freq,
        batches=batches,
        before_step=_before_step(schedule, parts.model, config, world),
        step=step,
        clock=clock,
        report=report,
        progress=progress,
        save=_saver(config, world, parts, folder),
        saving=Saving(
            config.checkpoint,
            world,
            stop,
            _writer_inside_epochs(config, world, parts, folder, stateful, steps_per_epoch),
            clock,
            steps_per_epoch=steps_per_epoch,
        ),
        evaluate=partial(evaluation.run, steps_per_epoch=steps_per_epoch),
        begin_epoch=partial(_begin_epoch, config, world, parts, stateful, progress),
    )


def _step_and_batches(
    config: TrainConfig,
    world: World,
    parts: Parts,
    folder: RunFolder,
    update: Update,
    steps_per_epoch: int,
) -> tuple[Step, Batches]:
    """What is called for each step, and where its batches come from: under a profiler with `--profile`."""
    loader, accum_freq = parts.data.train, config.optim.accum_freq
    assert loader is not None
    autocast = autocast_factory(config.precision, world.device)
    loss = make_loss(config.loss, world, captions=parts.model.writes_captions)  # type: ignore[arg-type]
    towers = gather_early(parts.wrapped, loss, world, model=parts.model, accum_freq=accum_freq)
    syncs = syncs_of(parts.wrapped)

    def make_step(teacher: Callable[..., Any] | None, loss: Loss, update: Updating) -> Step:
        texts = texts_for_teacher(parts.pack)
        forward = Forward(towers, teacher, input_dtype(config.precision), texts)
        if accum_freq == 1:
            return PlainStep(forward, loss, update, autocast)
        return AccumulateStep(forward, loss, update, autocast, syncs)

    plain = make_step(parts.teacher, loss, update)
    count = 0
    if config.log.profile and world.is_first:
        steps_of_run = steps_per_epoch * (config.epochs - parts.start_epoch)
        count = steps_to_profile(config.log.profile, steps_of_run)
    if count == 0:
        return plain, loader.epoch
    taught = None if parts.teacher is None else InPart("teacher", parts.teacher)
    profiled = ProfiledSteps(
        make_step(taught, InPart("loss", loss), UpdateInParts(update)),
        plain,
        loader.epoch,
        model=parts.model,
        steps=count,
        folder=folder.path / "profile",
        device=world.device,
    )
    return profiled, profiled.batches


def _report(
    config: TrainConfig,
    world: World,
    parts: Parts,
    writers: Writers,
    update: Update,
    clock: StepClock,
    steps_per_epoch: int,
) -> Report:
    loader = parts.data.train
    assert loader is not None
    return Report(
        world=world,
        writers=writers,
        guard=Guard(update, config.optim.nonfinite),
        update=update,
        clock=clock,
        every=config.log.log_every_n_steps,
        epochs=config.epochs,
        steps_per_epoch=steps_per_epoch,
        samples_per_step=config.data.batch_size * config.optim.accum_freq * world.size,
        samples_per_epoch=loader.num_samples,
        count_bad_samples=lambda: loader.bad.dropped,
        count_repeated=lambda: loader.position.repeated * config.data.batch_size,
        mfu_per_rate=utilisation(
            parts.model,
            world.device,
            config.precision,
            example_texts(loader, config.data.batch_size, parts.context_length),
        ),
    )


def _begin_epoch(
    config: TrainConfig,
    world: World,
    parts: Parts,
    stateful: Stateful,
    progress: Progress,
    epoch: int,
) -> int:
    """Train mode, fresh averages, and generators that depend on (seed, epoch, rank) only, so that a resumed run
    goes on as the uninterrupted one would: inside an epoch, as they were left."""
    parts.wrapped.train()
    seed_everything(epoch_seed(config.seed, epoch, world.rank))
    stateful.report.begin_epoch()
    done = 0
    if parts.left is not None and epoch == parts.start_epoch:
        done = stateful.loader.position.given // config.optim.accum_freq
        if parts.left.state is not None:
            stateful.restore(parts.left.state)
    progress.begin_epoch(epoch, done)
    return done


def _before_step(
    schedule: Callable[[int], None], model: Any, config: TrainConfig, world: World
) -> Callable[[int], None]:
    if not model.has_patch_dropout:
        return schedule

    def before_step(step: int) -> None:
        schedule(step)
        model.set_patch_dropout_seed(step_seed(config.seed, step, world.rank))

    return before_step


def _saver(
    config: TrainConfig, world: World, parts: Parts, folder: RunFolder
) -> Callable[[int], None]:
    """Rank 0 writes; the others wait until it has."""
    if not config.log.enabled:
        return lambda epoch: None
    writer = (
        CheckpointWriter(config.checkpoint, folder.checkpoints, config.epochs)
        if world.is_first
        else None
    )

    def save(epoch: int) -> None:
        if writer is not None:
            assert parts.optimizer is not None
            writer.save(
                build_checkpoint(folder.name, epoch, parts.wrapped, parts.optimizer, parts.scaler)
            )
        world.wait_for_all()

    return save


def _writer_inside_epochs(
    config: TrainConfig,
    world: World,
    parts: Parts,
    folder: RunFolder,
    stateful: Stateful,
    steps_per_epoch: int,
) -> Write:
    """Every rank gives its state, rank 0 writes."""
    if not config.log.enabled:
        return lambda epoch, step: None

    def write(epoch: int, step: int) -> None:
        stateful.report.flush()  # scalars up to here, as the resumed run will not write them again
        ranks = gathered(stateful, world)
        if world.is_first:
            assert parts.optimizer is not None
            state = build_checkpoint(
                folder.name, epoch, parts.wrapped, parts.optimizer, parts.scaler
            )
            where = {"epoch": epoch, "step": step, "steps_per_epoch": steps_per_epoch}
            path = write_save(folder.resume, state, ranks, **where)
            logger.info("Saved epoch %d after step %d: %s", epoch, step, path)

    return write


def describe_run(config: TrainConfig, world: World, parts: Parts, params_file: Path | None) -> None:
    """The reference's opening lines: model, flags (also to params.txt), optimiser; then what the data will do."""
    logger.info("Model:")
    logger.info("%s", parts.model)
    logger.info("Params:")
    shown = {
        **config.flags,
        "rank": world.rank,
        "world_size": world.size,
        "device": str(world.device),
    }
    lines = [f"{name}: {value}" for name, value in sorted(shown.items())]
    for line in lines:
        logger.info("  %s", line)
    if params_file is not None:
        params_file.write_text("".join(f"{line}\n" for line in lines))
    if parts.optimizer is not None:
        logger.info("%s", describe(config.optim, parts.optimizer))
    if parts.data.train is not None:
        for line in parts.data.train.describe():
            logger.info("%s", line)
