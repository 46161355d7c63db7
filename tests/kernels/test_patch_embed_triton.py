"""The patch embedding's Triton kernels, run by Triton's interpreter in a process of its own: whether a
kernel is interpreted is decided when its module is imported.

The interpreter's time goes with the number of tiles, and with their size, filled or not: most cases run with
tiles of few patches, of which even these small pictures need several, and of many columns and bytes.
"""

from __future__ import annotations

import importlib
import math
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import fastclip_kernels
from tests.distributed.launch import run_ranks
from tests.kernels.mutants import Planted, plant
from tests.kernels.patch_cases import PatchCase, compare, failures, patches_and_widths, ratios

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
KERNELS, FORM = (f"patch_embed/{name}.py" for name in ("triton_kernels", "triton_form"))

# Bytes of a patch that fill no block (12, 147), one block of 64 (192); widths that no block divides.
ODD = [
    PatchCase(2, 130, FP32, grid=(3, 4), batch=3, bias=True, spare=1, hard=True),
    PatchCase(7, 1, FP32, grid=(4, 4), batch=3),
    PatchCase(8, 40, FP16, grid=(4, 3), batch=3, kept=7, layout="cut out"),
    PatchCase(8, 17, FP16, grid=(4, 3), batch=3, kept=1, layout="planes"),
    PatchCase(8, 16, FP16, grid=(2, 3), batch=3, layout="cut out", spare=3),
    PatchCase(7, 33, FP32, autocast=BF16, grid=(2, 2), kept=2, layout="columns"),
]

NEXT_TOKEN, SAME_TOKEN = "(row + picture + 1).to(tl.int64) * D", "(row + picture).to(tl.int64) * D"
PADDED = "F.pad(weight, (0, -weight.shape[1] % tile.block_k)"
PLANTED = [
    Planted("bytes not centred", KERNELS, "bitcast=True) - centre", "bitcast=True) - 8388608.0"),
    Planted(
        "lines of another picture", KERNELS, "picture.to(tl.int64) * picture_stride",
        "picture.to(tl.int64) * 0",
    ),
    Planted("columns for rows", KERNELS, "down = patch // columns", "down = patch % columns"),
    Planted("kept ignored", KERNELS, "patch = tl.load(kept + row).to(tl.int32)", "patch = patch"),
    Planted("class token overwritten", KERNELS, f"{NEXT_TOKEN}  #", f"{SAME_TOKEN}  #"),
    Planted("gradient of the token before", KERNELS, f"{NEXT_TOKEN}\n", f"{SAME_TOKEN}\n"),
    Planted("positions left out", KERNELS, " + added", ""),
    Planted(
        "last rows unmasked", KERNELS, "(d < D)[:, None] & inside[None, :]",
        "(d < D)[:, None] & (row >= 0)[None, :]",
    ),
    Planted("last slice only", FORM, "return sums.sum(0)", "return sums[-1]"),
    Planted("no zeros beyond a patch", FORM, f"{PADDED})", f"{PADDED}, value=1.0)"),
]  # fmt: skip


def models(dtype: torch.dtype) -> list[PatchCase]:
    """Each (patch, width) once, every other one with patches left out."""
    return [
        PatchCase(patch, width, dtype, kept=(None, 4)[i % 2], bias=i % 3 == 0)
        for i, (patch, width) in enumerate(patches_and_widths())
    ]


def narrowest() -> list[PatchCase]:
    """Of each patch size, with the tiles of the table."""
    smallest = {patch: width for patch, width in reversed(patches_and_widths())}
    return [PatchCase(*size, FP16, batch=3) for size in smallest.items()]


FAST = [
    *models(FP16),
    *(c for c in models(FP32) if c.width <= 384 or (c.patch, c.width) == (14, 1024)),
]
SLOW = [
    *models(FP32),
    *models(BF16),
    *(replace(case, grid=(4, 3), batch=3) for case in models(FP16)),
    PatchCase(32, 768, FP16, grid=(7, 7), batch=3),  # ViT-B-32's, more patches than one tile has
    # ViT-L-14's, half of them left out
    PatchCase(14, 1024, FP16, grid=(16, 16), batch=1, kept=128),
]


@contextmanager
def flat_tiles(form: ModuleType) -> Iterator[None]:
    """Of 16 patches, 256 columns and 128 or 256 bytes."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("forward_tile", "backward_tile"):
            choose = getattr(form, name)
            patch.setattr(form, name, _flat(choose))
        yield


def _flat(choose: Callable[..., Any]) -> Callable[..., Any]:
    def flat(*arguments: Any) -> Any:
        tile = choose(*arguments)
        return tile._replace(block_m=16, block_d=256, block_k=max(128, 2 * tile.block_k))

    return flat


def errors_of(
    package: Any, cases: list[PatchCase], seed: int, flat: bool = True
) -> dict[str, tuple[list[str], list[float]]]:
    """By case: the bars that are missed, and our errors over the reference's."""
    form = importlib.import_module(f"{package.__name__}.patch_embed.triton_form")
    found = {}
    for case in cases:
        if flat:
            with flat_tiles(form):
                compared = compare(case, in_triton(package), seed)
        else:
            compared = compare(case, in_triton(package), seed)
        found[str(case)] = failures(case, compared), list(ratios(compared))
    return found


def in_triton(package: Any) -> Callable[..., torch.Tensor]:
    return lambda *arguments, **options: package.patch_embed(
        *arguments, backend="triton", **options
    )


def interpreted(rank: int, world_size: int, seed: int, folder: str) -> dict[str, Any]:
    found = errors_of(fastclip_kernels, [*FAST, *ODD], seed)
    found |= errors_of(fastclip_kernels, narrowest(), seed, flat=False)
    for error in PLANTED:
        missed = errors_of(plant(error, Path(folder)), ODD[:3], seed)
        found[error.name] = [line for lines, _ in missed.values() for line in lines]
    return found


def interpreted_at_length(rank: int, world_size: int, seed: int) -> dict[str, Any]:
    full = SLOW[-2:]
    return errors_of(fastclip_kernels, SLOW[:-2], seed) | errors_of(
        fastclip_kernels, full, seed, flat=False
    )


@pytest.fixture(scope="module")
def seed():
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    return seed


@pytest.fixture(scope="module")
def found(seed, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("mutants"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        return run_ranks(interpreted, 1, (seed, folder), timeout=600)[0]


@pytest.mark.parametrize("name", [str(case) for case in (*FAST, *ODD, *narrowest())])
def test_as_exact_as_the_reference(found, name):
    assert not found[name][0]


def test_more_exact_than_the_reference_on_average(found):
    for dtype in (FP16, FP32):
        of_all = [r for case in FAST if case.dtype == dtype for r in found[str(case)][1]]
        mean = math.exp(sum(map(math.log, of_all)) / len(of_all))
        print(f"{dtype}: geometric mean of error / reference's error {mean:.2f}")
        assert mean <= 1


@pytest.mark.parametrize("name", [error.name for error in PLANTED])
def test_planted_errors_are_seen(found, name):
    assert found[name]


@pytest.mark.slow  # every dtype of every model, and two full-size towers, in the interpreter
def test_every_model_in_every_dtype_and_full_size(seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        at_length = run_ranks(interpreted_at_length, 1, (seed,), timeout=1800)[0]
    assert [line for lines, _ in at_length.values() for line in lines] == []
