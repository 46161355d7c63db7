"""The Triton kernels, run by Triton's interpreter on CPU tensors, in a process of its own: whether a
kernel is interpreted is decided when its module is imported.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pytest
import torch

import fastclip_kernels
from tests.distributed.launch import run_ranks
from tests.kernels.mutants import Planted, plant
from tests.kernels.parity import Case, compare, failures, load_reference

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
LOSSES = ("ClipLoss", "SigLipLoss")
# one pair; below a tile of 128 x 64, on its edge, one past it; primes; widths that no block divides
SHAPES = [(1, 1), (2, 7), (64, 64), (65, 80), (129, 7), (131, 333)]
KERNELS = "loss/triton_kernels.py"

PLANTED = [
    Planted("sign", KERNELS, "slope = tl.where(is_pair, -slope, slope)", "slope = -slope"),
    Planted("missing column half", KERNELS, "* factor[None, :]", "* 0.0 * factor[None, :]"),
    Planted("bias dropped", KERNELS, " + tl.load(bias)", ""),
    Planted("maximum not subtracted", KERNELS, "tl.exp2(exponent - top[:, None])", "tl.exp2(exponent)"),
    Planted("last tile unmasked", KERNELS, " + tl.where(column < K, 0.0, NONE)[None, :]", ""),
    Planted(
        "last tile of sigmoids unmasked",
        KERNELS,
        "tl.where(inside, tl.where(is_pair, -z, z), NONE)",
        "tl.where(is_pair, -z, z)",
    ),
    Planted(
        "pairs of another rank",
        KERNELS,
        "is_pair = row[:, None] + first == column[None, :]\n        pair = ",
        "is_pair = row[:, None] == column[None, :]\n        pair = ",
    ),
    Planted(
        "moment of products", KERNELS, "        moment = tl.sum(weight * exponent, 1)",
        "        moment = tl.sum(weight * x, 1)",
    ),
]  # fmt: skip


def cases() -> list[Case]:
    triton = {"backend": "triton"}
    found = [
        Case(loss, {}, triton, rows=rows, width=width, bias=-3.0, dtype=dtype)
        for loss in LOSSES
        for dtype in (FP32, FP16, BF16)
        for rows, width in SHAPES
        # a few half-precision products that cancel say nothing of exactness
        if dtype == FP32 or rows > 2
    ]
    found += [
        Case(loss, {}, triton, rows=70, width=24, rows_are=kind, scale=scale, bias=-2.0)
        for loss in LOSSES
        for kind, scale in [
            ("all equal", 14.3), ("opposite", 100.0), ("matched", 100.0), ("orthogonal", 100.0),
            ("norm 100", 14.3), ("one huge row", 14.3), ("duplicates", 14.3), ("wrong pairs", 100.0),
        ]
    ]  # fmt: skip
    found.append(Case("ClipLoss", {}, triton, rows=67, width=40, autocast=FP16, scale=100.0))
    return found


def across_ranks(rank: int, world_size: int) -> list[Case]:
    who = {"rank": rank, "world_size": world_size}
    return [
        Case(
            "ClipLoss",
            {"local_loss": True, "gather_with_grad": True, **who},
            {"backend": "triton", "exchange": exchange},
            rows=67,
            width=40,
        )
        for exchange in ("gather", "ring")
    ] + [
        Case("ClipLoss", who, {"backend": "triton"}, rows=67, width=40),
        Case("SigLipLoss", who, {"backend": "triton"}, rows=67, width=40, bias=-2.0),
    ]


def failures_in(kernels: Any, cases: list[Case], seed: int, rank: int = 0, size: int = 1) -> Any:
    reference = load_reference()
    return {
        str(case): failures(case, compare(case, kernels, reference, seed, rank, size))
        for case in cases
    }


def alone(rank: int, world_size: int, seed: int) -> dict[str, list[str]]:
    return failures_in(fastclip_kernels, cases(), seed)


def together(rank: int, world_size: int, seed: int, folder: str) -> dict[str, Any]:
    """Failures across ranks, of the right package and of each with an error in it."""
    chosen = across_ranks(rank, world_size)
    found = {"nothing": failures_in(fastclip_kernels, chosen, seed, rank, world_size)}
    for error in PLANTED:
        kernels = plant(error, Path(folder, str(rank)))
        # the scale of 1e4 overflows where no maximum is subtracted
        hard = [*chosen, Case(**{**vars(chosen[0]), "scale": 1e4})]
        found[error.name] = failures_in(kernels, hard, seed, rank, world_size)
    return found


@pytest.fixture(scope="module")
def seed():
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    return seed


@pytest.fixture(scope="module")
def interpreter():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        yield


@pytest.fixture(scope="module")
def on_one_rank(interpreter, seed):
    return run_ranks(alone, 1, (seed,), timeout=600)[0]


@pytest.fixture(scope="module")
def on_two_ranks(interpreter, seed, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("mutants"))
    return run_ranks(together, 2, (seed, folder), timeout=900)


@pytest.mark.parametrize("name", [str(case) for case in cases()])
def test_kernels_have_the_references_loss_and_gradients(on_one_rank, name):
    assert not on_one_rank[name]


@pytest.mark.slow  # eight packages with an error each
def test_kernels_across_ranks(on_two_ranks):
    for found in on_two_ranks:
        assert not any(found["nothing"].values()), found["nothing"]


@pytest.mark.slow
@pytest.mark.parametrize("error", PLANTED, ids=lambda error: error.name)
def test_an_error_planted_in_a_kernel_is_seen(on_two_ranks, error):
    assert any(lines for found in on_two_ranks for lines in found[error.name].values())


def large(rank: int, world_size: int, seed: int) -> dict[str, list[str]]:
    many = [Case(loss, {}, {"backend": "triton"}, rows=1025, width=64) for loss in LOSSES]
    return failures_in(fastclip_kernels, many, seed)


@pytest.mark.slow  # a minute
def test_many_tiles(interpreter, seed):
    assert not any(run_ranks(large, 1, (seed,), timeout=900)[0].values())
