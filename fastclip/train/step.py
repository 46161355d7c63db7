"""One optimiser step. Two kinds with the same call; which one runs is chosen once, at set-up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fastclip.data.batch import Batch
from fastclip.train.gradient_sync import Syncs
from fastclip.train.packed_captions import Texts, as_given
from fastclip.train.precision import AutocastFactory

# image_features, text_features, logit_scale, (logit_bias, logits, labels, dist_…)
Outputs = dict[str, Tensor]

Loss = Callable[..., Mapping[str, Tensor]]  # of a step's outputs, by name

# parameters that every micro-batch sees, not features of one
_SHARED = ("logit_scale", "logit_bias")


class StepResult(NamedTuple):
    """Device tensors; reading one waits for the device."""

    losses: Mapping[str, Tensor]  # each term, and their sum as "loss"; 0-dim
    logit_scale: Tensor  # exp'd, as used in this step's forward


class Updating(Protocol):
    """What a step wants of an `Update`: see there."""

    def zero_grad(self) -> None: ...

    def scale(self, loss: Tensor) -> Tensor: ...

    def apply(self) -> None: ...


class Forward:
    """Both towers, and the teacher's where there is one, on one batch.

    `texts_for_teacher` gives the teacher the captions in a form that it takes.
    """

    def __init__(
        self,
        model: Callable[..., Any],  # of images and texts
        teacher: Callable[..., Any] | None,
        dtype: torch.dtype,
        texts_for_teacher: Callable[[Texts], Texts] = as_given,
    ) -> None:
        self._model = model
        self._teacher = teacher
        self._dtype = dtype
        self._texts_for_teacher = texts_for_teacher

    def __call__(self, batch: Batch) -> Outputs:
        # uint8 pixels are normalised and cast by the model's stem.
        images = batch.images if batch.images.dtype == torch.uint8 else batch.images.to(self._dtype)
        outputs: Outputs = dict(self._model(images, batch.texts))
        if self._teacher is not None:
            with torch.no_grad():
                taught = self._teacher(images, self._texts_for_teacher(batch.texts))
            outputs.update({f"dist_{key}": value for key, value in taught.items()})
        return outputs


class PlainStep:
    """One micro-batch, one update."""

    def __init__(
        self, forward: Forward, loss: Loss, update: Updating, autocast: AutocastFactory
    ) -> None:
        self._forward, self._loss, self._update, self._autocast = forward, loss, update, autocast

    def __call__(self, batches: Sequence[Batch]) -> StepResult:
        (batch,) = batches
        with self._autocast():
            outputs = self._forward(batch)
            losses = _with_total(self._loss(**outputs, output_dict=True))
        self._update.zero_grad()
        torch.autograd.backward(self._update.scale(losses["loss"]))
        self._update.apply()
        return StepResult(losses, outputs["logit_scale"].detach())


class AccumulateStep:
    """k micro-batches, one loss over all of them, one update (`--accum-freq k`).

    The features of all k are computed without a graph, the loss is taken once, and its gradients by the features are
    sent back through each micro-batch's own forward. The towers so get exactly the gradient of the k·b batch, as in
    the reference, which takes the same loss k times instead. It also adds the gradient of logit scale and bias k
    times, and so does this step: a run's curve depends on it.
    """

    def __init__(
        self,
        forward: Forward,
        loss: Loss,
        update: Updating,
        autocast: AutocastFactory,
        syncs: Syncs,
    ) -> None:
        self._forward, self._loss, self._update, self._autocast = forward, loss, update, autocast
        self._syncs = syncs

    def __call__(self, batches: Sequence[Batch]) -> StepResult:
        with torch.no_grad(), self._autocast():
            cached = [self._forward(batch) for batch in batches]
        leaves = [{k: _leaf(v) for k, v in out.items() if k not in _SHARED} for out in cached]
        shared = {k: _leaf(v) for k, v in cached[-1].items() if k in _SHARED}
        with self._autocast():
            joined = {k: torch.cat([out[k] for out in leaves]) for k in leaves[0]}
            losses = _with_total(self._loss(**joined, **shared, output_dict=True))
        torch.autograd.backward(self._update.scale(losses["loss"]))

        self._update.zero_grad()
        for batch, leaf, sync in zip(batches, leaves, self._syncs(len(batches)), strict=True):
            with sync:
                with self._autocast():
                    outputs = self._forward(batch)
                _send_back(outputs, {**leaf, **shared})
        self._update.apply()
        return StepResult(losses, shared["logit_scale"].detach())


def _leaf(value: Tensor) -> Tensor:
    """A tensor of its own in which a gradient is collected (labels are integers and get none)."""
    return value.detach().requires_grad_(value.is_floating_point())


def _send_back(outputs: Outputs, leaves: Mapping[str, Tensor]) -> None:
    with_gradient = [k for k in outputs if outputs[k].requires_grad and leaves[k].grad is not None]
    torch.autograd.backward(
        [outputs[k] for k in with_gradient], [leaves[k].grad for k in with_gradient]
    )


def _with_total(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {**losses, "loss": reduce(torch.add, losses.values())}


Step = Callable[[Sequence[Batch]], StepResult]
