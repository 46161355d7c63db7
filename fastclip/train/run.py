"""One run, from configuration to exit: `run(config)` is what `fastclip train` calls."""

from __future__ import annotations

import contextlib
import logging
import platform

import torch

from fastclip import __version__
from fastclip.config.advice import advice
from fastclip.config.train_config import TrainConfig
from fastclip.errors import CannotWrite, ExitCode, FastclipError
from fastclip.model.checkpoint_file import read_checkpoint
from fastclip.train.checkpoint import epochs_of, find_latest, find_latest_remote
from fastclip.train.copy_codebase import copy_codebase
from fastclip.train.distributed import World, init_world, leave
from fastclip.train.evaluation import Evaluation
from fastclip.train.log import RunLogging
from fastclip.train.loop import train
from fastclip.train.parts import Parts, build_parts, wrap_parts
from fastclip.train.precision import set_backend_precision
from fastclip.train.remote_sync import RemoteSync
from fastclip.train.resume_folder import delete_all, find_save
from fastclip.train.run_folder import RunFolder, choose_folder
from fastclip.train.setup import build_run, describe_run
from fastclip.train.stop_request import StopRequest
from fastclip.train.writers import ScalarWriter, TensorBoardWriter, WandbWriter, Writers

logger = logging.getLogger(__name__)


def run(config: TrainConfig) -> None:
    """Train, or evaluate where there is no training data.

    Raises FastclipError for whatever the user can mend; the reason and the exit status are left in exit.json.
    """
    world = init_world(config.distributed)
    logs = RunLogging(config.log.debug, speaks=world.is_first or config.log.log_local)
    folder: RunFolder | None = None
    failed = True
    try:
        with StopRequest() as stop:
            folder = choose_folder(config, world)
            folder.lock.take(world)
            _run(config, world, folder, logs, stop)
        _leave_exit(world, folder, ExitCode.DONE, "done")
        failed = False
    except FastclipError as error:
        _leave_exit(world, folder, error.exit_code, str(error))
        raise
    except KeyboardInterrupt:
        _leave_exit(world, folder, ExitCode.INTERRUPTED, "interrupted")
        raise
    except Exception as error:
        _leave_exit(world, folder, ExitCode.BUG, f"{type(error).__name__}: {error}")
        raise
    finally:
        logs.close()
        if folder is not None:
            folder.lock.release()
        leave(world, failed=failed)


def _leave_exit(world: World, folder: RunFolder | None, code: int, message: str) -> None:
    """Rank 0 reports how the run ended; another rank only that it failed, and why. Nobody where the folder is another
    run's."""
    if folder is not None and folder.lock.held and (world.is_first or code != ExitCode.DONE):
        folder.write_exit(code, message)


def _run(
    config: TrainConfig, world: World, folder: RunFolder, logs: RunLogging, stop: StopRequest
) -> None:
    set_backend_precision(world.device, deterministic=config.deterministic)
    _describe_world(world)
    for line in advice(config, world.size):
        logger.warning(line)
    if config.precision == "fp16":
        logger.warning(
            "--precision fp16 scales no loss and keeps no fp32 weights: prefer amp or amp_bf16"
        )
    resume_from = find_resume(config, world, folder)
    parts = _built_on_every_rank(config, world, resume_from)
    try:
        resumed = resume_from is not None
        _write_and_train(config, world, folder, logs, parts, stop, resumed=resumed)
    finally:
        if parts.data.train is not None:
            parts.data.train.close()


def _built_on_every_rank(config: TrainConfig, world: World, resume_from: str | None) -> Parts:
    """The parts of this rank, once all ranks have theirs: one that fails takes no other into a hang."""
    failure: FastclipError | None = None
    try:
        parts = build_parts(config, world, resume_from)
    except FastclipError as error:
        failure = error
    world.agree_that_all_succeeded(failure)
    return wrap_parts(parts, config, world)


def _write_and_train(
    config: TrainConfig,
    world: World,
    folder: RunFolder,
    logs: RunLogging,
    parts: Parts,
    stop: StopRequest,
    *,
    resumed: bool,
) -> None:
    """From here on the run's folder exists."""
    folder.lock.take_new(world)
    failure: FastclipError | None = None
    if folder.log_file is not None:
        try:
            folder.create(tensorboard=config.log.tensorboard and world.is_first)
        except FastclipError as error:
            failure = error
    world.agree_that_all_succeeded(failure)
    if folder.log_file is None:
        logs.stop_keeping()
    else:
        logs.open_file(folder.log_file)
    if world.is_first:
        describe_run(config, world, parts, folder.params_file if config.log.enabled else None)
        if config.log.copy_codebase:
            copy_codebase(folder.path)
    sync = _start_remote_sync(config, world, folder)
    writers = _make_writers(config, world, folder, parts, resumed=resumed)
    try:
        if config.trains:
            run = build_run(config, world, parts, folder, writers, stop)
            stop.training_begins()
            with contextlib.closing(run.progress):
                train(run)
            if world.is_first:
                delete_all(folder.resume)  # the last checkpoint holds everything
        else:
            Evaluation(
                config, world, parts.model, parts.data, parts.tokenizer, folder, writers, stop
            ).run(parts.start_epoch)
    finally:
        writers.close()
        if sync is not None:
            sync.finish()


