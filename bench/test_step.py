"""Each tower and the whole step, beside OpenCLIP's, with the flags of a user's script, at four mean captions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.captions import stretched_ids
from bench.ceilings import image_flops, text_flops, useful_flops
from bench.contest import Contest
from bench.model_check import check_model
from bench.resident_step import Resident, our_resident, reference_resident
from bench.rows import OURS, REFERENCE, Work
from bench.sizes import MEAN_CAPTIONS, Sizes
from bench.step_on_device import USER_FLAGS, batches, fresh

CHECKED = 4  # pairs
_KEPT = "open_clip, kept"  # without checkpointing: its faster configuration where memory allows
_COMPILED = "open_clip, compiled"


def flags_of(sizes: Sizes, device: torch.device, pairs: int) -> list[str]:
    return [
        *USER_FLAGS,
        *("--model", sizes.model, "--batch-size", str(pairs), "--device", device.type),
        "--grad-checkpointing",
    ]


@pytest.fixture(scope="module")
def batch(sizes: Sizes, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pictures and captions, after the model has been found right on a few of them."""
    images, texts = batches(sizes.model, sizes.pairs, device)
    few = flags_of(sizes, device, CHECKED)
    check_model(few, sizes.precision, images[:CHECKED], texts[:CHECKED])
    return images, texts


def residents(
    sizes: Sizes, device: torch.device, images: Tensor, texts: Tensor
) -> dict[str, Callable[[], Resident]]:
    flags = [*flags_of(sizes, device, sizes.pairs), "--precision", sizes.precision]
    kept = [flag for flag in flags if flag != "--grad-checkpointing"]
    found = {
        OURS: lambda: our_resident(flags, images, texts),
        REFERENCE: lambda: reference_resident(flags, images, texts),
        _KEPT: lambda: reference_resident(kept, images, texts),
    }
    if sizes.compiled:
        found[_COMPILED] = lambda: reference_resident(kept, images, texts, compiled=True)
    return found


def tower(make: Callable[[], Resident], which: str) -> Callable[[], None]:
    """Forward, and backward from an upstream gradient that is there already."""
    resident = make()
    features: Callable[[], Tensor] = getattr(resident, which)
    parameters = list(resident.model.parameters())
    upstream = torch.randn_like(features())

    def call() -> None:
        for parameter in parameters:
            parameter.grad = None
        features().backward(upstream)

    return call


def test_image_tower(batch: tuple[Tensor, Tensor], step_contest: Contest) -> None:
    sizes, device = step_contest.sizes, step_contest.device
    fresh(device)
    made = residents(sizes, device, *batch)
    step_contest.run(
        "image tower",
        f"{sizes.model} {sizes.pairs} pictures",
        {name: tower(made[name], "image_features") for name in (OURS, REFERENCE)},
        Work(sizes.pairs, sizes.pairs * image_flops(sizes.model)),
        missing={},
        rounds=sizes.parts,
        **options_of(sizes),
    )


@pytest.mark.parametrize("mean", MEAN_CAPTIONS)
def test_text_tower(mean: int, batch: tuple[Tensor, Tensor], step_contest: Contest) -> None:
    sizes, device = step_contest.sizes, step_contest.device
    fresh(device)
    images, texts = batch[0], stretched_ids(batch[1], mean)
    made, tokens = residents(sizes, device, images, texts), mean_of(texts)
    step_contest.run(
        "text tower",
        f"{sizes.model} {sizes.pairs} captions of {tokens:.0f} tokens",
        {name: tower(made[name], "text_features") for name in (OURS, REFERENCE)},
        Work(sizes.pairs, sizes.pairs * text_flops(sizes.model, tokens)),
        missing={},
        mean_tokens=tokens,
        rounds=sizes.parts,
        **options_of(sizes),
    )


@pytest.mark.parametrize("mean", MEAN_CAPTIONS)
def test_step(mean: int, batch: tuple[Tensor, Tensor], step_contest: Contest) -> None:
    sizes, device = step_contest.sizes, step_contest.device
    fresh(device)
    images, texts = batch[0], stretched_ids(batch[1], mean)
    made, tokens = residents(sizes, device, images, texts), mean_of(texts)
    built = {name: make() for name, make in made.items()}
    step_contest.run(
        "step",
        f"{sizes.model} {sizes.pairs} pairs, captions of {tokens:.0f} tokens",
        {name: resident.step for name, resident in built.items()},
        Work(sizes.pairs, sizes.pairs * useful_flops(sizes.model, tokens)),
        missing={} if sizes.compiled else {_COMPILED: "not asked for"},
        mean_tokens=tokens,
        rounds=sizes.steps,
        **options_of(sizes),
    )


def mean_of(texts: Tensor) -> float:
    """Tokens of a caption up to and with its end, on average."""
    return float((texts.argmax(dim=1) + 1).double().mean())


def options_of(sizes: Sizes) -> dict[str, Any]:
    """Of `Contest.run`, for what takes long; one call to warm up, and that whose memory is counted."""
    return {"warm_up": 1, "precision": sizes.precision}
