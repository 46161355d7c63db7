"""The reference's losses and ours on the same inputs, and the rule that says how far apart they may
be.

The rule: against the reference's own formula in float64 on the same already rounded inputs, our
error is at most twice the reference's error in the dtype at hand, plus a floor for numbers that
round to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.loss_peers import reference_losses
from fastclip_kernels.testing import (
    SCALAR_FLOOR,
    error_against_fp64,
    feature_floor,
    unit_features,
)

load_reference = reference_losses

# What rounding alone may add where the reference happens to be exact.
ALLOWANCE = {
    torch.float64: 1e-11,
    torch.float32: 1e-6,
    torch.bfloat16: 1e-3,
    torch.float16: 1e-4,
}


@dataclass(frozen=True)
class Case:
    """One loss on one kind of input."""

    loss: str = "ClipLoss"  # a class name, the same in the reference and in ours
    options: dict[str, Any] = field(default_factory=dict)  # of its constructor
    ours: dict[str, Any] = field(default_factory=dict)  # options that the reference has not
    rows: int = 17  # of each rank
    width: int = 33
    scale: float = 14.3
    bias: float | None = None
    dtype: torch.dtype = torch.float32  # of the features
    autocast: torch.dtype | None = None
    rows_are: str = "random"
    same_upstream: bool = False  # every rank's loss weighs the same in what is back-propagated

    @property
    def precision(self) -> torch.dtype:
        return self.autocast or self.dtype

    def __str__(self) -> str:
        options = {**self.options, **self.ours}
        parts = [self.loss, *(f"{key}={value}" for key, value in options.items())]
        parts += [f"{self.rows}x{self.width}", f"s={self.scale:g}", f"b={self.bias}"]
        parts += [str(self.dtype)[6:], f"amp={str(self.autocast)[6:]}" if self.autocast else ""]
        parts += [self.rows_are if self.rows_are != "random" else ""]
        return "-".join(part for part in parts if part)


def draw_features(case: Case, total: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Blocks of (total, D) features, images and texts in turn, already rounded to the case's
    precision.
    """
    previous = None
    while True:
        x = unit_features(total, case.width, generator, torch.float64)
        match case.rows_are:
            case "all equal":
                x = x[:1].expand(total, -1)
            case "opposite":
                x = x if previous is None else -previous
            case "matched":  # a trained model: each pair close, all other pairs far
                x = x if previous is None else previous + 0.01 * x
            case "orthogonal":
                x = torch.eye(total, case.width, dtype=torch.float64)
            case "norm 100":
                x = 100 * x
            case "one huge row":
                x = torch.cat([1000 * x[:1], x[1:]])
            case "duplicates":
                x = x[torch.arange(total) // 2]
            case "wrong pairs":  # the pair is the least likely column, probability next to nothing
                x = x if previous is None else previous.roll(1, 0)
        previous = x
        yield x.to(case.precision).to(case.dtype)


class Inputs(NamedTuple):
    """Leaves of one rank's loss."""

    image: Tensor
    text: Tensor
    teacher_image: Tensor
    teacher_text: Tensor
    logits: Tensor  # a captioner's, (B, T, vocabulary)
    labels: Tensor

    @classmethod
    def draw(cls, case: Case, seed: int, rank: int, world_size: int) -> Inputs:
        """The same numbers on every rank, and this rank's part of them."""
        generator = torch.Generator().manual_seed(seed)
        blocks = draw_features(case, case.rows * world_size, generator)
        mine = slice(rank * case.rows, (rank + 1) * case.rows)
        features = [next(blocks)[mine].clone() for _ in range(4)]
        vocabulary = 11
        logits = torch.randn(case.rows, 5, vocabulary, generator=generator).to(case.dtype)
        labels = torch.randint(0, vocabulary, (case.rows, 5), generator=generator)
        return cls(*features, logits, labels)


def run(case: Case, losses: Any, inputs: Inputs, upstream: float, wide: bool) -> dict[str, Tensor]:
    """Loss and gradients of the class named by `case` in `losses`; in float64 without autocast if
    `wide`.
    """
    dtype = torch.float64 if wide else case.dtype
    leaves = {
        name: value.detach().to(dtype).requires_grad_()
        for name, value in inputs._asdict().items()
        if name != "labels"
    }
    scalar = torch.float64 if wide or case.dtype == torch.float64 else torch.float32
    leaves["scale"] = torch.tensor(case.scale, dtype=scalar, requires_grad=True)
    leaves["bias"] = torch.tensor(case.bias or 0.0, dtype=scalar, requires_grad=True)
    module = getattr(losses, case.loss)(**case.options)
    amp = case.autocast is not None and not wide
    with torch.autocast("cpu", dtype=case.autocast) if amp else nullcontext():
        image, text, scale = leaves["image"], leaves["text"], leaves["scale"]
        if case.loss == "CoCaLoss":
            parts = module(image, text, leaves["logits"], inputs.labels, scale)
        elif case.loss == "DistillClipLoss":
            # a teacher as sharp as the student, and as a constant: its scale is no parameter
            teacher = (leaves["teacher_image"], leaves["teacher_text"], scale.detach())
            parts = module(image, text, scale, *teacher)
        else:
            parts = (module(image, text, scale, None if case.bias is None else leaves["bias"]),)
    weights = (1.0, 0.7)  # told apart, should two losses be mixed up
    total = sum(weight * part.to(scalar) for weight, part in zip(weights, parts, strict=False))
    gradients = torch.autograd.grad(total * upstream, list(leaves.values()), allow_unused=True)
    result = {f"loss {i}": part.detach() for i, part in enumerate(parts)}
    for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
        result[f"d {name}"] = torch.zeros_like(leaf) if gradient is None else gradient
    return result


class Comparison(NamedTuple):
    """Errors of one number or gradient against float64."""

    what: str
    ours: float
    reference: float
    limit: float

    @property
    def good(self) -> bool:
        return self.ours <= self.limit


def compare(
    case: Case,
    kernels: Any,
    reference: Any,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
) -> list[Comparison]:
    """Loss and every gradient of one case. Across ranks, each rank weighs its loss by another
    factor.

    An error is that of a few draws together, as if they were one tensor: in a single draw of few
    numbers the reference's rounding may cancel by luck, and a true gradient may be next to nothing.
    """
    several = 12 if case.rows <= 64 else 3
    draws = 1 if case.precision == torch.float64 or case.rows > 200 else several
    inputs = [Inputs.draw(case, seed + i, rank, world_size) for i in range(draws)]
    upstream = 1.0 if case.same_upstream or world_size == 1 else float(rank + 1)
    errors = _errors(case, kernels, reference, inputs, upstream)
    allowance = ALLOWANCE[case.precision]
    unit = 2**-53 if case.precision == torch.float64 else 2**-24
    if case.rows_are == "all equal":
        # the true gradients are 0: what is left is the rounding of a sum of as many numbers as there are
        # rows, which cancel, over the floor; the reference's own varies by half from draw to draw
        allowance += unit * math.sqrt(case.rows * world_size) / SCALAR_FLOOR
    # A logit's rounding error, half a unit in its last place, is the relative error of its
    # probability. The reference may escape it by luck. Across ranks a logit is rounded twice.
    largest = max(float((x.image.double() @ x.text.double().T).abs().max()) for x in inputs)
    logit = largest * case.scale + abs(case.bias or 0.0)
    allowance += unit * logit * (1 if world_size == 1 else 2)
    return [
        Comparison(what, ours, theirs, 2 * theirs + allowance)
        for what, (ours, theirs) in errors.items()
    ]


def _errors(
    case: Case, kernels: Any, reference: Any, inputs: list[Inputs], upstream: float
) -> dict[str, tuple[float, float]]:
    """Our error and the reference's of every number and gradient, over all draws."""
    with_ours = replace(case, options={**case.options, **case.ours})
    truths = _stacked([run(case, reference, each, upstream, wide=True) for each in inputs])
    theirs = _stacked([run(case, reference, each, upstream, wide=False) for each in inputs])
    ours = _stacked([run(with_ours, kernels, each, upstream, wide=False) for each in inputs])
    errors = {}
    for what, truth in truths.items():
        one = feature_floor(case.scale, case.rows) if truth.ndim > 1 else SCALAR_FLOOR
        floor = one * math.sqrt(len(inputs))
        reference_error = error_against_fp64(theirs[what], truth, floor)
        # a reference that overflowed proves nothing: then only being finite and close counts
        errors[what] = (error_against_fp64(ours[what], truth, floor), min(reference_error, 1.0))
    return errors


def _stacked(draws: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {what: torch.stack([each[what] for each in draws]) for what in draws[0]}


def failures(case: Case, comparisons: list[Comparison]) -> list[str]:
    return [
        f"{case}: {c.what}: error {c.ours:.2e}, reference {c.reference:.2e}, limit {c.limit:.2e}"
        for c in comparisons
        if not c.good
    ]
