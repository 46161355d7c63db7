"""Model, data and optimiser of one run, in the reference's order and before anything is written to disk."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.amp import GradScaler

from fastclip.config.train_config import ModelConfig, TrainConfig
from fastclip.data.build import DataLoaders, build_data, check_number_of_shards
from fastclip.data.loader import TrainLoader
from fastclip.data.packing import PackRule
from fastclip.data.tokenizer import Tokenizer, build_tokenizer
from fastclip.errors import UserError
from fastclip.model.factory import create_teacher, create_training_model
from fastclip.model.model_config import tokenizer_spec
from fastclip.optim.build import build_optimizer
from fastclip.train.attention import set_up_attention
from fastclip.train.checkpoint import restore
from fastclip.train.compiling import set_up_compiling
from fastclip.train.distributed import World, agree_on_steps
from fastclip.train.gradient_sync import in_ddp
from fastclip.train.losses import loss_backend
from fastclip.train.packed_captions import choose_packing
from fastclip.train.precision import make_scaler, product_dtype
from fastclip.train.rank_state import Left, read_left
from fastclip.train.recompute_choice import recompute_less_if_it_fits
from fastclip.train.resume_folder import STATE, is_save
from fastclip.train.seeds import seed_everything

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """Of one run."""

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
    teacher = _teacher(config, world, model) if config.loss.distill else None
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


def _teacher(config: TrainConfig, world: World, student: nn.Module) -> nn.Module:
    """The model of `--distill-model`, with the student's savings."""
    teacher: Any = create_teacher(
        config.loss.distill_model,
        config.loss.distill_pretrained,
        config.model,
        precision=config.precision,
        device=world.device,
        student=student,
    )
    if config.model.prune_last_block:
        teacher.prune_last_block()
    if config.model.fused_patch_embed:
        teacher.fuse_patch_embed()
    return teacher


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
