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

SWEEPS, CHUNKS, SMALL = "loss/sweeps.py", "loss/torch_chunks.py", "loss/small.py"
ALONE, ACROSS, OP = "loss/clip_alone.py", "loss/clip_ranks.py", "loss/op.py"
SIGLIP, RANKS = "loss/siglip.py", "loss/distributed.py"

IN_ONE_PROCESS = [
    Planted("sign of the pair", SWEEPS, "pairs = -softmax.missed", "pairs = softmax.missed"),
    Planted(
        "sign of a positive", CHUNKS, "            u.diagonal(first).neg_()\n", "            pass\n"
    ),
    Planted(
        "sign of a positive's slope",
        CHUNKS,
        "            slope.diagonal(first).neg_()\n",
        "            pass\n",
    ),
    Planted("missing column half", CHUNKS, ".mul_(factor).add_(other)", ".mul_(factor)"),
    Planted(
        "missing text gradient",
        SWEEPS,
        "chunks.accumulate(to_text[j], c.T, image[i])",
        "to_text[j]",
    ),
    Planted("bias dropped", CHUNKS, ".add_(bias * LOG2_E)", ""),
    Planted(
        "maximum not subtracted",
        CHUNKS,
        "torch.sub(u, top.unsqueeze(1), out",
        "torch.sub(u, 0 * top.unsqueeze(1), out",
    ),
    Planted(
        "earlier chunks forgotten",
        SWEEPS,
        "Sums(top, a.rest * of_a + b.rest * of_b, moment)",
        "Sums(top, b.rest * of_b, moment)",
    ),
    Planted(
        "pair misplaced in later chunks",
        SWEEPS,
        "                i.start - j.start,\n",
        "                0,\n",
    ),
    Planted("a pair's own logit twice", CHUNKS, "        c.diagonal(first).zero_()\n", ""),
    Planted("k-fold gradient", ALONE, "upstream / (2 * len(image))", "upstream / len(image)"),
    Planted("scale left out", ALONE, "factor = factor * scale", "factor = factor * 1"),
    Planted(
        "scale gradient halved", ALONE, "factor * inner_product", "0.5 * factor * inner_product"
    ),
    Planted(
        "mean over pairs left out",
        OP,
        "share = upstream / len(image)",
        "share = upstream",
    ),
]

# only where chunks are large enough for one exponential to serve rows and columns
OF_SHARED_EXPONENTIALS = [
    Planted(
        "missing column half, shared", CHUNKS, "column_part = torch", "column_part = 0 * torch"
    ),
    Planted(
        "row's own shift forgotten",
        CHUNKS,
        "mul_(torch.exp2(top - shift)",
        "mul_(torch.exp2(0 * top)",
    ),
]

OF_FEW_PAIRS = [
    Planted("few: sign of the pair", SMALL, "pairs = -softmax", "pairs = softmax"),
    Planted("few: missing column half", SMALL, "weight[0].add_(weight[1].T)", "weight[0]"),
    Planted("few: bias dropped", SMALL, "(x * scale).add_(bias)", "(x * scale)"),
    Planted("few: maximum not subtracted", SMALL, "both.sub_(top)", "both.sub_(0 * top)"),
]

BETWEEN_RANKS = [
    Planted("columns of another rank", RANKS, "return self.rank * local_rows", "return 0"),
    Planted("upstream of another rank", ACROSS, "relative[world.rank]", "relative[0]"),
    Planted(
        "own upstream for all",
        ACROSS,
        "weights = relative.unsqueeze(1).expand(-1, pairs).flatten()",
        "weights = relative[world.rank].expand(len(relative) * pairs)",
    ),
    Planted(
        "column term missing",
        ACROSS,
        "other = None if others is None else",
        "other = None if True else",
    ),
    Planted("own upstream, not the mean", ACROSS, "upstreams.mean()", "upstream"),
    Planted(
        "global loss not reduced", ACROSS, "dist.all_reduce(totals, group=world.group)", "pass"
    ),
    Planted("divided by own rows only", ACROSS, "pairs *= world.size", "pairs *= 1"),
    Planted(
        "two-sided where one-sided",
        ACROSS,
        "return self.local_loss and not self.gather_with_grad",
        "return False",
    ),
    Planted("ring's blocks of another rank", RANKS, "(world.rank - step)", "(world.rank + step)"),
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
    found.append(Case("ClipLoss", found[-1].options, {"exchange": "ring"}, **kind))
    found += [
        Case("SigLipLoss", {"dist_impl": way, **who}, **kind)
        for way in ("bidir", "shift", "reduce", "gather")
    ]
    # logits whose exponential overflows
    return [*found, Case("ClipLoss", who, **{**kind, "scale": 1e4})]


def failures_of(kernels, seed: int, rank: int = 0, world_size: int = 1) -> list[str]:
    reference = load_reference()
    original = kernels.loss.torch_chunks.CHUNK_BYTES_CPU, kernels.loss.small.MOST_LOGITS
    kernels.loss.torch_chunks.CHUNK_BYTES_CPU = 4 * 9 * 5  # six rows by seven columns of nine
    kernels.loss.small.MOST_LOGITS = 0  # sweeps even for so few
    try:
        return [
            line
            for case in cases(rank, world_size)
            for line in failures(case, compare(case, kernels, reference, seed, rank, world_size))
        ]
    finally:
        kernels.loss.torch_chunks.CHUNK_BYTES_CPU, kernels.loss.small.MOST_LOGITS = original


@pytest.fixture
def seed():
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    return seed


@pytest.mark.parametrize("error", IN_ONE_PROCESS, ids=lambda error: error.name)
def test_an_error_planted_in_one_process_is_seen(error, seed, tmp_path):
    assert not failures_of(fastclip_kernels, seed)
    assert failures_of(plant(error, tmp_path), seed)


@pytest.mark.parametrize("error", OF_SHARED_EXPONENTIALS, ids=lambda error: error.name)
def test_an_error_planted_in_a_shared_exponential_is_seen(error, seed, tmp_path):
    def found(kernels) -> list[str]:
        kernels.loss.small.MOST_LOGITS = 0
        case = Case("ClipLoss", rows=300, width=8, dtype=torch.float64, scale=9.0)
        return failures(case, compare(case, kernels, load_reference(), seed))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fastclip_kernels.loss.small, "MOST_LOGITS", 0)  # set back afterwards
        assert not found(fastclip_kernels)
    assert found(plant(error, tmp_path))


@pytest.mark.parametrize("error", OF_FEW_PAIRS, ids=lambda error: error.name)
def test_an_error_planted_in_the_form_for_few_pairs_is_seen(error, seed, tmp_path):
    def found(kernels) -> list[str]:
        return [
            line
            for case in cases(0, 1)
            for line in failures(case, compare(case, kernels, load_reference(), seed))
        ]

    assert not found(fastclip_kernels)
    assert found(plant(error, tmp_path))


def failures_on_ranks(rank: int, world_size: int, folder: str, seed: int) -> dict[str, int]:
    found = {"nothing planted": len(failures_of(fastclip_kernels, seed, rank, world_size))}
    for error in BETWEEN_RANKS:
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
@pytest.mark.parametrize("name", [error.name for error in BETWEEN_RANKS])
def test_an_error_planted_across_ranks_is_seen(on_three_ranks, name):
    assert on_three_ranks["nothing planted"] == 0
    assert on_three_ranks[name] > 0
