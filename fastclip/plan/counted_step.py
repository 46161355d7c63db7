"""The run's own step on shapes: model, loss, optimiser and step are those of the trainer, tensors hold no numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastclip.config.train_config import TrainConfig
from fastclip.data.batch import Batch, PackedText
from fastclip.data.packing import TextPacker
from fastclip.optim.build import build_optimizer
from fastclip.optim.update import Update
from fastclip.plan.op_counter import OpCounter, Tally
from fastclip.train.distributed import World
from fastclip.train.gradient_sync import syncs_of
from fastclip.train.losses import make_loss
from fastclip.train.packed_captions import Texts
from fastclip.train.precision import autocast_factory, input_dtype
from fastclip.train.step import AccumulateStep, Forward, PlainStep
from fastclip_kernels.loss.checks import product_dtype

_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """What one side of the loss gets from a rank in one step."""

    rows: int
    width: int
    dtype: torch.dtype
    product_dtype: torch.dtype  # in which they are gathered and multiplied by the softmax loss
    trained: bool

    @property
    def bytes(self) -> int:
        """As they are gathered."""
        return self.rows * self.width * self.product_dtype.itemsize


@dataclass(frozen=True, kw_only=True, slots=True)
class CountedStep:
    """One step after the first on one rank, with the loss of that rank alone."""

    tally: Tally
    parameters: int  # bytes, as gradients and moments below
    gradients: int
    moments: int
    batch: int  # bytes of one micro-batch
    image: Features
    text: Features


def count_step(model: Any, config: TrainConfig, packer: TextPacker | None) -> CountedStep:
    """`model` is set up for training and lies on the meta device; it is of no use afterwards."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        _give_storages(model)
        batch = _batch(model, config, packer)
        # Whether an optimiser is fused, and who computes it, moves the same numbers. A step that asks whether its
        # gradients are finite reads a few numbers more, which are not there to be read.
        optimizer = build_optimizer(replace(config.optim, optimizer_impl="auto"), model)
        update = Update(
            optimizer,
            model.logit_scale,
            clip_norm=config.optim.grad_clip_norm,
            scaler=None,
            nonfinite="ignore",
        )
        loss = _Watched(make_loss(replace(config.loss, backend="torch"), World(), captions=False))
        forward = Forward(model.train(), None, input_dtype(config.precision))
        autocast = autocast_factory(config.precision, _CPU)
        step = (
            PlainStep(forward, loss, update, autocast)
            if config.optim.accum_freq == 1
            else AccumulateStep(forward, loss, update, autocast, syncs_of(model))
        )
        batches = [batch] * config.optim.accum_freq
        step(batches)  # makes the optimiser's state, which later steps find
        moments = list(_moments(optimizer))
        parameters = list(model.parameters())
        gradients = [p.grad for p in parameters if p.grad is not None]
        before = [*parameters, *model.buffers(), *gradients, *moments, *_tensors(batch)]
        with OpCounter(before, in_loss=lambda: loss.running) as counter:
            del before
            del gradients
            step(batches)
        assert loss.seen is not None
        image, text = loss.seen
        return CountedStep(
            tally=counter.tally,
            parameters=sum(p.nbytes for p in parameters),
            gradients=sum(p.nbytes for p in parameters if p.requires_grad),
            moments=sum(each.nbytes for each in moments),
            batch=sum(each.nbytes for each in _tensors(batch)),
            image=image,
            text=text,
        )


class _Watched(nn.Module):
    """A loss, and what it was given."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self._loss = loss
        self.seen: tuple[Features, Features] | None = None
        self.running = False

    def forward(self, **outputs: Any) -> Any:
        self.seen = (
            _features(outputs["image_features"]),
            _features(outputs["text_features"]),
        )
        self.running = True
        try:
            return self._loss(**outputs)
        finally:
            self.running = False


def _features(tensor: Tensor) -> Features:
    return Features(
        rows=tensor.shape[0],
        width=tensor.shape[1],
        dtype=tensor.dtype,
        product_dtype=product_dtype(tensor),
        trained=tensor.requires_grad,
    )


def _give_storages(model: nn.Module) -> None:
    """Parameters and buffers that take memory as far as anybody asks, instead of meta tensors."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for owned in (module._parameters, module._buffers):
            for name, tensor in owned.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device=_CPU)
                    trained = tensor.requires_grad
                    is_parameter = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = (
                        nn.Parameter(fake, requires_grad=trained) if is_parameter else fake
                    )
                owned[name] = made[id(tensor)]  # type: ignore[assignment]


def _batch(model: Any, config: TrainConfig, packer: TextPacker | None) -> Batch:
    count, (height, width) = config.data.batch_size, model.visual.image_size
    augment = config.data.augment
    if augment.use_timm and augment.re_prob:  # erasing acts on normalised floats
        images = torch.empty(count, 3, height, width)
    else:
        images = torch.empty(count, height, width, 3, dtype=torch.uint8)
    length = model.context_length
    if packer is None:
        return Batch(images, torch.empty(count, length, dtype=torch.int64))
    shapes = (t for t in packer.shapes(count, length) if t is not None)
    return Batch(images, PackedText(*(torch.empty(t.shape, dtype=t.dtype) for t in shapes)))


def _tensors(batch: Batch) -> Iterator[Tensor]:
    texts: Texts = batch.texts
    yield batch.images
    yield from (texts,) if isinstance(texts, Tensor) else (t for t in texts if t is not None)


def _moments(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))
