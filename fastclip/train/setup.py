"""From a configuration to a `Run`: every choice is made here, once, in the reference's order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.amp import GradScaler

from fastclip.config.train_config import ModelConfig, TrainConfig
from fastclip.data.batch import Batch
from fastclip.data.build import DataLoaders, build_data, check_number_of_shards
from fastclip.data.loader import TrainLoader
from fastclip.data.packing import PackRule
from fastclip.data.tokenizer import Tokenizer, build_tokenizer
from fastclip.errors import UserError
from fastclip.model.factory import create_teacher, create_training_model
from fastclip.model.model_config import tokenizer_spec
from fastclip.optim.build import build_optimizer, describe
from fastclip.optim.schedule import build_schedule
from fastclip.optim.update import Update
from fastclip.train.attention import set_up_attention
from fastclip.train.checkpoint import CheckpointWriter, build_checkpoint, restore
from fastclip.train.compiling import set_up_compiling
from fastclip.train.distributed import World, agree_on_steps
from fastclip.train.evaluation import Evaluation
from fastclip.train.gradient_sync import in_ddp, syncs_of
from fastclip.train.losses import gather_early, loss_backend, make_loss
from fastclip.train.meters import StepClock
from fastclip.train.mfu import utilisation
from fastclip.train.packed_captions import choose_packing, example_texts, texts_for_teacher
from fastclip.train.precision import autocast_factory, input_dtype, make_scaler, product_dtype
from fastclip.train.profiling import InPart, ProfiledSteps, UpdateInParts, steps_to_profile
from fastclip.train.progress import Progress, make_progress
from fastclip.train.rank_state import Left, Stateful, gathered, read_left
from fastclip.train.recompute_choice import recompute_less_if_it_fits
from fastclip.train.report import Guard, Report
from fastclip.train.resume_folder import STATE, is_save, write_save
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
    batches: Callable[[int], Iterator[Batch]]  # of one epoch, on the device
    before_step: Callable[[int], None]  # learning rate, generators; takes the global step
    step: Step
    clock: StepClock
    report: Report
    progress: Progress
    save: Callable[[int], None]  # takes the number of completed epochs
    saving: Saving  # inside an epoch
    evaluate: Callable[[int], None]
    begin_epoch: Callable[[int], int]  # returns how many of its steps were made before


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """Model, data and optimiser of one run, before anything is written to disk."""

    model: nn.Module  # bare
    wrapped: nn.Module  # in DDP where the run is distributed; else the same object
    teacher: nn.Module | None
    optimizer: torch.optim.Optimizer | None  # None: the run only evaluates
    scaler: GradScaler | None
    data: DataLoaders
    tokenizer: Any
    context_length: int
    start_epoch: int
    pack: PackRule | None = None  # None: captions as the tokenizer gives them
    left: Left | None = None  # where another run left the first epoch; None: at its beginning


def build_parts(config: TrainConfig, world: World, resume_from: str | None) -> Parts:
    """Model, optimiser, checkpoint, data. Raises the errors of the rooms that build them; writes nothing."""
    check_number_of_shards(config.data, world.size)
    seed_everything(config.seed)  # the same first weights on every rank
    model: Any = create_training_model(
        config.model, precision=config.precision, device=world.device, siglip=config.loss.siglip
    )
    teacher = None
    if config.loss.distill:
        teacher = create_teacher(
            config.loss.distill_model,
            config.loss.distill_pretrained,
            config.model,
            precision=config.precision,
            device=world.device,
            student=model,
        )
        if config.model.prune_last_block:
            teacher.prune_last_block()  # type: ignore[operator]
        if config.model.fused_patch_embed:
            teacher.fuse_patch_embed()  # type: ignore[operator]
    seed_everything(config.seed + world.rank)
    prepare_for_training(model, config.model)
    tokenizer = tokenizer_of(config.model)
    check_vocabulary(tokenizer, model, config.model)
    pack = choose_packing(model, teacher, config)
    set_up_attention(
        model,
        teacher,
        config,
        world.device,
        packed=pack is not None,
        teacher_packed=pack is not None and not pack.keep_dense,
    )
    if config.trains:
        loss_backend(config.loss, world.device, product_dtype(config.precision))
        set_up_compiling(model, config, world.device)

    optimizer = scaler = None
    if config.trains:
        optimizer = build_optimizer(config.optim, model)
        scaler = make_scaler(config.precision, world.device)
    start_epoch = 0
    left = None
    if resume_from is not None:
        if is_save(resume_from):
            left = read_left(Path(resume_from), world)
            resume_from = str(Path(resume_from) / STATE)
        start_epoch = restore(
            resume_from, model, optimizer, scaler, unsafe=config.checkpoint.unsafe_load
        )
    data = build_data(
        config.data,
        model.visual.preprocess_cfg,
        tokenizer,
        seed=config.seed,
        rank=world.rank,
        world_size=world.size,
        device=world.device,
        start_epoch=start_epoch,
        epochs=config.epochs,
        pack=pack,
        left=None if left is None else left.data,
        batches_per_step=config.optim.accum_freq,
    )
    if data.train is not None:
        check_accumulation(data.train, config)
    return Parts(
        model=model,
        wrapped=model,
        teacher=teacher,
        optimizer=optimizer,
        scaler=scaler,
        data=data,
        tokenizer=tokenizer,
        context_length=tokenizer.context_length,
        start_epoch=start_epoch,
        pack=pack,
        left=left,
    )


def wrap_parts(parts: Parts, config: TrainConfig, world: World) -> Parts:
    """The same with the model in DDP and all ranks agreed on what to recompute: the first collectives of a run, so
    only once all ranks have their parts.
    """
    if config.trains:
        assert parts.data.train is not None
        agree_on_steps(parts.data.train.num_batches, world)
        recompute_less_if_it_fits(parts.model, parts.teacher, parts.data.train, config, world)
    return replace(parts, wrapped=wrap(parts.model, config, world))


def tokenizer_of(config: ModelConfig) -> Tokenizer:
    """What `--model`, `--tokenizer` and their companions ask for; raises as `build_tokenizer`."""
    return build_tokenizer(
        tokenizer_spec(
            config.name,
            context_length=config.force_context_length,
            tokenizer_file=config.tokenizer,
            cache_dir=config.cache_dir,
        )
    )


def check_accumulation(loader: TrainLoader, config: TrainConfig) -> None:
    """UserError where an epoch is shorter than one step."""
    if loader.num_batches < config.optim.accum_freq:
        raise UserError(
            f"--accum-freq {config.optim.accum_freq}: an epoch has {loader.num_batches} batches of "
            f"--batch-size {config.data.batch_size} per rank, so there is no full step in it"
        )


def check_vocabulary(tokenizer: Any, model: Any, config: ModelConfig) -> None:
    """A tokenizer that knows more ids than the text tower would end as an index error deep in the first step."""
    rows = getattr(model, "vocab_size", None)
    if rows is not None and tokenizer.vocab_size > rows:
        which = f"--tokenizer {config.tokenizer}" if config.tokenizer else "its tokenizer"
        raise UserError(
            f"{which} has {tokenizer.vocab_size} ids, --model {config.name} has embeddings for {rows}: "
            "give the tokenizer that belongs to the model"
        )


def prepare_for_training(model: Any, config: ModelConfig) -> None:
    """Freeze and checkpoint, in the reference's order; leave out what is never read."""
    if config.lock_image:
        model.lock_image_tower(
            unlocked_groups=config.lock_image_unlocked_groups,
            freeze_bn_stats=config.lock_image_freeze_bn_stats,
        )
    if config.lock_text:
        model.lock_text_tower(
            unlocked_layers=config.lock_text_unlocked_layers,
            freeze_layer_norm=config.lock_text_freeze_layer_norm,
        )
    recompute = config.recompute
    if recompute == "auto":
        recompute = "full" if config.grad_checkpointing else "none"
    if recompute == "full":
        model.set_grad_checkpointing()
    elif recompute == "pointwise":
        if not hasattr(model, "set_recompute"):
            raise UserError(
                f"--recompute pointwise: {config.name} is not one of fastclip's own models; use --recompute full"
            )
        model.set_recompute(recompute)
    if config.fused_patch_embed:
        fused = model.fuse_patch_embed()
        logger.info(
            "patch embedding: %s",
            "raw pixels are normalised in it" if fused else "pixels are normalised before it",
        )
    if config.prune_last_block:
        towers = model.prune_last_block()
        logger.info("last block computes one row in these towers: %s", ", ".join(towers) or "none")


