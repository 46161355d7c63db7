"""Planted errors turn the parity checks red: on one process, and on two ranks."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
import torch

import fastclip_kernels
from tests.distributed.launch import run_ranks
from tests.kernels.mutants import Planted, plant
from tests.kernels.parity import Case, compare, failures, load_reference

CHUNKED, CLIP, SIGLIP = "loss/chunked.py", "loss/clip.py", "loss/siglip.py"
RANKS = "loss/distributed.py"

ALONE = [
    Planted("sign of the pair", CHUNKED, "torch.expm1(-softmax", "-torch.expm1(-softmax"),
    Planted("sign of a positive", CHUNKED, "copy_(F.logsigmoid(z.", "copy_(F.logsigmoid(-z."),
    Planted(
        "missing column half",
        CHUNKED,
        "c += torch.exp(z - columns",
        "c += 0 * torch.exp(z - columns",
    ),
    Planted(
        "missing text gradient",
        CHUNKED,
        "        to_text += wide_product(c.T, image[start:stop])\n",
        "",
    ),
    Planted("bias dropped", CHUNKED, "        z = x * scale + bias\n", "        z = x * scale\n"),
    Planted("maximum not subtracted", CHUNKED, "torch.exp(z - top.unsqueeze(dim))", "torch.exp(z)"),
    Planted(
        "earlier chunks forgotten", CHUNKED, "self.rest = self.rest * shrink + ", "self.rest = "
    ),
    Planted("pair misplaced in later chunks", CHUNKED, "dim=0, pairs=start", "dim=0, pairs=0"),
    Planted(
        "k-fold gradient",
        CLIP,
        "factor = upstream / (2 * len(image))",
        "factor = upstream / len(image)",
    ),
    Planted(
        "scale left out",
        CLIP,
        "to_image = (to_image * (factor * scale))",
        "to_image = (to_image * factor)",
    ),
    Planted(
        "scale gradient halved",
        CLIP,
        "factor * (rows.gap.sum() + columns.gap.sum())",
        "factor * rows.gap.sum()",
    ),
    Planted(
        "mean over pairs left out", SIGLIP, "factor = upstream / len(image)", "factor = upstream"
    ),
]

ACROSS = [
    Planted("columns of another rank", RANKS, "return self.rank * local_rows", "return 0"),
    Planted(
        "upstream of another rank", CLIP, "weights[world.rank], weights", "weights[0], weights"
    ),
    Planted(
        "own upstream for all",
        CLIP,
        "weights.repeat_interleave(pairs)",
        "weights[world.rank].expand(len(weights) * pairs)",
    ),
    Planted(
        "column term missing",
        CLIP,
        "column_side = (column_top, column_inverse, weights)",
        "column_side = None",
    ),
    Planted("own upstream, not the mean", CLIP, "return everyone.mean()", "return upstream"),
    Planted(
        "global loss not reduced",
        CLIP,
        "            dist.all_reduce(sums, group=world.group)\n",
        "",
    ),
    Planted(
        "divided by own rows only", CLIP, "pairs if across.local_loss else", "pairs if True else"
    ),
    Planted(
        "two-sided where one-sided",
        CLIP,
        "return self.local_loss and not self.gather_with_grad",
        "return False",
    ),
    Planted("texts sent back the wrong way", RANKS, "tuple(-shift for", "tuple(shift for"),
    Planted("gradient kept on own rank", RANKS, 'gradient_to == "every rank")\n', "False)\n"),
    Planted("own texts as negatives", SIGLIP, "world.first_row(len(image_features))", "None"),
]


def cases(rank: int, world_size: int) -> list[Case]:
    """float64, where nothing but an error can exceed the limits; two chunks of rows."""
    who = {"rank": rank, "world_size": world_size}
    kind = {"rows": 9, "width": 8, "dtype": torch.float64, "bias": -1.0, "scale": 9.0}
    found = [
        Case("ClipLoss", {"local_loss": local, "gather_with_grad": grad, **who}, **kind)
        for local in (False, True)
        for grad in (False, True)
    ]
    found += [
        Case("SigLipLoss", {"dist_impl": way, **who}, **kind)
        for way in ("bidir", "shift", "reduce", "gather")
    ]
    # logits whose exponential overflows
    return [*found, Case("ClipLoss", who, **{**kind, "scale": 1e4})]


def failures_of(kernels, seed: int, rank: int = 0, world_size: int = 1) -> list[str]:
    reference = load_reference()
    original = kernels.loss.chunked._CHUNK_BYTES_CPU
    kernels.loss.chunked._CHUNK_BYTES_CPU = 4 * 9 * 5  # five rows or columns of nine
    try:
        return [
            line
            for case in cases(rank, world_size)
            for line in failures(case, compare(case, kernels, reference, seed, rank, world_size))
        ]
    finally:
        kernels.loss.chunked._CHUNK_BYTES_CPU = original


@pytest.fixture
def seed():
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    return seed


@pytest.mark.parametrize("error", ALONE, ids=[error.name for error in ALONE])
def test_an_error_planted_in_one_process_is_seen(error, seed, tmp_path):
    assert not failures_of(fastclip_kernels, seed)
    assert failures_of(plant(error, tmp_path), seed)


def failures_on_ranks(rank: int, world_size: int, folder: str, seed: int) -> dict[str, int]:
    found = {"nothing planted": len(failures_of(fastclip_kernels, seed, rank, world_size))}
    for error in ACROSS:
        kernels = plant(error, Path(folder, str(rank)))
        found[error.name] = len(failures_of(kernels, seed, rank, world_size))
    return found


@pytest.fixture(scope="module")
def on_three_ranks(tmp_path_factory):
    """Failures of each error, summed over ranks; two ranks cannot tell left from right."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    folder = str(tmp_path_factory.mktemp("mutants"))
    results = run_ranks(failures_on_ranks, 3, (folder, seed))
    return {name: sum(result[name] for result in results) for name in results[0]}


@pytest.mark.slow  # a launch of three ranks with a dozen packages each
@pytest.mark.parametrize("name", [error.name for error in ACROSS])
def test_an_error_planted_across_ranks_is_seen(on_three_ranks, name):
    assert on_three_ranks["nothing planted"] == 0
    assert on_three_ranks[name] > 0
