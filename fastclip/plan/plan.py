"""A run that is not started: its parts as set-up makes them, on shapes, and what they need."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastclip.config.train_config import TrainConfig
from fastclip.data.build import build_data
from fastclip.data.loader import TrainLoader
from fastclip.data.tokenizer import build_tokenizer
from fastclip.errors import CannotWrite, UserError
from fastclip.model.factory import create_training_model, is_native
from fastclip.model.model_config import tokenizer_spec
from fastclip.model.recompute import Recompute
from fastclip.plan.chips import CPU, Chip, find_chip
from fastclip.plan.counted_step import CountedStep, count_step
from fastclip.plan.figure import Figure
from fastclip.plan.measured_file import MeasuredRates, read_measured
from fastclip.plan.measured_here import rates_here
from fastclip.plan.memory import Memory, memory_of
from fastclip.plan.rates import Rates, rates_of_chip, with_measured
from fastclip.plan.scaling import Times, Work, at_both_ends
from fastclip.plan.traffic import Transfer, transfers_of
from fastclip.train.attention import set_up_attention
from fastclip.train.checkpoint import open_checkpoint
from fastclip.train.distributed import World
from fastclip.train.packed_captions import choose_packing
from fastclip.train.precision import product_dtype
from fastclip.train.recompute_choice import account_of, total_memory
from fastclip.train.run import find_resume
from fastclip.train.run_folder import choose_folder
from fastclip.train.setup import check_accumulation, check_vocabulary, prepare_for_training
from fastclip_kernels import flops
from fastclip_kernels.self_attention.sdpa import SDPA


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """Who runs it: chip and ranks."""

    chip: Chip | None  # None: this machine's CPU
    measured: MeasuredRates | None
    world: World  # as rank 0 will see it

    @property
    def name(self) -> str:
        return CPU if self.chip is None else self.chip.name


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What dry_run.py prints."""

    subject: Subject
    parameters: dict[str, int]  # numbers, by tower
    loader: TrainLoader
    start_epoch: int
    resumed_from: str | None
    recompute: Recompute
    compiled: bool
    step: CountedStep
    work: Work
    transfers: list[Transfer]
    memory: Memory
    rates: Rates
    times: tuple[Times, Times]  # the fast end, the slow one


def subject_of(config: TrainConfig) -> Subject:
    """UserError where no chip is named or the name is not known; the errors of a measured file."""
    cluster = config.cluster
    if cluster.gpu is None and config.distributed.device != CPU:
        raise UserError(
            "--dry-run needs --gpu: a100-40g, a100-80g, h100, or cpu for this machine's processor"
        )
    name, _, file = (cluster.gpu or CPU).partition(",")
    chip = find_chip(name)
    return Subject(
        chip=chip,
        measured=read_measured(Path(file), chip) if file else None,
        world=World(
            size=cluster.ranks,
            local_size=cluster.ranks_per_node,
            device=torch.device("cpu" if chip is None else "cuda"),
        ),
    )


def make_plan(config: TrainConfig) -> Plan:
    """Raises what a run would raise over its flags and its data; nothing is written, no process started."""
    subject = subject_of(config)
    world, alone = subject.world, World()
    _check_scope(config)
    folder = choose_folder(config, alone)
    if folder.log_file is not None:
        _check_writable(folder.path)
    resumed_from = find_resume(config, alone, folder)
    start_epoch = 0
    if resumed_from is not None:
        checkpoint = open_checkpoint(resumed_from, unsafe=config.checkpoint.unsafe_load)
        start_epoch = int(checkpoint.get("epoch", 0))

    model = _model_on_meta(config)
    tokenizer = build_tokenizer(
        tokenizer_spec(
            config.model.name,
            context_length=config.model.force_context_length,
            tokenizer_file=config.model.tokenizer,
            cache_dir=config.model.cache_dir,
        )
    )
    check_vocabulary(tokenizer, model, config.model)
    prepare_for_training(model, config.model)
    pack = choose_packing(model, None, config)
    if subject.chip is None:
        set_up_attention(
            model, None, config, world.device, packed=pack is not None, teacher_packed=False
        )
    else:
        model.use_attention(SDPA, SDPA)  # the products of whichever kernel the GPU will run
    with (
        warnings.catch_warnings()
    ):  # torch counts this machine's cores, which are not those of the run
        warnings.simplefilter("ignore")
        data = build_data(
            config.data,
            model.visual.preprocess_cfg,
            tokenizer,
            seed=config.seed,
            rank=0,
            world_size=world.size,
            device=torch.device("cpu"),
            start_epoch=start_epoch,
            epochs=config.epochs,
            pack=pack,
        )
    assert data.train is not None
    check_accumulation(data.train, config)
    return _planned(config, subject, model, data.train, start_epoch, resumed_from)