def wrap(model: nn.Module, config: TrainConfig, world: World) -> nn.Module:
    """SyncBatchNorm and DDP. The optimiser was built on the same parameters, so the order does not matter to it."""
    if not world.distributed or not config.trains:
        return model
    if config.distributed.use_bn_sync:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return in_ddp(model, config.distributed, world.device)


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
    accum_freq = config.optim.accum_freq
    steps_per_epoch = loader.num_batches // accum_freq
    autocast = autocast_factory(config.precision, world.device)
    update = Update(
        parts.optimizer,
        parts.model.logit_scale,  # type: ignore[arg-type]
        clip_norm=config.optim.grad_clip_norm,
        scaler=parts.scaler,
        nonfinite=config.optim.nonfinite,
    )
    loss = make_loss(config.loss, world, captions=parts.model.writes_captions)  # type: ignore[arg-type]
    towers = gather_early(parts.wrapped, loss, world, model=parts.model, accum_freq=accum_freq)
    syncs = syncs_of(parts.wrapped)

    def make_step(teacher: Callable[..., Any] | None, loss: Loss, update: Updating) -> Step:
        texts = texts_for_teacher(parts.pack)
        forward = Forward(towers, teacher, input_dtype(config.precision), texts)
        if accum_freq == 1:
            return PlainStep(forward, loss, update, autocast)
        return AccumulateStep(forward, loss, update, autocast, syncs)

    step, batches = make_step(parts.teacher, loss, update), loader.epoch
    if config.log.profile and world.is_first:
        steps_of_run = steps_per_epoch * (config.epochs - parts.start_epoch)
        count = steps_to_profile(config.log.profile, steps_of_run)
        if count:
            taught = None if parts.teacher is None else InPart("teacher", parts.teacher)
            profiled = ProfiledSteps(
                make_step(taught, InPart("loss", loss), UpdateInParts(update)),
                step,
                batches,
                model=parts.model,
                steps=count,
                folder=folder.path / "profile",
                device=world.device,
            )
            step, batches = profiled, profiled.batches
    clock = StepClock()
    progress = make_progress(steps_per_epoch, first_rank=world.is_first)
    report = Report(
        world=world,
        writers=writers,
        guard=Guard(update, config.optim.nonfinite),
        update=update,
        clock=clock,
        every=config.log.log_every_n_steps,
        epochs=config.epochs,
        steps_per_epoch=steps_per_epoch,
        samples_per_step=config.data.batch_size * accum_freq * world.size,
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
    schedule = build_schedule(config.optim, parts.optimizer, steps_per_epoch, config.epochs)
    evaluation = Evaluation(
        config, world, parts.model, parts.data, parts.tokenizer, folder, writers, stop
    )
    stateful = Stateful(loader=loader, update=update, report=report, device=world.device)
    return Run(
        start_epoch=parts.start_epoch,
        epochs=config.epochs,
        steps_per_epoch=steps_per_epoch,
        accum_freq=accum_freq,
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
