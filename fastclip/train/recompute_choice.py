"""`--recompute auto`: the least recomputing that fits the device, from shapes and its total memory.

Never from what is free at the moment, which depends on who else allocated what and when: the same
command on the same machine chooses the same way, and a resumed run goes on in it.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from fastclip.config.train_config import TrainConfig
from fastclip.data.loader import TrainLoader
from fastclip.data.packing import TextPacker
from fastclip.model.activation_bytes import ActivationBytes, activation_bytes
from fastclip.model.recompute import Recompute
from fastclip.train.distributed import World
from fastclip.train.precision import product_dtype

logger = logging.getLogger(__name__)

# What training must leave alone: the driver's context, NCCL's and cuBLAS's buffers (about 1.5 GB), DALI's pool of
# encoded and decoded pictures, which torch's allocator knows nothing of (about 2.5 GB); and a share that
# fragmentation makes unusable.
_RESERVE = 4_000_000_000
_RESERVE_SHARE = 0.06
_WAYS: tuple[Recompute, ...] = get_args(Recompute)  # the later, the more frugal


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """Bytes that a training step needs at once, without what backward has to keep."""

    state: int  # parameters, gradients, optimiser
    batches: int  # pictures on the device: all of this step's, the next, and one on its way
    loss: int  # features of all ranks and their gradients
    transient: int  # alive for the time of a block, or of the forward pass

    @property
    def total(self) -> int:
        return self.state + self.batches + self.loss + self.transient


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """What a step keeps, by the way it recomputes, and what it needs beside that."""

    usual: ActivationBytes
    largest: ActivationBytes  # of a batch of unusually long captions, which takes a row each
    demand: Demand

    def free(self, total: int | None) -> int:
        """Bytes for what is kept, on a device of so many; None: not known."""
        return 0 if total is None else after_reserve(total) - self.demand.total

    def least(self, total: int | None) -> Recompute:
        """The least recomputing under --grad-checkpointing that fits such a device."""
        free = self.free(total)
        return next((way for way in _WAYS if self.largest.kept(way) <= free), _WAYS[-1])


def recompute_less_if_it_fits(
    model: Any, teacher: nn.Module | None, loader: TrainLoader, config: TrainConfig, world: World
) -> None:
    """Under --grad-checkpointing and --recompute auto, the first of `none`, `pointwise` and `full` for which every rank
    has room.

    A collective where there are ranks. Leaves the model as it is in every other case.
    """
    if config.model.recompute != "auto" or not config.model.grad_checkpointing:
        return
    if not hasattr(model, "set_recompute"):
        logger.info("recompute: full: the only way of open_clip's models")
        return
    if teacher is not None and not hasattr(teacher, "set_recompute"):
        logger.info("recompute: full: what a teacher that is open_clip's own needs is not known")
        return
    account = account_of(model, teacher, loader.packer, config, world)
    total = total_memory(world)
    own = account.least(total)
    way = _WAYS[world.largest(_WAYS.index(own))]
    model.set_recompute(way)
    long = f" (at most {_size(account.largest.kept(way))}, with a row a caption)"
    logger.info(
        "recompute: %s: activations of a step %s%s, of %s free for them: %s%s",
        way,
        ", ".join(f"{each} {_size(account.usual.kept(each))}" for each in _WAYS),
        "" if loader.packer is None else long,
        _size(max(0, account.free(total))),
        _sum_of_parts(total, account.demand, world),
        "" if way == own else "; another rank has less",
    )


def account_of(
    model: Any,
    teacher: nn.Module | None,
    packer: TextPacker | None,
    config: TrainConfig,
    world: World,
) -> Account:
    """From shapes alone. Both models must be fastclip's own."""
    samples = config.data.batch_size
    length = model.context_length
    usual_rows = samples if packer is None else packer.rows
    product = product_dtype(config.precision)
    augment = config.data.augment
    # bytes of one of a picture's numbers: erasing acts on normalised floats
    number = 4 if augment.use_timm and augment.re_prob else 1
    usual, largest = (
        activation_bytes(
            model,
            product,
            world.device,
            samples=samples,
            text_tokens=rows * length,
            packed=packer is not None,
            pictures_are_bytes=number == 1,
        )
        for rows in (usual_rows, samples)
    )
    work = 2 * largest.largest_block
    if teacher is not None:
        work = max(work, _of_teacher(teacher, product, samples, world))
    demand = _demand(model, teacher, product, samples, config.optim.accum_freq, number, work, world)
    return Account(usual=usual, largest=largest, demand=demand)


def _sum_of_parts(total: int | None, demand: Demand, world: World) -> str:
    if total is None:
        return f"no figure for the memory of {world.device.type}"
    return (
        f"{_size(total)}, less {_size(total - after_reserve(total))} in reserve, {_size(demand.state)} of weights, "
        f"gradients and optimiser state, {_size(demand.total - demand.state)} of batches, loss and work in progress"
    )


def _demand(
    model: Any,
    teacher: nn.Module | None,
    product: torch.dtype,
    samples: int,
    accum_freq: int,
    number: int,  # bytes of one of a picture's numbers
    work: int,
    world: World,
) -> Demand:
    parameters = list(model.parameters())
    weights = sum(p.nbytes for p in parameters)
    if teacher is not None:
        weights += sum(p.nbytes for p in teacher.parameters())
    # a gradient each, which lies in DDP's buckets where there are some, and AdamW's two moments
    trained = sum(p.nbytes for p in parameters if p.requires_grad)
    narrowed = (p for p in parameters if p.ndim > 1 and p.element_size() > product.itemsize)
    # autocast holds these copies through forward
    casts = product.itemsize * sum(p.numel() for p in narrowed)
    height, width = model.visual.image_size
    towers = 2 if teacher is None else 4
    return Demand(
        state=weights + 3 * trained,
        batches=(accum_freq + 2) * samples * 3 * height * width * number,
        loss=2 * towers * 4 * accum_freq * samples * world.size * model.config.embed_dim,
        transient=max(casts, work),
    )


def _of_teacher(teacher: Any, product: torch.dtype, samples: int, world: World) -> int:
    """What a teacher's forward pass has alive at once, without gradients, while the student's activations wait."""
    return (
        2
        * activation_bytes(
            teacher,
            product,
            world.device,
            samples=samples,
            text_tokens=samples * teacher.context_length,
            packed=False,
        ).largest_block
    )


def after_reserve(total: int) -> int:
    """Bytes of a device of so many that training may use."""
    return int(total * (1 - _RESERVE_SHARE)) - _RESERVE


def total_memory(world: World) -> int | None:
    """Bytes of this rank's device, used or not; of a CPU its share. None where torch cannot tell."""
    device = world.device
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "xpu":
        return int(torch.xpu.get_device_properties(device).total_memory)
    if device.type != "cpu":
        return None
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")  # a container's
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return total // world.local_size


def _size(count: int) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