def _check_scope(config: TrainConfig) -> None:
    if not is_native(config.model.name):
        raise UserError(
            f"--dry-run: {config.model.name} is one of open_clip's own models; only fastclip's can be planned"
        )
    if config.loss.distill:
        raise UserError("--dry-run cannot plan distillation: leave --distill-model out")


def _check_writable(folder: Path) -> None:
    """CannotWrite where a run could not make its folder, as far as that can be told without trying."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise CannotWrite(
            f"--logs: cannot make {folder}: {existing} is no folder that can be written"
        )


def _model_on_meta(config: TrainConfig) -> Any:
    with torch.device("meta"):
        return create_training_model(
            config.model,
            config.precision,
            "meta",
            config.loss.siglip,
            load_weights=False,
        )


def _planned(
    config: TrainConfig,
    subject: Subject,
    model: Any,
    loader: TrainLoader,
    start_epoch: int,
    resumed_from: str | None,
) -> Plan:
    world, ranks = subject.world, subject.world.size
    available = total_memory(world) if subject.chip is None else subject.chip.memory
    account = account_of(model, None, loader.packer, config, world)
    if config.model.recompute == "auto" and config.model.grad_checkpointing:
        model.set_recompute(account.least(available))
    way: Recompute = model.visual.transformer.recompute
    # before the model is counted, and of no use afterwards
    on_cpu = account_of(model, None, loader.packer, config, World())
    parameters = _by_tower(model)
    step = count_step(model, config, loader.packer)
    transfers = transfers_of(step, config.loss, config.distributed, ranks, config.optim.accum_freq)
    compiled = config.model.torchcompile or (
        subject.chip is not None and config.model.fused_pointwise and not config.deterministic
    )
    work = work_of(config, step, transfers, way, ranks)
    rates = _rates(config, subject, step, model, compiled)
    return Plan(
        subject=subject,
        parameters=parameters,
        loader=loader,
        start_epoch=start_epoch,
        resumed_from=resumed_from,
        recompute=way,
        compiled=compiled,
        step=step,
        work=work,
        transfers=transfers,
        memory=memory_of(
            step,
            account,
            on_cpu.usual.kept(way),
            way,
            world.device.type,
            available,
            ranks,
            config.optim.accum_freq,
        ),
        rates=rates,
        times=at_both_ends(work, rates),
    )


def _by_tower(model: Any) -> dict[str, int]:
    image = sum(p.numel() for p in model.visual.parameters())
    everything = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"image tower": image, "text tower": everything - image, "trained": trained}


def loss_flops(config: TrainConfig, step: CountedStep, ranks: int) -> int:
    """Of a rank's loss among so many."""
    if ranks == 1:
        return step.tally.flops("loss")
    rows, width = step.image.rows, step.image.width
    if config.loss.siglip:
        return flops.siglip_across_ranks(rows, width, ranks)
    return flops.clip_across_ranks(
        rows, width, ranks, to_image=step.image.trained, to_text=step.text.trained
    )


def work_of(
    config: TrainConfig,
    step: CountedStep,
    transfers: list[Transfer],
    way: Recompute,
    ranks: int,
) -> Work:
    return Work(
        products=step.tally.flops("products") + loss_flops(config, step, ranks),
        attention=step.tally.flops("attention"),
        passes=step.tally.passes,
        update=step.tally.update,
        operations=step.tally.operations,
        samples=config.data.batch_size * config.optim.accum_freq,
        recomputes_all=way == "full",
        ranks=ranks,
        gradients=sum(t.bytes for t in transfers if t.what == "gradients"),
        transfers=transfers,
    )


def _rates(
    config: TrainConfig, subject: Subject, step: CountedStep, model: Any, compiled: bool
) -> Rates:
    dtype = product_dtype(config.precision)
    if subject.chip is not None:
        rates = rates_of_chip(subject.chip, config.cluster, dtype, compiled=compiled)
    else:
        vision = model.config.vision_cfg
        patches = model.visual.grid_size[0] * model.visual.grid_size[1]
        tokens = config.data.batch_size * (1 + patches)
        rates = rates_here(step.tally, tokens, vision.width, dtype)
    return rates if subject.measured is None else with_measured(rates, subject.measured)


def run_seconds(plan: Plan, config: TrainConfig) -> Figure:
    """Of all epochs that are left."""
    steps = plan.loader.num_batches // config.optim.accum_freq
    epochs = max(0, config.epochs - plan.start_epoch)
    fast, slow = (times.step * steps * epochs for times in plan.times)
    return Figure(fast, slow, "step time x steps")