def _describe_world(world: World) -> None:
    if world.distributed:
        logger.info(
            "Running in distributed mode with multiple processes. Device: %s."
            "Process (global: %d, local %d), total %d.",
            world.device,
            world.rank,
            world.local_rank,
            world.size,
        )
    else:
        logger.info("Running with a single process. Device %s.", world.device)
    chip = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU"
    logger.info(
        "Software: fastclip %s, torch %s, Python %s. Hardware: %d x %s",  # model cards quote it
        __version__,
        torch.__version__,
        platform.python_version(),
        world.size,
        chip,
    )


def find_resume(config: TrainConfig, world: World, folder: RunFolder) -> str | None:
    """`--resume`, with `latest` replaced by what rank 0 found; None starts afresh."""
    if config.checkpoint.resume != "latest":
        return config.checkpoint.resume
    remote = config.checkpoint.remote_sync
    where = str(folder.checkpoints) if remote is None else f"{remote}/{folder.name}/checkpoints"
    found: str | None = None
    if world.is_first:
        if remote is not None:
            found = _newest_there(folder, where)
        else:
            found = _newest_here(folder, unsafe=config.checkpoint.unsafe_load)
        if found:
            logger.info("Found latest resume checkpoint at %s.", found)
        else:
            logger.info("No latest resume checkpoint found in %s.", where)
    return world.from_first(found)


def _newest_here(folder: RunFolder, *, unsafe: bool) -> str | None:
    """The checkpoint, or the save inside an epoch, with which the run had come furthest; of two, the later one."""
    save = find_save(folder.resume)
    try:
        checkpoint = find_latest(folder.checkpoints, unsafe=unsafe)
    except FastclipError:
        if save is None:
            raise
        checkpoint = None
    if save is None:
        return None if checkpoint is None else str(checkpoint)
    if checkpoint is None:
        return str(save.folder)
    epochs = read_checkpoint(checkpoint, unsafe=unsafe).get("epoch", 0)
    further = (save.epochs, save.written) > (epochs, checkpoint.stat().st_mtime_ns)
    return str(save.folder if further else checkpoint)


def _newest_there(folder: RunFolder, remote_checkpoints: str) -> str | None:
    """The remote's newest checkpoint, or a save inside a later epoch, which are kept on this machine only."""
    save, found = find_save(folder.resume), find_latest_remote(remote_checkpoints)
    if save is None or (found is not None and save.epochs <= epochs_of(found)):
        return found
    return str(save.folder)


def _start_remote_sync(config: TrainConfig, world: World, folder: RunFolder) -> RemoteSync | None:
    settings = config.checkpoint
    if settings.remote_sync is None or not world.is_first:
        return None
    return RemoteSync(
        folder.path,
        f"{settings.remote_sync.rstrip('/')}/{folder.name}",
        settings.remote_sync_protocol,
        settings.remote_sync_frequency,
    )


def _first_step(config: TrainConfig, parts: Parts) -> int | None:
    """Of the run's optimiser steps, the first that is made; None: none will be."""
    loader, accum_freq = parts.data.train, config.optim.accum_freq
    if loader is None:
        return None
    steps_per_epoch = loader.num_batches // accum_freq
    return steps_per_epoch * parts.start_epoch + loader.position.given // accum_freq


def _make_writers(
    config: TrainConfig, world: World, folder: RunFolder, parts: Parts, *, resumed: bool
) -> Writers:
    if not world.is_first or not config.log.enabled:
        return Writers([])
    writers: list[ScalarWriter] = []
    if config.log.tensorboard:
        try:
            first_step = _first_step(config, parts) if resumed else None
            writers.append(TensorBoardWriter(folder.tensorboard, first_step))
        except OSError as error:
            raise CannotWrite(
                f"{folder.tensorboard}: TensorBoard cannot write there: {error}"
            ) from error
    if config.log.wandb:
        settings = dict(config.flags)
        if parts.data.train is not None:
            settings["train_sz"] = parts.data.train.num_samples
        if parts.data.val is not None:
            settings["val_sz"] = parts.data.val.num_samples
        wandb = WandbWriter(config.log, folder.name, settings, resumed)
        wandb.save(folder.params_file)
        writers.append(wandb)
    return Writers(writers)
