"""How ranks come to hold the same gradients: what DDP sends, and in which backward passes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from fastclip.config.train_config import DistributedConfig

logger = logging.getLogger(__name__)

Syncs = Callable[[int], Sequence[AbstractContextManager[None]]]
"""From the number of micro-batches of a step to a context for the forward and backward of each."""


def in_ddp(
    model: nn.Module, config: DistributedConfig, device: torch.device
) -> DistributedDataParallel:
    """DDP, sending nothing that a step does not need.

    Buffers travel before each forward, as in the reference, only where the model has some that training changes
    (running statistics, which its state dict holds); others are constants, the same on every rank.
    """
    wrapped = DistributedDataParallel(
        model,
        device_ids=[device] if device.index is not None else None,
        static_graph=config.ddp_static_graph,
        gradient_as_bucket_view=True,
    )
    # the attribute, because torch 2.14 gave the argument another name
    kept_buffers = model.state_dict().keys() & dict(model.named_buffers()).keys()
    wrapped.broadcast_buffers = bool(kept_buffers)
    if config.allreduce_dtype == "bf16":
        logger.info("gradients are all-reduced in bf16: half the bytes, and not exact")
        wrapped.register_comm_hook(None, bf16_compress_hook)
    return wrapped


def syncs_of(wrapped: nn.Module) -> Syncs:
    """When the gradients of `wrapped`, in DDP or bare, travel."""
    return SyncLast(wrapped) if isinstance(wrapped, DistributedDataParallel) else _alone


def _alone(count: int) -> list[AbstractContextManager[None]]:
    return [nullcontext()] * count


class SyncLast:
    """Only the last backward of a step communicates; the gradients of those before it add up on their rank.

    With a static graph all backwards of a run's first step communicate: DDP learns the graph in the first one, and
    asserts where that is under `no_sync` (pytorch#143580). The gradients are the same: each all-reduce averages what
    the last one left, equal on all ranks, and what has been added since.
    """

    def __init__(self, wrapped: DistributedDataParallel) -> None:
        self._wrapped = wrapped
        self._all_but_last: Callable[[], AbstractContextManager[None]] = (
            nullcontext if wrapped.static_graph else wrapped.no_sync
        )

    def __call__(self, count: int) -> list[AbstractContextManager[None]]:
        quiet = [self._all_but_last() for _ in range(count - 1)]
        self._all_but_last = self._wrapped.no_sync
        return [*quiet, nullcontext()]
