"""What one step of a prepared model needs on a chip, and how long it takes there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastclip.config.train_config import TrainConfig
from fastclip.data.packing import TextPacker
from fastclip.errors import UserError
from fastclip.model.recompute import Recompute
from fastclip.plan.chips import CPU, Chip, find_chip
from fastclip.plan.counted_step import CountedStep, count_step
from fastclip.plan.measured_file import MeasuredRates, read_measured
from fastclip.plan.measured_here import rates_here
from fastclip.plan.memory import Memory, memory_of
from fastclip.plan.rates import Rates, rates_of_chip, with_measured
from fastclip.plan.scaling import Times, Work, at_both_ends
from fastclip.plan.traffic import Transfer, transfers_of
from fastclip.train.distributed import World
from fastclip.train.precision import product_dtype
from fastclip.train.recompute_choice import account_of, total_memory
from fastclip_kernels import flops


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
class Estimate:
    """Of one rank."""

    parameters: dict[str, int]  # numbers, by tower
    recompute: Recompute
    compiled: bool
    step: CountedStep
    work: Work
    loss_flops: int
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


def estimate(
    config: TrainConfig, subject: Subject, model: Any, packer: TextPacker | None
) -> Estimate:
    """`model` lies on the meta device, set up as a run sets it up; it is of no use afterwards."""
    world, accum = subject.world, config.optim.accum_freq
    available = total_memory(world) if subject.chip is None else subject.chip.memory
    account = account_of(model, None, packer, config, world)
    if config.model.recompute == "auto" and config.model.grad_checkpointing:
        model.set_recompute(account.least(available))
    way: Recompute = model.visual.transformer.recompute
    kept_on_cpu = account_of(model, None, packer, config, World()).usual.kept(way)
    parameters, tokens = _by_tower(model), _image_tokens(model, config)
    step = count_step(model, config, packer)
    of_loss = loss_flops(config, step, world.size)
    transfers = transfers_of(step, config.loss, config.distributed, world.size, accum)
    compiled = config.model.torchcompile or (
        subject.chip is not None and config.model.fused_pointwise and not config.deterministic
    )
    work = Work(
        products=step.tally.flops("products") + of_loss,
        attention=step.tally.flops("attention"),
        passes=step.tally.passes,
        update=step.tally.update,
        operations=step.tally.operations,
        samples=config.data.batch_size * accum,
        recomputes_all=way == "full",
        ranks=world.size,
        gradients=sum(t.bytes for t in transfers if t.what == "gradients"),
        transfers=transfers,
    )
    dtype = product_dtype(config.precision)
    if subject.chip is None:
        rates = rates_here(step.tally, tokens, model.config.vision_cfg.width, dtype)
    else:
        rates = rates_of_chip(subject.chip, config.cluster, dtype, compiled=compiled)
    if subject.measured is not None:
        rates = with_measured(rates, subject.measured)
    return Estimate(
        parameters=parameters,
        recompute=way,
        compiled=compiled,
        step=step,
        work=work,
        loss_flops=of_loss,
        transfers=transfers,
        memory=memory_of(
            step, account, kept_on_cpu, way, world.device.type, available, world.size, accum
        ),
        rates=rates,
        times=at_both_ends(work, rates),
    )


def _image_tokens(model: Any, config: TrainConfig) -> int:
    rows, columns = model.visual.grid_size
    return config.data.batch_size * int(1 + rows * columns)


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
